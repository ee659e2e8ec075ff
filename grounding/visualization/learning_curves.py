"""Training curves as plain numbers for inline SVG: read DVCLive's tables, thin them, place them on axes."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

WIDTH, HEIGHT = 420, 220
MARGIN_LEFT, MARGIN_RIGHT, MARGIN_TOP, MARGIN_BOTTOM = 52, 22, 12, 28
MAX_POINTS = 400


@dataclass(frozen=True)
class Tick:
    """A grid line at `at` SVG units (from the left or from the top) with its label."""

    position: float
    label: str


@dataclass(frozen=True)
class Curve:
    """One metric over steps. `raw` and `smooth` are SVG polyline points; `smooth` is empty for short or calm curves.

    `best` is the lowest loss or the highest m_vIoU, empty for what has no better and worse.
    """

    name: str
    last: str
    best: str
    raw: str
    smooth: str
    dots: list[tuple[float, float, str]]
    x_ticks: list[Tick]
    y_ticks: list[Tick]


def read_curves(folder: Path) -> list[Curve]:
    """The curves under `curves/plots/metrics/**/*.tsv` (columns `step` and the value), what matters most first."""
    curves = []
    for path in sorted(folder.rglob("*.tsv")):
        name = path.relative_to(folder).with_suffix("").as_posix()
        steps, values = read_curve_table(path)
        if len(steps):
            curves.append(build_curve(name, steps, values))
    return sorted(curves, key=lambda curve: (_get_display_rank(curve.name), curve.name))


def _get_display_rank(name: str) -> int:
    """Total loss, learning rate, validation m_vIoU, then the rest."""
    last = name.rsplit("/", 1)[-1].lower()
    if last == "loss":
        return 0
    if last in ("lr", "learning_rate"):
        return 1
    return 2 if last.endswith("m_viou") else 3


def is_main(curve: Curve) -> bool:
    """Whether a curve is shown at once rather than folded away."""
    return _get_display_rank(curve.name) < 3


def read_curve_table(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values `[n]` of one DVCLive table; rows that are not two finite numbers are left out."""
    rows = []
    with path.open(encoding="utf-8", newline="") as file:
        for row in list(csv.reader(file, delimiter="\t"))[1:]:
            try:
                step, value = float(row[0]), float(row[1])
            except (ValueError, IndexError):
                continue
            if math.isfinite(value):
                rows.append((step, value))
    table = np.array(rows, np.float64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def build_curve(name: str, steps: np.ndarray, values: np.ndarray) -> Curve:
    """Place one curve on its axes; long ones are thinned to bin means and get a smoothed line over a faint raw one."""
    x_values, y_values = (
        _choose_ticks(steps.min(), steps.max()),
        _choose_ticks(values.min(), values.max()),
    )
    x_low, x_high = min(steps.min(), x_values[0]), max(steps.max(), x_values[-1])
    y_low, y_high = min(values.min(), y_values[0]), max(values.max(), y_values[-1])

    def place(x: np.ndarray, y: np.ndarray) -> list[tuple[float, float]]:
        across = MARGIN_LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - MARGIN_LEFT - MARGIN_RIGHT)
        down = (
            HEIGHT
            - MARGIN_BOTTOM
            - (y - y_low) / (y_high - y_low) * (HEIGHT - MARGIN_TOP - MARGIN_BOTTOM)
        )
        return [(round(float(a), 1), round(float(d), 1)) for a, d in zip(across, down, strict=True)]

    thin_steps, thin_values = _downsample(steps), _downsample(values)
    noisy = len(values) >= 30 and _measure_roughness(values) > 0.02
    points = place(steps, values) if len(steps) <= 30 else []
    return Curve(
        name=name,
        last=f"{values[-1]:.4g}",
        best={0: f"{values.min():.4g}", 2: f"{values.max():.4g}"}.get(_get_display_rank(name), ""),
        raw=_format_points(place(thin_steps, thin_values)),
        smooth=_format_points(place(thin_steps, _downsample(smooth_curve(values))))
        if noisy
        else "",
        dots=[
            (x, y, f"step {step:g}: {value:.4g}")
            for (x, y), step, value in zip(points, steps, values, strict=False)
        ],
        x_ticks=[Tick(place(np.array([x]), np.array([y_low]))[0][0], f"{x:g}") for x in x_values],
        y_ticks=[Tick(place(np.array([x_low]), np.array([y]))[0][1], f"{y:.4g}") for y in y_values],
    )


def _choose_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Three to six round numbers that cover `[low, high]`."""
    if high <= low:
        low, high = low - abs(low) * 0.1 - 1e-9, high + abs(high) * 0.1 + 1e-9
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(
        factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * (1 - 1e-9)
    )
    first = math.floor(low / step + 1e-9)
    return [round(i * step, 12) for i in range(first, math.ceil(high / step - 1e-9) + 1)]


def _downsample(values: np.ndarray) -> np.ndarray:
    """At most `MAX_POINTS` values: means of equal bins."""
    if len(values) <= MAX_POINTS:
        return values
    return np.array([part.mean() for part in np.array_split(values, MAX_POINTS)])


def smooth_curve(values: np.ndarray) -> np.ndarray:
    """A centred moving mean over a twentieth of the curve; shorter at the ends."""
    reach = max(1, len(values) // 40)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    places = np.arange(len(values))
    low, high = np.maximum(places - reach, 0), np.minimum(places + reach + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)


def _measure_roughness(values: np.ndarray) -> float:
    """Mean step between neighbours as a share of the whole range; 0 for a constant."""
    spread = float(np.ptp(values))
    return float(np.abs(np.diff(values)).mean()) / spread if spread else 0.0


def _format_points(points: list[tuple[float, float]]) -> str:
    return " ".join(f"{x:g},{y:g}" for x, y in points)
