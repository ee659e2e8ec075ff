"""The cases of the benchmark, by name: each in a file of its own."""

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
    """The class of a case; its module is imported only now."""
    module, _, own = CASES[name].partition(":")
    found: type[Case] = getattr(import_module(f"benchmarks.cases.{module}"), own)
    return found
