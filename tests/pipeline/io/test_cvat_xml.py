"""CVAT's tracks: the file as CVAT's own importer takes it, what is read from one, and what is
refused by name.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from pipeline.errors import InputError
from pipeline.io.cvat_xml import ATTRIBUTES, CvatTrack, build_cvat_labels, read_cvat, write_cvat


def track(
    frames: list[int], keyframes: list[int], label: str = "truth", **attributes: str
) -> CvatTrack:
    """A box that moves right by a pixel per frame."""
    left = np.array(frames, float)
    boxes = np.stack([left, left * 0 + 2, left + 10, left * 0 + 12.346], -1)
    return CvatTrack(label, np.array(frames), boxes, np.isin(frames, keyframes), attributes)


def write(path: Path, *tracks: CvatTrack, frame_count: int = 20) -> ElementTree.Element:
    write_cvat(path, "dog run.mp4", (64, 36), frame_count, tracks)
    return ElementTree.parse(path).getroot()


def rows(element: ElementTree.Element) -> list[tuple[int, str, str]]:
    return [
        (int(box.attrib["frame"]), box.attrib["outside"], box.attrib["keyframe"])
        for box in element.iter("box")
    ]


def test_a_track_is_what_cvats_importer_takes(tmp_path: Path) -> None:
    root = write(tmp_path / "a.xml", track([3, 4, 5], [3, 5], sentence="a dog", score="0.5"))
    assert (root.tag, root.findtext("version")) == ("annotations", "1.1")
    assert (root.findtext("meta/task/size"), root.findtext("meta/task/source")) == (
        "20",
        "dog run.mp4",
    )
    assert [root.findtext(f"meta/task/original_size/{side}") for side in ("width", "height")] == [
        "64",
        "36",
    ]
    (entry,) = root.findall("track")
    assert (entry.get("id"), entry.get("label")) == ("0", "truth")
    assert rows(entry) == [
        (3, "0", "1"),
        (4, "0", "0"),
        (5, "0", "1"),
        (6, "1", "1"),
    ]  # gone after frame 5, or CVAT would show it to the end
    first = entry.find("box")
    assert first is not None
    assert [first.get(name) for name in ("xtl", "ytl", "xbr", "ybr", "occluded")] == [
        "3.00",
        "2.00",
        "13.00",
        "12.35",
        "0",
    ]
    for box in entry.iter("box"):  # CVAT takes a track's attributes from its last box
        assert {item.get("name"): item.text for item in box} == {
            "sentence": "a dog",
            "score": "0.5",
        }


def test_frames_without_a_box_are_outside_and_the_last_frame_has_none_after_it(
    tmp_path: Path,
) -> None:
    root = write(tmp_path / "a.xml", track([2, 3, 7, 8, 9], [2]), track([], []), frame_count=10)
    assert len(root.findall("track")) == 1
    assert rows(root) == [
        (2, "0", "1"),
        (3, "0", "1"),
        (4, "1", "1"),
        (7, "0", "1"),
        (8, "0", "0"),
        (9, "0", "0"),
    ]


def test_the_labels_of_a_task_are_those_of_its_file(tmp_path: Path) -> None:
    root = write(tmp_path / "a.xml", track([1], [1]))
    assert (
        [label.findtext("name") for label in root.iter("label")]
        == [label["name"] for label in build_cvat_labels()]
        == ["truth", "prediction"]
    )
    for label in build_cvat_labels():
        assert [
            (item["name"], item["input_type"], item["mutable"]) for item in label["attributes"]
        ] == [(name, "text", False) for name in ATTRIBUTES]
    assert [
        item.findtext("input_type")
        for item in root.iter("attribute")
        if item.find("input_type") is not None
    ] == ["text"] * 8


HOSTILE = ['<a href="x">&amp; ]]> --></a>', "一人の男 🐕", "a\nb\tc", "'\"&<>"]


@pytest.mark.parametrize("text", HOSTILE)
def test_any_text_is_read_as_it_was_written(text: str, tmp_path: Path) -> None:
    write(tmp_path / "a.xml", track([1], [1], sentence=text))
    (video,) = read_cvat(tmp_path / "a.xml")
    assert video.tracks["0"].attributes["sentence"] == text


def test_what_xml_cannot_hold_is_replaced(tmp_path: Path) -> None:
    write(tmp_path / "a.xml", track([1], [1], sentence="a\0b\x0b\ufffe"))
    (video,) = read_cvat(tmp_path / "a.xml")
    assert video.tracks["0"].attributes["sentence"] == "a\ufffdb\ufffd\ufffd"


def test_what_is_written_is_read_from_a_file_and_from_a_zip(tmp_path: Path) -> None:
    tracks = track([2, 3, 7, 8, 19], [2, 8], query="{}"), track([0], [0], "prediction")
    write(tmp_path / "a.xml", *tracks)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(tmp_path / "a.xml", "annotations.xml")
        archive.writestr("images/frame_000000.png", b"")
    for path in (tmp_path / "a.xml", tmp_path / "a.zip"):
        (video,) = read_cvat(path)
        assert (video.source, video.track_errors, list(video.tracks)) == (
            "dog run.mp4",
            {},
            ["0", "1"],
        )
        for own, result in zip(tracks, video.tracks.values(), strict=True):
            assert (result.label, result.attributes) == (own.label, own.attributes)
            assert result.frames.tolist() == own.frames.tolist()
            assert np.abs(result.boxes - own.boxes).max() <= 0.0051


def xml(boxes: str, rest: str = "") -> str:
    track = f'<track id="7" label="truth">{boxes}</track>'
    return f"<annotations><version>1.1</version>{rest}{track}</annotations>"


def box(frame: object, x: object = 0, outside: int = 0, more: str = "") -> str:
    state = f'frame="{frame}" outside="{outside}" keyframe="1"'
    return f'<box {state} xtl="{x}" ytl="0" xbr="10" ybr="10" {more}/>'


def read(tmp_path: Path, content: str | bytes, name: str = "a.xml") -> Any:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    (video,) = read_cvat(path)
    return video


def test_boxes_between_keyframes_are_interpolated_and_held_before_an_end(tmp_path: Path) -> None:
    result = read(tmp_path, xml(box(8, 8, 1) + box(2, 2) + box(4, 6))).tracks["7"]  # in any order
    assert result.frames.tolist() == [2, 3, 4, 5, 6, 7]
    assert result.boxes[:, 0].tolist() == [2, 4, 6, 6, 6, 6]
    assert result.keyframes.tolist() == [True, False, True, False, False, False]


@pytest.mark.parametrize(
    ("boxes", "why"),
    [
        ("", "no box: only rectangles are read"),
        ('<polygon frame="1" points="0,0;1,1"/>', "no box: only rectangles are read"),
        (box(1, outside=1), "no box"),
        (box(1) + box(1), "two boxes in one frame"),
        (box("x"), "invalid literal for int"),
        (box(-1), "frame -1"),
        (box(10**9), "frame 1000000000"),
        (box(0) + box(10**8), "longer than 1,000,000 frames"),
        (box(1, "nan"), "frame 1 has corners that are no pixels"),
        (box(1, "1e9"), "frame 1 has corners that are no pixels"),
        (box(1, "left"), "could not convert string to float"),
        (box(1, more='rotation="12.5"'), "the box of frame 1 is turned"),
        ('<box frame="1" outside="0"/>', "a box without xtl"),
    ],
)
def test_a_track_that_is_no_tube_says_why_and_the_others_are_read(
    boxes: str, why: str, tmp_path: Path
) -> None:
    good = f'<track id="8" label="truth">{box(1)}</track></annotations>'
    video = read(tmp_path, xml(boxes).replace("</annotations>", good))
    assert list(video.tracks) == ["8"]
    assert why in video.track_errors["7"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.xml", b"", r"a\.xml is not XML .*: export the task from CVAT as 'CVAT for video 1\.1'"),
        ("a.xml", b"<annotations><track>", r"a\.xml is not XML"),
        ("a.xml", b"<html/>", r"a\.xml is not a CVAT annotation file, its root element is <html>"),
        (
            "a.xml",
            xml("", "<image id='0'/>").encode(),
            r"a\.xml is an export for images, or of a whole project",
        ),
        (
            "a.xml",
            xml("", "<meta><project/></meta>").encode(),
            r"a\.xml is an export for images, or of a whole project",
        ),
        ("a.zip", b"PK", r"a\.zip cannot be read .*zip"),
        (
            "a.xml",
            b'<!DOCTYPE a [<!ENTITY x SYSTEM "/etc/passwd">]><annotations>&x;</annotations>',
            r"a\.xml is not XML",
        ),
    ],
)
def test_a_file_that_is_not_cvats_is_refused_by_name(
    name: str, content: bytes, message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        read(tmp_path, content, name)


def test_a_file_that_is_absent_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.xml cannot be read"):
        list(read_cvat(tmp_path / "none.xml"))
