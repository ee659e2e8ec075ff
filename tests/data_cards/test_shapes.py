"""Every number in the card of `shapes` is what the default settings make."""

import json
import re
from collections import Counter
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
Said = tuple[str, frozenset[str]]


@pytest.fixture(scope="module")
def card() -> dict[str, Any]:
    return yaml.safe_load(re.search(r"```yaml\n(.*?)```", CARD.read_text(), re.DOTALL)[1])


@pytest.fixture(scope="module")
def made() -> dict[str, tuple[list[Scene], list[Said]]]:
    """Scenes, and (form, tags) of every sentence, by split, without drawing a frame."""
    config, result = ShapesConfig(), {}
    for split, count in (
        ("train", config.train_videos),
        ("val", config.val_videos),
        ("test", config.test_videos),
    ):
        scenes = [
            make_scene(
                scene_seed(config.seed, split, i),
                (config.width, config.height),
                config.fps,
                config.seconds,
            )
            for i in range(count)
        ]
        said = []
        for scene in scenes:
            for entry in build_entries(scene, "0", config.sentences_per_video):
                form = "declarative" if entry["captions"] else "interrogative"
                said.append((form, frozenset((entry["captions"] + entry["questions"])[0]["tags"])))
        result[split] = (scenes, said)
    return result


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


def test_frame_counts(
    card: dict[str, Any], made: dict[str, tuple[list[Scene], list[Said]]]
) -> None:
    counts = [scene.frame_count for scenes, _ in made.values() for scene in scenes]
    assert card["frames"] == [min(counts), max(counts)]


def test_splits(card: dict[str, Any], made: dict[str, tuple[list[Scene], list[Said]]]) -> None:
    for split, (scenes, said) in made.items():
        forms = Counter(form for form, _ in said)
        assert card["splits"][split] == {"videos": len(scenes), "sentences": len(said), **forms}


def test_tags_of_the_test_split(
    card: dict[str, Any], made: dict[str, tuple[list[Scene], list[Said]]]
) -> None:
    tags = [tags for _, tags in made["test"][1]]
    assert card["tags"] == {
        "look-alike": sum(LOOK_ALIKE in tag for tag in tags),
        "same-motion": sum(SAME_MOTION in tag for tag in tags),
        "look-alike and same-motion": sum(len(tag) == 2 for tag in tags),
        "neither": sum(not tag for tag in tags),
    }


def test_shares_of_all_sentences(
    card: dict[str, Any], made: dict[str, tuple[list[Scene], list[Said]]]
) -> None:
    counts = Counter(tags for _, said in made.values() for _, tags in said)
    total = sum(counts.values())
    kinds = {
        "look-alike only": {LOOK_ALIKE},
        "same-motion only": {SAME_MOTION},
        "both": {LOOK_ALIKE, SAME_MOTION},
        "neither": set(),
    }
    assert card["shares"] == {
        name: round(100 * counts[frozenset(kind)] / total, 1) for name, kind in kinds.items()
    }


def test_the_verifier_finds_the_same(
    made: dict[str, tuple[list[Scene], list[Said]]], tmp_path: Path
) -> None:
    (tmp_path / "annotations").mkdir()
    for split, (scenes, _) in made.items():
        entries = [
            entry
            for index, scene in enumerate(scenes)
            for entry in build_entries(
                scene, video_id(split, index), ShapesConfig().sentences_per_video
            )
        ]
        (tmp_path / "annotations" / f"{split}_annotations.json").write_text(json.dumps(entries))
    rows = compare_with_card(load_card("shapes"), get_parser("shapes")(tmp_path, ignore_progress))
    assert {row.verdict for row in rows} == {"ok"}
    assert len(rows) == 3 * 4 + 4 + 4 + 3
