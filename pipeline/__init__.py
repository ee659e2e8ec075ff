"""From videos and sentences to the feature store: data sets, decoding, frozen encoders, extraction.

The public names below are imported when they are first used, so that `import pipeline` stays light.

    from pipeline import Store

    reader = Store("store").open("appearance")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.datasets.prepare import prepare as prepare
    from pipeline.extraction.run import run_extraction as run_extraction
    from pipeline.records import Prediction as Prediction
    from pipeline.records import Query as Query
    from pipeline.store import Store as Store
    from pipeline.tracks import Tracks as Tracks

_MODULES = {
    "Prediction": "pipeline.records",
    "Query": "pipeline.records",
    "Store": "pipeline.store",
    "Tracks": "pipeline.tracks",
    "prepare": "pipeline.datasets.prepare",
    "run_extraction": "pipeline.extraction.run",
}
"""Public name → the module that defines it."""

__all__ = ["Prediction", "Query", "Store", "Tracks", "prepare", "run_extraction"]


def __getattr__(name: str) -> Any:
    """Import a public name, or look up `__version__`, on first use (PEP 562)."""
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("stvg")
        except PackageNotFoundError:  # a source tree that was never installed
            return "0+unknown"
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    """Return the public names, for completion."""
    return sorted([*globals(), *_MODULES, "__version__"])
