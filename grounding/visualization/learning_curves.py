"""Learning curves as numbers for inline SVG: DVCLive's tables, downsampled and placed on axes."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

WIDTH = 420
HEIGHT = 220
MARGIN_LEFT = 52
MARGIN_RIGHT = 22
MARGIN_TOP = 12
MARGIN_BOTTOM = 28

MAX_POINTS = 400
"""Maximum number of points of a polyline."""
MAX_DOTS = 30
"""Number of values up to which each one is marked with a dot."""
MIN_SMOOTHED_POINTS = 30
"""Number of values from which a noisy curve gets a smoothed line."""
MIN_ROUGHNESS = 0.02
"""Roughness above which a curve is noisy."""
TICK_FACTORS = (1, 2, 2.5, 5, 10)
"""Steps between ticks, in powers of ten."""

LOSS_RANK = 0
LEARNING_RATE_RANK = 1
VIOU_RANK = 2
OTHER_RANK = 3

Points = list[tuple[float, float]]
"""Points `(x, y)` in SVG units from the top left."""


@dataclass(frozen=True)
class Tick:
    """A labeled tick of an axis.

    Attributes:
        position: SVG units from the left or from the top.
        label: The value, as text.
    """

    position: float
    label: str


@dataclass(frozen=True)
class Curve:
    """One metric over training steps.

    Attributes:
        name: Path of the table without suffix, for example `train/loss`.
        last: The last value.
        best: The lowest loss or the highest m_vIoU; empty for metrics without an order.
        raw: Points of the SVG polyline.
        smooth: Points of the smoothed polyline; empty for short or calm curves.
        dots: `(x, y, text)` of every value of a short curve.
        x_ticks: Ticks of the steps.
        y_ticks: Ticks of the values.
    """

    name: str
    last: str
    best: str
    raw: str
    smooth: str
    dots: list[tuple[float, float, str]]
    x_ticks: list[Tick]
    y_ticks: list[Tick]


@dataclass(frozen=True)
class _Axes:
    """Mapping from steps and values to SVG units."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float

    def locate(self, steps: np.ndarray, values: np.ndarray) -> Points:
        """Return the points of steps `[n]` and values `[n]`, rounded to a tenth of a unit."""
        plot_width = WIDTH - MARGIN_LEFT - MARGIN_RIGHT
        plot_height = HEIGHT - MARGIN_TOP - MARGIN_BOTTOM

        x_values = MARGIN_LEFT + (steps - self.x_low) / (self.x_high - self.x_low) * plot_width
        y_fraction = (values - self.y_low) / (self.y_high - self.y_low)
        y_values = HEIGHT - MARGIN_BOTTOM - y_fraction * plot_height

        points = []
        for x, y in zip(x_values, y_values, strict=True):
            points.append((round(float(x), 1), round(float(y), 1)))

        return points


def read_curves(folder: Path) -> list[Curve]:
    """Read the curves of a run.

    Args:
        folder: `curves/plots/metrics` of the run. Its tables (`**/*.tsv`) have the columns `step`
            and the metric's value.

    Returns:
        Curves of all tables with a value, the most important first.
    """
    curves = []
    for path in sorted(folder.rglob("*.tsv")):
        name = path.relative_to(folder).with_suffix("").as_posix()
        steps, values = read_curve_table(path)
        if len(steps):
            curves.append(build_curve(name, steps, values))

    return sorted(curves, key=lambda curve: (_get_display_rank(curve.name), curve.name))


def _get_display_rank(name: str) -> int:
    """Return the rank of a curve: total loss, learning rate, validation m_vIoU, then the rest."""
    metric = name.rsplit("/", 1)[-1].lower()

    if metric == "loss":
        return LOSS_RANK
    if metric in ("lr", "learning_rate"):
        return LEARNING_RATE_RANK
    if metric.endswith("m_viou"):
        return VIOU_RANK
    return OTHER_RANK


def is_main(curve: Curve) -> bool:
    """Return True if a curve is shown at once, False if it is folded away.

    Args:
        curve: The curve.

    Returns:
        True for loss, learning rate and m_vIoU.
    """
    return _get_display_rank(curve.name) < OTHER_RANK


