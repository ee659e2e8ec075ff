"""JSON and JSON-lines files of records."""

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
"""Matches at least once for every key of a JSON object."""


def read_jsonl(path: Path, record_type: type[RecordT]) -> Iterator[RecordT]:
    """Read and validate the records of a JSON-lines file.

    Args:
        path: The file, one JSON object per line.
        record_type: Class of the records.

    Yields:
        One record per line that is not blank.

    Raises:
        InputError: The file is missing or unreadable, or a line is invalid. The message names
            the file and the line.
    """
    for line_number, line in read_lines(path):
        try:
            record = record_type.model_validate_json(line)

            # pydantic silently takes the last of two equal keys. A line with more keys than its
            # record is parsed again, strictly; the count avoids this cost for all other lines.
            if len(KEY_PATTERN.findall(line)) != _count_keys(record):
                parse_json(line)
        except ValidationError as error:
            raise InputError(f"{path}, line {line_number}: {format_first_error(error)}") from None
        except RepeatedKeyError as error:
            raise InputError(f"{path}, line {line_number}: {error}") from None
        yield record


def _count_keys(record: StrictModel) -> int:
    """Count the JSON keys that a record was read from, nested records included."""
    count = len(record.model_fields_set)
    for name in record.model_fields_set:
        value = getattr(record, name)
        if isinstance(value, StrictModel):
            count += _count_keys(value)
    return count


def write_jsonl(path: Path, records: Iterable[StrictModel]) -> None:
    """Write records as JSON lines, atomically.

    Args:
        path: The file to write. An existing file stays until the new one is complete.
        records: The records, one per line.

    Raises:
        InputError: The file cannot be written.
    """
    with atomic_write(path) as temporary_path, temporary_path.open("w", encoding="utf-8") as file:
        for record in records:
            document = record.model_dump(mode="json")
            file.write(json.dumps(document, ensure_ascii=False) + "\n")


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically.

    Args:
        path: The file to write. An existing file stays until the new one is complete.
        value: Any JSON value with finite numbers.

    Raises:
        InputError: The file cannot be written.
    """
    with atomic_write(path) as temporary_path, temporary_path.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=1, ensure_ascii=False, allow_nan=False)
        file.write("\n")
