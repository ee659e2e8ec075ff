"""Spatio-temporal video grounding: models, training, evaluation and prediction.

The public names below are imported on first use, so that `import grounding` stays light.

    from grounding import Grounder

    result = Grounder("runs/shapes").ground("video.mp4", "the red circle spins.")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from grounding.data.dataset import GroundingDataset as GroundingDataset
    from grounding.evaluation.evaluate import evaluate as evaluate
    from grounding.predictor.grounder import Grounder as Grounder
    from grounding.systems.checkpoint import load_model as load_model
    from grounding.systems.registry import SYSTEMS as SYSTEMS
    from grounding.training.train import train as train

_MODULES = {
    "Grounder": "grounding.predictor.grounder",
    "GroundingDataset": "grounding.data.dataset",
    "SYSTEMS": "grounding.systems.registry",
    "evaluate": "grounding.evaluation.evaluate",
    "load_model": "grounding.systems.checkpoint",
    "train": "grounding.training.train",
}
"""Public name → the module that defines it."""

__all__ = ["Grounder", "GroundingDataset", "SYSTEMS", "evaluate", "load_model", "train"]


def __getattr__(name: str) -> Any:
    """Import a public name, or look up `__version__`, on first use (PEP 562)."""
    if name == "__version__":
        return getattr(import_module("pipeline"), name)
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    """Return the public names, for completion."""
    return sorted([*globals(), *_MODULES, "__version__"])
