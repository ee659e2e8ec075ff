"""Reading a run directory: config and model weights; digest of the training code."""

from __future__ import annotations

import ast
import functools
import hashlib
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from grounding.systems.config import TrainConfig
from grounding.systems.provenance import read_provenance
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

    A run started by different code is never resumed silently. Comments, docstrings and formatting
    do not count.

    Args:
        include_encoders: Include the encoders' code, because the run trains them.

    Returns:
        The digest in hexadecimal.
    """
    grounding = Path(__file__).parents[1]
    pipeline = Path(sampling.__file__).parent

    folders = [grounding / name for name in TRAINING_CODE_FOLDERS]
    if include_encoders:
        folders += [pipeline / name for name in ENCODER_CODE_FOLDERS]

    # The order of files is fixed, so that the digest is the same on every machine.
    files: list[Path] = []
    for folder in folders:
        files += sorted(folder.rglob("*.py"))
    files += [pipeline / "boxes.py", pipeline / "sampling.py"]

    digest = hashlib.sha256()
    for path in files:
        source = path.read_text(encoding="utf-8")
        digest.update(_dump_syntax_tree(source).encode())
    return digest.hexdigest()


@functools.cache
def _dump_syntax_tree(source: str) -> str:
    """Return the syntax tree of a source file as text, without comments and docstrings.

    A sweep starts many runs in one process, and parsing all files takes a third of a second.
    """
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        # Lambdas and conditional expressions have a body that is no list of statements.
        if isinstance(body, list):
            statements = [statement for statement in body if not _is_bare_constant(statement)]
            node.body = statements  # type: ignore[attr-defined]
    return ast.dump(tree)


def _is_bare_constant(statement: ast.stmt) -> bool:
    """Return True for a constant that stands alone as a statement, such as a docstring."""
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def load_model(
    run: Path, checkpoint: str = "best"
) -> tuple[nn.Module, TrainConfig, dict[str, Any]]:
    """Load the EMA weights of a run on the CPU.

    Args:
        run: Run directory.
        checkpoint: `best` or `last`. `last` is loaded if the run has never been validated.

    Returns:
        The model in eval mode, the run's config and its provenance.

    Raises:
        InputError: The directory is not a run, has no checkpoint, or a file is damaged.
    """
    provenance = read_provenance(run)
    system = get_system(provenance["model"])
    config = configuration.load(system.config_class, "train", run / CONFIG_FILE, [])

    folder = _find_checkpoint(run, checkpoint)
    model = build_model(config, provenance)
    weights_path = folder / "model.safetensors"
    try:
        state_dict = load_file(weights_path)
    except (OSError, SafetensorError):
        raise InputError(f"{weights_path} is damaged: train the run again") from None
    load_strict(model, state_dict, f"weights in {folder}")
    return model.eval(), config, provenance


def _find_checkpoint(run: Path, checkpoint: str) -> Path:
    """Return the folder of a checkpoint, or of `last` where the run has no such checkpoint."""
    # `.old`: the process was killed while it replaced the checkpoint.
    for name in (checkpoint, f".{checkpoint}.old", "last", ".last.old"):
        folder = run / "checkpoints" / name
        if folder.exists():
            return folder
    raise InputError(f"{run} has no checkpoint yet: let stvg-train write one")
