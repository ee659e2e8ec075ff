"""Every sentence is true of one object and one time only; read back here by rules of this file's
own.
"""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest

from pipeline.datasets.shapes.scene import COLORS, MOTIONS, SHAPES, Event, Scene, make_scene
from pipeline.datasets.shapes.sentences import PHRASES, TAG_SHARES, Sentence, write_sentences

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
SCENES = [make_scene(seed) for seed in range(300)]
WRITTEN = [
    (scene, sentence)
    for scene in SCENES
    for sentence in write_sentences(scene, 8, np.random.default_rng([scene.seed, 2]))
]


def understood(text: str) -> tuple[str | None, str | None, str]:
    """Colour, shape and motion that a sentence names."""
    (motion,) = [name for name, phrases in SAID.items() if re.search(f" ({phrases})[.?]$", text)]
    words = re.findall(r"\w+", text)

    return (
        next((c for c in COLORS if c in words), None),
        next((s for s in SHAPES if s in words), None),
        motion,
    )


def events_meant(scene: Scene, text: str) -> list[tuple[int, Event]]:
    colour, shape, motion = understood(text)
    fitting = [
        n
        for n, t in enumerate(scene.objects)
        if colour in (None, t.color) and shape in (None, t.shape)
    ]

    return [
        (n, event) for n in fitting for event in scene.objects[n].events if event.motion == motion
    ]


def test_each_sentence_is_true_of_one_object_and_one_time() -> None:
    assert len(WRITTEN) > 1500
    for scene, sentence in WRITTEN:
        assert events_meant(scene, sentence.text) == [(sentence.object_index, sentence.event)]


def test_tags_say_what_makes_it_hard() -> None:
    for scene, sentence in WRITTEN:
        colour, shape, motion = understood(sentence.text)
        others = [
            thing for number, thing in enumerate(scene.objects) if number != sentence.object_index
        ]
        alike = [
            thing
            for thing in others
            if colour in (None, thing.color) and shape in (None, thing.shape)
        ]
        same = [
            thing
            for thing in others
            if motion in thing.motions and not any(thing is one for one in alike)
        ]
        assert ("look-alike" in sentence.tags, "same-motion" in sentence.tags) == (
            bool(alike),
            bool(same),
        )


def test_shares_of_tags_are_near_what_is_aimed_at() -> None:
    counts = Counter(sentence.tags for _, sentence in WRITTEN)
    assert set(counts) == set(TAG_SHARES)
    assert sum(TAG_SHARES.values()) == pytest.approx(1)
    for tags, share in TAG_SHARES.items():
        assert counts[tags] / len(WRITTEN) == pytest.approx(share, abs=0.1)


def test_a_declarative_names_both_looks_and_a_question_does_not() -> None:
    for scene, sentence in WRITTEN:
        colour, shape, _ = understood(sentence.text)
        if sentence.form == "declarative":
            assert (colour, shape) == scene.objects[sentence.object_index].color_and_shape
            assert sentence.text.endswith(".")
        else:
            assert None in (colour, shape)
            assert sentence.text.endswith("?")


def test_no_scene_is_asked_the_same_twice() -> None:
    def asked(sentence: Sentence) -> tuple[int, str, str]:
        return sentence.object_index, sentence.event.motion, sentence.form

    for scene in SCENES[:50]:
        own = [asked(sentence) for other, sentence in WRITTEN if other is scene]
        assert len(own) == len(set(own)) <= 8


def test_every_phrase_belongs_to_one_motion() -> None:
    assert {motion: "|".join(phrases) for motion, phrases in PHRASES.items()} == SAID
    assert set(PHRASES) == set(MOTIONS)
