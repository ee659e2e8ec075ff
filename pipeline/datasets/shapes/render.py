"""Draw a scene: a textured background and the shapes on it, frame by frame, and the boxes that hold them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pipeline.datasets.shapes.scene import Scene, SceneObject

RGB_COLORS = {
    "red": (214, 48, 44),
    "green": (40, 168, 70),
    "blue": (46, 88, 220),
    "yellow": (236, 206, 44),
    "purple": (152, 58, 190),
    "white": (240, 240, 240),
}


def render_frames(scene: Scene) -> Iterator[np.ndarray]:
    """Yield every frame as RGB uint8 `[height, width, 3]`."""
    ground = render_background(scene.size, scene.seed)
    noise = np.random.default_rng([scene.seed, 1])
    for index in range(scene.frame_count):
        picture = ground.copy()
        for thing in scene.objects:
            _draw_object(picture, thing, index)
        picture += noise.normal(0, 2.0, picture.shape).astype(np.float32)
        yield np.clip(picture, 0, 255).astype(np.uint8)


def compute_boxes(scene: Scene, scene_object: SceneObject) -> np.ndarray:
    """The thing's box in every frame, xyxy in pixels `[frame_count, 4]`: the extent of its (turned) outline."""
    width, height = scene.size
    extents = [_outline_extent(scene_object.shape, float(angle)) for angle in scene_object.angles]
    corners = np.array(extents) * (scene_object.sizes[:, None] / 2) + np.concatenate(
        [scene_object.centers, scene_object.centers], 1
    )
    return np.clip(corners, 0, [width, height, width, height])


def render_background(size: tuple[int, int], seed: int) -> np.ndarray:
    """A greyish texture, float32 `[height, width, 3]`: smooth blobs, fine grain and a slanted light."""
    rng = np.random.default_rng([seed, 0])
    width, height = size
    blobs = rng.uniform(0, 1, (height // 12 + 3, width // 12 + 3, 3))
    rows, columns = (
        np.linspace(0, blobs.shape[0] - 1.001, height),
        np.linspace(0, blobs.shape[1] - 1.001, width),
    )
    r, c = rows.astype(int), columns.astype(int)
    fr, fc = (rows - r)[:, None, None], (columns - c)[None, :, None]
    top = blobs[r][:, c] * (1 - fc) + blobs[r][:, c + 1] * fc
    bottom = blobs[r + 1][:, c] * (1 - fc) + blobs[r + 1][:, c + 1] * fc
    smooth = top * (1 - fr) + bottom * fr
    slant = np.linspace(-1, 1, width)[None, :, None] * rng.uniform(-14, 14) + np.linspace(
        -1, 1, height
    )[:, None, None] * rng.uniform(-14, 14)
    grain = rng.normal(0, 5, (height, width, 1))
    tint = rng.uniform(70, 130, 3)
    return (tint + (smooth - 0.5) * rng.uniform(25, 60) + slant + grain).astype(np.float32)


def _draw_object(picture: np.ndarray, thing: SceneObject, index: int) -> None:
    """Blend one thing into the picture, in place, with soft edges and a dark stripe that shows how it is turned."""
    height, width = picture.shape[:2]
    (x, y), half = thing.centers[index], thing.sizes[index] / 2
    left, right = max(int(x - half * 1.5), 0), min(int(x + half * 1.5) + 2, width)
    top, bottom = max(int(y - half * 1.5), 0), min(int(y + half * 1.5) + 2, height)
    u = (np.arange(left, right)[None, :] + 0.5 - x) / half
    v = (np.arange(top, bottom)[:, None] + 0.5 - y) / half
    cos, sin = np.cos(thing.angles[index]), np.sin(thing.angles[index])
    a, b = u * cos + v * sin, -u * sin + v * cos
    depth = _signed_depth(thing.shape, a, b)
    cover = np.clip(depth * half + 0.5, 0, 1) * thing.opacity[index]
    stripe = (np.abs(b) < 0.16) & (a > 0.1)
    paint = np.array(RGB_COLORS[thing.color], np.float32) * np.where(stripe, 0.35, 1.0)[..., None]
    patch = picture[top:bottom, left:right]
    patch += (paint - patch) * cover[..., None].astype(np.float32)


def _signed_depth(shape: str, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Signed depth inside a unit shape at local coordinates in [-1, 1]: positive inside, about 0 at the edge."""
    if shape == "circle":
        return 1 - np.hypot(a, b)
    if shape == "square":
        return 0.85 - np.maximum(np.abs(a), np.abs(b))
    if shape == "cross":
        return np.maximum(
            np.minimum(0.34 - np.abs(a), 1 - np.abs(b)), np.minimum(0.34 - np.abs(b), 1 - np.abs(a))
        )
    if shape == "triangle":
        return np.minimum(0.75 - b, np.minimum((b + 1 - 2 * a) / 2.236, (b + 1 + 2 * a) / 2.236))
    radius, angle = np.hypot(a, b), np.arctan2(a, -b)
    wave = np.abs((angle / (2 * np.pi) * 5 + 0.5) % 1 - 0.5) * 2
    return (1 - 0.58 * wave) - radius


def _outline_extent(shape: str, angle: float) -> tuple[float, float, float, float]:
    """Extent `(x1, y1, x2, y2)` of a unit shape turned by `angle`, around its centre."""
    if shape == "circle":
        return -1.0, -1.0, 1.0, 1.0
    corners = np.array(_CORNERS[shape])
    cos, sin = np.cos(angle), np.sin(angle)
    x, y = corners[:, 0] * cos - corners[:, 1] * sin, corners[:, 0] * sin + corners[:, 1] * cos
    return float(x.min()), float(y.min()), float(x.max()), float(y.max())


_CORNERS = {
    "square": [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)],
    "cross": [
        (sx * p, sy * q) for p, q in ((0.34, 1.0), (1.0, 0.34)) for sx in (-1, 1) for sy in (-1, 1)
    ],
    "triangle": [(0.0, -1.0), (0.875, 0.75), (-0.875, 0.75)],
    "star": [(np.sin(k * 2 * np.pi / 5), -np.cos(k * 2 * np.pi / 5)) for k in range(5)],
}
