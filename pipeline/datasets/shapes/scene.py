"""What is in a scene and how it moves: 3–4 coloured shapes, each doing 1–3 motions in turn.

A scene is built around the two ambiguities that spatio-temporal grounding has to resolve. *Twins* look the same
and never share a motion, so only motion tells them apart. *Rivals* look different and do the same motion, mostly at
another time (a share of them overlaps: 20 tries may not find room), so only looks tell which time is meant.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

COLORS = ("red", "green", "blue", "yellow", "purple", "white")
SHAPES = ("circle", "square", "triangle", "star", "cross")
MOTIONS = ("left", "right", "up", "down", "still", "spin", "blink", "grow")

DIRECTIONS = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0)}
BLINK_SECONDS = 0.6
"""One period of a blink: half shown, half faint."""


@dataclass(frozen=True)
class Event:
    """One motion of one object over the frames `[begin, end)`."""

    motion: str
    begin: int
    end: int


@dataclass(frozen=True)
class SceneObject:
    """One object: looks, events in turn, and its state in every frame.

    `centres` `[n, 2]` and `sizes` `[n]` (full extent) are in pixels, `angles` `[n]` in radians, `opacity` `[n]` in [0, 1].
    """

    color: str
    shape: str
    events: tuple[Event, ...]
    centers: np.ndarray
    sizes: np.ndarray
    angles: np.ndarray
    opacity: np.ndarray

    @property
    def color_and_shape(self) -> tuple[str, str]:
        return self.color, self.shape

    @property
    def motions(self) -> frozenset[str]:
        return frozenset(event.motion for event in self.events)


@dataclass(frozen=True)
class Scene:
    """A whole video before it is drawn. `size` is `(width, height)` in pixels, `seed` draws its background."""

    size: tuple[int, int]
    fps: int
    frame_count: int
    objects: tuple[SceneObject, ...]
    seed: int


def make_scene(
    seed: int,
    size: tuple[int, int] = (160, 96),
    fps: int = 10,
    seconds: tuple[float, float] = (5.0, 7.0),
) -> Scene:
    """A scene as a pure function of its seed and settings."""
    rng = np.random.default_rng(seed)
    frame_count = round(rng.uniform(*seconds) * fps)
    looks = _choose_colors_and_shapes(rng, count=int(rng.choice([3, 4], p=[0.3, 0.7])))
    things: list[SceneObject] = []
    for events, (colour, shape) in zip(
        _choose_events(rng, looks, frame_count, fps), looks, strict=True
    ):
        things.append(_place_object(rng, colour, shape, events, size, fps, frame_count, things))
    order = rng.permutation(len(things))
    return Scene(size, fps, frame_count, tuple(things[i] for i in order), seed)


def _choose_colors_and_shapes(rng: np.random.Generator, count: int) -> list[tuple[str, str]]:
    """Looks of the objects: most scenes have twins (objects 0 and 1); another object often shares a colour or a shape."""
    pairs = [(colour, shape) for colour in COLORS for shape in SHAPES]
    first = pairs[rng.integers(len(pairs))]
    looks = [first]
    if rng.random() < 0.75:
        looks.append(first)
    while len(looks) < count:
        colour, shape = pairs[rng.integers(len(pairs))]
        if rng.random() < 0.4:
            colour, shape = (first[0], shape) if rng.random() < 0.5 else (colour, first[1])
        if (colour, shape) not in looks:
            looks.append((colour, shape))
    return looks


def _choose_events(
    rng: np.random.Generator, looks: list[tuple[str, str]], frame_count: int, fps: int
) -> list[tuple[Event, ...]]:
    """Events of each object: twins never share a motion; other objects are drawn towards motions already used."""
    chosen: list[tuple[Event, ...]] = []
    for index, look in enumerate(looks):
        banned = {
            e.motion
            for other, events in zip(looks, chosen, strict=False)
            if other == look
            for e in events
        }
        used = {
            e.motion
            for other, events in zip(looks, chosen, strict=False)
            if other != look
            for e in events
        }
        best: tuple[Event, ...] = ()
        for _ in range(20):
            best = _sample_timeline(rng, banned, used if index else set(), frame_count, fps)
            if not _has_motion_conflict(best, look, looks, chosen):
                break
        chosen.append(best)
    return chosen


def _sample_timeline(
    rng: np.random.Generator, banned: set[str], used: set[str], frame_count: int, fps: int
) -> tuple[Event, ...]:
    """1–3 different motions that fill the video, each at least 1.2 s long."""
    count = int(rng.choice([1, 2, 3], p=[0.1, 0.35, 0.55]))
    allowed = [motion for motion in MOTIONS if motion not in banned]
    weights = np.array([2.5 if motion in used else 1.0 for motion in allowed])
    motions = rng.choice(allowed, size=count, replace=False, p=weights / weights.sum())
    least = int(1.2 * fps)
    spare = rng.dirichlet(np.full(count, 1.5)) * (frame_count - count * least)
    edges = np.round(np.cumsum(np.concatenate([[0], spare + least]))).astype(int)
    edges[-1] = frame_count
    return tuple(
        Event(str(m), int(b), int(e))
        for m, b, e in zip(motions, edges[:-1], edges[1:], strict=True)
    )


def _has_motion_conflict(
    events: tuple[Event, ...],
    look: tuple[str, str],
    looks: list[tuple[str, str]],
    chosen: list[tuple[Event, ...]],
) -> bool:
    """Whether another-looking object does one of these motions at an overlapping time (that would not tell times apart)."""
    for other, theirs in zip(looks, chosen, strict=False):
        if other == look:
            continue
        for event in events:
            for their in theirs:
                overlap = min(event.end, their.end) - max(event.begin, their.begin)
                if event.motion == their.motion and overlap > 0:
                    return True
    return False


def _place_object(
    rng: np.random.Generator,
    colour: str,
    shape: str,
    events: tuple[Event, ...],
    size: tuple[int, int],
    fps: int,
    frame_count: int,
    others: list[SceneObject],
) -> SceneObject:
    """Lay an object's path into the picture where it meets the others least, out of 24 tries."""
    candidates = [_sample_trajectory(rng, events, size, fps, frame_count) for _ in range(24)]
    overlaps = [
        sum(float(_mean_overlap(centres, sizes, other)) for other in others)
        for centres, sizes, _, _ in candidates
    ]
    centres, sizes, angles, opacity = candidates[int(np.argmin(overlaps))]
    return SceneObject(colour, shape, events, centres, sizes, angles, opacity)


