"""Annotations damaged in every way a hand or a disk can think of: a defect or an InputError by
name, and nothing else.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.datasets import PARSERS, ParsedDataset, get_parser, ignore_progress
from pipeline.datasets.annotation_fields import SAFE_NAME_PATTERN
from pipeline.errors import InputError
from pipeline.io import strict_json as json_files
from pipeline.io.jsonl import read_jsonl, write_json, write_jsonl
from pipeline.records import Prediction, Query
from pipeline.tracks import Tracks

NASTY = (
    *(
        "null",
        "true",
        "[]",
        "{}",
        "[[]]",
        '""',
        "-1",
        "0",
        "1.5",
        "2147483648",
        "-9223372036854775809",
        "1e308",
        "-1e308",
        "1e-320",
    ),
    *(
        "1e999",
        "-1e999",
        "NaN",
        "Infinity",
        "1" + "0" * 30,
        "1" + "0" * 400,
        "9" * 5000,
        "[" * 3000 + "]" * 3000,
        '{"a": 1, "a": 2}',
        "[[1, 2, 3]]",
    ),
    *(
        '"../../evil"',
        '"/etc/passwd"',
        '"a\\u0000b"',
        '"\\ud800"',
        '"a\\nb"',
        '"\\u202e"',
        '"1"',
        '"' + "x" * 5000 + '"',
        "[null, [1]]",
    ),
)
"""Pieces of JSON to stand where a sound value stood."""
BOX = {"xmin": 1, "ymin": 2, "xmax": 30, "ymax": 40}
LINE = {
    "video": "a.mp4",
    "text": "a dog",
    "id": "x",
    "segment": [2, 30],
    "tube": {"begin": 5, "boxes": [[1, 2, 30, 40], None]},
    "tags": ["b"],
}
QUERY = {
    "format": 1,
    "id": "q",
    "video": "v",
    "path": "v.mp4",
    "fps": 25.0,
    "frame_count": 100,
    "size": [64, 48],
    "segment": [10, 90],
}
QUERY |= {
    "text": "who",
    "form": None,
    "split": "val",
    "object": None,
    "truth": {"span": [20, 30], "track": "t"},
    "tags": [],
}
ANSWER = {"id": "q", "span": [1, 3], "score": 0.5, "boxes": [[1, 0.5, 1.5, 2, 3]]}


class Form(NamedTuple):
    """A kind of annotations: its parser's name, the files of a sound root as `{place: content}`,
    and which of them is damaged.
    """

    parser: str
    files: dict[str, Any]
    victim: str


FORMS = ("vidstg", "vidor", "hcstvg-v1", "hcstvg-v2", "queries", "jsonl")


@pytest.fixture
def annotation_forms(make_vidstg_entry: Any, make_hcstvg_entry: Any) -> dict[str, Form]:
    """Each kind of annotations, of sound entries."""
    asked = make_vidstg_entry(
        captions=[{"description": "a dog.", "target_id": 0, "tags": ["night"]}]
    )
    first, sentences = make_hcstvg_entry(), "annotations/val_annotations.json"
    second = {
        key: value for key, value in first.items() if key not in ("caption", "width", "height")
    }
    second |= {"English": "A man.", "img_size": [50, 100], "ed_frame": 159}
    boxes = "annotation/training/1/101.json"
    result = {sentences: [asked], boxes: {"trajectories": [[{"tid": 0, "bbox": BOX}]] * 20}}

    return {
        "vidstg": Form("vidstg", {sentences: [asked, asked]}, sentences),
        "vidor": Form("vidstg", result, boxes),
        "hcstvg-v1": Form(
            "hcstvg-v1", {"train.json": {"1_a.mp4": first, "2_a.mkv": first}}, "train.json"
        ),
        "hcstvg-v2": Form(
            "hcstvg-v2", {"trainv2.json": {"1_a.mp4": second, "2_a.mkv": second}}, "trainv2.json"
        ),
        "queries": Form(
            "hcstvg-v2", {"queryv2.json": {"1_a.mp4": "A man.", "2_a.mkv": second}}, "queryv2.json"
        ),
        "jsonl": Form(
            "jsonl", {"data.jsonl": [LINE, {"video": "a.mp4", "text": "a cat"}]}, "data.jsonl"
        ),
    }


SETTINGS = settings(
    max_examples=300, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


def places_in(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value inside a value, itself left out."""
    inside = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )

    for key, item in inside:
        yield (*place, key)
        yield from places_in(item, (*place, key))


