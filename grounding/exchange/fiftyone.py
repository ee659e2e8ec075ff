"""Tubes as a FiftyOne data set on disk (`fiftyone.types.FiftyOneDataset`): metadata.json, samples.json, frames.json.

A sample is a video. Its fields `truth` and `prediction` hold the spans (temporal detections), those of its frames the boxes; the
label of both is the sentence. Frames count from 1 and supports include their last frame; boxes are `[x, y, w, h]` from the top left in
shares of the picture. Paths are the index's own: FiftyOne's `rel_dir` says what they are relative to.
"""

from __future__ import annotations

import json
import mimetypes
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from grounding.exchange.annotated_videos import AnnotatedTube, AnnotatedVideo, check_output_dir
from pipeline.io.atomic import atomic_write
from pipeline.io.jsonl import write_json

FIFTYONE_VERSION = "1.0.0"
"""The oldest FiftyOne that reads this; newer ones bring it to their own."""
TUBE_KINDS = ("truth", "prediction")
FIELD_MODULE, LABEL_MODULE = "fiftyone.core.fields.", "fiftyone.core.labels."
QUERY_FIELDS = {
    "query": "StringField",
    "form": "StringField",
    "split": "StringField",
    "vIoU": "FloatField",
    "tIoU": "FloatField",
}
"""What every label says of its query, and of the prediction's scores."""
FrameDocument = dict[str, Any]


def write_fiftyone(
    out: Path, videos: Sequence[AnnotatedVideo], progress: Callable[[int, int], None]
) -> None:
    """Write the data set's three files into the new folder `out`, the samples last; `progress` counts videos."""
    check_output_dir(out)
    write_json(
        out / "metadata.json",
        {"version": FIFTYONE_VERSION, "media_type": "video", **_build_schema()},
    )
    with atomic_write(out / "frames.json") as aside, aside.open("w", encoding="utf-8") as file:
        file.write('{"frames": [')
        separator = "\n"
        for number, video in enumerate(videos):
            progress(number, len(videos))
            for frame in _build_frames(video):
                file.write(separator + json.dumps(frame))
                separator = ",\n"
        file.write("\n]}\n")
    write_json(out / "samples.json", {"samples": [_build_sample(video) for video in videos]})
    progress(len(videos), len(videos))


def _build_id(*parts: object) -> dict[str, str]:
    """The same 12 bytes for the same thing, as MongoDB names documents."""
    return {"$oid": sha256(repr(parts).encode(errors="backslashreplace")).hexdigest()[:24]}


def _build_sample(video: AnnotatedVideo) -> dict[str, Any]:
    """One video, with the span of every tube."""
    facts = video.first_query
    about = {
        "_cls": "VideoMetadata",
        "mime_type": mimetypes.guess_type(facts.path)[0],
        "frame_width": facts.size[0],
        "frame_height": facts.size[1],
        "frame_rate": facts.fps,
        "total_frame_count": facts.frame_count,
        "duration": facts.frame_count / facts.fps,
    }
    spans: dict[str, Any] = {
        kind: {"_cls": "TemporalDetections", "detections": []} for kind in TUBE_KINDS
    }
    for tube in video.tubes:
        begin, end = tube.span
        if begin < end:
            found = {
                "_id": _build_id("span", tube.kind, tube.query.id),
                "_cls": "TemporalDetection",
                "support": [begin + 1, end],
            }
            spans[tube.kind]["detections"].append(found | _build_label(tube))
    splits = sorted({tube.query.split for tube in video.tubes})
    key = _build_id("video", facts.path)
    place = int(key["$oid"][:8], 16) / 2**32
    return {
        "_id": key,
        "filepath": facts.path,
        "tags": splits,
        "_media_type": "video",
        "_rand": place,
        "metadata": about,
        **spans,
    }


