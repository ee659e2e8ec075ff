"""A finished run: its config, and the network with its weights."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from grounding.systems import built, system_of
from pipeline import config as configuration
from pipeline import sampling
from pipeline.errors import InputError
from pipeline.weights import load_strictly

CONFIG = "config.yaml"


def code_digest(encoders: bool = False) -> str:
    """SHA-256 over the sources that training runs, those of the encoders too where they train: a run made by other code is
    not taken up silently."""
    digest = hashlib.sha256()
    own, shared = Path(__file__).parent, Path(sampling.__file__).parent
    more = [*sorted((shared / "encoders").rglob("*.py")), shared / "extract.py"] if encoders else []
    for path in (*sorted(own.rglob("*.py")), shared / "boxes.py", shared / "sampling.py", *more):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def read_provenance(run: Path) -> dict[str, Any]:
    """What a run was made from."""
    try:
        return json.loads((run / "provenance.json").read_text(encoding="utf-8"))
    except OSError:
        raise InputError(f"{run} is not a run directory (no provenance.json): train one with stvg-train --run {run}") from None
    except ValueError:
        raise InputError(f"{run / 'provenance.json'} is damaged: train the run again") from None


def load_model(run: Path, which: str = "best") -> tuple[nn.Module, Any, dict[str, Any]]:
    """The EMA weights of a run's `best` checkpoint (`last` where none was validated), in eval mode, on the CPU; with the
    run's config and provenance."""
    about = read_provenance(run)
    system = system_of(about["model"])
    config = configuration.load(system.config, "train", run / CONFIG, [])
    names = (which, f".{which}.old", "last", ".last.old")  # `.old`: killed while the checkpoint was being replaced
    folder = next((run / "checkpoints" / name for name in names if (run / "checkpoints" / name).exists()), None)
    if folder is None:
        raise InputError(f"{run} has no checkpoint yet: let stvg-train write one")
    model = built(config, about)
    try:
        state = load_file(folder / "model.safetensors")
    except (OSError, SafetensorError):
        raise InputError(f"{folder / 'model.safetensors'} is damaged: train the run again") from None
    load_strictly(model, state, f"weights in {folder}")
    return model.eval(), config, about