def written(content: Any, lines: bool) -> bytes:
    return (
        b"".join(json.dumps(row).encode() + b"\n" for row in content)
        if lines
        else json.dumps(content).encode()
    )


@st.composite
def damaged(draw: st.DrawFn, content: Any, lines: bool) -> bytes:
    """The content as JSON (or JSON lines) with one to three values replaced, keys deleted, doubled
    or renamed, or bytes changed.
    """
    content, pieces = deepcopy(content), {}

    for number in range(draw(st.integers(0, 3))):
        places = list(places_in(content))
        if not places:
            break
        *way, last = draw(st.sampled_from(places))
        holder = content
        for step in way:
            holder = holder[step]
        mark, kind = f"@{number}@", draw(st.sampled_from(("replace", "delete", "double", "rename")))
        if kind == "replace" or not isinstance(holder, dict):
            holder[last] = mark
            pieces[f'"{mark}"'] = draw(st.sampled_from(NASTY))
        elif kind == "delete":
            del holder[last]
        elif kind == "double":
            pieces[f'"{mark}"'] = (
                f"{json.dumps(holder[last])}, {json.dumps(last)}: {draw(st.sampled_from(NASTY))}"
            )
            holder[last] = mark
        else:
            holder[
                draw(st.sampled_from(["../evil", "/etc/x.mp4", "a\0", "\ud800", "", "x" * 5000]))
            ] = holder.pop(last)

    text = written(content, lines)

    for mark, piece in pieces.items():
        text = text.replace(mark.encode(), piece.encode(errors="surrogatepass"))

    place = draw(st.integers(0, len(text)))
    bytes_in = draw(
        st.sampled_from(
            [b"", b"", b"", b"\0", b"\xff", b"\xef\xbb\xbf", b"\n", b"}", b"[", b"\\u0000"]
        )
    )

    return draw(
        st.sampled_from([text, text, text, text[:place], text[:place] + bytes_in + text[place:]])
    )


