"""What is drawn lies in its box, and the box is no larger than what is drawn."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest

from pipeline.datasets.shapes import render
from pipeline.datasets.shapes.scene import SHAPES, Event, Scene, SceneObject, make_scene


def alone(
    shape: str,
    size: float,
    angle: float,
    centre: tuple[float, float] = (60.3, 47.8),
    opacity: float = 1.0,
) -> Scene:
    """A scene of one object in one frame."""
    state = {
        "centers": np.array([centre]),
        "sizes": np.array([size]),
        "angles": np.array([angle]),
        "opacity": np.array([opacity]),
    }
    return Scene(
        (120, 96), 10, 1, (SceneObject("red", shape, (Event("still", 0, 1),), **state),), seed=4
    )


def drawn(scene: Scene) -> np.ndarray:
    """Where the objects change the first frame: `[height, width]`."""
    with_it = next(render.render_frames(scene)).astype(int)
    without = next(render.render_frames(replace(scene, objects=()))).astype(int)
    return np.abs(with_it - without).max(-1) > 12


def extent(changed: np.ndarray) -> np.ndarray:
    rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])


@pytest.mark.parametrize("angle", [0.0, 0.3, 1.0, 2.5, -4.0])
@pytest.mark.parametrize("size", [18.0, 26.0, 44.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_box_is_the_extent_of_what_is_drawn(shape: str, size: float, angle: float) -> None:
    """To about one pixel; soft tips of stars and triangles are too thin to be seen."""
    scene = alone(shape, size, angle)
    box = render.compute_boxes(scene, scene.objects[0])[0]
    off = extent(drawn(scene)) - box
    outwards = np.concatenate([-off[:2], off[2:]])
    assert outwards.max() < 1.3
    assert outwards.min() > -(0.12 * size + 1)


@pytest.mark.parametrize("seed", range(5))
def test_every_object_of_a_scene_is_drawn_in_its_box(seed: int) -> None:
    scene = make_scene(seed)
    for thing in scene.objects:
        own = replace(scene, objects=(thing,))
        empty = replace(scene, objects=())
        frames = zip(
            islice(render.render_frames(own), 0, None, 10),
            islice(render.render_frames(empty), 0, None, 10),
            strict=True,
        )
        for (with_it, without), box in zip(
            frames, render.compute_boxes(scene, thing)[::10], strict=True
        ):
            changed = np.abs(with_it.astype(int) - without).max(-1) > 12
            x1, y1, x2, y2 = box
            outside = changed.copy()
            outside[max(int(y1) - 1, 0) : int(y2) + 2, max(int(x1) - 1, 0) : int(x2) + 2] = False
            assert not outside.any()
            assert changed.any()


def test_a_faint_object_is_fainter() -> None:
    whole, faint, empty = (
        next(render.render_frames(scene)).astype(int)
        for scene in (
            alone("circle", 30, 0),
            alone("circle", 30, 0, opacity=0.25),
            replace(alone("circle", 30, 0), objects=()),
        )
    )
    assert np.abs(faint - empty).sum() == pytest.approx(np.abs(whole - empty).sum() / 4, rel=0.1)


def test_frames_are_a_function_of_the_scene() -> None:
    first, second = (list(islice(render.render_frames(make_scene(3)), 5)) for _ in range(2))
    assert all(np.array_equal(one, two) for one, two in zip(first, second, strict=True))
    assert (first[0].shape, first[0].dtype) == ((96, 160, 3), np.uint8)


def test_backgrounds_differ() -> None:
    assert (
        np.abs(render.render_background((40, 30), 1) - render.render_background((40, 30), 2)).mean()
        > 5
    )
