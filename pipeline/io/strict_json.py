"""JSON that others wrote: read within bounds, and refused where it is not what it should be.

Files and lines have a largest size, a key stands once in an object, a byte order mark is passed over. Every error is
an InputError that names the file and the place.
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
"""Bytes of a JSON file that is read whole; the largest real one, HC-STVG v2's training boxes, has about 100 MB."""
MAX_LINE_BYTES = 64 * 2**20
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_KEY_OR_BRACE = re.compile(r'("(?:[^"\\]|\\.)*")(\s*:)?|[{}]')


class RepeatedKeyError(ValueError):
    """A key that stands twice in one object: which of its values is meant is anyone's guess."""


def _build_unique_dict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        key = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise RepeatedKeyError(f"the key {reprlib.repr(key)} stands twice in one object")
    return found


_decoder = json.JSONDecoder(object_pairs_hook=_build_unique_dict)


def parse_json(text: bytes) -> Any:
    """The value of some JSON; a ValueError (for text nested too deeply a RecursionError) says why it is none."""
    return _decoder.decode(text.decode("utf-8-sig"))


def read_json(path: Path, remedy: str = "download it again") -> Any:
    """A file's JSON; an InputError names the file, the place where it stops being JSON, and the remedy."""
    content = _read_bounded(path, remedy)
    try:
        return parse_json(content)
    except json.JSONDecodeError as error:
        place, problem = (
            f"{path}, line {error.lineno}, column {error.colno}",
            f"not JSON ({error.msg})",
        )
    except UnicodeDecodeError as error:
        place, problem = f"{path}, byte {error.start}", "not UTF-8 text"
    except RepeatedKeyError as error:
        place, problem = f"{path}, {_locate_repeated_key(content.decode('utf-8-sig'))}", str(error)
    except RecursionError:
        place, problem = str(path), "JSON nested too deeply"
    except ValueError:
        place, problem = str(path), "not JSON (a number of thousands of digits)"
    raise InputError(f"{place}: {problem}; {remedy}")


def _read_bounded(path: Path, remedy: str) -> bytes:
    """The bytes of a file that is not too large."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{path} is not a file")
        if status.st_size > MAX_FILE_BYTES:
            raise InputError(
                f"{path} has {status.st_size} bytes, more than the {MAX_FILE_BYTES} that are read; {remedy}"
            )
        return path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from None


def _locate_repeated_key(text: str) -> str:
    """Line and column of the first key that its object has already."""
    open_objects: list[set[str]] = []
    for found in _KEY_OR_BRACE.finditer(text):
        if found[0] == "{":
            open_objects.append(set())
        elif found[0] == "}":
            open_objects.pop()
        elif found[2]:
            key = json.loads(found[1])
            if key in open_objects[-1]:
                begin = found.start()
                return f"line {text.count(chr(10), 0, begin) + 1}, column {begin - text.rfind(chr(10), 0, begin)}"
            open_objects[-1].add(key)
    raise AssertionError("no key is repeated")


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, with their numbers from 1; a line above MAX_LINE_BYTES bytes is an InputError before it is read whole."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    with file:
        for number, line in enumerate(
            iter(lambda: file.readline(MAX_LINE_BYTES + 1), b""), start=1
        ):
            if len(line) > MAX_LINE_BYTES:
                raise InputError(
                    f"{path}, line {number} is longer than {MAX_LINE_BYTES} bytes: it is no line of records; write the file again"
                )
            if number == 1:
                line = line.removeprefix(BYTE_ORDER_MARK)
            if line.strip():
                yield number, line
