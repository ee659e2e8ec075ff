"""JSON lines files of records."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from pipeline.errors import InputError
from pipeline.io.atomic import atomic_write
from pipeline.io.strict_json import RepeatedKeyError, parse_json, read_lines
from pipeline.validation import StrictModel, format_first_error

RecordT = TypeVar("RecordT", bound=StrictModel)


KEY_PATTERN = re.compile(rb'"\s*:')
"""Found at least once for every key of an object."""


def read_jsonl(path: Path, record_type: type[RecordT]) -> Iterator[RecordT]:
    """Yield one validated record per line; a bad line is an InputError that names file and line."""
    for number, line in read_lines(path):
        try:
            record = record_type.model_validate_json(line)
            if len(KEY_PATTERN.findall(line)) != _count_keys(
                record
            ):  # pydantic takes the last of two equal keys without a word
                parse_json(line)
        except ValidationError as error:
            raise InputError(f"{path}, line {number}: {format_first_error(error)}") from None
        except RepeatedKeyError as error:
            raise InputError(f"{path}, line {number}: {error}") from None
        yield record


def _count_keys(record: StrictModel) -> int:
    """How many keys a record was read from, those of records in it included."""
    values = (getattr(record, name) for name in record.model_fields_set)
    return len(record.model_fields_set) + sum(
        _count_keys(value) for value in values if isinstance(value, StrictModel)
    )


def write_jsonl(path: Path, records: Iterable[StrictModel]) -> None:
    """Write one record per line, atomically: the old file stays until the new one is whole."""
    with atomic_write(path) as aside, aside.open("w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(record.model_dump(mode="json"), ensure_ascii=False) + "\n")


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON, atomically."""
    with atomic_write(path) as aside, aside.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=1, ensure_ascii=False, allow_nan=False)
        file.write("\n")
