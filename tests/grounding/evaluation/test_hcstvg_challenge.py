"""The challenge's file: written is read again, and another file is refused by name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from typer.testing import CliRunner

import cli.evaluate
from grounding.evaluation.hcstvg_challenge import read_challenge, write_challenge
from grounding.structures.tubes import Tubes
from pipeline.errors import InputError
from pipeline.records import Prediction

GOOD = {"st_frame": 1, "ed_frame": 2, "bbox": {"1": [0, 0, 5, 5], "2": [1, 1, 6, 6]}}


def write(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def as_columns(tubes: Tubes) -> tuple[Any, ...]:
    columns = (tubes.spans, tubes.offsets, tubes.frames, tubes.boxes)
    return tubes.ids, *(column.tolist() for column in columns), tubes.framewise


def predicted(*predictions: Prediction) -> Tubes:
    return Tubes.from_predictions(predictions)


def test_both_ends_are_inclusive_and_frames_count_from_1(tmp_path: Path) -> None:
    tubes = read_challenge(
        write(
            tmp_path / "a.json",
            {"q": GOOD, "one": {**GOOD, "st_frame": 7, "ed_frame": 7, "bbox": {}}},
        )
    )
    assert (tubes.ids, tubes.framewise) == (("q", "one"), True)
    assert tubes.spans.tolist() == [[0, 2], [6, 7]]
    assert (tubes.offsets.tolist(), tubes.frames.tolist()) == ([0, 2, 2], [0, 1])
    assert tubes.boxes.tolist() == [[0, 0, 5, 5], [1, 1, 6, 6]]


def test_frames_may_count_from_0(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", {"q": {**GOOD, "st_frame": 0}})
    tubes = read_challenge(path, first_frame=0)
    assert (tubes.spans.tolist(), tubes.frames.tolist()) == ([[0, 3]], [1, 2])
    with pytest.raises(
        InputError,
        match=r"a\.json, 'q': frame 0, but frames count from 1; --set first_frame=0 if from 0",
    ):
        read_challenge(path)


def test_gaps_and_boxes_outside_the_span_are_kept(tmp_path: Path) -> None:
    boxes = {"9": [0, 0, 1, 1], "2": [-4, -4, 2000, 2], "5": [0, 0, 3, 3]}
    tubes = read_challenge(
        write(tmp_path / "a.json", {"q": {"st_frame": 3, "ed_frame": 7, "bbox": boxes}})
    )
    assert (tubes.spans.tolist(), tubes.frames.tolist()) == ([[2, 7]], [1, 4, 8])
    assert tubes.boxes.tolist() == [[-4, -4, 2000, 2], [0, 0, 3, 3], [0, 0, 1, 1]]


def test_samples_are_interpolated_where_they_are_written(tmp_path: Path) -> None:
    """Samples at 10 and 12 of the span [9, 14): held at 9 and 13, half way at 11; nothing outside
    the span.
    """
    rows = [(10, 0.0, 0.0, 10.0, 10.0), (12, 4.0, 4.0, 14.0, 14.0), (20, 9.0, 9.0, 9.0, 9.0)]
    write_challenge(
        tmp_path / "a.json", predicted(Prediction(id="q", span=(9, 13), score=1.0, boxes=rows))
    )
    boxes = {"10": [0, 0, 10, 10], "11": [0, 0, 10, 10], "12": [2, 2, 12, 12], "13": [4, 4, 14, 14]}
    assert json.loads((tmp_path / "a.json").read_text()) == {
        "q": {"st_frame": 10, "ed_frame": 13, "bbox": boxes}
    }


def test_a_written_file_may_count_from_0(tmp_path: Path) -> None:
    write_challenge(
        tmp_path / "a.json",
        predicted(Prediction(id="q", span=(0, 2), score=1.0, boxes=[(0, 1, 2, 3, 4)])),
        first_frame=0,
    )
    boxes = {"0": [1, 2, 3, 4], "1": [1, 2, 3, 4]}
    assert json.loads((tmp_path / "a.json").read_text()) == {
        "q": {"st_frame": 0, "ed_frame": 1, "bbox": boxes}
    }


def test_tubes_without_boxes_and_no_tubes_at_all(tmp_path: Path) -> None:
    write_challenge(
        tmp_path / "a.json", predicted(Prediction(id="q", span=(3, 5), score=1.0, boxes=[]))
    )
    assert json.loads((tmp_path / "a.json").read_text()) == {
        "q": {"st_frame": 4, "ed_frame": 5, "bbox": {}}
    }
    assert len(read_challenge(tmp_path / "a.json").frames) == 0
    write_challenge(tmp_path / "none.json", predicted())
    assert json.loads((tmp_path / "none.json").read_text()) == {}
    assert len(read_challenge(tmp_path / "none.json")) == 0


def test_a_gap_of_a_frame_wise_tube_stays_one(tmp_path: Path) -> None:
    tubes = read_challenge(
        write(
            tmp_path / "a.json",
            {"q": {**GOOD, "ed_frame": 4, "bbox": {"1": [0, 0, 5, 5], "3": [1, 1, 6, 6]}}},
        )
    )
    write_challenge(tmp_path / "b.json", tubes)
    assert as_columns(read_challenge(tmp_path / "b.json")) == as_columns(tubes)
    assert json.loads((tmp_path / "b.json").read_text())["q"]["bbox"] == {
        "1": [0, 0, 5, 5],
        "3": [1, 1, 6, 6],
    }


names = st.text(st.characters(blacklist_categories=("Cs",)), max_size=8)
box = st.tuples(
    *[st.floats(allow_nan=False, allow_infinity=False, min_value=-1e6, max_value=1e6)] * 4
)
solid = st.tuples(st.integers(0, 10**6), st.lists(box, min_size=1, max_size=6))


@given(st.dictionaries(names, solid, max_size=5), st.integers(0, 1))
@settings(max_examples=60)
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, made: dict[str, Any], first_frame: int
) -> None:
    """Any ids, any begin, a box in every frame: spans, frames and boxes to the last bit."""
    path = tmp_path_factory.getbasetemp() / "round.json"
    rows = [(begin + np.arange(len(boxes)), np.array(boxes)) for begin, boxes in made.values()]
    tubes = replace(
        Tubes.from_rows(
            made, [(begin, begin + len(boxes)) for begin, boxes in made.values()], rows
        ),
        framewise=True,
    )
    write_challenge(path, tubes, first_frame)
    assert as_columns(read_challenge(path, first_frame)) == as_columns(tubes)
    write_challenge(path, replace(tubes, framewise=False), first_frame)
    assert as_columns(read_challenge(path, first_frame)) == as_columns(tubes)


@pytest.mark.parametrize(
    "name", ["一人の男", "a/b", "../../etc/passwd", "nul\0", 'quo"te', "", "\u2028", "🐕"]
)
def test_any_text_is_an_id_and_never_a_path(name: str, tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    path = tmp_path / "inner" / "a.json"
    write_challenge(path, predicted(Prediction(id=name, span=(0, 1), score=1.0, boxes=[])))
    assert read_challenge(path).ids == (name,)
    assert [result.name for result in tmp_path.rglob("*")] == ["inner", "a.json"]


def entry(**changes: Any) -> str:
    return json.dumps({"q": {**GOOD, **changes}})


HOSTILE = {
    "empty": ("", r"bad\.json, line 1, column 1: not JSON"),
    "not JSON": ('{"q": ', r"bad\.json, line 1, column 7: not JSON"),
    "NUL": ("\0", r"bad\.json, line 1, column 1: not JSON"),
    "a list": (
        "[]",
        r"bad\.json must be one mapping of ids to tubes; a file of JSON lines must end in \.jsonl",
    ),
    "a number": ("7", r"bad\.json must be one mapping of ids"),
    "JSON lines": ('{"q": 1}\n{"r": 2}\n', r"bad\.json, line 2, column 1: not JSON"),
    "too deep": ("[" * 100_000, r"bad\.json: JSON nested too deeply"),
    "deep inside": (
        '{"q":' + "[" * 500 + "]" * 500 + "}",
        r"bad\.json, 'q': .*each id needs st_frame, ed_frame and bbox",
    ),
    "an entry that is none": (
        '{"q": 7}',
        r"bad\.json, 'q': .*each id needs st_frame, ed_frame and bbox",
    ),
    "no end": (
        json.dumps({"q": {"st_frame": 1, "bbox": {}}}),
        r"bad\.json, 'q': ed_frame: Field required",
    ),
    "no boxes": (
        json.dumps({"q": {"st_frame": 1, "ed_frame": 1}}),
        r"bad\.json, 'q': bbox: Field required",
    ),
    "a word": (entry(st_frame="one"), r"bad\.json, 'q': st_frame: Input should be a valid integer"),
    "half a frame": (
        entry(ed_frame=1.5),
        r"bad\.json, 'q': ed_frame: Input should be a valid integer",
    ),
    "null": (entry(st_frame=None), r"bad\.json, 'q': st_frame: Input should be a valid integer"),
    "a huge frame": (
        entry(ed_frame=10**30),
        r"bad\.json, 'q': ed_frame: Input should be less than or equal to 100000000",
    ),
    "thousands of digits": (
        entry().replace('"ed_frame": 2', '"ed_frame": ' + "9" * 5000),
        r"bad\.json: not JSON \(a number of thousands",
    ),
    "before 0": (
        entry(st_frame=-3),
        r"bad\.json, 'q': st_frame: Input should be greater than or equal to 0",
    ),
    "before the first": (entry(st_frame=0), r"bad\.json, 'q': frame 0, but frames count from 1"),
    "turned round": (
        entry(st_frame=9),
        r"bad\.json, 'q': ed_frame 2 is before st_frame 9; both are inclusive",
    ),
    "a list of boxes": (
        entry(bbox=[[0, 0, 1, 1]]),
        r"bad\.json, 'q': bbox: Input should be a valid dictionary",
    ),
    "a box of three": (entry(bbox={"1": [0, 0, 1]}), r"bad\.json, 'q': bbox\.1\.3: Field required"),
    "a box of five": (
        entry(bbox={"1": [0, 0, 1, 1, 1]}),
        r"bad\.json, 'q': bbox\.1: Tuple should have at most 4 items",
    ),
    "a box of words": (
        entry(bbox={"1": [0, 0, "x", 1]}),
        r"bad\.json, 'q': bbox\.1\.2: Input should be a valid number",
    ),
    "a frame of words": (
        entry(bbox={"one": [0, 0, 1, 1]}),
        r"bad\.json, 'q': bbox\.one\.\[key\]: a frame number is wanted \(got 'one'\)",
    ),
    "a negative frame": (
        entry(bbox={"-1": [0, 0, 1, 1]}),
        r"bad\.json, 'q': bbox\.-1\.\[key\]: a frame number is wanted \(got '-1'\)",
    ),
    "NaN": (
        entry(bbox={"1": [0, 0, float("nan"), 1]}),
        r"bad\.json, 'q': bbox\.1\.2: Input should be a finite number",
    ),
    "infinity": (
        entry(bbox={"1": [0, 0, float("inf"), 1]}),
        r"bad\.json, 'q': bbox\.1\.2: Input should be a finite number",
    ),
    "beyond floats": (
        entry().replace("[0, 0, 5, 5]", "[0, 0, 5, 1e999]"),
        r"bad\.json, 'q': bbox\.1\.3: Input should be a finite number",
    ),
    "beyond all": (
        entry(bbox={"1": [0, 0, 1, 10**400]}),
        r"bad\.json, 'q': bbox\.1\.3: Input should be a valid number",
    ),
    "an id twice": (
        '{"q": {}, "q": {}}',
        r"bad\.json, line 1, column 11: the key 'q' stands twice in one object",
    ),
    "a frame twice": (
        entry().replace('"2"', '"1"'),
        r"bad\.json, line 1, column \d+: the key '1' stands twice in one object",
    ),
    "a path as id": (
        json.dumps({"../../x": {}}),
        r"bad\.json, '\.\./\.\./x': st_frame: Field required",
    ),
    "a NUL in the id": (
        json.dumps({"a\0b": {}}),
        r"bad\.json, 'a\\x00b': st_frame: Field required",
    ),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_what_is_no_such_file_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    content, message = HOSTILE[kind]
    with pytest.raises(InputError, match=message):
        read_challenge(write(tmp_path / "bad.json", content))


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_bytes(b'{"q": "\xff"}')
    with pytest.raises(InputError, match=r"bad\.json, byte 7: not UTF-8 text"):
        read_challenge(tmp_path / "bad.json")
    with pytest.raises(InputError, match=r"none\.json does not exist"):
        read_challenge(tmp_path / "none.json")
    with pytest.raises(InputError, match="is not a file"):
        read_challenge(tmp_path)


@pytest.mark.parametrize("role", ["--truth", "--predictions"])
@pytest.mark.parametrize("kind", HOSTILE)
def test_the_command_refuses_it_in_one_line(kind: str, role: str, tmp_path: Path) -> None:
    files = {
        "--truth": write(tmp_path / "good.json", {"q": GOOD}),
        "--predictions": tmp_path / "good.json",
    }
    files[role] = write(tmp_path / "bad.json", HOSTILE[kind][0])
    result = CliRunner().invoke(
        cli.evaluate.app, [str(part) for pair in files.items() for part in pair]
    )
    assert result.exit_code == 2
    assert "bad.json" in result.stderr
    assert "Traceback" not in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("keys", [("1", "01"), ("1", "1.0"), ("1", " 1")])
def test_one_frame_written_two_ways_is_refused(keys: tuple[str, str], tmp_path: Path) -> None:
    path = write(
        tmp_path / "bad.json",
        {"q": {**GOOD, "bbox": {keys[0]: [0, 0, 5, 5], keys[1]: [9, 9, 10, 10]}}},
    )
    with pytest.raises(InputError, match=r"bad\.json, 'q'"):
        read_challenge(path)


def test_boxes_before_the_first_frame_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "bad.json", {"q": {**GOOD, "bbox": {"0": [0, 0, 5, 5]}}})
    with pytest.raises(InputError, match=r"bad\.json, 'q'"):
        read_challenge(path)


@pytest.mark.parametrize("value", [True, "1", 1.0])
def test_a_frame_is_a_whole_number(value: object, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"bad\.json, 'q': st_frame"):
        read_challenge(write(tmp_path / "bad.json", {"q": {**GOOD, "st_frame": value}}))


def test_an_id_that_is_no_text_is_refused_or_written(tmp_path: Path) -> None:
    path = write(tmp_path / "bad.json", '{"\\ud800": ' + json.dumps(GOOD) + "}")
    with pytest.raises(InputError, match=r"bad\.json"):
        write_challenge(tmp_path / "out.json", read_challenge(path))


def test_an_empty_span_is_left_out(tmp_path: Path) -> None:
    spans = {"none": (5, 5), "one": (5, 6)}
    tubes = Tubes.from_predictions(
        [Prediction(id=name, span=span, score=1.0, boxes=[]) for name, span in spans.items()]
    )
    write_challenge(tmp_path / "out.json", tubes)
    assert read_challenge(tmp_path / "out.json").ids == ("one",)


@pytest.mark.parametrize("span", [(9, 3), (-4, 3)])
def test_a_span_that_is_none_is_no_prediction(span: tuple[int, int]) -> None:
    with pytest.raises(ValidationError):
        Prediction(id="q", span=span, score=1.0, boxes=[])
