"""Every number the card of VidSTG states of its validation split is the one in the real file,
counted here from the raw fields.
"""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest

from pipeline.datasets import get_parser, ignore_progress
from pipeline.datasets.data_cards import checks_pass, compare_with_card, load_card

ANNOTATIONS = Path(
    os.environ.get("STVG_ANNOTATIONS") or Path(__file__).parents[3] / "shared" / "annotations"
)
FILE = ANNOTATIONS / "val_annotations.json"
pytestmark = pytest.mark.skipif(
    not FILE.is_file(), reason=f"no real annotations: {FILE} is absent (set STVG_ANNOTATIONS)"
)


@pytest.fixture(scope="module")
def raw() -> list[dict[str, Any]]:
    return json.loads(FILE.read_text())


@pytest.fixture(scope="module")
def sentences(raw: list[dict[str, Any]]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """(entry, caption or question)"""
    return [(entry, said) for entry in raw for said in entry["captions"] + entry["questions"]]


def pair(values: list[float]) -> list[float]:
    return [round(min(values), 2), round(max(values), 2)]


def mean(values: list[float]) -> float:
    return round(sum(values) / len(values), 2)


def ends(entry: dict[str, Any], field: str) -> tuple[int, int]:
    return entry[field]["begin_fid"], entry[field]["end_fid"]


def counts_of_sentences(
    raw: list[dict[str, Any]], sentences: list[tuple[dict[str, Any], dict[str, Any]]]
) -> dict[str, Any]:
    per_video = Counter(entry["vid"] for entry, _ in sentences)
    words = [len(said["description"].split()) for _, said in sentences]
    asked = {
        next(o["category"] for o in entry["subject/objects"] if o["tid"] == said["target_id"])
        for entry, said in sentences
    }
    return {
        "entries": len(raw),
        "queries": len(sentences),
        "declarative": sum(len(entry["captions"]) for entry in raw),
        "interrogative": sum(len(entry["questions"]) for entry in raw),
        "with truth": len(sentences),
        "videos": len(per_video),
        "queries per video": pair(list(per_video.values())),
        "categories asked about": len(asked),
        "words": pair(words),
        "mean words": mean(words),
    }


def counts_of_frames(raw: list[dict[str, Any]]) -> dict[str, Any]:
    segments = [
        (last + 1 - first) / entry["fps"]
        for entry in raw
        for first, last in [ends(entry, "used_segment")]
    ]
    spans = [
        (end - begin) / entry["fps"] for entry in raw for begin, end in [ends(entry, "temporal_gt")]
    ]
    whole = [ends(entry, "used_segment") == (0, entry["frame_count"] - 1) for entry in raw]
    filled = [
        (first, last + 1) == ends(entry, "temporal_gt")
        for entry in raw
        for first, last in [ends(entry, "used_segment")]
    ]
    return {
        "fps": pair([entry["fps"] for entry in raw]),
        "entries at the lowest fps": sum(entry["fps"] == 10 for entry in raw),
        "frames": pair([entry["frame_count"] for entry in raw]),
        "width": pair([entry["width"] for entry in raw]),
        "height": pair([entry["height"] for entry in raw]),
        "segment seconds": pair(segments),
        "mean segment seconds": mean(segments),
        "segment is the whole video": sum(whole),
        "span seconds": pair(spans),
        "mean span seconds": mean(spans),
        "span is the whole segment": sum(filled),
        "span ends with its segment": sum(
            entry["temporal_gt"]["end_fid"] == entry["used_segment"]["end_fid"] + 1 for entry in raw
        ),
    }


def counts_of_repeats(sentences: list[tuple[dict[str, Any], dict[str, Any]]]) -> dict[str, int]:
    spans, spans_in_segment, times = defaultdict(set), defaultdict(set), Counter()
    for entry, said in sentences:
        key = (entry["vid"], said["description"].strip())
        times[key] += 1
        spans[key].add(ends(entry, "temporal_gt"))
        spans_in_segment[key, ends(entry, "used_segment")].add(ends(entry, "temporal_gt"))
    return {
        "repeated sentences": sum(count > 1 for count in times.values()),
        "repeated with another span": sum(len(found) > 1 for found in spans.values()),
        "repeated in one segment with another span": sum(
            len(found) > 1 for found in spans_in_segment.values()
        ),
    }


def test_the_validation_split(raw: Any, sentences: Any) -> None:
    found = (
        counts_of_sentences(raw, sentences) | counts_of_frames(raw) | counts_of_repeats(sentences)
    )
    assert load_card("vidstg")["splits"]["val"] == found


def test_the_example(raw: Any) -> None:
    entry = raw[0]
    begin, last = ends(entry, "used_segment")
    assert load_card("vidstg")["examples"] == {
        "val-00000-c0": {
            "split": "val",
            "text": entry["captions"][0]["description"],
            "frames": entry["frame_count"],
            "size": [entry["width"], entry["height"]],
            "segment": [begin, last + 1],
            "span": list(ends(entry, "temporal_gt")),
        }
    }


def test_the_verifier_finds_the_same(tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / FILE.name).symlink_to(FILE)
    rows = compare_with_card(load_card("vidstg"), get_parser("vidstg")(tmp_path, ignore_progress))
    assert checks_pass(rows)
    assert {(row.scope, row.verdict) for row in rows} == {
        ("train", "absent"),
        ("val", "ok"),
        ("test", "absent"),
        ("val-00000-c0", "ok"),
    }
