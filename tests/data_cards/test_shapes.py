"""Every number in the card of `shapes` equals the number in the default data set."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.datasets import get_parser, ignore_progress
from pipeline.datasets.data_cards import compare_with_card, load_card
from pipeline.datasets.shapes.make import ShapesConfig, build_entries, scene_seed, video_id
from pipeline.datasets.shapes.scene import COLORS, MOTIONS, SHAPES, Scene, make_scene
from pipeline.datasets.shapes.sentences import LOOK_ALIKE, SAME_MOTION

CARD = Path(__file__).parents[2] / "data_cards" / "shapes.md"
FormAndTags = tuple[str, frozenset[str]]
Splits = dict[str, tuple[list[Scene], list[FormAndTags]]]


@pytest.fixture(scope="module")
def card() -> dict[str, Any]:
    return yaml.safe_load(re.search(r"```yaml\n(.*?)```", CARD.read_text(), re.DOTALL)[1])


@pytest.fixture(scope="module")
def splits() -> Splits:
    """Scenes, and (form, tags) of every sentence, by split, without rendering a frame."""
    config = ShapesConfig()
    size = (config.width, config.height)
    video_counts = {
        "train": config.train_videos,
        "val": config.val_videos,
        "test": config.test_videos,
    }

    result = {}

    for split, video_count in video_counts.items():
        scenes = []
        sentences: list[FormAndTags] = []
        for index in range(video_count):
            seed = scene_seed(config.seed, split, index)
            scene = make_scene(seed, size, config.fps, config.seconds)
            scenes.append(scene)
            sentences.extend(forms_and_tags(scene, config.sentences_per_video))
        result[split] = (scenes, sentences)

    return result


def forms_and_tags(scene: Scene, num_sentences: int) -> Iterator[FormAndTags]:
    for entry in build_entries(scene, "0", num_sentences):
        form = "declarative" if entry["captions"] else "interrogative"
        (sentence,) = entry["captions"] + entry["questions"]
        yield form, frozenset(sentence["tags"])


def test_settings_are_the_defaults(card: dict[str, Any]) -> None:
    config = ShapesConfig()

    assert (card["seed"], card["picture"], card["fps"]) == (
        config.seed,
        [config.width, config.height],
        config.fps,
    )
    assert (card["colours"], card["shapes"], card["motions"]) == (
        list(COLORS),
        list(SHAPES),
        list(MOTIONS),
    )


def test_frame_counts(card: dict[str, Any], splits: Splits) -> None:
    frame_counts: list[int] = []
    for scenes, _ in splits.values():
        frame_counts.extend(scene.frame_count for scene in scenes)

    assert card["frames"] == [min(frame_counts), max(frame_counts)]


def test_splits(card: dict[str, Any], splits: Splits) -> None:
    for split, (scenes, sentences) in splits.items():
        form_counts = Counter(form for form, _ in sentences)
        assert card["splits"][split] == {
            "videos": len(scenes),
            "sentences": len(sentences),
            **form_counts,
        }


def test_tags_of_the_test_split(card: dict[str, Any], splits: Splits) -> None:
    _, sentences = splits["test"]
    tag_sets = [tags for _, tags in sentences]

    assert card["tags"] == {
        "look-alike": sum(LOOK_ALIKE in tags for tags in tag_sets),
        "same-motion": sum(SAME_MOTION in tags for tags in tag_sets),
        "look-alike and same-motion": sum(len(tags) == 2 for tags in tag_sets),
        "neither": sum(not tags for tags in tag_sets),
    }


def test_shares_of_all_sentences(card: dict[str, Any], splits: Splits) -> None:
    counts: Counter[frozenset[str]] = Counter()

    for _, sentences in splits.values():
        counts.update(tags for _, tags in sentences)

    total = counts.total()
    kinds = {
        "look-alike only": {LOOK_ALIKE},
        "same-motion only": {SAME_MOTION},
        "both": {LOOK_ALIKE, SAME_MOTION},
        "neither": set(),
    }

    assert card["shares"] == {
        name: round(100 * counts[frozenset(kind)] / total, 1) for name, kind in kinds.items()
    }


def test_the_verifier_finds_the_same(splits: Splits, tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    num_sentences = ShapesConfig().sentences_per_video

    for split, (scenes, _) in splits.items():
        entries: list[dict[str, Any]] = []
        for index, scene in enumerate(scenes):
            entries.extend(build_entries(scene, video_id(split, index), num_sentences))
        path = tmp_path / "annotations" / f"{split}_annotations.json"
        path.write_text(json.dumps(entries))

    rows = compare_with_card(load_card("shapes"), get_parser("shapes")(tmp_path, ignore_progress))

    assert {row.verdict for row in rows} == {"ok"}
    assert len(rows) == 3 * 4 + 4 + 4 + 3
