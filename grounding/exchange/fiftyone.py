"""Export to FiftyOne: a data set on disk (`fiftyone.types.FiftyOneDataset`).

The files are metadata.json, samples.json and frames.json. A sample is a video. Its fields `truth`
and `prediction` hold spans (temporal detections); the same fields of its frames hold boxes. The
label of both is the sentence. Frames count from 1, and supports include their last frame. Boxes are
`[x, y, w, h]` from the top left, relative to the image. Paths are those of the index: FiftyOne's
`rel_dir` names their folder.
"""

from __future__ import annotations

import json
import mimetypes
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from grounding.exchange.annotated_videos import (
    TUBE_KINDS,
    AnnotatedTube,
    AnnotatedVideo,
    check_output_dir,
)
from pipeline.callbacks import ProgressCallback
from pipeline.io.atomic import atomic_write
from pipeline.io.jsonl import write_json

FIFTYONE_VERSION = "1.0.0"
"""Oldest FiftyOne that reads the files; newer versions migrate them."""

FIELD_MODULE = "fiftyone.core.fields."
LABEL_MODULE = "fiftyone.core.labels."
EMBEDDED_DOCUMENT = "EmbeddedDocumentField"
QUERY_FIELDS = {
    "query": "StringField",
    "form": "StringField",
    "split": "StringField",
    "vIoU": "FloatField",
    "tIoU": "FloatField",
}
"""Fields of every label on its query, and on the scores of the prediction."""

Document = dict[str, Any]
"""JSON object of FiftyOne: a sample, a frame, a label or a field."""


def write_fiftyone(out: Path, videos: Sequence[AnnotatedVideo], progress: ProgressCallback) -> None:
    """Write the three files of the data set, the samples last.

    Args:
        out: New or empty folder.
        videos: Videos with tubes.
        progress: Callback that counts videos.

    Raises:
        InputError: The folder is not empty.
    """
    check_output_dir(out)
    metadata = {"version": FIFTYONE_VERSION, "media_type": "video", **_build_schema()}
    write_json(out / "metadata.json", metadata)

    # Frames are written one by one, because a data set may have millions.
    frames_path = out / "frames.json"
    with (
        atomic_write(frames_path) as temporary_path,
        temporary_path.open("w", encoding="utf-8") as file,
    ):
        file.write('{"frames": [')
        separator = "\n"
        for index, video in enumerate(videos):
            progress(index, len(videos))
            for frame in _build_frames(video):
                file.write(separator + json.dumps(frame))
                separator = ",\n"
        file.write("\n]}\n")

    write_json(out / "samples.json", {"samples": [_build_sample(video) for video in videos]})
    progress(len(videos), len(videos))


def _build_id(*parts: object) -> dict[str, str]:
    """Return 12 bytes that are equal for equal parts, as MongoDB identifies documents."""
    digest = sha256(repr(parts).encode(errors="backslashreplace")).hexdigest()
    return {"$oid": digest[:24]}


def _build_sample(video: AnnotatedVideo) -> Document:
    """Build the sample of one video, with the span of every tube."""
    query = video.first_query
    metadata = {
        "_cls": "VideoMetadata",
        "mime_type": mimetypes.guess_type(query.path)[0],
        "frame_width": query.size[0],
        "frame_height": query.size[1],
        "frame_rate": query.fps,
        "total_frame_count": query.frame_count,
        "duration": query.frame_count / query.fps,
    }

    spans: dict[str, Any] = {
        kind: {"_cls": "TemporalDetections", "detections": []} for kind in TUBE_KINDS
    }
    for tube in video.tubes:
        begin, end = tube.span
        if begin < end:
            detection = {
                "_id": _build_id("span", tube.kind, tube.query.id),
                "_cls": "TemporalDetection",
                "support": [begin + 1, end],
            }
            spans[tube.kind]["detections"].append(detection | _build_label(tube))

    # FiftyOne orders samples by `_rand` for random views; the id makes it reproducible.
    sample_id = _build_id("video", query.path)
    random_position = int(sample_id["$oid"][:8], 16) / 2**32
    return {
        "_id": sample_id,
        "filepath": query.path,
        "tags": sorted({tube.query.split for tube in video.tubes}),
        "_media_type": "video",
        "_rand": random_position,
        "metadata": metadata,
        **spans,
    }


def _build_frames(video: AnnotatedVideo) -> list[Document]:
    """Build the frames of a video that have boxes, in order."""
    width, height = video.first_query.size
    path = video.first_query.path

    frames: dict[int, Document] = {}
    for index, tube in enumerate(video.tubes):
        # Boxes xyxy in pixels → xywh relative to the image, [n, 4].
        corners = tube.boxes / [width, height, width, height]
        sizes = corners[:, 2:] - corners[:, :2]
        boxes = np.concatenate([corners[:, :2], sizes], -1).round(6)

        label = _build_label(tube)
        frame_numbers = (tube.frames + 1).tolist()
        for frame_number, box in zip(frame_numbers, boxes.tolist(), strict=True):
            if frame_number not in frames:
                frames[frame_number] = _build_empty_frame(path, frame_number)
            detection = {
                "_id": _build_id("box", tube.kind, tube.query.id, frame_number),
                "_cls": "Detection",
                "bounding_box": box,
                "index": index,
                "attributes": {},
            }
            frames[frame_number][tube.kind]["detections"].append(detection | label)
    return [frames[frame_number] for frame_number in sorted(frames)]


