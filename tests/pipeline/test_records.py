"""Records on disk: written is read, and what is not a record is refused by file, line and field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydantic import ValidationError

from pipeline.errors import InputError
from pipeline.io.atomic import atomic_write
from pipeline.io.jsonl import read_jsonl, write_json, write_jsonl
from pipeline.records import Failure, Prediction, Query, Truth
from pipeline.tracks import Tracks

VALUES: dict[str, Any] = {
    "id": "q",
    "video": "v",
    "path": "v.mp4",
    "fps": 25.0,
    "frame_count": 100,
    "size": (64, 48),
    "segment": (10, 90),
    "text": "who is it",
    "split": "val",
}


def make_query(**changes: Any) -> Query:
    return Query.model_validate({**VALUES, **changes})


def line(**changes: Any) -> str:
    return json.dumps({**make_query().model_dump(mode="json"), **changes})


@given(
    st.text(), st.lists(st.text()), st.none() | st.sampled_from(["declarative", "interrogative"])
)
def test_a_query_survives_its_line(
    tmp_path_factory: pytest.TempPathFactory, text: str, tags: list[str], form: str | None
) -> None:
    path = tmp_path_factory.mktemp("records") / "index.jsonl"
    queries = [
        make_query(text=text, tags=tags, form=form, truth=Truth(span=(10, 20), track="t")),
        make_query(id="other"),
    ]
    write_jsonl(path, queries)
    assert list(read_jsonl(path, Query)) == queries
    assert len(path.read_bytes().splitlines()) == 2


def test_other_records_survive_their_line(tmp_path: Path) -> None:
    prediction = Prediction(id="q", span=(1, 3), score=0.25, boxes=[(1, 0.5, 1.5, 2.0, 3.0)])
    failure = Failure(
        video="v", path="v.mp4", stage="open", reason="missing", detail="ä", attempts=2
    )
    for record in (prediction, failure):
        write_jsonl(tmp_path / "records.jsonl", [record])
        assert list(read_jsonl(tmp_path / "records.jsonl", type(record))) == [record]


def test_every_line_carries_its_format(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "index.jsonl", [make_query()])
    assert json.loads((tmp_path / "index.jsonl").read_text())["format"] == 1


def test_empty_lines_are_skipped(tmp_path: Path) -> None:
    (tmp_path / "index.jsonl").write_text(f"\n{line()}\r\n  \n{line(id='other')}")
    assert [query.id for query in read_jsonl(tmp_path / "index.jsonl", Query)] == ["q", "other"]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (line(format=2).encode(), r"format: Input should be 1 \(got 2\)"),
        (line(colour="red").encode(), r"colour: Extra inputs are not permitted \(got 'red'\)"),
        (b'{"format": 1, "id": "q"}', "video: Field required"),
        (line(fps="fast").encode(), r"fps: .*valid number.*\(got 'fast'\)"),
        (b"{", "Invalid JSON"),
        (b'{"id": "\xff"}', "Invalid JSON: invalid unicode"),
        (b"[" * 100_000, "Invalid JSON: recursion limit exceeded"),
        (
            line(fps=1).replace('"fps": 1', '"fps": 1e999').encode(),
            "fps: Input should be a finite number",
        ),
        (
            line(fps=1).replace('"fps": 1', '"fps": NaN').encode(),
            "fps: Input should be a finite number",
        ),
        (
            line(frame_count=1)
            .replace('"frame_count": 1', '"frame_count": ' + "9" * 5000)
            .encode(),
            "Invalid JSON: number out of range",
        ),
        (
            line().replace('"id": "q"', '"id": "q", "id": "r"').encode(),
            "the key 'id' stands twice in one object",
        ),
        (
            line(truth={"span": [10, 20], "track": "a"})
            .replace('"track"', '"span": [11, 12], "track"')
            .encode(),
            "the key 'span' stands twice",
        ),
        (line(**{"x" * 1000: 1}).encode(), r"x{77}\.\.\.: Extra inputs are not permitted"),
        (line(segment=[5, 5]).encode(), r"segment \[5, 5\) does not lie in \[0, 100\)"),
        (line(segment=[5, 101]).encode(), r"segment \[5, 101\) does not lie in \[0, 100\)"),
        (
            line(truth={"span": [5, 20]}).encode(),
            r"truth span \[5, 20\) does not lie in the segment \[10, 90\)",
        ),
        (
            line(truth={"span": [20, 20]}).encode(),
            r"truth span \[20, 20\) does not lie in the segment",
        ),
    ],
)
def test_a_bad_line_is_named_by_file_and_number(tmp_path: Path, bad: bytes, message: str) -> None:
    (tmp_path / "index.jsonl").write_bytes(line().encode() + b"\n\n" + bad + b"\n")
    with pytest.raises(InputError, match=rf"index\.jsonl, line 3: .*{message}"):
        list(read_jsonl(tmp_path / "index.jsonl", Query))


def test_what_is_wrong_is_said_in_one_short_line(tmp_path: Path) -> None:
    (tmp_path / "index.jsonl").write_text(line(text=["x" * 1000]))
    with pytest.raises(InputError, match=r"text: .*\(got .{77}\.\.\.\)$") as result:
        list(read_jsonl(tmp_path / "index.jsonl", Query))
    assert "\n" not in str(result.value)


def test_a_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "index.jsonl").write_bytes(b"\xef\xbb\xbf" + line().encode())
    assert [query.id for query in read_jsonl(tmp_path / "index.jsonl", Query)] == ["q"]


def test_a_huge_line_is_refused_by_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.io.strict_json.MAX_LINE_BYTES", 1000)
    (tmp_path / "index.jsonl").write_text(f"{line()}\n{line(text='x' * 1000)}")
    with pytest.raises(InputError, match=r"index\.jsonl, line 2 is longer than 1000 bytes"):
        list(read_jsonl(tmp_path / "index.jsonl", Query))


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"index\.jsonl does not exist"):
        list(read_jsonl(tmp_path / "index.jsonl", Query))


def test_a_record_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        make_query().id = "x"  # type: ignore[misc]


names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8)


@given(
    st.dictionaries(
        names, arrays(np.float32, (3, 4), elements=st.floats(0, 500, width=32)), max_size=4
    ),
    st.integers(0, 3),
)
def test_tracks_survive_their_file(
    tmp_path_factory: pytest.TempPathFactory, boxes: dict[str, np.ndarray], count: int
) -> None:
    path = tmp_path_factory.mktemp("tracks") / "tracks.npz"
    tracks = Tracks()
    for start, (key, rows) in enumerate(boxes.items()):
        tracks.add(key, np.arange(start, start + count), rows[:count])
    tracks.save(path)
    read = Tracks.load(path)
    assert sorted(read.keys()) == sorted(boxes)
    assert len(read) == len(boxes)
    for key in boxes:
        assert key in read
        for result, written in zip(read[key], tracks[key], strict=True):
            assert result.dtype == written.dtype
            np.testing.assert_array_equal(result, written)


def test_the_same_tracks_give_the_same_file(tmp_path: Path) -> None:
    for name, keys in (("one", "ab"), ("two", "ba")):
        tracks = Tracks()
        for key in keys:
            tracks.add(key, np.arange(2), np.full((2, 4), ord(key)))
        tracks.save(tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_an_unknown_track_is_named() -> None:
    with pytest.raises(InputError, match=r"no track 'v/3' in tracks\.npz: run stvg-prepare again"):
        Tracks()["v/3"]


def test_tracks_that_are_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"tracks\.npz does not exist: run stvg-prepare first"):
        Tracks.load(tmp_path / "tracks.npz")


def test_tracks_of_another_format_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "tracks.npz", format=np.int64(2))
    with pytest.raises(InputError, match=r"tracks\.npz: format 2 is unknown; this version reads 1"):
        Tracks.load(tmp_path / "tracks.npz")


@pytest.mark.parametrize("damage", ["cut", "flipped", "text", "empty", "keys"])
def test_damaged_tracks_are_refused(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "tracks.npz"
    tracks = Tracks()
    tracks.add("a", np.arange(300), np.random.default_rng(0).random((300, 4)))
    tracks.save(path)
    content = bytearray(path.read_bytes())
    if damage == "keys":
        np.savez(path, format=np.int64(1))
    else:
        middle = len(content) // 2
        content[middle : middle + 8] = bytes(255 - byte for byte in content[middle : middle + 8])
        path.write_bytes(
            {"cut": content[:middle], "flipped": content, "text": b"boxes", "empty": b""}[damage]
        )
    with pytest.raises(
        InputError, match=r"tracks\.npz cannot be read as tracks .*: run stvg-prepare again"
    ):
        Tracks.load(path)


def _stop_within(path: Path) -> None:
    with atomic_write(path) as aside:
        aside.write_text("half")
        raise InputError("stopped")


def test_a_file_is_replaced_only_when_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a" / "value.json"
    write_json(path, {"ä": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"begun": 1, "loss": float("nan")})
    with pytest.raises(InputError, match="stopped"):
        _stop_within(path)
    assert json.loads(path.read_text(encoding="utf-8")) == {"ä": 1}
    assert [file.name for file in path.parent.iterdir()] == ["value.json"]


def test_not_a_number_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "value.json", {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_no_index_and_no_place_to_write(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        list(read_jsonl(tmp_path, Query))
    with pytest.raises(InputError, match="is a folder: give a file to write"):
        write_json(tmp_path, {})
