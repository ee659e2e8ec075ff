"""Every number in the card of VidSTG equals the number in the real validation split.

The numbers are counted from the raw fields.
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
def raw_entries() -> list[dict[str, Any]]:
    return json.loads(FILE.read_text())


@pytest.fixture(scope="module")
def sentences(raw_entries: list[dict[str, Any]]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Pairs of an entry and one of its captions or questions."""
    pairs = []
    for entry in raw_entries:
        for sentence in entry["captions"] + entry["questions"]:
            pairs.append((entry, sentence))
    return pairs


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
    words = [len(sentence["description"].split()) for _, sentence in sentences]
    categories = set()

    for entry, sentence in sentences:
        category_by_id = {item["tid"]: item["category"] for item in entry["subject/objects"]}
        categories.add(category_by_id[sentence["target_id"]])

    return {
        "entries": len(raw),
        "queries": len(sentences),
        "declarative": sum(len(entry["captions"]) for entry in raw),
        "interrogative": sum(len(entry["questions"]) for entry in raw),
        "with truth": len(sentences),
        "videos": len(per_video),
        "queries per video": pair(list(per_video.values())),
        "categories asked about": len(categories),
        "words": pair(words),
        "mean words": mean(words),
    }


def counts_of_frames(raw: list[dict[str, Any]]) -> dict[str, Any]:
    segments = []
    spans = []
    num_whole_videos = num_whole_segments = num_common_ends = 0

    for entry in raw:
        # The last frame of a segment is inclusive, the end of a span exclusive.
        first, last = ends(entry, "used_segment")
        begin, end = ends(entry, "temporal_gt")
        segments.append((last + 1 - first) / entry["fps"])
        spans.append((end - begin) / entry["fps"])
        num_whole_videos += (first, last) == (0, entry["frame_count"] - 1)
        num_whole_segments += (first, last + 1) == (begin, end)
        num_common_ends += end == last + 1

    return {
        "fps": pair([entry["fps"] for entry in raw]),
        "entries at the lowest fps": sum(entry["fps"] == 10 for entry in raw),
        "frames": pair([entry["frame_count"] for entry in raw]),
        "width": pair([entry["width"] for entry in raw]),
        "height": pair([entry["height"] for entry in raw]),
        "segment seconds": pair(segments),
        "mean segment seconds": mean(segments),
        "segment is the whole video": num_whole_videos,
        "span seconds": pair(spans),
        "mean span seconds": mean(spans),
        "span is the whole segment": num_whole_segments,
        "span ends with its segment": num_common_ends,
    }


def counts_of_repeats(sentences: list[tuple[dict[str, Any], dict[str, Any]]]) -> dict[str, int]:
    counts: Counter[Any] = Counter()
    spans = defaultdict(set)
    spans_in_segment = defaultdict(set)

    for entry, sentence in sentences:
        key = (entry["vid"], sentence["description"].strip())
        span = ends(entry, "temporal_gt")
        counts[key] += 1
        spans[key].add(span)
        spans_in_segment[key, ends(entry, "used_segment")].add(span)

    return {
        "repeated sentences": sum(count > 1 for count in counts.values()),
        "repeated with another span": sum(len(group) > 1 for group in spans.values()),
        "repeated in one segment with another span": sum(
            len(group) > 1 for group in spans_in_segment.values()
        ),
    }


def test_the_validation_split(raw_entries: Any, sentences: Any) -> None:
    expected = counts_of_sentences(raw_entries, sentences)
    expected |= counts_of_frames(raw_entries)
    expected |= counts_of_repeats(sentences)

    assert load_card("vidstg")["splits"]["val"] == expected


def test_the_example(raw_entries: Any) -> None:
    entry = raw_entries[0]
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
