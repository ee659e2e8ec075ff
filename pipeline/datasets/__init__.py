"""The data sets by name: each has a parser from its files to queries, boxes and a report of what was wrong."""

from __future__ import annotations

from pipeline.datasets import cvat, hcstvg, jsonl, vidstg
from pipeline.datasets.parsed import (
    DefectLog,
    ParsedDataset,
    Parser,
    ProgressCallback,
    ignore_progress,
)
from pipeline.errors import InputError

PARSERS: dict[str, Parser] = {
    "shapes": vidstg.parse,
    "vidstg": vidstg.parse,
    "hcstvg-v1": hcstvg.parse_v1,
    "hcstvg-v2": hcstvg.parse_v2,
    "jsonl": jsonl.parse,
    "cvat": cvat.parse,
}

__all__ = [
    "PARSERS",
    "DefectLog",
    "ParsedDataset",
    "Parser",
    "ProgressCallback",
    "get_parser",
    "ignore_progress",
]


def get_parser(name: str) -> Parser:
    """The parser of a data set by its name; an InputError lists the names there are."""
    try:
        return PARSERS[name]
    except KeyError:
        raise InputError(
            f"unknown data set {name!r}; the data sets are {', '.join(PARSERS)}"
        ) from None