def listing(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def parse_here(form: Form, root: Path) -> ParsedDataset | None:
    """What the parser gives, warnings being errors; None for an InputError, which must name the
    damaged file.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return get_parser(form.parser)(
                root / form.victim if form.parser == "jsonl" else root, ignore_progress
            )
    except InputError as error:
        problem = str(error)

    assert str(root / form.victim) in problem
    assert len(problem) < 2000

    return None


def check(parsed: ParsedDataset, form: Form, out: Path) -> None:
    """All of it can be written and read again; boxes lie in the pictures, and no name leads out of
    the root.
    """
    for query in parsed.queries:
        if form.parser != "jsonl":
            assert SAFE_NAME_PATTERN.fullmatch(query.path.rpartition("/")[2])
            assert ".." not in Path(query.path).parts
            assert not os.path.isabs(query.path)
        if query.truth and query.truth.track:
            frames, boxes = parsed.tracks[query.truth.track]
            assert (np.diff(frames) > 0).all()
            assert ((frames >= query.truth.span[0]) & (frames < query.truth.span[1])).any()
            assert (boxes >= 0).all()
            assert (boxes[:, 2:] > boxes[:, :2]).all()
            if form.parser != "vidstg":
                assert (boxes <= np.array([*query.size, *query.size])).all()

    write_jsonl(out / "index.jsonl", parsed.queries)
    write_json(out / "defects.json", parsed.defects.to_list())
    parsed.tracks.save(out / "tracks.npz")

    assert list(read_jsonl(out / "index.jsonl", Query)) == parsed.queries
    assert sorted(Tracks.load(out / "tracks.npz").keys()) == sorted(parsed.tracks.keys())
    assert len({query.id for query in parsed.queries}) == len(parsed.queries)


@pytest.fixture
def data_folder(tmp_path: Path, make_video: Any) -> Path:
    """`house/root` is the data set's place, with the films `a.mp4` and `1_a.mp4`; `house/out` is
    for what is written.
    """
    for folder in (tmp_path / "root", tmp_path / "out"):
        folder.mkdir()
    make_video(tmp_path / "root" / "a.mp4")
    make_video(tmp_path / "root" / "1_a.mp4")
    return tmp_path


def build(form: Form, root: Path, victim: bytes) -> None:
    for place, content in form.files.items():
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        (root / place).write_bytes(
            victim if place == form.victim else written(content, place.endswith("l"))
        )


@pytest.mark.parametrize("name", FORMS)
def test_the_sound_files_are_sound(
    name: str, data_folder: Path, annotation_forms: dict[str, Form]
) -> None:
    form = annotation_forms[name]
    build(form, data_folder / "root", written(form.files[form.victim], form.parser == "jsonl"))
    parsed = parse_here(form, data_folder / "root")

    assert parsed is not None
    assert parsed.queries
    assert parsed.defects.num_excluded == 0
    assert len(parsed.tracks) == (0 if name == "vidstg" else 2 if name.startswith("hcstvg") else 1)


@pytest.mark.parametrize("name", FORMS)
def test_whatever_is_in_a_file(
    name: str, data_folder: Path, annotation_forms: dict[str, Form]
) -> None:
    form = annotation_forms[name]
    root = data_folder / "root"

    @SETTINGS
    @given(damaged(form.files[form.victim], form.parser == "jsonl"))
    def run(victim: bytes) -> None:
        build(form, root, victim)
        before = listing(data_folder)
        parsed = parse_here(form, root)

        assert listing(data_folder) == before

        if parsed is not None:
            check(parsed, form, data_folder / "out")
        elif name == "vidor":
            pytest.fail("a file of boxes may not stop the others")

    run()


@pytest.mark.parametrize(
    ("kind", "row"), [(Query, QUERY), (Prediction, ANSWER)], ids=["index", "predictions"]
)
def test_whatever_is_in_a_file_of_records(kind: Any, row: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"

    @SETTINGS
    @given(damaged([row, row], True))
    def run(content: bytes) -> None:
        path.write_bytes(content)
        problem = f"{path}, line 1"
        try:
            assert all(isinstance(record, kind) for record in read_jsonl(path, kind))
        except InputError as error:
            problem = str(error)

        assert problem.startswith(f"{path}, line ")
        assert len(problem) < 1000

    run()


WHOLE = {
    "not JSON": (b"<html>", r"line 1, column 1: not JSON"),
    "a cut file": (b'[{"vid": "1', r"line 1, column \d+: not JSON"),
    "not UTF-8": (b'{"a": "\xff"}', r"byte 7: not UTF-8"),
    "UTF-16": ("{}".encode("utf-16"), r"byte 0: not UTF-8"),
    "deep nesting": (b"[" * 100_000 + b"]" * 100_000, r"JSON nested too deeply"),
    "5000 digits": (b"[" + b"9" * 5000 + b"]", r"not JSON \(a number of thousands"),
    "a key twice": (
        b'{\n"a": 1, "a": 2}',
        r"line 2, column 9: the key 'a' stands twice in one object",
    ),
    "another type": (b"7", r"must hold"),
    "empty": (b"", r"line 1, column 1: not JSON"),
}


@pytest.mark.parametrize("damage", WHOLE)
@pytest.mark.parametrize("name", ["vidstg", "hcstvg-v1", "hcstvg-v2"])
def test_a_file_that_cannot_be_read_is_an_error_with_its_place(
    name: str, damage: str, tmp_path: Path, annotation_forms: dict[str, Form]
) -> None:
    form, (content, message) = annotation_forms[name], WHOLE[damage]
    build(form, tmp_path, content)
    with pytest.raises(InputError, match=rf"{Path(form.victim).name}(, |: | ){message}"):
        PARSERS[form.parser](tmp_path, ignore_progress)


@pytest.mark.parametrize("damage", WHOLE)
def test_a_file_of_boxes_that_cannot_be_read_is_a_defect(
    damage: str, tmp_path: Path, annotation_forms: dict[str, Form]
) -> None:
    form = annotation_forms["vidor"]
    build(form, tmp_path, WHOLE[damage][0])
    parsed = PARSERS["vidstg"](tmp_path, ignore_progress)

    assert [query.truth.track for query in parsed.queries if query.truth] == [None, None]
    assert [(row["kind"], row["entries"][0]["entry"]) for row in parsed.defects.to_list()] == [
        ("unreadable box file", "101")
    ]


@pytest.mark.parametrize("name", ["vidstg", "vidor", "hcstvg-v1", "hcstvg-v2"])
def test_a_file_above_the_limit_is_refused_unread(
    name: str, tmp_path: Path, annotation_forms: dict[str, Form]
) -> None:
    form = annotation_forms[name]
    build(form, tmp_path, b"")
    with (tmp_path / form.victim).open("wb") as file:
        file.truncate(json_files.MAX_FILE_BYTES + 1)

    if name == "vidor":
        assert (
            PARSERS[form.parser](tmp_path, ignore_progress).defects.count("unreadable box file")
            == 1
        )
    else:
        with pytest.raises(
            InputError,
            match=(
                rf"{Path(form.victim).name} has 536870913 bytes, "
                rf"more than the 536870912 that are read"
            ),
        ):
            PARSERS[form.parser](tmp_path, ignore_progress)


def test_a_line_above_the_limit_is_refused_by_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_files, "MAX_LINE_BYTES", 1000)
    (tmp_path / "data.jsonl").write_text(
        json.dumps(LINE) + "\n" + json.dumps(LINE | {"text": "x" * 1000})
    )

    with pytest.raises(InputError, match=r"data\.jsonl, line 2 is longer than 1000 bytes"):
        PARSERS["jsonl"](tmp_path / "data.jsonl", ignore_progress)


@pytest.mark.parametrize("name", FORMS)
def test_a_byte_order_mark_is_passed_over(
    name: str, data_folder: Path, annotation_forms: dict[str, Form]
) -> None:
    form = annotation_forms[name]
    build(
        form,
        data_folder / "root",
        b"\xef\xbb\xbf" + written(form.files[form.victim], form.parser == "jsonl"),
    )
    parsed = parse_here(form, data_folder / "root")

    assert parsed is not None
    assert parsed.queries
    assert parsed.defects.num_excluded == 0


def test_a_report_can_be_written_and_has_an_end(tmp_path: Path) -> None:
    """Names and details come from files: half a surrogate pair is escaped, a long text is cut."""
    parsed = ParsedDataset(tmp_path)
    parsed.defects.add("kind", "\ud800", "x" * 10**6, excluded=True)
    write_json(tmp_path / "defects.json", parsed.defects.to_list())
    (row,) = json.loads((tmp_path / "defects.json").read_text())[0]["entries"]
    assert (row["entry"], len(row["detail"]), row["detail"][-4:]) == ("\\ud800", 500, "x...")


def test_files_whose_names_are_no_text_are_passed_over(
    tmp_path: Path, annotation_forms: dict[str, Form]
) -> None:
    """An index is UTF-8: a video in a folder whose name is not cannot stand in it."""
    form = annotation_forms["hcstvg-v1"]
    build(form, tmp_path, written(form.files[form.victim], False))
    place = os.fsencode(tmp_path) + b"/\xff"
    os.mkdir(place)
    with open(place + b"/1_a.mp4", "wb"):
        pass

    parsed = parse_here(form, tmp_path)

    assert parsed is not None
    assert [query.path for query in parsed.queries] == ["video/1_a.mp4", "video/2_a.mkv"]
