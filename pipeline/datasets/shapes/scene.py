"""Random scenes: 3–4 colored shapes, each with 1–3 motions in sequence.

A scene contains the two ambiguities of spatio-temporal grounding:

- *Twins* have equal color and shape and never share a motion, so only the motion identifies them.
- *Rivals* differ in color or shape and share a motion, mostly at different times, so only color and
  shape identify the time. A share of rivals overlaps in time, because 20 tries may not find a
  timeline without overlap.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

COLORS = ("red", "green", "blue", "yellow", "purple", "white")
SHAPES = ("circle", "square", "triangle", "star", "cross")
MOTIONS = ("left", "right", "up", "down", "still", "spin", "blink", "grow")

DIRECTIONS = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0)}
"""Unit vector (x, y) of each motion that moves the object."""
BLINK_SECONDS = 0.6
"""Period of a blink: one half opaque, one half faint."""
MIN_EVENT_SECONDS = 1.2
TIMELINE_TRIES = 20
TRAJECTORY_TRIES = 24

ColorAndShape = tuple[str, str]


@dataclass(frozen=True)
class Event:
    """One motion of one object.

    Attributes:
        motion: One of `MOTIONS`.
        begin: First frame.
        end: Frame after the last.
    """

    motion: str
    begin: int
    end: int


@dataclass(frozen=True)
class SceneObject:
    """One object: color, shape, motions, and its state in every frame.

    Attributes:
        color: One of `COLORS`.
        shape: One of `SHAPES`.
        events: The motions in sequence.
        centers: `[n, 2]`, (x, y) in pixels.
        sizes: `[n]`, full extent in pixels.
        angles: `[n]`, radians.
        opacity: `[n]`, in [0, 1].
    """

    color: str
    shape: str
    events: tuple[Event, ...]
    centers: np.ndarray
    sizes: np.ndarray
    angles: np.ndarray
    opacity: np.ndarray

    @property
    def color_and_shape(self) -> ColorAndShape:
        """The pair (color, shape)."""
        return self.color, self.shape

    @property
    def motions(self) -> frozenset[str]:
        """All motions of the object."""
        return frozenset(event.motion for event in self.events)


@dataclass(frozen=True)
class Scene:
    """A video before it is rendered.

    Attributes:
        size: (width, height) in pixels.
        fps: Frames per second.
        frame_count: Number of frames.
        objects: The objects, in drawing order.
        seed: Seed of the background, the noise and the sentences.
    """

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
    """Sample a scene; a pure function of its arguments.

    Args:
        seed: Seed of the random generator.
        size: (width, height) in pixels.
        fps: Frames per second.
        seconds: Minimum and maximum duration.

    Returns:
        The scene.
    """
    rng = np.random.default_rng(seed)
    frame_count = round(rng.uniform(*seconds) * fps)

    # Choose colors, shapes and motions of all objects, then place one object after the other.
    num_objects = int(rng.choice([3, 4], p=[0.3, 0.7]))
    looks = _choose_colors_and_shapes(rng, num_objects)
    timelines = _choose_events(rng, looks, frame_count, fps)
    objects: list[SceneObject] = []
    for look, events in zip(looks, timelines, strict=True):
        objects.append(_place_object(rng, look, events, size, fps, frame_count, objects))

    # The order tells nothing about twins and rivals.
    order = rng.permutation(len(objects))
    return Scene(size, fps, frame_count, tuple(objects[index] for index in order), seed)


def _choose_colors_and_shapes(rng: np.random.Generator, count: int) -> list[ColorAndShape]:
    """Choose color and shape of each object.

    Most scenes have twins (objects 0 and 1). Other objects often share a color or a shape with
    object 0.
    """
    pairs = [(color, shape) for color in COLORS for shape in SHAPES]
    first = pairs[rng.integers(len(pairs))]
    looks = [first]
    if rng.random() < 0.75:
        looks.append(first)

    while len(looks) < count:
        color, shape = pairs[rng.integers(len(pairs))]
        if rng.random() < 0.4:
            if rng.random() < 0.5:
                color = first[0]
            else:
                shape = first[1]
        if (color, shape) not in looks:
            looks.append((color, shape))
    return looks


def _choose_events(
    rng: np.random.Generator, looks: list[ColorAndShape], frame_count: int, fps: int
) -> list[tuple[Event, ...]]:
    """Choose the events of each object.

    Twins never share a motion. Other objects prefer motions that are already used, so that rivals
    are frequent.
    """
    timelines: list[tuple[Event, ...]] = []
    for look in looks:
        # Earlier twins ban their motions; all other earlier objects make theirs more likely.
        banned_motions: set[str] = set()
        used_motions: set[str] = set()
        for other_look, other_events in zip(looks, timelines, strict=False):
            motions = banned_motions if other_look == look else used_motions
            motions.update(event.motion for event in other_events)

        # Try to avoid rivals at the same time; the last try is accepted anyway.
        events: tuple[Event, ...] = ()
        for _ in range(TIMELINE_TRIES):
            events = _sample_timeline(rng, banned_motions, used_motions, frame_count, fps)
            if not _has_motion_conflict(events, look, looks, timelines):
                break
        timelines.append(events)
    return timelines


def _sample_timeline(
    rng: np.random.Generator,
    banned_motions: set[str],
    used_motions: set[str],
    frame_count: int,
    fps: int,
) -> tuple[Event, ...]:
    """Sample 1–3 different motions that fill the video, each of a minimum duration."""
    # Choose the motions; used motions are more likely.
    count = int(rng.choice([1, 2, 3], p=[0.1, 0.35, 0.55]))
    allowed_motions = [motion for motion in MOTIONS if motion not in banned_motions]
    weights = np.array([2.5 if motion in used_motions else 1.0 for motion in allowed_motions])
    motions = rng.choice(allowed_motions, size=count, replace=False, p=weights / weights.sum())

    # Divide the frames: the minimum for each motion, and random shares of the rest.
    min_frames = int(MIN_EVENT_SECONDS * fps)
    extra_frames = rng.dirichlet(np.full(count, 1.5)) * (frame_count - count * min_frames)
    edges = np.cumsum(np.concatenate([[0], extra_frames + min_frames]))  # [count + 1]
    edges = np.round(edges).astype(int)
    edges[-1] = frame_count

    events = []
    for index, motion in enumerate(motions):
        events.append(Event(str(motion), int(edges[index]), int(edges[index + 1])))
    return tuple(events)


def _has_motion_conflict(
    events: tuple[Event, ...],
    look: ColorAndShape,
    looks: list[ColorAndShape],
    timelines: list[tuple[Event, ...]],
) -> bool:
    """Return True if an object of another look has one of the motions at an overlapping time."""
    for other_look, other_events in zip(looks, timelines, strict=False):
        if other_look == look:
            continue
        for event in events:
            for other_event in other_events:
                overlap = min(event.end, other_event.end) - max(event.begin, other_event.begin)
                if event.motion == other_event.motion and overlap > 0:
                    return True
    return False


def _place_object(
    rng: np.random.Generator,
    look: ColorAndShape,
    events: tuple[Event, ...],
    size: tuple[int, int],
    fps: int,
    frame_count: int,
    placed_objects: list[SceneObject],
) -> SceneObject:
    """Choose the trajectory that overlaps least with the placed objects, out of several tries."""
    candidates = []
    for _ in range(TRAJECTORY_TRIES):
        candidates.append(_sample_trajectory(rng, events, size, fps, frame_count))

    overlaps = []
    for centers, sizes, _, _ in candidates:
        overlap = sum(float(_mean_overlap(centers, sizes, other)) for other in placed_objects)
        overlaps.append(overlap)

    color, shape = look
    centers, sizes, angles, opacity = candidates[int(np.argmin(overlaps))]
    return SceneObject(color, shape, events, centers, sizes, angles, opacity)


def _sample_trajectory(
    rng: np.random.Generator,
    events: tuple[Event, ...],
    size: tuple[int, int],
    fps: int,
    frame_count: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Sample centers, sizes, angles and opacity per frame of an object inside the picture."""
    # Sample the object's size and speeds; pixels are relative to a picture of 96 pixels.
    scale = min(size) / 96
    speed = rng.uniform(12, 20) * scale / fps  # pixels per frame
    turn = rng.choice([-1, 1]) * rng.uniform(2.6, 4.2) / fps  # radians per frame
    base_size = rng.uniform(18, 26) * scale

    steps = np.zeros((frame_count, 2))
    sizes = np.full(frame_count, base_size)
    angles = np.zeros(frame_count)
    opacity = np.ones(frame_count)
    angles += rng.uniform(-0.3, 0.3)

    # Apply each motion to its frames. Rotation and growth last until the end of the video.
    for event in events:
        event_frames = slice(event.begin, event.end)
        remaining_frames = slice(event.begin, None)
        num_later_frames = frame_count - event.end
        ramp = np.arange(1, event.end - event.begin + 1)  # 1, 2, … of the event's frames

        if event.motion in DIRECTIONS:
            steps[event_frames] = np.array(DIRECTIONS[event.motion]) * speed
        elif event.motion == "spin":
            angles[remaining_frames] += _extend(ramp * turn, len(ramp) * turn, num_later_frames)
        elif event.motion == "blink":
            # The tolerance keeps a frame at exactly half a period opaque.
            phase = (ramp - 1) / fps % BLINK_SECONDS
            opacity[event_frames] = np.where(phase < BLINK_SECONDS / 2 - 1e-6, 0.25, 1.0)
        elif event.motion == "grow":
            factor = 1 + 0.7 * ramp / len(ramp)
            sizes[remaining_frames] *= _extend(factor, factor[-1], num_later_frames)

    centers = _place_walk(rng, steps, sizes, size)
    return centers, sizes, angles, opacity


