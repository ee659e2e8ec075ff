"""A finished run: its config, and the network with its weights."""

from __future__ import annotations

import ast
import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from grounding.systems.registry import build_model, get_system
from pipeline import config as configuration
from pipeline import sampling
from pipeline.errors import InputError
from pipeline.weights.load import load_strict

CONFIG_FILE = "config.yaml"


TRAINING_CODE_FOLDERS = (
    "structures",
    "modules",
    "models",
    "losses",
    "data",
    "metrics",
    "systems",
    "inference",
    "training",
)
"""Folders of `grounding` that affect training. The report, sweeps and drawing do not."""
ENCODER_CODE_FOLDERS = ("encoders", "features")
"""Folders of `pipeline` that affect training where encoders are trained."""


def compute_code_digest(include_encoders: bool = False) -> str:
    """Return the SHA-256 of the source code that affects training.

    A run started by different code is never resumed silently. Comments, docstrings and formatting do not count.

    Args:
        encoders: Include the encoders' code, because the run trains them.
    """
    grounding, pipeline = Path(__file__).parents[1], Path(sampling.__file__).parent
    folders = [grounding / name for name in TRAINING_CODE_FOLDERS]
    if include_encoders:
        folders += [pipeline / name for name in ENCODER_CODE_FOLDERS]
    files = [path for folder in folders for path in sorted(folder.rglob("*.py"))]
    digest = hashlib.sha256()
    for path in (*files, pipeline / "boxes.py", pipeline / "sampling.py"):
        digest.update(_dump_syntax_tree(path.read_text(encoding="utf-8")).encode())
    return digest.hexdigest()


def _dump_syntax_tree(source: str) -> str:
    """Return the syntax tree of a source file as text, without comments and without strings that stand alone (docstrings)."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [  # type: ignore[attr-defined]
                statement
                for statement in body
                if not (
                    isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
                )
            ]
    return ast.dump(tree)


def read_provenance(run: Path) -> dict[str, Any]:
    """What a run was made from."""
    try:
        return json.loads((run / "provenance.json").read_text(encoding="utf-8"))
    except OSError:
        raise InputError(
            f"{run} is not a run directory (no provenance.json): train one with stvg-train --run {run}"
        ) from None
    except ValueError:
        raise InputError(f"{run / 'provenance.json'} is damaged: train the run again") from None


def load_model(run: Path, checkpoint: str = "best") -> tuple[nn.Module, Any, dict[str, Any]]:
    """The EMA weights of a run's `best` checkpoint (`last` where none was validated), in eval mode, on the CPU; with the
    run's config and provenance.
    """
    about = read_provenance(run)
    system = get_system(about["model"])
    config = configuration.load(system.config_class, "train", run / CONFIG_FILE, [])
    names = (
        checkpoint,
        f".{checkpoint}.old",
        "last",
        ".last.old",
    )  # `.old`: killed while the checkpoint was being replaced
    folder = next(
        (run / "checkpoints" / name for name in names if (run / "checkpoints" / name).exists()),
        None,
    )
    if folder is None:
        raise InputError(f"{run} has no checkpoint yet: let stvg-train write one")
    model = build_model(config, about)
    try:
        state = load_file(folder / "model.safetensors")
    except (OSError, SafetensorError):
        raise InputError(
            f"{folder / 'model.safetensors'} is damaged: train the run again"
        ) from None
    load_strict(model, state, f"weights in {folder}")
    return model.eval(), config, about
