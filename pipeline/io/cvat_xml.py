"""CVAT's tracks of one video: writer and reader of "CVAT for video 1.1", one XML file per task.

Frames are numbered from 0. Boxes are xyxy in pixels, with two decimals as CVAT writes them. A
track is visible from its first box until a box marked `outside`; between `keyframe` boxes CVAT
interpolates linearly. CVAT reads a track's attributes from its boxes, so every box carries them.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple
from xml.etree import ElementTree

import numpy as np

from pipeline.errors import InputError
from pipeline.io.atomic import atomic_write
from pipeline.records import MAX_COORDINATE, MAX_FRAMES

TRUTH = "truth"
PREDICTION = "prediction"
COLORS = {TRUTH: "#2ecc71", PREDICTION: "#ffd60a"}
ATTRIBUTES = ("sentence", "query", "score", "vIoU")
"""Attributes of a track.

`query` is JSON: the id and all other fields of a line of the data set `jsonl`, without the
sentence and the tube.
"""
INVALID_XML_CHARACTERS = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML cannot contain, even escaped."""
MAX_TRACK_FRAMES = 1_000_000
"""Frames of the longest track that is read: nine hours."""
EXPORT_HINT = "export the task from CVAT as 'CVAT for video 1.1'"
CORNERS = ("xtl", "ytl", "xbr", "ybr")


@dataclass(frozen=True, eq=False)
class CvatTrack:
    """One tube.

    Attributes:
        label: Name of the track's label, `TRUTH`, `PREDICTION` or any other.
        frames: `[n]`, ascending indices of the frames with a box.
        boxes: `[n, 4]`, xyxy in pixels.
        keyframes: bool `[n]`, True for keyframes.
        attributes: Texts by attribute name.
    """

    label: str
    frames: np.ndarray
    boxes: np.ndarray
    keyframes: np.ndarray
    attributes: Mapping[str, str]


@dataclass
class CvatVideo:
    """The content of one task.

    Attributes:
        source: File name of the video.
        tracks: Tracks by CVAT's track number.
        track_errors: Reasons of unreadable tracks, by CVAT's track number.
    """

    source: str = ""
    tracks: dict[str, CvatTrack] = field(default_factory=dict)
    track_errors: dict[str, str] = field(default_factory=dict)


class _BoxRow(NamedTuple):
    """One `<box>` element; `corners` are `[4]` xyxy in pixels."""

    frame: int
    is_outside: bool
    is_keyframe: bool
    corners: np.ndarray


def build_cvat_labels() -> list[dict[str, Any]]:
    """Build the labels that a task needs before tracks can be imported.

    Returns:
        The labels in the form of CVAT's "Raw" tab.
    """
    attributes = []
    for name in ATTRIBUTES:
        attributes.append(
            {
                "name": name,
                "mutable": False,
                "input_type": "text",
                "default_value": "",
                "values": [""],
            }
        )

    labels = []
    for name, color in COLORS.items():
        labels.append({"name": name, "color": color, "type": "rectangle", "attributes": attributes})
    return labels


def write_cvat(
    path: Path, source: str, size: tuple[int, int], frame_count: int, tracks: Iterable[CvatTrack]
) -> None:
    """Write the file of one video, atomically.

    Args:
        path: The XML file to write.
        source: File name of the video.
        size: `(width, height)` of a frame in pixels.
        frame_count: Number of frames of the video.
        tracks: Tracks to write. CVAT has no tracks without boxes: they are left out.

    Raises:
        InputError: The file cannot be written.
    """
    root = ElementTree.Element("annotations")
    _add_text_element(root, "version", "1.1")

    # The task: its name, length, labels and frame size.
    task = ElementTree.SubElement(ElementTree.SubElement(root, "meta"), "task")
    _add_text_element(task, "name", Path(source).stem)
    _add_text_element(task, "size", str(frame_count))
    _add_text_element(task, "mode", "interpolation")
    _add_text_element(task, "overlap", "0")
    _write_labels(ElementTree.SubElement(task, "labels"))

    width, height = size
    original_size = ElementTree.SubElement(task, "original_size")
    _add_text_element(original_size, "width", str(width))
    _add_text_element(original_size, "height", str(height))
    _add_text_element(task, "source", source)

    # The tracks, numbered without gaps.
    non_empty_tracks = [track for track in tracks if len(track.frames)]
    for track_number, track in enumerate(non_empty_tracks):
        _write_track(root, track_number, track, frame_count)

    ElementTree.indent(root)
    with atomic_write(path) as temporary_path:
        document = ElementTree.ElementTree(root)
        document.write(temporary_path, encoding="utf-8", xml_declaration=True)


