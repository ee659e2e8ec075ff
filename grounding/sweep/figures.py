"""Figures of a sweep: dots with intervals per variant, and learning curves.

The colors are those of Okabe and Ito, which readers with any color vision can tell apart. Curves
also differ in their dashes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from grounding.metrics.scores import MEAN_METRICS
from grounding.sweep.statistics import ALL_QUERIES, is_significant
from grounding.visualization.learning_curves import read_curve_table, smooth_curve
from pipeline.io.atomic import atomic_write

TEXT_COLOR = "#1c2330"
MUTED_COLOR = "#667085"
GRID_COLOR = "#e3e7ee"
BLUE = "#0072b2"
ORANGE = "#d55e00"
COLORS = (BLUE, ORANGE, "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
LINE_STYLES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)))
CURVE_NAMES = ("train/loss", "val/m_vIoU", "val/m_tIoU", "val/m_sIoU")
DPI = 130

TABLE_KEY = (
    "dot and line: mean and 95 % interval over videos and seeds · light: each seed · hollow: one"
    " answer, over videos alone · dashed: the section's reference · orange: surely different from"
    " it (paired)"
)
"""Key below the figure of a table."""


@dataclass(frozen=True)
class _FigureRow:
    """Row of a table's figure: a variant in a section, at a height `y` from the top."""

    section: Mapping[str, Any]
    row: Mapping[str, Any]
    y: float


def plot_table(table: Mapping[str, Any], group: str = ALL_QUERIES) -> Figure:
    """Plot a table: one panel per metric, one row per variant.

    A row has the mean with its 95 % interval, and a light dot per seed. The reference of each
    section is a dashed line. A variant that differs significantly is orange; an ensemble is hollow.

    Args:
        table: Content of `table.json`.
        group: Group of queries.

    Returns:
        The figure.
    """
    rows, titles = _layout_rows(table)
    height = 1.3 + 0.27 * (len(rows) + 1.5 * len(titles))
    figure = Figure(figsize=(14.5, height), layout=ConstrainedLayoutEngine(wspace=0.04))
    panels = figure.subplots(1, len(MEAN_METRICS), sharey=True)

    # One panel for each metric.
    for axes, metric in zip(panels, MEAN_METRICS, strict=True):
        for row in rows:
            _plot_estimate(axes, table, row, metric, group)
        for section in table["sections"]:
            section_ys = [row.y for row in rows if row.section is section]
            _plot_reference(axes, table, section, metric, group, section_ys)
        _style_axes(axes)
        axes.set_title(f"{metric}, %", fontsize=10, color=TEXT_COLOR)
        axes.grid(axis="x", color=GRID_COLOR)

    # Names of variants and sections stand in the first panel.
    row_ys = [row.y for row in rows]
    labels = [row.row["variant"] for row in rows]
    panels[0].set_yticks(row_ys, labels, fontsize=9, color=TEXT_COLOR)
    panels[0].set_ylim(max(row_ys) + 0.8, -0.4)
    for y, title in titles:
        panels[0].text(
            0.0,
            y,
            title,
            transform=panels[0].get_yaxis_transform(),
            fontsize=9,
            color=MUTED_COLOR,
            style="italic",
            va="center",
        )

    # Title and key.
    counts = table["groups"][group]
    group_label = "" if group == ALL_QUERIES else f"{group} "
    description = (
        f"{counts['queries']:,} {group_label}queries about {counts['videos']:,} videos of"
        f" {table['dataset']}"
    )
    figure.suptitle(f"{table['title']} – {description}", fontsize=11, color=TEXT_COLOR)
    figure.supxlabel(TABLE_KEY, fontsize=8, color=MUTED_COLOR)
    return figure


def _layout_rows(
    table: Mapping[str, Any],
) -> tuple[list[_FigureRow], list[tuple[float, str]]]:
    """Return the rows, and the height and text of each section's title, from the top."""
    rows = []
    titles = []
    y = 0.0
    for section in table["sections"]:
        titles.append((y, section["title"]))
        y += 1
        for row in section["rows"]:
            rows.append(_FigureRow(section, row, y))
            y += 1
        y += 0.4
    return rows, titles


