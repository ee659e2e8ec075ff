"""One's own sentences: what each field means, and every way a line can be wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.datasets import get_parser
from pipeline.datasets.jsonl import parse
from pipeline.errors import InputError


@pytest.fixture
def write_data_jsonl(tmp_path: Path, make_video: Any) -> Any:
    """`data.jsonl` of the given lines beside `clips/a.mp4` (40 frames of 128x48)."""
    (tmp_path / "clips").mkdir()
    make_video(tmp_path / "clips" / "a.mp4")

    def lines(*rows: Any) -> Path:
        path = tmp_path / "data.jsonl"
        least = {"video": "clips/a.mp4", "text": "a dog"}
        path.write_text(
            "".join(
                (row if isinstance(row, str) else json.dumps(least | row)) + "\n" for row in rows
            )
        )

        return path

    return lines


def defects(parsed: Any) -> dict[str, list[tuple[str, str]]]:
    return {
        row["kind"]: [(item["entry"], item["outcome"]) for item in row["entries"]]
        for row in parsed.defects.to_list()
    }


def test_the_least_there_can_be(write_data_jsonl: Any) -> None:
    parsed = parse(write_data_jsonl({}))
    (query,) = parsed.queries

    assert (query.id, query.video, query.path, query.split) == (
        "1",
        "clips/a.mp4",
        "clips/a.mp4",
        "test",
    )
    assert (query.frame_count, query.size, query.segment) == (40, (128, 48), (0, 40))
    assert query.fps == pytest.approx(25)
    assert (query.truth, query.form, query.tags) == (None, None, ())
    assert not defects(parsed)


def test_all_there_can_be(write_data_jsonl: Any, tmp_path: Path) -> None:
    tube = {"begin": 5, "boxes": [[1, 2, 30, 40], None, [2.5, 2, 30, 40]]}
    full = {
        "id": "x/../y",
        "segment": [2, 30],
        "tube": tube,
        "split": "train",
        "tags": ["night"],
        "text": " a dog\n",
    }
    parsed = parse(
        write_data_jsonl(
            "", {"video": str(tmp_path / "clips/a.mp4")}, full | {"video": "./clips/../clips/a.mp4"}
        )
    )
    first, second = parsed.queries

    assert (first.id, first.path) == ("2", "clips/a.mp4")
    assert (second.id, second.video, second.text, second.split, second.tags) == (
        "x/../y",
        "clips/a.mp4",
        "a dog",
        "train",
        ("night",),
    )
    assert second.segment == (2, 30)
    assert second.truth is not None
    assert second.truth.span == (5, 8)

    frames, boxes = parsed.tracks[str(second.truth.track)]

    assert frames.tolist() == [5, 7]
    assert boxes.tolist() == [[1, 2, 30, 40], [2.5, 2, 30, 40]]


def test_spans_and_boxes_are_clipped_and_counted(write_data_jsonl: Any) -> None:
    boxes = [[-5, 2, 30, 40], [1, 2, 200, 40], [3, 3, 3, 9]]
    parsed = parse(
        write_data_jsonl(
            {"segment": [30, 50]},
            {"text": "a cat", "segment": [6, 20], "tube": {"begin": 5, "boxes": boxes}},
        )
    )

    assert parsed.queries[0].segment == (30, 40)
    assert parsed.queries[1].truth is not None
    assert parsed.queries[1].truth.span == (6, 8)
    assert parsed.tracks["2"][1].tolist() == [[0, 2, 30, 40], [1, 2, 128, 40]]
    assert set(defects(parsed)) == {
        "segment leaves the video",
        "span leaves its segment",
        "box outside picture",
        "box without area",
    }


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
        (
            {"segment": [0, 3], "tube": {"begin": 3, "boxes": [[1, 2, 3, 4]]}},
            "span outside its segment",
            "1",
        ),
        ({"video": "clips/absent.mp4"}, "video missing", "1"),
        ({"video": "data.jsonl"}, "video unreadable", "1"),
        ({"video": "clips/\u0000"}, "malformed line", "line 1"),
        ({"id": "a\u0000"}, "malformed line", "line 1"),
        ({"text": "a\u0000"}, "malformed line", "line 1"),
        ({"video": "x" * 5000}, "video missing", "1"),
        ({"segment": [0, 10**30]}, "malformed line", "line 1"),
        ({"tube": {"begin": 10**9, "boxes": []}}, "malformed line", "line 1"),
        ({"tube": {"begin": 0, "boxes": [[1, 2, 3, 10**7]]}}, "malformed line", "line 1"),
        ('{"video": "clips/a.mp4", "text": "a", "text": "b"}', "not JSON", "line 1"),
        ('{"text": ' + "9" * 5000 + "}", "not JSON", "line 1"),
        ("[" * 100_000, "not JSON", "line 1"),
    ],
)
def test_a_broken_line_is_left_out_by_name(
    write_data_jsonl: Any, row: Any, kind: str, entry: str
) -> None:
    parsed = parse(write_data_jsonl(row, {}))
    assert [query.id for query in parsed.queries] == ["2"]
    assert defects(parsed) == {kind: [(entry, "left out")]}


def test_a_repeated_id_is_left_out(write_data_jsonl: Any) -> None:
    parsed = parse(write_data_jsonl({"id": "2"}, {"text": "a cat"}))
    assert [query.text for query in parsed.queries] == ["a dog"]
    assert defects(parsed) == {"repeated id": [("line 2", "left out")]}


@pytest.mark.parametrize(
    ("begin", "boxes"),
    [(3, [None, None]), (3, [None, None, [1, 2, 3, 4]]), (2, [[1, 2, 3, 4], None, None])],
)
def test_a_tube_without_a_box_in_its_span_keeps_the_span(
    write_data_jsonl: Any, begin: int, boxes: list[Any]
) -> None:
    parsed = parse(write_data_jsonl({"segment": [3, 5], "tube": {"begin": begin, "boxes": boxes}}))
    assert parsed.queries[0].truth is not None
    assert (parsed.queries[0].truth.span, parsed.queries[0].truth.track) == ((3, 5), None)
    parsed.defects._kinds.pop("span leaves its segment", None)
    assert defects(parsed) == {"no box in the span": [("1", "kept")]}


def test_files_that_are_no_sentences(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"

    with pytest.raises(
        InputError,
        match=r"data.jsonl does not exist. Write one JSON object per line, such as\n  \{\"video\"",
    ):
        parse(path)

    with pytest.raises(
        InputError,
        match=(
            rf"{tmp_path.name} is not a file of sentences. "
            rf"Write one JSON object per line, such as\n  \{{\"video\""
        ),
    ):
        parse(tmp_path)

    path.write_text("\nvideo,text\na.mp4,a dog\n")

    with pytest.raises(InputError, match=r"data.jsonl, line 2: not JSON"):
        parse(path)

    path.write_text("\n")

    with pytest.raises(InputError, match=r"data.jsonl holds no sentence"):
        parse(path)

    path.write_bytes(b"\x00\xff")

    with pytest.raises(
        InputError, match=r"data.jsonl, line 1: not JSON \(byte 2 is not UTF-8 text\)"
    ):
        parse(path)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ('{"video": }', "Expecting value at column 11"),
        (
            '{"text": ' + "9" * 5000 + "}",
            "Exceeds the limit (4300 digits) for integer string conversion: value has 5000 digits",
        ),
        ("[" * 100_000, "nested too deeply"),
        ('{"text": "a", "text": "b"}', "the key 'text' stands twice in one object"),
        ("[]", "Input should be an object (got [])"),
        ({"tube": 3}, "tube: Input should be an object (got 3)"),
        ({"segmnet": 3}, "segmnet: no such field (got 3)"),
        ({"tags": 3}, "tags: Input should be a list (got 3)"),
        ({"text": "a\0"}, "text: text with a NUL character (got 'a\\x00')"),
    ],
)
def test_what_is_wrong_with_a_line_is_said_in_plain_words(
    write_data_jsonl: Any, row: Any, words: str
) -> None:
    (defect,) = parse(write_data_jsonl(row, {})).defects.to_list()
    assert [item["detail"] for item in defect["entries"]] == [words]


def test_one_video_has_one_name(write_data_jsonl: Any, tmp_path: Path) -> None:
    """However its path is written, as long as it lies beside the file or below."""
    inside = [
        "clips/a.mp4",
        "./clips//a.mp4",
        f"../{tmp_path.name}/clips/a.mp4",
        str(tmp_path / "clips" / "a.mp4"),
    ]
    parsed = parse(write_data_jsonl(*({"video": video, "text": video} for video in inside)))

    assert {(query.video, query.path) for query in parsed.queries} == {
        ("clips/a.mp4", "clips/a.mp4")
    }
    assert len(parsed.probe_results) == 1


def test_a_video_elsewhere_is_called_as_it_is_written(tmp_path: Path, make_video: Any) -> None:
    (tmp_path / "own").mkdir()
    make_video(tmp_path / "a.mp4")
    path = tmp_path / "own" / "data.jsonl"
    path.write_text(
        "".join(
            json.dumps({"video": video, "text": "a"}) + "\n"
            for video in ("../a.mp4", str(tmp_path / "a.mp4"))
        )
    )

    assert [query.path for query in parse(path).queries] == ["../a.mp4", str(tmp_path / "a.mp4")]


def test_a_line_that_is_not_utf_8_is_left_out_by_number(write_data_jsonl: Any) -> None:
    path = write_data_jsonl({}, {"text": "a cat"})
    path.write_bytes(path.read_bytes().replace(b"a cat", b"a \xff"))
    parsed = parse(path)
    assert [query.id for query in parsed.queries] == ["1"]
    assert defects(parsed) == {"not JSON": [("line 2", "left out")]}


def test_any_character_may_stand_in_a_line(write_data_jsonl: Any) -> None:
    """Line separators of Unicode end no line, a byte order mark begins none."""
    path = write_data_jsonl('{"video": "clips/a.mp4", "text": "a\u2028b\x85c"}')
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert [query.text for query in parse(path).queries] == ["a\u2028b\x85c"]


def test_tubes_of_names_with_slashes_stay_apart(
    write_data_jsonl: Any, tmp_path: Path, make_video: Any
) -> None:
    (tmp_path / "clips" / "b").mkdir()
    make_video(tmp_path / "clips" / "b" / "c.mp4")
    rows = [
        {"id": video, "video": video, "tube": {"begin": 0, "boxes": [[x, 0, 9, 9]]}}
        for x, video in enumerate(("clips/a.mp4", "clips/b/c.mp4"))
    ]
    parsed = parse(write_data_jsonl(*rows))
    tracks = [
        parsed.tracks[query.truth.track][1].tolist()
        for query in parsed.queries
        if query.truth and query.truth.track
    ]

    assert tracks == [[[0, 0, 9, 9]], [[1, 0, 9, 9]]]


def test_one_video_in_two_splits_is_reported(write_data_jsonl: Any) -> None:
    parsed = parse(write_data_jsonl({"split": "train"}, {}))
    assert len(parsed.queries) == 2
    assert defects(parsed) == {"video in several splits": [("clips/a.mp4", "kept")]}


def test_frames_of_a_variable_rate_are_counted_not_timed(tmp_path: Path, make_video: Any) -> None:
    make_video(tmp_path / "a.mkv", 5, milliseconds=[0, 40, 80, 1000, 2000])
    line = {
        "video": "a.mkv",
        "text": "a dog",
        "segment": [1, 5],
        "tube": {"begin": 3, "boxes": [[1, 2, 30, 40], [2, 2, 30, 40]]},
    }
    (tmp_path / "data.jsonl").write_text(json.dumps(line))
    parsed = parse(tmp_path / "data.jsonl")
    (query,) = parsed.queries

    assert (query.frame_count, query.segment) == (5, (1, 5))
    assert query.truth is not None
    assert query.truth.span == (3, 5)
    assert query.fps == pytest.approx(2, rel=0.3)
    assert parsed.tracks["1"][0].tolist() == [3, 4]


@pytest.mark.parametrize("rotation", [90, 270])
def test_boxes_are_in_the_picture_as_it_is_shown(
    tmp_path: Path, make_video: Any, rotation: int
) -> None:
    """A film of 128x48 pixels with a note to turn it is 48 wide and 128 high."""
    make_video(tmp_path / "a.mp4", rotation=rotation)
    tube = {"begin": 0, "boxes": [[1, 2, 100, 100]]}
    (tmp_path / "data.jsonl").write_text(
        json.dumps({"video": "a.mp4", "text": "a dog", "tube": tube})
    )
    parsed = parse(tmp_path / "data.jsonl")

    assert parsed.queries[0].size == (48, 128)
    assert parsed.tracks["1"][1].tolist() == [[1, 2, 48, 100]]


def test_an_unknown_data_set_lists_the_known_ones() -> None:
    with pytest.raises(
        InputError,
        match=(
            r"unknown data set 'cats'; "
            r"the data sets are shapes, vidstg, hcstvg-v1, hcstvg-v2, jsonl"
        ),
    ):
        get_parser("cats")
