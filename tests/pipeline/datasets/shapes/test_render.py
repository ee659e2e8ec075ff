"""Boxes are the extents of the rendered objects."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest

from pipeline.datasets.shapes import render
from pipeline.datasets.shapes.scene import SHAPES, Event, Scene, SceneObject, make_scene


def single_object_scene(
    shape: str,
    size: float,
    angle: float,
    center: tuple[float, float] = (60.3, 47.8),
    opacity: float = 1.0,
) -> Scene:
    """A scene of one object in one frame."""
    scene_object = SceneObject(
        color="red",
        shape=shape,
        events=(Event("still", 0, 1),),
        centers=np.array([center]),
        sizes=np.array([size]),
        angles=np.array([angle]),
        opacity=np.array([opacity]),
    )

    return Scene((120, 96), 10, 1, (scene_object,), seed=4)


def changed_pixels(scene: Scene) -> np.ndarray:
    """Mask `[height, width]` of the pixels of the first frame that the objects change."""
    frame = next(render.render_frames(scene)).astype(int)
    background = next(render.render_frames(replace(scene, objects=()))).astype(int)
    return np.abs(frame - background).max(-1) > 12


def extent(changed: np.ndarray) -> np.ndarray:
    """The box xyxy of a mask."""
    rows = np.flatnonzero(changed.any(1))
    columns = np.flatnonzero(changed.any(0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])


@pytest.mark.parametrize(
    ("shape", "size", "angle"),
    [
        *((shape, 26.0, 0.3) for shape in SHAPES),
        *(("triangle", size, -4.0) for size in (18.0, 44.0)),
        *(("star", 44.0, angle) for angle in (0.0, 1.0, 2.5)),
    ],
)
def test_a_box_is_the_extent_of_what_is_drawn(shape: str, size: float, angle: float) -> None:
    """To about one pixel; soft tips of stars and triangles are too thin to be seen."""
    scene = single_object_scene(shape, size, angle)
    box = render.compute_boxes(scene, scene.objects[0])[0]
    offset = extent(changed_pixels(scene)) - box
    outwards = np.concatenate([-offset[:2], offset[2:]])

    assert outwards.max() < 1.3
    assert outwards.min() > -(0.12 * size + 1)


@pytest.mark.parametrize("seed", range(5))
def test_every_object_of_a_scene_is_drawn_in_its_box(seed: int) -> None:
    scene = make_scene(seed)
    empty_scene = replace(scene, objects=())

    for scene_object in scene.objects:
        object_scene = replace(scene, objects=(scene_object,))
        boxes = render.compute_boxes(scene, scene_object)

        # Every tenth frame.
        frames = islice(render.render_frames(object_scene), 0, None, 10)
        backgrounds = islice(render.render_frames(empty_scene), 0, None, 10)
        for frame, background, box in zip(frames, backgrounds, boxes[::10], strict=True):
            changed = np.abs(frame.astype(int) - background).max(-1) > 12
            x1, y1, x2, y2 = box.astype(int)
            outside = changed.copy()
            outside[max(y1 - 1, 0) : y2 + 2, max(x1 - 1, 0) : x2 + 2] = False

            assert not outside.any()
            assert changed.any()


def test_a_faint_object_is_fainter() -> None:
    opaque_scene = single_object_scene("circle", 30, 0)
    faint_scene = single_object_scene("circle", 30, 0, opacity=0.25)
    empty_scene = replace(opaque_scene, objects=())
    opaque = next(render.render_frames(opaque_scene)).astype(int)
    faint = next(render.render_frames(faint_scene)).astype(int)
    background = next(render.render_frames(empty_scene)).astype(int)

    opaque_difference = np.abs(opaque - background).sum()
    faint_difference = np.abs(faint - background).sum()

    assert faint_difference == pytest.approx(opaque_difference / 4, rel=0.1)


def test_frames_are_a_function_of_the_scene() -> None:
    first = list(islice(render.render_frames(make_scene(3)), 5))
    second = list(islice(render.render_frames(make_scene(3)), 5))
    assert np.array_equal(np.stack(first), np.stack(second))
    assert (first[0].shape, first[0].dtype) == ((96, 160, 3), np.uint8)


def test_backgrounds_differ() -> None:
    first = render.render_background((40, 30), 1)
    second = render.render_background((40, 30), 2)
    assert np.abs(first - second).mean() > 5