def _plot_reference(
    axes: Axes,
    table: Mapping[str, Any],
    section: Mapping[str, Any],
    metric: str,
    group: str,
    section_ys: Sequence[float],
) -> None:
    """Plot the mean of a section's reference as a dashed line over the section's rows."""
    estimate = table["variants"][section["reference"]]["groups"][group].get(metric)
    if estimate is None:
        return
    axes.plot(
        [100 * estimate["mean"]] * 2,
        [min(section_ys) - 0.5, max(section_ys) + 0.5],
        color=MUTED_COLOR,
        linestyle="--",
        linewidth=1,
        zorder=1,
    )


def _plot_estimate(
    axes: Axes, table: Mapping[str, Any], figure_row: _FigureRow, metric: str, group: str
) -> None:
    """Plot a variant's mean with its interval and the means of its seeds."""
    row = figure_row.row
    y = figure_row.y
    estimate = table["variants"][row["variant"]]["groups"][group].get(metric)
    if estimate is None:
        return

    difference = row.get("differences", {}).get(group, {}).get(metric)
    if row["variant"] == figure_row.section["reference"]:
        color = TEXT_COLOR
    elif is_significant(difference):
        color = ORANGE
    else:
        color = BLUE

    # Seeds.
    has_seeds = len(estimate["seeds"]) > 1
    if has_seeds:
        seed_means = [100 * mean for mean in estimate["seeds"]]
        seed_ys = [y + 0.28] * len(seed_means)
        axes.plot(seed_means, seed_ys, ".", color=color, alpha=0.35, markersize=5)

    # Interval.
    if estimate["low"] is not None:
        axes.plot(
            [100 * estimate["low"], 100 * estimate["high"]],
            [y, y],
            color=color,
            linewidth=2,
            solid_capstyle="butt",
            zorder=2,
        )

    # Mean.
    axes.plot(
        [100 * estimate["mean"]],
        [y],
        "o",
        color=color,
        markerfacecolor=color if has_seeds else "white",
        markeredgewidth=1.5,
        markersize=6,
        zorder=3,
    )


def plot_learning_curves(table: Mapping[str, Any], out: Path) -> Figure | None:
    """Plot learning curves of the trained runs.

    Each section is a row of panels: the loss (a moving mean) and the validation metrics. A variant
    is the mean over seeds, in a band from the lowest to the highest seed.

    Args:
        table: Content of `table.json`.
        out: Folder of the sweep.

    Returns:
        The figure; None if there are no curves to compare.
    """
    # A section with fewer than two trained variants has no curves to compare.
    sections = []
    for section in table["sections"]:
        variants = _list_trained_variants(table, section)
        if len(variants) > 1:
            sections.append((section["title"], variants))

    curve_names = _list_curve_names(table, out, sections)
    if not curve_names:
        return None

    size = (3.7 * len(curve_names) + 1, 2.7 * len(sections) + 0.6)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(sections), len(curve_names), squeeze=False)
    for (title, variants), panel_row in zip(sections, panels, strict=True):
        for axes, curve_name in zip(panel_row, curve_names, strict=True):
            _plot_curve_panel(axes, table, out, variants, curve_name)
        panel_row[0].legend(
            title=title,
            title_fontsize=8,
            fontsize=8,
            frameon=False,
            alignment="left",
            handlelength=3,
        )

    figure.suptitle(
        f"{table['title']} – learning curves: mean over {len(table['seeds'])} seeds, band from"
        " lowest to highest",
        fontsize=11,
        color=TEXT_COLOR,
    )
    return figure


def _list_curve_names(
    table: Mapping[str, Any], out: Path, sections: Sequence[tuple[str, Sequence[str]]]
) -> list[str]:
    """Return the names of the curves that any shown variant has."""
    # Losses of different systems are not comparable.
    systems = {variant.get("system") for variant in table["variants"].values()}
    candidates = CURVE_NAMES[1:] if len(systems) > 1 else CURVE_NAMES

    shown_variants: list[str] = []
    for _, variants in sections:
        shown_variants.extend(variants)

    names = []
    for name in candidates:
        if any(_read_run_curves(table, out, variant, name) for variant in shown_variants):
            names.append(name)
    return names