def _sample_trajectory(
    rng: np.random.Generator,
    events: tuple[Event, ...],
    size: tuple[int, int],
    fps: int,
    frame_count: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Centres, sizes, angles and opacity per frame of an object that does the events and stays in the picture."""
    scale = min(size) / 96
    speed = rng.uniform(12, 20) * scale / fps
    turn = rng.choice([-1, 1]) * rng.uniform(2.6, 4.2) / fps
    base = rng.uniform(18, 26) * scale
    steps, sizes, angles, opacity = (
        np.zeros((frame_count, 2)),
        np.full(frame_count, base),
        np.zeros(frame_count),
        np.ones(frame_count),
    )
    angles += rng.uniform(-0.3, 0.3)
    for event in events:
        now = slice(event.begin, event.end)
        ramp = np.arange(1, event.end - event.begin + 1)
        if event.motion in DIRECTIONS:
            steps[now] = np.array(DIRECTIONS[event.motion]) * speed
        elif event.motion == "spin":
            angles[event.begin :] += np.concatenate(
                [ramp * turn, np.full(frame_count - event.end, len(ramp) * turn)]
            )
        elif event.motion == "blink":
            opacity[now] = np.where(
                (ramp - 1) / fps % BLINK_SECONDS < BLINK_SECONDS / 2 - 1e-6, 0.25, 1.0
            )
        elif event.motion == "grow":
            factor = 1 + 0.7 * ramp / len(ramp)
            sizes[event.begin :] *= np.concatenate(
                [factor, np.full(frame_count - event.end, factor[-1])]
            )
    walk = np.cumsum(steps, 0)
    low = sizes[:, None] / 2 + 1 - walk
    high = np.array(size) - sizes[:, None] / 2 - 1 - walk
    low, high = low.max(0), high.min(0)
    start = np.where(low < high, rng.uniform(low, np.maximum(high, low + 1e-6)), (low + high) / 2)
    centres = np.clip(start + walk, sizes[:, None] / 2, np.array(size) - sizes[:, None] / 2)
    return centres, sizes, angles, opacity


def _mean_overlap(centres: np.ndarray, sizes: np.ndarray, other: SceneObject) -> np.floating:
    """Mean over frames of how deep two objects' squares reach into each other, as a share of their size."""
    reach = (sizes + other.sizes) / 2
    apart = np.abs(centres - other.centers).max(-1)
    return np.mean(np.clip(reach - apart, 0, None) / reach)
