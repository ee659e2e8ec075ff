"""Truth from CVAT: what was exported and corrected, what was drawn anew, and what is left out by
name.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.datasets import get_parser
from pipeline.datasets.cvat import parse
from pipeline.errors import InputError
from pipeline.io.cvat_xml import CvatTrack, write_cvat

KNOWN = {
    "id": "q/../1",
    "video": "clips/a.mp4",
    "split": "train",
    "segment": [0, 30],
    "tags": ["night"],
}


@pytest.fixture
def root(tmp_path: Path, make_video: Any) -> Path:
    """A folder with `clips/a.mp4` (40 frames of 128x48)."""
    (tmp_path / "clips").mkdir()
    make_video(tmp_path / "clips" / "a.mp4")
    return tmp_path


def track(
    label: str = "truth", sentence: str = "a dog", frames: tuple[int, ...] = (5, 6, 8), **query: Any
) -> CvatTrack:
    boxes = np.tile([1.0, 2.0, 30.0, 40.25], (len(frames), 1))
    attributes = {"sentence": sentence, "query": json.dumps(query) if query else ""}
    return CvatTrack(label, np.array(frames), boxes, np.ones(len(frames), bool), attributes)


def write(root: Path, *tracks: CvatTrack, name: str = "done/a.xml", source: str = "a.mp4") -> None:
    (root / name).parent.mkdir(exist_ok=True)
    write_cvat(root / name, source, (128, 48), 40, tracks)


def defects(parsed: Any) -> dict[str, list[tuple[str, str]]]:
    return {
        row["kind"]: [(item["entry"], item["detail"]) for item in row["entries"]]
        for row in parsed.defects.to_list()
    }


def test_a_corrected_track_is_its_querys_truth(root: Path) -> None:
    write(root, track("prediction", frames=(1, 2), **KNOWN), track(sentence="a big dog", **KNOWN))
    parsed = get_parser("cvat")(root)
    (query,) = parsed.queries

    assert (query.id, query.path, query.split, query.segment, query.tags) == (
        "q/../1",
        "clips/a.mp4",
        "train",
        (0, 30),
        ("night",),
    )
    assert (query.text, query.frame_count, query.size) == ("a big dog", 40, (128, 48))
    assert query.truth is not None
    assert query.truth.span == (5, 9)

    frames, boxes = parsed.tracks[str(query.truth.track)]

    assert frames.tolist() == [5, 6, 8]  # the object was hidden at 7
    assert boxes.tolist() == [[1, 2, 30, 40.25]] * 3
    assert not defects(parsed)


def test_a_track_drawn_anew_is_about_the_video_of_its_task(root: Path) -> None:
    write(root, track(), track(sentence="a cat"))
    parsed = parse(root)

    assert [(query.id, query.text, query.path, query.split) for query in parsed.queries] == [
        ("done/a.xml, track 0", "a dog", "clips/a.mp4", "test"),
        ("done/a.xml, track 1", "a cat", "clips/a.mp4", "test"),
    ]


def test_what_is_left_out_is_named(root: Path) -> None:
    bad = CvatTrack(
        "truth", np.array([1]), np.zeros((1, 4)), np.ones(1, bool), {"sentence": "x", "query": "[1"}
    )
    write(
        root,
        track("prediction", **KNOWN),
        bad,
        track(sentence=" "),
        track("car"),
        track(id="b", colour="red"),
        track(**KNOWN | {"id": "c"}),
    )
    write(root, track(**KNOWN | {"id": "c"}), name="z.xml")
    write(root, track(), name="gone.xml", source="gone.mp4")
    (root / "other.xml").write_text("<html/>")
    parsed = parse(root)
    result = defects(parsed)

    assert [query.id for query in parsed.queries] == ["c"]
    assert result["still a prediction"] == [
        ("done/a.xml, track 0", "label it 'truth' in CVAT once it is correct")
    ]
    assert result["unreadable query"] == [
        ("done/a.xml, track 1", "the attribute 'query' is not a JSON object: [1")
    ]
    assert [entry for entry, _ in result["empty sentence"]] == ["done/a.xml, track 2"]
    assert [entry for entry, _ in result["malformed line"]] == ["done/a.xml, track 4"]
    assert result["repeated id"] == [
        ("z.xml, track 0", "id 'c' is already used by an earlier entry")
    ]
    assert [entry for entry, _ in result["video missing"]] == ["gone.xml, track 0"]
    assert [entry for entry, _ in result["not CVAT's tracks"]] == ["other.xml"]


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda root: root / "none", "does not exist"),
        (lambda root: root / "clips" / "a.mp4", "is a file; the data set's folder is expected"),
        (lambda root: root, "holds no export of CVAT"),
    ],
)
def test_a_root_without_exports_says_what_to_put_there(make: Any, problem: str, root: Path) -> None:
    with pytest.raises(InputError, match=rf"{problem}\. Put into one folder"):
        parse(make(root))


def test_exports_without_a_true_track_are_explained(root: Path) -> None:
    write(root, track("car"))
    with pytest.raises(InputError, match="holds exports of CVAT, but no track labelled 'truth'"):
        parse(root)
