"""JSON from others: what is not JSON, too large or ambiguous is an error that names the file and
the place.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.errors import InputError
from pipeline.io import strict_json as json_files
from pipeline.io.strict_json import MAX_FILE_BYTES, parse_json, read_json, read_lines


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.json"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'[\n {"a": }\n]', r"a\.json, line 2, column 8: not JSON \(Expecting value\)"),
        (b"", r"a\.json, line 1, column 1: not JSON"),
        (b'["a', r"a\.json, line 1, column 2: not JSON \(Unterminated string"),
        (b"[1] 2", r"a\.json, line 1, column 5: not JSON \(Extra data\)"),
        (b"[\xff]", r"a\.json, byte 1: not UTF-8 text"),
        ("[1]".encode("utf-16"), r"a\.json, byte 0: not UTF-8 text"),
        (b"[" * 100_000, r"a\.json: JSON nested too deeply"),
        (b'{"a":' * 100_000, r"a\.json: JSON nested too deeply"),
        (b"[" + b"9" * 5000 + b"]", r"a\.json: not JSON \(a number of thousands"),
        (
            b'{"a": 1, "b": 2, "a": 3}',
            r"a\.json, line 1, column 18: the key 'a' stands twice in one object",
        ),
        (
            b'{"a": {"b": 1},\n "c": [{"b": 2,\n  "d\\"{": 0, "b" : 3}]}',
            r"a\.json, line 3, column 14: the key 'b' stands twice in one object",
        ),
        (
            b'{"a": 1, "\\u0061": 2}',
            r"a\.json, line 1, column 10: the key 'a' stands twice in one object",
        ),
    ],
)
def test_what_is_not_json_is_named_with_its_place(path: Path, content: bytes, message: str) -> None:
    path.write_bytes(content)
    with pytest.raises(InputError, match=message + ".*; download it again$"):
        read_json(path)


def test_equal_keys_of_different_objects_are_no_repeat(path: Path) -> None:
    path.write_text('{"a": {"a": ["a", "a"]}, "b": [{"a": "a"}, {"a": "{"}]}')
    assert read_json(path) == {"a": {"a": ["a", "a"]}, "b": [{"a": "a"}, {"a": "{"}]}


def test_a_byte_order_mark_is_passed_over(path: Path) -> None:
    path.write_bytes(b"\xef\xbb\xbf[1]")
    assert read_json(path) == [1]
    assert parse_json(b"\xef\xbb\xbf[1]") == [1]
    assert list(read_lines(path)) == [(1, b"[1]")]


def test_a_file_above_the_limit_is_refused_unread(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    with pytest.raises(
        InputError,
        match=rf"a\.json has {MAX_FILE_BYTES + 1} bytes, more than the {MAX_FILE_BYTES} that are "
        "read; download it again",
    ):
        read_json(path)


def test_what_is_no_file_is_refused(path: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a\.json does not exist"):
        read_json(path)
    with pytest.raises(InputError, match=r"is not a file"):
        read_json(tmp_path)
    os.mkfifo(path)
    with pytest.raises(InputError, match=r"a\.json is not a file"):
        read_json(path)
    with pytest.raises(InputError, match=r"cannot be read \(File name too long\)"):
        read_json(tmp_path / ("x" * 300))


def test_lines_carry_their_numbers(path: Path) -> None:
    path.write_bytes(b"\n[1]\r\n  \n[2]\n\n[3]")
    assert list(read_lines(path)) == [(2, b"[1]\r\n"), (4, b"[2]\n"), (6, b"[3]")]


def test_a_line_above_the_limit_is_refused_before_it_is_read_whole(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_files, "MAX_LINE_BYTES", 100)
    path.write_bytes(b"[1]\n" + b"x" * 99 + b"\n" + b"y" * 101)
    result = read_lines(path)
    assert [next(result)[0], next(result)[0]] == [1, 2]
    with pytest.raises(
        InputError,
        match=r"a\.json, line 3 is longer than 100 bytes: it is not a line of records; "
        "write the file again",
    ):
        next(result)


def test_a_huge_line_takes_no_memory(path: Path) -> None:
    """Of a line of 1 GiB no more than the limit is read."""
    with path.open("wb") as file:
        file.truncate(2**30)
    with pytest.raises(InputError, match=r"a\.json, line 1 is longer than 67108864 bytes"):
        next(read_lines(path))
