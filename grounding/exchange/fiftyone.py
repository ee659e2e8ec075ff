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

from grounding.exchange.annotated_videos import ShownTube, ShownVideo, refuse_taken
from pipeline.io.atomic import atomic_write
from pipeline.io.jsonl import write_json

VERSION = "1.0.0"
"""The oldest FiftyOne that reads this; newer ones bring it to their own."""
KINDS = ("truth", "prediction")
FIELDS, LABELS = "fiftyone.core.fields.", "fiftyone.core.labels."
OF_QUERY = {
    "query": "StringField",
    "form": "StringField",
    "split": "StringField",
    "vIoU": "FloatField",
    "tIoU": "FloatField",
}
"""What every label says of its query, and of the prediction's scores."""
Frame = dict[str, Any]


def write_fiftyone(
    out: Path, videos: Sequence[ShownVideo], progress: Callable[[int, int], None]
) -> None:
    """Write the data set's three files into the new folder `out`, the samples last; `progress` counts videos."""
    refuse_taken(out)
    write_json(out / "metadata.json", {"version": VERSION, "media_type": "video", **_schema()})
    with atomic_write(out / "frames.json") as aside, aside.open("w", encoding="utf-8") as file:
        file.write('{"frames": [')
        separator = "\n"
        for number, video in enumerate(videos):
            progress(number, len(videos))
            for frame in _frames(video):
                file.write(separator + json.dumps(frame))
                separator = ",\n"
        file.write("\n]}\n")
    write_json(out / "samples.json", {"samples": [_sample(video) for video in videos]})
    progress(len(videos), len(videos))


def _id(*parts: object) -> dict[str, str]:
    """The same 12 bytes for the same thing, as MongoDB names documents."""
    return {"$oid": sha256(repr(parts).encode(errors="backslashreplace")).hexdigest()[:24]}


def _sample(video: ShownVideo) -> dict[str, Any]:
    """One video, with the span of every tube."""
    facts = video.facts
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
        kind: {"_cls": "TemporalDetections", "detections": []} for kind in KINDS
    }
    for tube in video.tubes:
        begin, end = tube.span
        if begin < end:
            found = {
                "_id": _id("span", tube.kind, tube.query.id),
                "_cls": "TemporalDetection",
                "support": [begin + 1, end],
            }
            spans[tube.kind]["detections"].append(found | _label(tube))
    splits = sorted({tube.query.split for tube in video.tubes})
    key = _id("video", facts.path)
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


def _frames(video: ShownVideo) -> list[Frame]:
    """The frames that have a box, with all their boxes."""
    width, height = video.facts.size
    frames: dict[int, Frame] = {}
    for index, tube in enumerate(video.tubes):
        corners = tube.boxes / [width, height, width, height]
        shares = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], -1).round(6)
        label = _label(tube)
        for number, box in zip((tube.frames + 1).tolist(), shares.tolist(), strict=True):
            if number not in frames:
                empty = {kind: {"_cls": "Detections", "detections": []} for kind in KINDS}
                about = {
                    "_id": _id("frame", video.facts.path, number),
                    "_sample_id": _id("video", video.facts.path),
                }
                frames[number] = {**about, "frame_number": number, **empty}
            found = {
                "_id": _id("box", tube.kind, tube.query.id, number),
                "_cls": "Detection",
                "bounding_box": box,
                "index": index,
            }
            frames[number][tube.kind]["detections"].append(found | {"attributes": {}} | label)
    return [frames[number] for number in sorted(frames)]


def _label(tube: ShownTube) -> dict[str, Any]:
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


def _field(
    name: str,
    kind: str,
    of: str | None = None,
    inner: str | None = None,
    fields: Sequence[Any] = (),
) -> dict[str, Any]:
    """One field of a schema: a `kind` of documents `inner` or of values `of`."""
    key = "_id" if name == "id" else name
    whole = {
        "name": name,
        "ftype": FIELDS + kind,
        "subfield": of and FIELDS + of,
        "embedded_doc_type": inner,
        "fields": list(fields),
    }
    return whole | {
        "db_field": key,
        "description": None,
        "info": None,
        "read_only": name in ("created_at", "last_modified_at"),
    }


def _schema() -> dict[str, Any]:
    """The fields of samples and of frames."""
    dates = [_field(name, "DateTimeField") for name in ("created_at", "last_modified_at")]
    key, tags = _field("id", "ObjectIdField"), _field("tags", "ListField", "StringField")
    own = [_field(name, kind) for name, kind in OF_QUERY.items()]
    label = [key, tags, _field("label", "StringField"), _field("confidence", "FloatField"), *own]
    span = [*label, _field("support", "FrameSupportField", "IntField")]
    box = [*label, _field("index", "IntField"), _field("bounding_box", "ListField", "FloatField")]
    metadata = [
        _field(name, "IntField")
        for name in ("size_bytes", "frame_width", "frame_height", "total_frame_count")
    ]
    metadata += [_field(name, "FloatField") for name in ("frame_rate", "duration")]
    metadata += [_field(name, "StringField") for name in ("mime_type", "encoding_str")]
    document = "EmbeddedDocumentField"

    def labels(each: str, fields: Sequence[Any]) -> list[dict[str, Any]]:
        inner = _field("detections", "ListField", document, LABELS + each, fields)
        return [_field(kind, document, None, f"{LABELS}{each}s", [inner]) for kind in KINDS]

    sample = [
        key,
        _field("filepath", "StringField"),
        tags,
        _field("metadata", document, None, "fiftyone.core.metadata.VideoMetadata", metadata),
    ]
    sample += [
        _field("_media_type", "StringField"),
        _field("_rand", "FloatField"),
        _field("_dataset_id", "ObjectIdField"),
    ]
    frame = [
        key,
        _field("frame_number", "FrameNumberField"),
        _field("_sample_id", "ObjectIdField"),
        _field("_dataset_id", "ObjectIdField"),
    ]
    return {
        "sample_fields": [*sample, *dates, *labels("TemporalDetection", span)],
        "frame_fields": [*frame, *dates, *labels("Detection", box)],
    }