def _build_empty_frame(path: str, frame_number: int) -> Document:
    """Build a frame without boxes."""
    frame: Document = {
        "_id": _build_id("frame", path, frame_number),
        "_sample_id": _build_id("video", path),
        "frame_number": frame_number,
    }
    for kind in TUBE_KINDS:
        frame[kind] = {"_cls": "Detections", "detections": []}
    return frame


def _build_label(tube: AnnotatedTube) -> Document:
    """Build the common part of a span's and a box's label; unknown values are left out."""
    query = tube.query
    values = {
        "confidence": tube.confidence,
        "query": query.id,
        "form": query.form,
        "split": query.split,
    }
    if tube.score is not None:
        values |= {"vIoU": tube.score.vIoU, "tIoU": tube.score.tIoU}

    label: Document = {"label": query.text, "tags": list(query.tags)}
    label |= {key: value for key, value in values.items() if value is not None}
    return label


def _build_field(
    name: str,
    field_type: str,
    value_type: str | None = None,
    document_type: str | None = None,
    fields: Sequence[Any] = (),
) -> Document:
    """Build one field of a schema.

    `value_type` is the type of a list's values, `document_type` and `fields` are those of an
    embedded document.
    """
    return {
        "name": name,
        "ftype": FIELD_MODULE + field_type,
        "subfield": value_type and FIELD_MODULE + value_type,
        "embedded_doc_type": document_type,
        "fields": list(fields),
        "db_field": "_id" if name == "id" else name,
        "description": None,
        "info": None,
        "read_only": name in ("created_at", "last_modified_at"),
    }


def _build_fields(field_type: str, *names: str) -> list[Document]:
    """Build several fields of one type."""
    return [_build_field(name, field_type) for name in names]


def _build_label_fields(label_class: str, fields: Sequence[Any]) -> list[Document]:
    """Build the fields `truth` and `prediction`, each a list of labels of a class."""
    detections = _build_field(
        "detections", "ListField", EMBEDDED_DOCUMENT, LABEL_MODULE + label_class, fields
    )
    list_class = f"{LABEL_MODULE}{label_class}s"
    return [
        _build_field(kind, EMBEDDED_DOCUMENT, None, list_class, [detections]) for kind in TUBE_KINDS
    ]


def _build_schema() -> Document:
    """Build the fields of samples and of frames."""
    id_field = _build_field("id", "ObjectIdField")
    tags_field = _build_field("tags", "ListField", "StringField")
    date_fields = _build_fields("DateTimeField", "created_at", "last_modified_at")

    # Labels: fields of both kinds, then those of spans and of boxes.
    label_fields = [
        id_field,
        tags_field,
        _build_field("label", "StringField"),
        _build_field("confidence", "FloatField"),
    ]
    for name, field_type in QUERY_FIELDS.items():
        label_fields.append(_build_field(name, field_type))
    span_fields = [*label_fields, _build_field("support", "FrameSupportField", "IntField")]
    box_fields = [
        *label_fields,
        _build_field("index", "IntField"),
        _build_field("bounding_box", "ListField", "FloatField"),
    ]

    metadata_fields = [
        *_build_fields("IntField", "size_bytes", "frame_width", "frame_height"),
        *_build_fields("IntField", "total_frame_count"),
        *_build_fields("FloatField", "frame_rate", "duration"),
        *_build_fields("StringField", "mime_type", "encoding_str"),
    ]
    metadata_class = "fiftyone.core.metadata.VideoMetadata"
    sample_fields = [
        id_field,
        _build_field("filepath", "StringField"),
        tags_field,
        _build_field("metadata", EMBEDDED_DOCUMENT, None, metadata_class, metadata_fields),
        _build_field("_media_type", "StringField"),
        _build_field("_rand", "FloatField"),
        _build_field("_dataset_id", "ObjectIdField"),
    ]
    frame_fields = [
        id_field,
        _build_field("frame_number", "FrameNumberField"),
        *_build_fields("ObjectIdField", "_sample_id", "_dataset_id"),
    ]

    span_labels = _build_label_fields("TemporalDetection", span_fields)
    box_labels = _build_label_fields("Detection", box_fields)
    return {
        "sample_fields": [*sample_fields, *date_fields, *span_labels],
        "frame_fields": [*frame_fields, *date_fields, *box_labels],
    }