def _add_text_element(parent: ElementTree.Element, tag: str, text: str, **attributes: str) -> None:
    """Add an element with text; invalid characters become U+FFFD."""
    element = ElementTree.SubElement(parent, tag, attributes)
    element.text = INVALID_XML_CHARACTERS.sub("\ufffd", text)


def _write_labels(parent: ElementTree.Element) -> None:
    """Write the labels and their attributes."""
    for label in build_cvat_labels():
        label_element = ElementTree.SubElement(parent, "label")
        for name in ("name", "color", "type"):
            _add_text_element(label_element, name, label[name])

        attributes = ElementTree.SubElement(label_element, "attributes")
        for attribute in label["attributes"]:
            attribute_element = ElementTree.SubElement(attributes, "attribute")
            for name, value in attribute.items():
                text = str(value) if name != "values" else ""
                _add_text_element(attribute_element, name, text)


def _write_track(
    root: ElementTree.Element, track_number: int, track: CvatTrack, frame_count: int
) -> None:
    """Write one box per frame, and an `outside` box where a run of frames ends early."""
    parent = ElementTree.SubElement(
        root, "track", {"id": str(track_number), "label": track.label, "source": "file"}
    )

    # Runs of consecutive frames begin and end with keyframes. A run up to the video's last
    # frame has no end.
    has_gap = np.diff(track.frames) > 1  # [n - 1]
    starts = np.append(True, has_gap)  # [n]
    ends = np.append(has_gap, track.frames[-1] + 1 < frame_count)  # [n]
    keyframes = track.keyframes | starts | ends  # [n]

    rows = zip(track.frames.tolist(), track.boxes.tolist(), keyframes, ends, strict=True)
    for frame, box, is_keyframe, is_end in rows:
        _write_box(parent, frame, box, track.attributes, outside=False, keyframe=bool(is_keyframe))
        if is_end:
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
    """Write one box with the attributes of its track."""
    xml_attributes = {
        "frame": str(frame),
        "outside": str(int(outside)),
        "occluded": "0",
        "keyframe": str(int(keyframe)),
    }
    for name, coordinate in zip(CORNERS, box, strict=True):
        xml_attributes[name] = f"{coordinate:.2f}"
    xml_attributes["z_order"] = "0"

    element = ElementTree.SubElement(parent, "box", xml_attributes)
    for name, text in attributes.items():
        _add_text_element(element, "attribute", text, name=name)


def read_cvat(path: Path) -> Iterator[CvatVideo]:
    """Read the tasks of a CVAT export.

    Args:
        path: An `.xml` file, or a `.zip` archive of `.xml` files.

    Yields:
        One task for each XML file.

    Raises:
        InputError: A file is unreadable or not in the format "CVAT for video 1.1". The message
            names the file.
    """
    try:
        if path.suffix.lower() != ".zip":
            with path.open("rb") as file:
                yield _parse_annotations(file, str(path))
            return

        with zipfile.ZipFile(path) as archive:
            for member in archive.namelist():
                if not member.lower().endswith(".xml"):
                    continue
                with archive.open(member) as file:
                    yield _parse_annotations(file, f"{path}, {member}")
    # zipfile raises NotImplementedError or RuntimeError for encrypted members.
    except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise InputError(f"{path} cannot be read ({error}): {EXPORT_HINT}") from None


