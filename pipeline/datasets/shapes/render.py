"""Rendering of scenes: a textured background, the shapes on it, and their boxes."""

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
    """Render a scene.

    Args:
        scene: The scene.

    Yields:
        Each frame, RGB uint8 `[height, width, 3]`.
    """
    background = render_background(scene.size, scene.seed)
    noise_rng = np.random.default_rng([scene.seed, 1])
    for frame_index in range(scene.frame_count):
        picture = background.copy()
        for scene_object in scene.objects:
            _draw_object(picture, scene_object, frame_index)
        picture += noise_rng.normal(0, 2.0, picture.shape).astype(np.float32)
        yield np.clip(picture, 0, 255).astype(np.uint8)


def compute_boxes(scene: Scene, scene_object: SceneObject) -> np.ndarray:
    """Compute the box of an object in every frame: the extent of its rotated outline.

    Args:
        scene: The scene.
        scene_object: One of its objects.

    Returns:
        `[frame_count, 4]`, xyxy in pixels, clipped to the picture.
    """
    width, height = scene.size
    extents = [_outline_extent(scene_object.shape, float(angle)) for angle in scene_object.angles]

    # Scale the extents of the unit shape and move them to the centers.
    half_sizes = scene_object.sizes[:, None] / 2  # [n, 1]
    centers = np.concatenate([scene_object.centers, scene_object.centers], 1)  # [n, 4]
    boxes = np.array(extents) * half_sizes + centers  # [n, 4]
    return np.clip(boxes, 0, [width, height, width, height])


