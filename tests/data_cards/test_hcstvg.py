"""The card's example of HC-STVG v1, from an entry with the fields of the real one: frames counted
from one, `xywh` boxes.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.datasets import get_parser, ignore_progress
from pipeline.datasets.data_cards import compare_with_card, load_card
from pipeline.datasets.video_checks import assume_valid_videos

ENTRY = {
    "bbox": [[194, 0, 240, 359], *([[190, 11, 234, 349]] * 121)],
    "st_time": 6.501935870542281,
    "ed_time": 11.951935870542554,
    "img_num": 480,
    "caption": "The man in brown clothes takes out a piece of paper.",
    "width": 480,
    "height": 360,
    "st_frame": 157,
}


def test_the_example_of_the_first_version(tmp_path: Path) -> None:
    (tmp_path / "test.json").write_text(json.dumps({"55_vfjywN5CN0Y.mp4": ENTRY}))
    parsed = get_parser("hcstvg-v1")(tmp_path, ignore_progress)
    rows = compare_with_card(load_card("hcstvg-v1"), parsed)

    assert {
        row.statistic: row.verdict for row in rows if row.scope == "55_vfjywN5CN0Y.mp4"
    } == dict.fromkeys(
        ("split", "fps", "frames", "size", "segment", "span", "boxes", "first box"), "ok"
    )
    assert {row.verdict for row in rows if row.scope == "train"} == {"absent"}
    assert {row.verdict for row in rows if row.scope == "test"} == {"differs"}
    assert not parsed.defects.to_list()  # its times are off by less than half a second


@pytest.mark.parametrize(
    ("name", "splits"), [("hcstvg-v1", ["train", "test"]), ("hcstvg-v2", ["train", "val", "test"])]
)
def test_every_video_has_one_sentence(name: str, splits: list[str]) -> None:
    card = load_card(name)["splits"]
    assert list(card) == splits
    assert all(numbers["queries"] == numbers["videos"] for numbers in card.values())


def test_bare_test_sentences_are_counted_without_a_video(tmp_path: Path) -> None:
    """What the annotations hold does not depend on which videos are at hand, nor are those looked
    at.
    """
    (tmp_path / "7_a.mp4").write_bytes(b"no video")
    entries = {
        "7_a.mp4": "A man nods.",
        "8_a.mp4": {"English": "A man sits."},
        "9_a.mp4": {"English": "A man.", "img_num": 500},
    }
    (tmp_path / "testv2.json").write_text(json.dumps(entries))
    (tmp_path / "trainv2.json").write_text(
        json.dumps({"1_a.mp4": {"English": "A man.", "st_frame": 9, "bbox": [[1, 2, 3, 4]]}})
    )
    parsed = get_parser("hcstvg-v2")(tmp_path, ignore_progress, assume_valid_videos)
    card = {
        "splits": {
            "train": {"queries": 1, "with truth": 1},
            "test": {"queries": 3, "videos": 3, "with truth": 0},
        }
    }

    assert {
        (row.scope, row.statistic): row.verdict for row in compare_with_card(card, parsed)
    } == dict.fromkeys(
        [
            ("train", "queries"),
            ("train", "with truth"),
            ("test", "queries"),
            ("test", "videos"),
            ("test", "with truth"),
        ],
        "ok",
    )
    assert not parsed.defects.to_list()
    assert get_parser("hcstvg-v2")(tmp_path, ignore_progress).defects.num_excluded == 4


def test_the_second_version_is_read_by_its_own_names(tmp_path: Path) -> None:
    entry = {
        "bbox": [[1, 2, 3, 4]],
        "st_frame": 1,
        "ed_frame": 1,
        "img_num": 500,
        "English": "A man nods.",
        "img_size": [360, 640],
    }
    names = {"train": "trainv2.json", "val": "valv2.json"}

    for split, name in names.items():
        (tmp_path / name).write_text(json.dumps({f"1_{split}.mp4": entry}))

    (tmp_path / "testv2.json").write_text(
        json.dumps(
            {"1_test.mp4": {"English": "A man nods.", "img_num": 500, "img_size": [360, 640]}}
        )
    )
    rows = compare_with_card(
        load_card("hcstvg-v2"), get_parser("hcstvg-v2")(tmp_path, ignore_progress)
    )
    result = {(row.scope, row.statistic): row.actual for row in rows}

    assert result == {
        **{
            (split, number): 1
            for split in (*names, "test")
            for number in ("queries", "videos", "with truth")
        },
        ("test", "with truth"): 0,
    }