def read_curve_table(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read one DVCLive table.

    Args:
        path: Tab-separated table with a header.

    Returns:
        Steps `[n]` and values `[n]`, float64. Rows other than two finite numbers are skipped.
    """
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file, delimiter="\t"))

    points = []
    for row in rows[1:]:
        try:
            step = float(row[0])
            value = float(row[1])
        except (ValueError, IndexError):
            continue

        if math.isfinite(value):
            points.append((step, value))

    table = np.array(points, np.float64).reshape(-1, 2)

    return table[:, 0], table[:, 1]


def build_curve(name: str, steps: np.ndarray, values: np.ndarray) -> Curve:
    """Place one curve on its axes.

    Long curves are downsampled to means of bins. Noisy curves get a smoothed line over a faint raw
    line.

    Args:
        name: Name of the curve; its last part selects which value is best.
        steps: `[n]`, n >= 1.
        values: `[n]`.

    Returns:
        The curve.
    """
    # Axes that hold all ticks and all values.
    x_ticks = _choose_ticks(steps.min(), steps.max())
    y_ticks = _choose_ticks(values.min(), values.max())
    axes = _Axes(
        x_low=min(steps.min(), x_ticks[0]),
        x_high=max(steps.max(), x_ticks[-1]),
        y_low=min(values.min(), y_ticks[0]),
        y_high=max(values.max(), y_ticks[-1]),
    )

    # Lines.
    line_steps = _downsample(steps)
    raw_points = axes.locate(line_steps, _downsample(values))
    smooth_points: Points = []
    if len(values) >= MIN_SMOOTHED_POINTS and _measure_roughness(values) > MIN_ROUGHNESS:
        smooth_points = axes.locate(line_steps, _downsample(smooth_curve(values)))

    return Curve(
        name=name,
        last=f"{values[-1]:.4g}",
        best=_format_best(name, values),
        raw=_format_points(raw_points),
        smooth=_format_points(smooth_points),
        dots=_build_dots(axes, steps, values),
        x_ticks=_locate_x_ticks(axes, x_ticks),
        y_ticks=_locate_y_ticks(axes, y_ticks),
    )


def _format_best(name: str, values: np.ndarray) -> str:
    """Return the lowest loss or the highest m_vIoU; empty for other metrics."""
    rank = _get_display_rank(name)

    if rank == LOSS_RANK:
        return f"{values.min():.4g}"
    if rank == VIOU_RANK:
        return f"{values.max():.4g}"
    return ""


def _build_dots(
    axes: _Axes, steps: np.ndarray, values: np.ndarray
) -> list[tuple[float, float, str]]:
    """Return `(x, y, text)` of every value of a short curve; nothing for a long one."""
    if len(steps) > MAX_DOTS:
        return []

    dots = []
    points = axes.locate(steps, values)
    for (x, y), step, value in zip(points, steps, values, strict=True):
        dots.append((x, y, f"step {step:g}: {value:.4g}"))

    return dots


def _locate_x_ticks(axes: _Axes, tick_values: Sequence[float]) -> list[Tick]:
    """Return the ticks of the steps."""
    ticks = []
    for value in tick_values:
        ((x, _),) = axes.locate(np.array([value]), np.array([axes.y_low]))
        ticks.append(Tick(x, f"{value:g}"))

    return ticks


def _locate_y_ticks(axes: _Axes, tick_values: Sequence[float]) -> list[Tick]:
    """Return the ticks of the values."""
    ticks = []
    for value in tick_values:
        ((_, y),) = axes.locate(np.array([axes.x_low]), np.array([value]))
        ticks.append(Tick(y, f"{value:.4g}"))

    return ticks


def _choose_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Return three to six round numbers that cover [low, high]."""
    # Widen an empty interval.
    if high <= low:
        low = low - abs(low) * 0.1 - 1e-9
        high = high + abs(high) * 0.1 + 1e-9

    # The smallest round step that needs at most about `count` intervals.
    rough_step = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough_step))
    steps = (factor * power for factor in TICK_FACTORS)
    step = next(step for step in steps if step >= rough_step * (1 - 1e-9))

    # Multiples of the step. The tolerance absorbs rounding errors of the quotients.
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)

    return [round(index * step, 12) for index in range(first, last + 1)]


def _downsample(values: np.ndarray) -> np.ndarray:
    """Return at most `MAX_POINTS` values: the means of bins of equal size."""
    if len(values) <= MAX_POINTS:
        return values

    bins = np.array_split(values, MAX_POINTS)

    return np.array([values_in_bin.mean() for values_in_bin in bins])


def smooth_curve(values: np.ndarray) -> np.ndarray:
    """Return the centered moving mean over a twentieth of a curve.

    The window is shorter at the curve's ends.

    Args:
        values: `[n]`.

    Returns:
        `[n]` float64.
    """
    radius = max(1, len(values) // 40)
    sums = np.concatenate([[0.0], np.cumsum(values)])  # [n + 1], sums[i] = sum of values[:i]

    # Window [low, high) of every value.
    indices = np.arange(len(values))
    low = np.maximum(indices - radius, 0)
    high = np.minimum(indices + radius + 1, len(values))

    return (sums[high] - sums[low]) / (high - low)


def _measure_roughness(values: np.ndarray) -> float:
    """Return the mean step between neighbors relative to the whole range; 0 for a constant."""
    value_range = float(np.ptp(values))
    if not value_range:
        return 0.0

    return float(np.abs(np.diff(values)).mean()) / value_range


def _format_points(points: Points) -> str:
    """Return points as the attribute of an SVG polyline."""
    return " ".join(f"{x:g},{y:g}" for x, y in points)
