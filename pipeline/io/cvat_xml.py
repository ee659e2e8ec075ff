"""CVAT's tracks of one video, written and read: its format "CVAT for video 1.1", one XML file per task.

Frames are numbered from 0; boxes are xyxy in pixels, with the two decimals that CVAT itself writes. A track is seen from its first box
on, until one that is marked `outside`; between `keyframe` boxes CVAT interpolates linearly. It takes a track's attributes from its
boxes, so every box carries them.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any
from xml.etree import ElementTree

import numpy as np

from pipeline.errors import InputError
from pipeline.io.atomic import atomic_write
from pipeline.records import MAX_COORDINATE, MAX_FRAMES

TRUTH, PREDICTION = "truth", "prediction"
COLORS = {TRUTH: "#2ecc71", PREDICTION: "#ffd60a"}
ATTRIBUTES = ("sentence", "query", "score", "vIoU")
"""What a track says of itself; `query` is JSON: the id, and what else a line of the data set `jsonl` has but the sentence and the tube."""
INVALID_XML_CHARACTERS = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML cannot hold, escaped or not."""
MAX_TRACK_FRAMES = 1_000_000
"""Frames of a track that is read; nine hours."""
EXPORT_HINT = "export the task from CVAT as 'CVAT for video 1.1'"


@dataclass(frozen=True, eq=False)
class CvatTrack:
    """One tube: ascending `frames` `[n]` that have a box, `boxes` `[n, 4]`, and which of them are `keyframes` `[n]`."""

    label: str
    frames: np.ndarray
    boxes: np.ndarray
    keyframes: np.ndarray
    attributes: Mapping[str, str]


@dataclass
class CvatVideo:
    """What a task says: its video's file name, its tracks by CVAT's number, and why others could not be read, by theirs."""

    source: str = ""
    tracks: dict[str, CvatTrack] = field(default_factory=dict)
    track_errors: dict[str, str] = field(default_factory=dict)


def build_cvat_labels() -> list[dict[str, Any]]:
    """The labels a task needs before tracks can be imported into it, as CVAT's "Raw" tab takes them."""
    texts = [
        {"name": name, "mutable": False, "input_type": "text", "default_value": "", "values": [""]}
        for name in ATTRIBUTES
    ]
    return [
        {"name": name, "color": colour, "type": "rectangle", "attributes": texts}
        for name, colour in COLORS.items()
    ]


def write_cvat(
    path: Path, source: str, size: tuple[int, int], frame_count: int, tracks: Iterable[CvatTrack]
) -> None:
    """One video's file, whole or not at all; `size` is (width, height) in pixels. A track without boxes is left out: CVAT has no such."""
    root = ElementTree.Element("annotations")
    _add_text_element(root, "version", "1.1")
    task = ElementTree.SubElement(ElementTree.SubElement(root, "meta"), "task")
    for name, value in (
        ("name", Path(source).stem),
        ("size", str(frame_count)),
        ("mode", "interpolation"),
        ("overlap", "0"),
    ):
        _add_text_element(task, name, value)
    _write_labels(ElementTree.SubElement(task, "labels"))
    original = ElementTree.SubElement(task, "original_size")
    for name, side in zip(("width", "height"), size, strict=True):
        _add_text_element(original, name, str(side))
    _add_text_element(task, "source", source)
    for number, track in enumerate(track for track in tracks if len(track.frames)):
        _write_track(root, number, track, frame_count)
    ElementTree.indent(root)
    with atomic_write(path) as aside:
        ElementTree.ElementTree(root).write(aside, encoding="utf-8", xml_declaration=True)


def _add_text_element(parent: ElementTree.Element, tag: str, text: str, **attributes: str) -> None:
    ElementTree.SubElement(parent, tag, attributes).text = INVALID_XML_CHARACTERS.sub(
        "\ufffd", text
    )


def _write_labels(parent: ElementTree.Element) -> None:
    for label in build_cvat_labels():
        one = ElementTree.SubElement(parent, "label")
        for name in ("name", "color", "type"):
            _add_text_element(one, name, label[name])
        attributes = ElementTree.SubElement(one, "attributes")
        for attribute in label["attributes"]:
            about = ElementTree.SubElement(attributes, "attribute")
            for name, value in attribute.items():
                _add_text_element(about, name, str(value) if name != "values" else "")


def _write_track(
    root: ElementTree.Element, number: int, track: CvatTrack, frame_count: int
) -> None:
    """A row for every frame with a box, and one marked `outside` where a run of them ends before the video does."""
    parent = ElementTree.SubElement(
        root, "track", {"id": str(number), "label": track.label, "source": "file"}
    )
    ends = np.append(np.diff(track.frames) > 1, track.frames[-1] + 1 < frame_count)
    starts = np.append(True, np.diff(track.frames) > 1)
    for frame, box, keyframe, end in zip(
        track.frames.tolist(),
        track.boxes.tolist(),
        track.keyframes | starts | ends,
        ends,
        strict=True,
    ):
        _write_box(parent, frame, box, track.attributes, outside=False, keyframe=bool(keyframe))
        if end:
            _write_box(parent, frame + 1, box, track.attributes, outside=True, keyframe=True)


