"""A finished run: its config, and the network with its weights."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from grounding.models.csdvl import Csdvl, CsdvlConfig
from pipeline import config as configuration
from pipeline.errors import InputError
from pipeline.weights import load_strictly

CONFIG = "config.yaml"


def code_digest() -> str:
    """SHA-256 over the sources of `grounding`: a run made by other code is not taken up silently."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def read_provenance(run: Path) -> dict[str, Any]:
    """What a run was made from."""
    try:
        return json.loads((run / "provenance.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{run} is not a run directory (no provenance.json): train one with stvg-train --run {run}") from None


def load_model(run: Path, which: str = "best") -> tuple[Csdvl, CsdvlConfig, dict[str, Any]]:
    """The EMA weights of a run's `best` checkpoint (`last` where none was validated), in eval mode, on the CPU."""
    about = read_provenance(run)
    config = configuration.validate(CsdvlConfig, configuration.read_section(run / CONFIG, "train")["model"], f"{run / CONFIG}")
    folder = next((run / "checkpoints" / name for name in (which, "last", ".last.old") if (run / "checkpoints" / name).exists()), None)
    if folder is None:
        raise InputError(f"{run} has no checkpoint yet: let stvg-train write one")
    model = Csdvl(tuple(about["dims"]), config)
    load_strictly(model, load_file(folder / "model.safetensors"), f"weights in {folder}")
    return model.eval(), config, about
