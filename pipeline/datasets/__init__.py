"""Data sets by name, and the parsers of their files."""

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
"""The parser of each data set by name: the table of all data sets."""

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
    """Return the parser of a data set.

    Args:
        name: Name of the data set, a key of `PARSERS`.

    Returns:
        The parser.

    Raises:
        InputError: There is no data set of this name; the message lists all names.
    """
    try:
        return PARSERS[name]
    except KeyError:
        raise InputError(
            f"unknown data set {name!r}; the data sets are {', '.join(PARSERS)}"
        ) from None