def _build_frames(video: AnnotatedVideo) -> list[FrameDocument]:
    """The frames that have a box, with all their boxes."""
    width, height = video.first_query.size
    frames: dict[int, FrameDocument] = {}
    for index, tube in enumerate(video.tubes):
        corners = tube.boxes / [width, height, width, height]
        shares = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], -1).round(6)
        label = _build_label(tube)
        for number, box in zip((tube.frames + 1).tolist(), shares.tolist(), strict=True):
            if number not in frames:
                empty = {kind: {"_cls": "Detections", "detections": []} for kind in TUBE_KINDS}
                about = {
                    "_id": _build_id("frame", video.first_query.path, number),
                    "_sample_id": _build_id("video", video.first_query.path),
                }
                frames[number] = {**about, "frame_number": number, **empty}
            found = {
                "_id": _build_id("box", tube.kind, tube.query.id, number),
                "_cls": "Detection",
                "bounding_box": box,
                "index": index,
            }
            frames[number][tube.kind]["detections"].append(found | {"attributes": {}} | label)
    return [frames[number] for number in sorted(frames)]


def _build_label(tube: AnnotatedTube) -> dict[str, Any]:
    """What a span's and a box's label have in common; what is not known is left out."""
    query, score = tube.query, tube.score
    known = {
        "confidence": tube.confidence,
        "query": query.id,
        "form": query.form,
        "split": query.split,
    }
    scores = {"vIoU": score.vIoU, "tIoU": score.tIoU} if score else {}
    return {"label": query.text, "tags": list(query.tags)} | {
        key: value for key, value in (known | scores).items() if value is not None
    }


def _build_field(
    name: str,
    field_type: str,
    value_type: str | None = None,
    document_type: str | None = None,
    fields: Sequence[Any] = (),
) -> dict[str, Any]:
    """One field of a schema: a `kind` of documents `inner` or of values `of`."""
    key = "_id" if name == "id" else name
    whole = {
        "name": name,
        "ftype": FIELD_MODULE + field_type,
        "subfield": value_type and FIELD_MODULE + value_type,
        "embedded_doc_type": document_type,
        "fields": list(fields),
    }
    return whole | {
        "db_field": key,
        "description": None,
        "info": None,
        "read_only": name in ("created_at", "last_modified_at"),
    }


def _build_schema() -> dict[str, Any]:
    """The fields of samples and of frames."""
    dates = [_build_field(name, "DateTimeField") for name in ("created_at", "last_modified_at")]
    key, tags = (
        _build_field("id", "ObjectIdField"),
        _build_field("tags", "ListField", "StringField"),
    )
    own = [_build_field(name, kind) for name, kind in QUERY_FIELDS.items()]
    label = [
        key,
        tags,
        _build_field("label", "StringField"),
        _build_field("confidence", "FloatField"),
        *own,
    ]
    span = [*label, _build_field("support", "FrameSupportField", "IntField")]
    box = [
        *label,
        _build_field("index", "IntField"),
        _build_field("bounding_box", "ListField", "FloatField"),
    ]
    metadata = [
        _build_field(name, "IntField")
        for name in ("size_bytes", "frame_width", "frame_height", "total_frame_count")
    ]
    metadata += [_build_field(name, "FloatField") for name in ("frame_rate", "duration")]
    metadata += [_build_field(name, "StringField") for name in ("mime_type", "encoding_str")]
    document = "EmbeddedDocumentField"

    def labels(each: str, fields: Sequence[Any]) -> list[dict[str, Any]]:
        inner = _build_field("detections", "ListField", document, LABEL_MODULE + each, fields)
        return [
            _build_field(kind, document, None, f"{LABEL_MODULE}{each}s", [inner])
            for kind in TUBE_KINDS
        ]

    sample = [
        key,
        _build_field("filepath", "StringField"),
        tags,
        _build_field("metadata", document, None, "fiftyone.core.metadata.VideoMetadata", metadata),
    ]
    sample += [
        _build_field("_media_type", "StringField"),
        _build_field("_rand", "FloatField"),
        _build_field("_dataset_id", "ObjectIdField"),
    ]
    frame = [
        key,
        _build_field("frame_number", "FrameNumberField"),
        _build_field("_sample_id", "ObjectIdField"),
        _build_field("_dataset_id", "ObjectIdField"),
    ]
    return {
        "sample_fields": [*sample, *dates, *labels("TemporalDetection", span)],
        "frame_fields": [*frame, *dates, *labels("Detection", box)],
    }
