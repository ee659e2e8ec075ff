"""Digests of files that were read before, and what may not be trusted about them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from pipeline.extraction import file_digests as seen
from pipeline.extraction.file_digests import CACHE_FILE_NAME, FileDigestCache
from pipeline.features.stream import compute_file_digest


@pytest.fixture(autouse=True)
def cache_few_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seen, "MIN_CACHED_FILES", 1)


@pytest.fixture
def video(tmp_path: Path) -> Path:
    path = tmp_path / "v.mp4"
    path.write_bytes(b"one")
    os.utime(path, ns=(7, 7))
    return path


def remembered(tmp_path: Path, video: Path) -> str | None:
    """What a run on the store takes the file's digest to be."""
    files = FileDigestCache(tmp_path)
    digest = files.get_digest(video)
    files.save()
    return digest


def test_a_file_that_changed_is_read_again(tmp_path: Path, video: Path) -> None:
    first = remembered(tmp_path, video)
    assert first == compute_file_digest(video)
    for content, changed in ((b"two", 8), (b"three", 8)):
        video.write_bytes(content)
        os.utime(video, ns=(changed, changed))
        assert remembered(tmp_path, video) == compute_file_digest(video) != first


def test_one_with_the_same_size_and_time_is_not(tmp_path: Path, video: Path) -> None:
    first = remembered(tmp_path, video)
    video.write_bytes(b"two")
    os.utime(video, ns=(7, 7))
    assert remembered(tmp_path, video) == first != compute_file_digest(video)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "no",
        "[]",
        "3",
        '{"a": 1}',
        '{"a": [1, 2]}',
        '{"a": ["x", 2, "y"]}',
        '{"a": null}',
        "\x00",
    ],
)
def test_a_damaged_memory_costs_a_reading(tmp_path: Path, video: Path, content: str) -> None:
    (tmp_path / CACHE_FILE_NAME).write_text(content)
    assert remembered(tmp_path, video) == compute_file_digest(video)
    assert list(json.loads((tmp_path / CACHE_FILE_NAME).read_text())) == [str(video)]


def test_a_file_that_cannot_be_read_has_none_and_is_not_remembered(
    tmp_path: Path, video: Path
) -> None:
    files = FileDigestCache(tmp_path)
    assert files.get_digest(tmp_path / "none") is None
    assert files.get_digest(tmp_path) is None
    files.save()
    assert not (tmp_path / CACHE_FILE_NAME).exists()


def test_nothing_is_written_where_nothing_is_new(
    tmp_path: Path, video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remembered(tmp_path, video)

    def refuse(*_: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(seen, "write_json", refuse)
    remembered(tmp_path, video)
