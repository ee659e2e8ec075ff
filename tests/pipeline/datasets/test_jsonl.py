"""One's own sentences: what each field means, and every way a line can be wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.datasets import parser_of
from pipeline.datasets.jsonl import parse
from pipeline.errors import InputError


@pytest.fixture
def write(tmp_path: Path, make_video: Any) -> Any:
    """`data.jsonl` of the given lines beside `clips/a.mp4` (40 frames of 128x48)."""
    (tmp_path / "clips").mkdir()
    make_video(tmp_path / "clips" / "a.mp4")

    def lines(*rows: Any) -> Path:
        path = tmp_path / "data.jsonl"
        least = {"video": "clips/a.mp4", "text": "a dog"}
        path.write_text("".join((row if isinstance(row, str) else json.dumps(least | row)) + "\n" for row in rows))
        return path

    return lines


def defects(parsed: Any) -> dict[str, list[tuple[str, str]]]:
    return {row["kind"]: [(item["entry"], item["outcome"]) for item in row["entries"]] for row in parsed.defects.to_list()}


def test_the_least_there_can_be(write: Any) -> None:
    parsed = parse(write({}))
    (query,) = parsed.queries
    assert (query.id, query.video, query.path, query.split) == ("1", "clips/a.mp4", "clips/a.mp4", "test")
    assert (query.frame_count, query.size, query.segment) == (40, (128, 48), (0, 40))
    assert query.fps == pytest.approx(25)
    assert (query.truth, query.form, query.tags) == (None, None, ())
    assert not defects(parsed)


def test_all_there_can_be(write: Any, tmp_path: Path) -> None:
    tube = {"begin": 5, "boxes": [[1, 2, 30, 40], None, [2.5, 2, 30, 40]]}
    full = {"id": "x/../y", "segment": [2, 30], "tube": tube, "split": "train", "tags": ["night"], "text": " a dog\n"}
    parsed = parse(write("", {"video": str(tmp_path / "clips/a.mp4")}, full | {"video": "./clips/../clips/a.mp4"}))
    first, second = parsed.queries
    assert (first.id, first.path) == ("2", str(tmp_path / "clips/a.mp4"))
    assert (second.id, second.video, second.text, second.split, second.tags) == ("x/../y", "clips/a.mp4", "a dog", "train", ("night",))
    assert second.segment == (2, 30)
    assert second.truth is not None
    assert second.truth.span == (5, 8)
    frames, boxes = parsed.tracks[str(second.truth.track)]
    assert frames.tolist() == [5, 7]
    assert boxes.tolist() == [[1, 2, 30, 40], [2.5, 2, 30, 40]]


def test_spans_and_boxes_are_clipped_and_counted(write: Any) -> None:
    boxes = [[-5, 2, 30, 40], [1, 2, 200, 40], [3, 3, 3, 9]]
    parsed = parse(write({"segment": [30, 50]}, {"text": "a cat", "segment": [6, 20], "tube": {"begin": 5, "boxes": boxes}}))
    assert parsed.queries[0].segment == (30, 40)
    assert parsed.queries[1].truth is not None
    assert parsed.queries[1].truth.span == (6, 8)
    assert parsed.tracks["clips/a.mp4/2"][1].tolist() == [[0, 2, 30, 40], [1, 2, 128, 40]]
    assert set(defects(parsed)) == {"segment leaves the video", "span leaves its segment", "box outside picture", "box without area"}


@pytest.mark.parametrize(
    ("row", "kind", "entry"),
    [
        ("{", "not JSON", "line 1"),
        ("[]", "malformed line", "line 1"),
        ({"text": 7}, "malformed line", "line 1"),
        ({"segmnet": [0, 5]}, "malformed line", "line 1"),
        ({"segment": [0]}, "malformed line", "line 1"),
        ({"split": "../x"}, "malformed line", "line 1"),
        ({"tube": {"begin": -1, "boxes": []}}, "malformed line", "line 1"),
        ({"tube": {"begin": 0, "boxes": [[1, 2, 3]]}}, "malformed line", "line 1"),
        ({"text": "\ud800"}, "malformed line", "line 1"),
        ({"text": " "}, "empty sentence", "1"),
        ({"segment": [9, 9]}, "empty segment", "1"),
        ({"segment": [40, 50]}, "empty segment", "1"),
        ({"tube": {"begin": 3, "boxes": []}}, "empty span", "1"),
        ({"segment": [0, 3], "tube": {"begin": 3, "boxes": [[1, 2, 3, 4]]}}, "span outside its segment", "1"),
        ({"video": "clips/absent.mp4"}, "video missing", "1"),
        ({"video": "data.jsonl"}, "video unreadable", "1"),
        ({"video": "clips/\u0000"}, "video missing", "1"),
    ],
)
def test_a_broken_line_is_left_out_by_name(write: Any, row: Any, kind: str, entry: str) -> None:
    parsed = parse(write(row, {}))
    assert [query.id for query in parsed.queries] == ["2"]
    assert defects(parsed) == {kind: [(entry, "left out")]}


def test_a_repeated_id_is_left_out(write: Any) -> None:
    parsed = parse(write({"id": "2"}, {"text": "a cat"}))
    assert [query.text for query in parsed.queries] == ["a dog"]
    assert defects(parsed) == {"repeated id": [("line 2", "left out")]}


@pytest.mark.parametrize("boxes", [[None, None], [None, None, [1, 2, 3, 4]]])
def test_a_tube_without_a_box_in_its_span_keeps_the_span(write: Any, boxes: list[Any]) -> None:
    parsed = parse(write({"segment": [0, 5], "tube": {"begin": 3, "boxes": boxes}}))
    assert parsed.queries[0].truth is not None
    assert (parsed.queries[0].truth.span, parsed.queries[0].truth.track) == ((3, 5), None)
    parsed.defects._kinds.pop("span leaves its segment", None)
    assert defects(parsed) == {"no box in the span": [("clips/a.mp4/1", "kept")]}


def test_files_that_are_no_sentences(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    with pytest.raises(InputError, match=r"data.jsonl is not a file of sentences. Write one JSON object per line, such as\n  \{\"video\""):
        parse(path)
    path.write_text("\nvideo,text\na.mp4,a dog\n")
    with pytest.raises(InputError, match=r"data.jsonl, line 2: not JSON"):
        parse(path)
    path.write_text("\n")
    with pytest.raises(InputError, match=r"data.jsonl holds no sentence"):
        parse(path)
    path.write_bytes(b"\x00\xff")
    with pytest.raises(InputError, match=r"data.jsonl, byte 1: not UTF-8"):
        parse(path)


def test_an_unknown_data_set_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"unknown data set 'cats'; the data sets are shapes, vidstg, jsonl"):
        parser_of("cats")