def _plot_curve_panel(
    axes: Axes, table: Mapping[str, Any], out: Path, variants: Sequence[str], curve_name: str
) -> None:
    """Plot one curve of each variant of a section; a panel without curves is empty."""
    metric = curve_name.removeprefix("val/")
    is_metric = curve_name.startswith("val/")
    for style_index, variant in enumerate(variants):
        # A variant may lack a metric: the dynamic stream alone has no boxes.
        if is_metric and metric not in table["variants"][variant]["groups"][ALL_QUERIES]:
            continue
        runs = _read_run_curves(table, out, variant, curve_name)
        step_cost = _get_step_cost(table, variant)
        _plot_band(axes, runs, variant, style_index, curve_name, step_cost)

    if not axes.lines:
        axes.set_axis_off()
        return

    _style_axes(axes)
    axes.set_title(curve_name, fontsize=10, color=TEXT_COLOR)
    axes.grid(color=GRID_COLOR)
    x_label = f"time, in steps of {table['unit']}" if "unit" in table else "step"
    axes.set_xlabel(x_label, fontsize=8, color=MUTED_COLOR)


def _list_trained_variants(table: Mapping[str, Any], section: Mapping[str, Any]) -> list[str]:
    """Return the names of a section's trained variants."""
    names = [row["variant"] for row in section["rows"]]
    return [name for name in names if table["variants"][name]["of"] is None]


def _get_step_cost(table: Mapping[str, Any], variant: str) -> float:
    """Return the time of a variant's step, so that curves of equal time have equal width."""
    return table["variants"][variant].get("cost", {"step_time": 1})["step_time"]


def _read_run_curves(
    table: Mapping[str, Any], out: Path, variant: str, curve_name: str
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Read steps and values `[n]` of a curve, for each run of a variant that has the curve."""
    curves = []
    for run in table["variants"][variant]["runs"]:
        path = out / run / "curves" / "plots" / "metrics" / f"{curve_name}.tsv"
        if not path.exists():
            continue
        steps, values = read_curve_table(path)
        if len(steps):
            curves.append((steps, values))
    return curves


def _plot_band(
    axes: Axes,
    runs: Sequence[tuple[np.ndarray, np.ndarray]],
    variant: str,
    style_index: int,
    curve_name: str,
    step_cost: float,
) -> None:
    """Plot the mean over runs, and a band from the lowest to the highest run."""
    if not runs:
        return

    # Steps that all runs have.
    steps = runs[0][0]
    for other_steps, _ in runs[1:]:
        steps = np.intersect1d(steps, other_steps)

    values = np.stack(
        [run_values[np.searchsorted(run_steps, steps)] for run_steps, run_values in runs]
    )  # [runs, steps]
    if curve_name.startswith("train/"):
        values = np.stack([smooth_curve(run_values) for run_values in values])

    color = COLORS[style_index % len(COLORS)]
    axes.plot(
        steps * step_cost,
        values.mean(0),
        color=color,
        linestyle=LINE_STYLES[style_index % len(LINE_STYLES)],
        marker="o" if len(steps) < 12 else "",
        markersize=4,
        linewidth=1.6,
        label=variant,
    )
    axes.fill_between(
        steps * step_cost, values.min(0), values.max(0), color=color, alpha=0.15, linewidth=0
    )


def _style_axes(axes: Axes) -> None:
    """Remove the box, put the grid behind, and make the numbers small."""
    axes.spines[:].set_visible(False)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=8, labelcolor=MUTED_COLOR)


def save_png(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, atomically.

    Args:
        figure: The figure.
        path: The file.
    """
    with atomic_write(path) as temporary_path:
        figure.savefig(temporary_path, format="png", dpi=DPI, facecolor="white")