def _parse_annotations(file: IO[bytes], name: str) -> CvatVideo:
    """Parse one XML file; `name` is its name in error messages."""
    video = CvatVideo()
    root = None
    try:
        for event, element in ElementTree.iterparse(file, ("start", "end")):
            if root is None:
                root = element
                _check_root(root, name)
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
                root.clear()  # keeps memory bounded: parsed tracks are no longer needed
    except ElementTree.ParseError as error:
        raise InputError(f"{name} is not XML ({error}): {EXPORT_HINT}") from None
    return video


def _check_root(root: ElementTree.Element, name: str) -> None:
    """Raise an InputError if the root element is not CVAT's."""
    if root.tag != "annotations":
        raise InputError(
            f"{name} is not a CVAT annotation file, its root element is <{root.tag}>: {EXPORT_HINT}"
        )


def _add_track(element: ElementTree.Element, video: CvatVideo) -> None:
    """Parse a track into `video.tracks`, or its fault into `video.track_errors`."""
    default_number = len(video.tracks) + len(video.track_errors)
    track_number = element.get("id", str(default_number))
    try:
        video.tracks[track_number] = _parse_track(element)
    except KeyError as error:
        video.track_errors[track_number] = f"a box without {error.args[0]}"
    except ValueError as error:
        video.track_errors[track_number] = str(error)


def _parse_track(element: ElementTree.Element) -> CvatTrack:
    """Parse a track and interpolate the frames between its boxes; ValueError for a bad track."""
    rows = [_parse_box(box) for box in element.findall("box")]
    rows.sort(key=lambda row: row.frame)
    _check_rows(rows)

    # Fill the frames from each visible box up to the next box.
    frames: list[np.ndarray] = []
    boxes: list[np.ndarray] = []
    keyframes: list[np.ndarray] = []
    for index, row in enumerate(rows):
        if row.is_outside:
            continue
        next_row = rows[min(index + 1, len(rows) - 1)]
        end = max(next_row.frame, row.frame + 1)
        length = end - row.frame

        # The box moves towards the next one, and stays if the next one is outside.
        fractions = np.arange(length)[:, None] / length  # [length, 1]
        motion = 0 if next_row.is_outside else next_row.corners - row.corners  # [4]
        frames.append(np.arange(row.frame, end))
        boxes.append(row.corners + motion * fractions)  # [length, 4]
        keyframes.append(np.append(row.is_keyframe, np.zeros(length - 1, bool)))

    if not frames:
        raise ValueError("no box: only rectangles are read")

    attributes = {}
    for attribute in element.findall("box[1]/attribute"):
        attributes[attribute.get("name", "")] = attribute.text or ""
    return CvatTrack(
        label=element.get("label", ""),
        frames=np.concatenate(frames),
        boxes=np.concatenate(boxes),
        keyframes=np.concatenate(keyframes).astype(bool),
        attributes=attributes,
    )


def _check_rows(rows: list[_BoxRow]) -> None:
    """Raise a ValueError for two boxes in one frame, or a track that is too long."""
    frames = {row.frame for row in rows}
    if len(frames) != len(rows):
        raise ValueError("two boxes in one frame")
    if rows and rows[-1].frame - rows[0].frame > MAX_TRACK_FRAMES:
        raise ValueError(f"longer than {MAX_TRACK_FRAMES:,} frames")


def _parse_box(box: ElementTree.Element) -> _BoxRow:
    """Parse a box; ValueError for bad values, KeyError for a missing attribute."""
    frame = int(box.attrib["frame"])
    corners = np.array([float(box.attrib[name]) for name in CORNERS])  # [4]

    if not 0 <= frame <= MAX_FRAMES:
        raise ValueError(f"frame {frame}")
    if not (np.abs(corners) <= MAX_COORDINATE).all():
        raise ValueError(f"frame {frame} has corners that are no pixels")
    if float(box.get("rotation", "0")) != 0:
        raise ValueError(f"the box of frame {frame} is turned: only upright boxes are tubes")

    return _BoxRow(
        frame=frame,
        is_outside=box.get("outside") == "1",
        is_keyframe=box.get("keyframe") == "1",
        corners=corners,
    )