def _write_box(
    parent: ElementTree.Element,
    frame: int,
    box: list[float],
    attributes: Mapping[str, str],
    *,
    outside: bool,
    keyframe: bool,
) -> None:
    facts = {
        "frame": str(frame),
        "outside": str(int(outside)),
        "occluded": "0",
        "keyframe": str(int(keyframe)),
    }
    corners = {
        name: f"{value:.2f}" for name, value in zip(("xtl", "ytl", "xbr", "ybr"), box, strict=True)
    }
    written = ElementTree.SubElement(parent, "box", facts | corners | {"z_order": "0"})
    for name, value in attributes.items():
        _add_text_element(written, "attribute", value, name=name)


def read_cvat(path: Path) -> Iterator[CvatVideo]:
    """The tasks in an .xml, or in every .xml of a .zip, as CVAT exports them; an InputError names the file that is no such thing."""
    try:
        if path.suffix.lower() != ".zip":
            with path.open("rb") as file:
                yield _parse_annotations(file, str(path))
            return
        with zipfile.ZipFile(path) as archive:
            for member in (name for name in archive.namelist() if name.lower().endswith(".xml")):
                with archive.open(member) as file:
                    yield _parse_annotations(file, f"{path}, {member}")
    except (
        OSError,
        zipfile.BadZipFile,
        NotImplementedError,
        RuntimeError,
    ) as error:  # the last two: how zipfile refuses encrypted members
        raise InputError(f"{path} cannot be read ({error}): {EXPORT_HINT}") from None


def _parse_annotations(file: IO[bytes], name: str) -> CvatVideo:
    video, root = CvatVideo(), None
    try:
        for event, element in ElementTree.iterparse(file, ("start", "end")):
            if root is None:
                root = element
                if root.tag != "annotations":
                    raise InputError(
                        f"{name} is no annotation of CVAT but <{root.tag}>: {EXPORT_HINT}"
                    )
            if event == "start":
                continue
            if element.tag in ("image", "project"):
                raise InputError(
                    f"{name} is an export for images, or of a whole project: {EXPORT_HINT}"
                )
            if element.tag == "source":
                video.source = (element.text or "").strip()
            elif element.tag == "track":
                _add_track(element, video)
                root.clear()
    except ElementTree.ParseError as error:
        raise InputError(f"{name} is not XML ({error}): {EXPORT_HINT}") from None
    return video


def _add_track(element: ElementTree.Element, video: CvatVideo) -> None:
    number = element.get("id", str(len(video.tracks) + len(video.track_errors)))
    try:
        video.tracks[number] = _parse_track(element)
    except KeyError as error:
        video.track_errors[number] = f"a box without {error.args[0]}"
    except ValueError as error:
        video.track_errors[number] = str(error)


def _parse_track(element: ElementTree.Element) -> CvatTrack:
    """The track's boxes in every frame from the first to the last that is seen; frames CVAT left to interpolation are filled in."""
    rows = sorted((_parse_box(box) for box in element.findall("box")), key=lambda row: row[0])
    if len({row[0] for row in rows}) != len(rows):
        raise ValueError("two boxes in one frame")
    if rows and rows[-1][0] - rows[0][0] > MAX_TRACK_FRAMES:
        raise ValueError(f"longer than {MAX_TRACK_FRAMES:,} frames")
    frames, boxes, keyframes = [], [], []
    for (frame, outside, keyframe, box), (following, gone, _, further) in zip(
        rows, [*rows[1:], rows[-1]] if rows else [], strict=True
    ):
        if outside:
            continue
        last = max(following, frame + 1)
        steps = np.arange(last - frame)[:, None] / (last - frame)
        frames.append(np.arange(frame, last))
        boxes.append(box + (0 if gone else further - box) * steps)
        keyframes.append(np.append(keyframe, np.zeros(last - frame - 1, bool)))
    if not frames:
        raise ValueError("no box: only rectangles are read")
    attributes = {
        one.get("name", ""): one.text or "" for one in element.findall("box[1]/attribute")
    }
    joined = (np.concatenate(frames), np.concatenate(boxes), np.concatenate(keyframes).astype(bool))
    return CvatTrack(element.get("label", ""), *joined, attributes)


def _parse_box(box: ElementTree.Element) -> tuple[int, bool, bool, np.ndarray]:
    """Frame, whether it is outside, whether a keyframe, and the corners `[4]`."""
    frame = int(box.attrib["frame"])
    corners = np.array([float(box.attrib[name]) for name in ("xtl", "ytl", "xbr", "ybr")])
    if not 0 <= frame <= MAX_FRAMES:
        raise ValueError(f"frame {frame}")
    if not (np.abs(corners) <= MAX_COORDINATE).all():
        raise ValueError(f"frame {frame} has corners that are no pixels")
    if float(box.get("rotation", "0")) != 0:
        raise ValueError(f"the box of frame {frame} is turned: only upright boxes are tubes")
    return frame, box.get("outside") == "1", box.get("keyframe") == "1", corners
