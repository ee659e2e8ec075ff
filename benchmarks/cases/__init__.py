"""The benchmark cases by name, one per file."""

from __future__ import annotations

from importlib import import_module

from benchmarks.case import Case

CASES = {
    "start": "start:Start",
    "decode": "decode:Decode",
    "memory": "memory:Memory",
    "extraction": "extraction:Extraction",
    "store": "store:StoreRead",
    "store-write": "store_write:StoreWrite",
    "index": "index:Index",
    "loader": "loader:LoaderStep",
    "pictures": "pictures:ImagePassRead",
    "systems": "systems:Systems",
    "end-to-end": "end_to_end:EndToEndStep",
    "prediction": "prediction:PredictionLatency",
    "long-video": "long_video:LongVideo",
    "evaluation": "evaluation:Evaluation",
}


def get_case_class(name: str) -> type[Case]:
    """Return the class of a case, importing its module.

    Args:
        name: Name of the case.

    Returns:
        The class.
    """
    module_name, _, class_name = CASES[name].partition(":")
    module = import_module(f"benchmarks.cases.{module_name}")
    case_class: type[Case] = getattr(module, class_name)
    return case_class
