"""Strict reading of JSON files written by others.

Files and lines have a maximum size, and an object must not repeat a key. A byte order mark is
skipped. Every error is an InputError that names the file and the position.
"""

from __future__ import annotations

import json
import re
import reprlib
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.errors import InputError

MAX_FILE_BYTES = 512 * 2**20
"""Bytes of the largest JSON file that is read.

The largest real file, the training boxes of HC-STVG v2, has about 100 MB.
"""
MAX_LINE_BYTES = 64 * 2**20
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_KEY_OR_BRACE = re.compile(r'("(?:[^"\\]|\\.)*")(\s*:)?|[{}]')
"""A string (group 1), followed by a colon if it is a key (group 2); or a brace."""


class RepeatedKeyError(ValueError):
    """A key that an object contains twice, so that its value is ambiguous."""


def _build_unique_dict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build the dict of an object; RepeatedKeyError if two pairs have one key."""
    result = dict(pairs)
    if len(result) == len(pairs):
        return result

    visited: set[str] = set()
    for key, _ in pairs:
        if key in visited:
            raise RepeatedKeyError(f"the key {reprlib.repr(key)} stands twice in one object")
        visited.add(key)
    raise AssertionError("no key is repeated")


_decoder = json.JSONDecoder(object_pairs_hook=_build_unique_dict)


def parse_json(text: bytes) -> Any:
    """Parse JSON strictly.

    Args:
        text: UTF-8 text, with or without a byte order mark.

    Returns:
        The value.

    Raises:
        ValueError: The text is not JSON (`json.JSONDecodeError`), not UTF-8
            (`UnicodeDecodeError`), or repeats a key (`RepeatedKeyError`).
        RecursionError: The text is nested too deeply.
    """
    return _decoder.decode(text.decode("utf-8-sig"))


def read_json(path: Path, remedy: str = "download it again") -> Any:
    """Read a JSON file strictly.

    Args:
        path: The file.
        remedy: The last part of error messages: the next step of the user.

    Returns:
        The value in the file.

    Raises:
        InputError: The file is missing, unreadable, too large, or not strict JSON. The message
            names the file, the position of the first fault and the remedy.
    """
    content = _read_bounded(path, remedy)
    try:
        return parse_json(content)
    except json.JSONDecodeError as error:
        position = f"{path}, line {error.lineno}, column {error.colno}"
        problem = f"not JSON ({error.msg})"
    except UnicodeDecodeError as error:
        position = f"{path}, byte {error.start}"
        problem = "not UTF-8 text"
    except RepeatedKeyError as error:
        position = f"{path}, {_locate_repeated_key(content.decode('utf-8-sig'))}"
        problem = str(error)
    except RecursionError:
        position = str(path)
        problem = "JSON nested too deeply"
    except ValueError:
        position = str(path)
        problem = "not JSON (a number of thousands of digits)"
    raise InputError(f"{position}: {problem}; {remedy}")


def _read_bounded(path: Path, remedy: str) -> bytes:
    """Read the bytes of a regular file of at most MAX_FILE_BYTES."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{path} is not a file")
        if status.st_size > MAX_FILE_BYTES:
            raise InputError(
                f"{path} has {status.st_size} bytes, more than the {MAX_FILE_BYTES} that are "
                f"read; {remedy}"
            )
        return path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from None


def _locate_repeated_key(text: str) -> str:
    """Return line and column of the first key that its object already contains."""
    open_objects: list[set[str]] = []  # the keys of each open object, the innermost one last
    for match in _KEY_OR_BRACE.finditer(text):
        if match[0] == "{":
            open_objects.append(set())
        elif match[0] == "}":
            open_objects.pop()
        elif match[2]:
            key = json.loads(match[1])
            if key in open_objects[-1]:
                begin = match.start()
                line = text.count("\n", 0, begin) + 1
                column = begin - text.rfind("\n", 0, begin)
                return f"line {line}, column {column}"
            open_objects[-1].add(key)
    raise AssertionError("no key is repeated")


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Read the lines of a file that are not blank.

    Args:
        path: The file. A byte order mark is removed.

    Yields:
        Line number, from 1, and the line's bytes.

    Raises:
        InputError: The file is missing or unreadable, or a line has more than MAX_LINE_BYTES
            bytes. Such a line is not read completely.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None

    with file:
        line_number = 0
        while line := file.readline(MAX_LINE_BYTES + 1):
            line_number += 1
            if len(line) > MAX_LINE_BYTES:
                raise InputError(
                    f"{path}, line {line_number} is longer than {MAX_LINE_BYTES} bytes: it is "
                    "not a line of records; write the file again"
                )

            if line_number == 1:
                line = line.removeprefix(BYTE_ORDER_MARK)
            if line.strip():
                yield line_number, line
