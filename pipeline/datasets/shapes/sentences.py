"""Sentences about a scene; each describes exactly one object and one of its motions.

A description is a pair (color or None, shape or None). A sentence is valid if exactly one object
that matches the description has the motion. Tags name the difficulty of a sentence:

- `look-alike`: another object matches the description, so only the motion identifies the object.
- `same-motion`: another object has the motion at another time, so only color and shape identify the
  object.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.datasets.shapes.scene import Event, Scene, SceneObject

LOOK_ALIKE = "look-alike"
SAME_MOTION = "same-motion"
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
"""Phrases for each motion."""
TAG_SHARES = {(LOOK_ALIKE,): 0.35, (SAME_MOTION,): 0.25, (LOOK_ALIKE, SAME_MOTION): 0.30, (): 0.10}
"""Targeted share of sentences with each set of tags; the data card states the actual shares."""

Description = tuple[str | None, str | None]


@dataclass(frozen=True)
class Sentence:
    """One sentence about a scene.

    Attributes:
        text: The sentence.
        form: "declarative" or "interrogative".
        object_index: Index of the described object in the scene.
        event: The described motion and its frames.
        tags: Difficulties of the sentence.
    """

    text: str
    form: str
    object_index: int
    event: Event
    tags: tuple[str, ...]


def write_sentences(scene: Scene, count: int, rng: np.random.Generator) -> list[Sentence]:
    """Write different sentences about a scene.

    Tags are sampled by `TAG_SHARES`, among the tags that the scene offers.

    Args:
        scene: The scene.
        count: Maximum number of sentences.
        rng: Random generator.

    Returns:
        At most `count` sentences.
    """
    candidates = _build_candidates(scene, rng)
    rng.shuffle(candidates)

    sentences: list[Sentence] = []
    used_keys: set[tuple[int, str, str]] = set()
    while candidates and len(sentences) < count:
        # Sample the tags, and take the first candidate that has them.
        tag_sets = sorted({sentence.tags for sentence in candidates})
        weights = np.array([TAG_SHARES[tags] for tags in tag_sets])
        tags = tag_sets[rng.choice(len(tag_sets), p=weights / weights.sum())]
        sentence = next(candidate for candidate in candidates if candidate.tags == tags)
        candidates.remove(sentence)

        # Skip a second sentence of one form about the same motion of the same object.
        key = (sentence.object_index, sentence.event.motion, sentence.form)
        if key not in used_keys:
            used_keys.add(key)
            sentences.append(sentence)
    return sentences


def _build_candidates(scene: Scene, rng: np.random.Generator) -> list[Sentence]:
    """Build every valid sentence, declarative and interrogative."""
    candidates = []
    for object_index, scene_object in enumerate(scene.objects):
        descriptions = _build_descriptions(scene_object)
        for event in scene_object.events:
            for form, description in descriptions:
                if _count_matches(scene, description, event.motion) != 1:
                    continue
                text = _build_text(form, description, event.motion, rng)
                tags = _compute_tags(scene, object_index, event, description)
                candidates.append(Sentence(text, form, object_index, event, tags))
    return candidates


def _build_descriptions(scene_object: SceneObject) -> list[tuple[str, Description]]:
    """Return pairs of a form and a description; questions leave something open."""
    color, shape = scene_object.color_and_shape
    return [
        ("declarative", (color, shape)),
        ("interrogative", (color, None)),
        ("interrogative", (None, shape)),
        ("interrogative", (None, None)),
    ]


def _count_matches(scene: Scene, description: Description, motion: str) -> int:
    """Count the objects that match a description and have a motion."""
    count = 0
    for scene_object in scene.objects:
        if _matches_description(scene_object, description) and motion in scene_object.motions:
            count += 1
    return count


def _matches_description(scene_object: SceneObject, description: Description) -> bool:
    """Return True if the object has the described color and shape; None matches all."""
    color, shape = description
    return color in (None, scene_object.color) and shape in (None, scene_object.shape)


def _compute_tags(
    scene: Scene, object_index: int, event: Event, description: Description
) -> tuple[str, ...]:
    """Return the difficulties of a sentence about one object, given all other objects."""
    has_look_alike = False
    has_same_motion = False
    for index, other in enumerate(scene.objects):
        if index == object_index:
            continue
        if _matches_description(other, description):
            has_look_alike = True
        elif event.motion in other.motions:
            has_same_motion = True

    tags = []
    if has_look_alike:
        tags.append(LOOK_ALIKE)
    if has_same_motion:
        tags.append(SAME_MOTION)
    return tuple(tags)


def _build_text(form: str, description: Description, motion: str, rng: np.random.Generator) -> str:
    """Write a sentence with a random phrase for the motion."""
    color, shape = description
    phrase = PHRASES[motion][rng.integers(len(PHRASES[motion]))]
    if form == "declarative":
        return f"the {color} {shape} {phrase}."
    if shape is not None:
        return f"which {shape} {phrase}?"
    if color is not None:
        return f"what {color} thing {phrase}?"
    return f"what {phrase}?"
