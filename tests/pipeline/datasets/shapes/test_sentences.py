"""Every sentence is true of one object at one time; it is parsed here by independent rules."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache

import numpy as np
import pytest

from pipeline.datasets.shapes.scene import (
    COLORS,
    MOTIONS,
    SHAPES,
    Event,
    Scene,
    SceneObject,
)
from pipeline.datasets.shapes.sentences import PHRASES, TAG_SHARES, Sentence, write_sentences
from tests.pipeline.datasets.shapes.scenes import make_scenes

SAID = {
    "left": "moves to the left|goes left|slides leftwards",
    "right": "moves to the right|goes right|slides rightwards",
    "up": "moves up|goes upwards|rises",
    "down": "moves down|goes downwards|sinks",
    "still": "stays still|does not move|rests in place",
    "spin": "spins|turns around itself|rotates",
    "blink": "blinks|flashes|flickers",
    "grow": "grows|gets bigger|becomes larger",
}


@cache
def write_all_sentences() -> list[tuple[Scene, Sentence]]:
    pairs = []
    for scene in make_scenes():
        for sentence in write_sentences(scene, 8, np.random.default_rng([scene.seed, 2])):
            pairs.append((scene, sentence))
    return pairs


def parse_sentence(text: str) -> tuple[str | None, str | None, str]:
    """Color, shape and motion that a sentence names."""
    (motion,) = [name for name, phrases in SAID.items() if re.search(f" ({phrases})[.?]$", text)]
    words = re.findall(r"\w+", text)
    color = next((name for name in COLORS if name in words), None)
    shape = next((name for name in SHAPES if name in words), None)
    return color, shape, motion


def matches(scene_object: SceneObject, color: str | None, shape: str | None) -> bool:
    return color in (None, scene_object.color) and shape in (None, scene_object.shape)


def find_events(scene: Scene, text: str) -> list[tuple[int, Event]]:
    """All events of which a sentence is true, with the indices of their objects."""
    color, shape, motion = parse_sentence(text)
    events = []
    for index, scene_object in enumerate(scene.objects):
        if not matches(scene_object, color, shape):
            continue
        for event in scene_object.events:
            if event.motion == motion:
                events.append((index, event))
    return events


def test_each_sentence_is_true_of_one_object_and_one_time() -> None:
    assert len(write_all_sentences()) > 1500
    for scene, sentence in write_all_sentences():
        assert find_events(scene, sentence.text) == [(sentence.object_index, sentence.event)]


def test_tags_name_the_difficulty() -> None:
    for scene, sentence in write_all_sentences():
        color, shape, motion = parse_sentence(sentence.text)
        has_look_alike = has_same_motion = False
        for index, scene_object in enumerate(scene.objects):
            if index == sentence.object_index:
                continue
            if matches(scene_object, color, shape):
                has_look_alike = True
            elif motion in scene_object.motions:
                has_same_motion = True

        assert ("look-alike" in sentence.tags) == has_look_alike
        assert ("same-motion" in sentence.tags) == has_same_motion


def test_shares_of_tags_are_near_the_target() -> None:
    counts = Counter(sentence.tags for _, sentence in write_all_sentences())
    assert set(counts) == set(TAG_SHARES)
    assert sum(TAG_SHARES.values()) == pytest.approx(1)
    for tags, share in TAG_SHARES.items():
        assert counts[tags] / len(write_all_sentences()) == pytest.approx(share, abs=0.1)


def test_a_declarative_names_both_looks_and_a_question_does_not() -> None:
    for scene, sentence in write_all_sentences():
        color, shape, _ = parse_sentence(sentence.text)
        if sentence.form == "declarative":
            assert (color, shape) == scene.objects[sentence.object_index].color_and_shape
            assert sentence.text.endswith(".")
        else:
            assert None in (color, shape)
            assert sentence.text.endswith("?")


def test_no_sentence_of_a_scene_repeats_another() -> None:
    for scene in make_scenes()[:50]:
        keys = []
        for other, sentence in write_all_sentences():
            if other is scene:
                keys.append((sentence.object_index, sentence.event.motion, sentence.form))

        assert len(keys) == len(set(keys)) <= 8


def test_every_phrase_belongs_to_one_motion() -> None:
    assert {motion: "|".join(phrases) for motion, phrases in PHRASES.items()} == SAID
    assert set(PHRASES) == set(MOTIONS)
