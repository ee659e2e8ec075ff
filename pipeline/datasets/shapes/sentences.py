"""Sentences about a scene. Each names one object and one event, and is true of no other.

A description is a pair (colour or None, shape or None). A sentence is kept when exactly one object that fits the
description does the motion. Its tags say what makes it hard: `look-alike`, another object fits the description
and only motion tells them apart; `same-motion`, another object does the motion at another time and only looks
tell them apart.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.datasets.shapes.scene import Event, Scene, SceneObject

LOOK_ALIKE, SAME_MOTION = "look-alike", "same-motion"
PHRASES = {
    "left": ("moves to the left", "goes left", "slides leftwards"),
    "right": ("moves to the right", "goes right", "slides rightwards"),
    "up": ("moves up", "goes upwards", "rises"),
    "down": ("moves down", "goes downwards", "sinks"),
    "still": ("stays still", "does not move", "rests in place"),
    "spin": ("spins", "turns around itself", "rotates"),
    "blink": ("blinks", "flashes", "flickers"),
    "grow": ("grows", "gets bigger", "becomes larger"),
}
TAG_SHARES = {(LOOK_ALIKE,): 0.35, (SAME_MOTION,): 0.25, (LOOK_ALIKE, SAME_MOTION): 0.30, (): 0.10}
"""The share of sentences aimed at for each set of tags; the data card states what came of it."""


@dataclass(frozen=True)
class Sentence:
    """One sentence: `thing` is the index of its object in the scene, `event` what it does and when."""

    text: str
    form: str
    object_index: int
    event: Event
    tags: tuple[str, ...]


def write_sentences(scene: Scene, count: int, rng: np.random.Generator) -> list[Sentence]:
    """Up to `count` different sentences about a scene, their tags drawn by `SHARES` from what the scene offers."""
    candidates = _build_candidates(scene, rng)
    rng.shuffle(candidates)
    chosen: list[Sentence] = []
    asked: set[tuple[int, str, str]] = set()
    while candidates and len(chosen) < count:
        tags = sorted({sentence.tags for sentence in candidates})
        weights = np.array([TAG_SHARES[tag] for tag in tags])
        wanted = tags[rng.choice(len(tags), p=weights / weights.sum())]
        sentence = next(s for s in candidates if s.tags == wanted)
        candidates.remove(sentence)
        key = (sentence.object_index, sentence.event.motion, sentence.form)
        if key not in asked:
            asked.add(key)
            chosen.append(sentence)
    return chosen


def _build_candidates(scene: Scene, rng: np.random.Generator) -> list[Sentence]:
    """Every true and unambiguous sentence, declarative and interrogative."""
    result = []
    for index, thing in enumerate(scene.objects):
        for event in thing.events:
            for form, description in _build_descriptions(thing):
                doers = [
                    t
                    for t in scene.objects
                    if _matches_description(t, description) and event.motion in t.motions
                ]
                if len(doers) == 1:
                    text = _build_text(form, description, event.motion, rng)
                    result.append(
                        Sentence(
                            text,
                            form,
                            index,
                            event,
                            _compute_tags(scene, index, event, description),
                        )
                    )
    return result


def _build_descriptions(thing: SceneObject) -> list[tuple[str, tuple[str | None, str | None]]]:
    full = (thing.color, thing.shape)
    partial: list[tuple[str | None, str | None]] = [
        (thing.color, None),
        (None, thing.shape),
        (None, None),
    ]
    return [("declarative", full), *(("interrogative", description) for description in partial)]


def _matches_description(thing: SceneObject, description: tuple[str | None, str | None]) -> bool:
    return all(
        wanted in (None, own)
        for wanted, own in zip(description, thing.color_and_shape, strict=True)
    )


def _compute_tags(
    scene: Scene, index: int, event: Event, description: tuple[str | None, str | None]
) -> tuple[str, ...]:
    others = [thing for position, thing in enumerate(scene.objects) if position != index]
    tags = []
    if any(_matches_description(thing, description) for thing in others):
        tags.append(LOOK_ALIKE)
    if any(
        event.motion in thing.motions and not _matches_description(thing, description)
        for thing in others
    ):
        tags.append(SAME_MOTION)
    return tuple(tags)


def _build_text(
    form: str, description: tuple[str | None, str | None], motion: str, rng: np.random.Generator
) -> str:
    colour, shape = description
    does = PHRASES[motion][rng.integers(len(PHRASES[motion]))]
    if form == "declarative":
        return f"the {colour} {shape} {does}."
    if shape is not None:
        return f"which {shape} {does}?"
    return f"what {colour} thing {does}?" if colour is not None else f"what {does}?"