def _extend(values: np.ndarray, final_value: float, count: int) -> np.ndarray:
    """Append a value `count` times."""
    return np.concatenate([values, np.full(count, final_value)])


def _place_walk(
    rng: np.random.Generator, steps: np.ndarray, sizes: np.ndarray, size: tuple[int, int]
) -> np.ndarray:
    """Return the centers `[n, 2]` of a walk with a random start that stays in the picture."""
    walk = np.cumsum(steps, 0)  # [n, 2], relative to the start
    half_sizes = sizes[:, None] / 2  # [n, 1]

    # Limits of the start, per axis, that keep every frame one pixel inside the picture.
    low = (half_sizes + 1 - walk).max(0)  # [2]
    high = (np.array(size) - half_sizes - 1 - walk).min(0)  # [2]
    random_start = rng.uniform(low, np.maximum(high, low + 1e-6))

    # A walk that is too long starts in the middle of the limits, and is clipped.
    start = np.where(low < high, random_start, (low + high) / 2)
    return np.clip(start + walk, half_sizes, np.array(size) - half_sizes)


def _mean_overlap(centers: np.ndarray, sizes: np.ndarray, other: SceneObject) -> np.floating:
    """Return the mean depth of the overlap of two objects' squares, relative to their size."""
    reach = (sizes + other.sizes) / 2  # [n]
    distance = np.abs(centers - other.centers).max(-1)  # [n]
    return np.mean(np.clip(reach - distance, 0, None) / reach)