def render_background(size: tuple[int, int], seed: int) -> np.ndarray:
    """Render a grayish texture of smooth blobs, fine grain and a gradient of light.

    Args:
        size: (width, height) in pixels.
        seed: Seed of the texture.

    Returns:
        float32 `[height, width, 3]`, in the range of uint8.
    """
    rng = np.random.default_rng([seed, 0])
    width, height = size

    # Blobs: random values, one for each 12 pixels, interpolated bilinearly.
    blobs = rng.uniform(0, 1, (height // 12 + 3, width // 12 + 3, 3))
    smooth = _interpolate(blobs, height, width)  # [height, width, 3]

    # The order of these random numbers decides the texture.
    horizontal_slope = rng.uniform(-14, 14)
    vertical_slope = rng.uniform(-14, 14)
    grain = rng.normal(0, 5, (height, width, 1))
    tint = rng.uniform(70, 130, 3)
    contrast = rng.uniform(25, 60)

    horizontal_ramp = np.linspace(-1, 1, width)[None, :, None]
    vertical_ramp = np.linspace(-1, 1, height)[:, None, None]
    gradient = horizontal_ramp * horizontal_slope + vertical_ramp * vertical_slope
    return (tint + (smooth - 0.5) * contrast + gradient + grain).astype(np.float32)


def _interpolate(grid: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize a grid `[rows, columns, 3]` to `[height, width, 3]` bilinearly."""
    # Just below the last index, so that every position has a neighbor to the right and below.
    rows = np.linspace(0, grid.shape[0] - 1.001, height)
    columns = np.linspace(0, grid.shape[1] - 1.001, width)
    row = rows.astype(int)  # [height]
    column = columns.astype(int)  # [width]
    row_weight = (rows - row)[:, None, None]
    column_weight = (columns - column)[None, :, None]

    upper_left = grid[row][:, column]
    upper_right = grid[row][:, column + 1]
    lower_left = grid[row + 1][:, column]
    lower_right = grid[row + 1][:, column + 1]

    upper = upper_left * (1 - column_weight) + upper_right * column_weight
    lower = lower_left * (1 - column_weight) + lower_right * column_weight
    return upper * (1 - row_weight) + lower * row_weight


def _draw_object(picture: np.ndarray, scene_object: SceneObject, frame_index: int) -> None:
    """Blend one object into a picture, in place.

    The object has soft edges, and a dark stripe that shows its angle.
    """
    height, width = picture.shape[:2]
    x, y = scene_object.centers[frame_index]
    half_size = scene_object.sizes[frame_index] / 2
    angle = scene_object.angles[frame_index]

    # Draw only in a patch that contains the rotated shape.
    left = max(int(x - half_size * 1.5), 0)
    right = min(int(x + half_size * 1.5) + 2, width)
    top = max(int(y - half_size * 1.5), 0)
    bottom = min(int(y + half_size * 1.5) + 2, height)

    # Pixel centers relative to the object, then in the object's own rotated coordinates.
    u = (np.arange(left, right)[None, :] + 0.5 - x) / half_size  # [1, patch width]
    v = (np.arange(top, bottom)[:, None] + 0.5 - y) / half_size  # [patch height, 1]
    cos = np.cos(angle)
    sin = np.sin(angle)
    local_x = u * cos + v * sin  # [patch height, patch width]
    local_y = -u * sin + v * cos

    # Blend by coverage: the edge is one pixel wide.
    depth = _signed_depth(scene_object.shape, local_x, local_y)
    coverage = np.clip(depth * half_size + 0.5, 0, 1) * scene_object.opacity[frame_index]
    is_stripe = (np.abs(local_y) < 0.16) & (local_x > 0.1)
    brightness = np.where(is_stripe, 0.35, 1.0)
    paint = np.array(RGB_COLORS[scene_object.color], np.float32) * brightness[..., None]
    patch = picture[top:bottom, left:right]
    patch += (paint - patch) * coverage[..., None].astype(np.float32)


def _signed_depth(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the signed depth inside a unit shape at local coordinates in [-1, 1].

    Positive inside the shape, and about 0 at its edge.
    """
    if shape == "circle":
        return 1 - np.hypot(x, y)
    if shape == "square":
        return 0.85 - np.maximum(np.abs(x), np.abs(y))
    if shape == "cross":
        vertical_bar = np.minimum(0.34 - np.abs(x), 1 - np.abs(y))
        horizontal_bar = np.minimum(0.34 - np.abs(y), 1 - np.abs(x))
        return np.maximum(vertical_bar, horizontal_bar)
    if shape == "triangle":
        # 2.236 is the length of the normal (2, 1) of the slanted sides.
        right_side = (y + 1 - 2 * x) / 2.236
        left_side = (y + 1 + 2 * x) / 2.236
        return np.minimum(0.75 - y, np.minimum(right_side, left_side))

    # A star: the radius of the edge is a triangle wave over the angle, with five periods.
    radius = np.hypot(x, y)
    angle = np.arctan2(x, -y)
    wave = np.abs((angle / (2 * np.pi) * 5 + 0.5) % 1 - 0.5) * 2
    return (1 - 0.58 * wave) - radius


def _outline_extent(shape: str, angle: float) -> tuple[float, float, float, float]:
    """Return the extent (x1, y1, x2, y2) of a rotated unit shape around its center."""
    if shape == "circle":
        return -1.0, -1.0, 1.0, 1.0

    corners = np.array(_CORNERS[shape])  # [n, 2]
    cos = np.cos(angle)
    sin = np.sin(angle)
    x = corners[:, 0] * cos - corners[:, 1] * sin
    y = corners[:, 0] * sin + corners[:, 1] * cos
    return float(x.min()), float(y.min()), float(x.max()), float(y.max())


_CORNERS = {
    "square": [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)],
    "cross": [
        (-0.34, -1.0),
        (-0.34, 1.0),
        (0.34, -1.0),
        (0.34, 1.0),
        (-1.0, -0.34),
        (-1.0, 0.34),
        (1.0, -0.34),
        (1.0, 0.34),
    ],
    "triangle": [(0.0, -1.0), (0.875, 0.75), (-0.875, 0.75)],
    "star": [(np.sin(k * 2 * np.pi / 5), -np.cos(k * 2 * np.pi / 5)) for k in range(5)],
}
"""Corners (x, y) of the unit shapes."""
