"""A sweep's pictures: dots with intervals per variant, and learning curves. Colours are Okabe and Ito's, told apart by
readers with any colour vision; curves differ in their dashes too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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

TEXT_COLOR, MUTED_COLOR, GRID_COLOR = "#1c2330", "#667085", "#e3e7ee"
BLUE, ORANGE = "#0072b2", "#d55e00"
COLORS = (BLUE, ORANGE, "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
LINE_STYLES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)))
CURVE_NAMES = ("train/loss", "val/m_vIoU", "val/m_tIoU", "val/m_sIoU")
DPI = 130


def plot_table(table: Mapping[str, Any], group: str = ALL_QUERIES) -> Figure:
    """One panel per mean, one row per variant: its mean and 95 % interval, a light dot per seed.

    The reference of each section is a dashed line; a variant surely different from it is orange; an ensemble is hollow.
    """
    rows, titles = _layout_rows(table)
    height = 1.3 + 0.27 * (len(rows) + 1.5 * len(titles))
    figure = Figure(figsize=(14.5, height), layout=ConstrainedLayoutEngine(wspace=0.04))
    panels = figure.subplots(1, len(MEAN_METRICS), sharey=True)
    for axes, metric in zip(panels, MEAN_METRICS, strict=True):
        for section, row, place in rows:
            _plot_estimate(axes, table, section, row, metric, group, place)
        for section in table["sections"]:
            own = [place for other, _, place in rows if other is section]
            one = table["variants"][section["reference"]]["groups"][group].get(metric)
            if one is not None:
                axes.plot(
                    [100 * one["mean"]] * 2,
                    [min(own) - 0.5, max(own) + 0.5],
                    color=MUTED_COLOR,
                    linestyle="--",
                    linewidth=1,
                    zorder=1,
                )
        _style_axes(axes)
        axes.set_title(f"{metric}, %", fontsize=10, color=TEXT_COLOR)
        axes.grid(axis="x", color=GRID_COLOR)
    panels[0].set_yticks(
        [place for *_, place in rows],
        [row["variant"] for _, row, _ in rows],
        fontsize=9,
        color=TEXT_COLOR,
    )
    panels[0].set_ylim(max(place for *_, place in rows) + 0.8, -0.4)
    for place, title in titles:
        panels[0].text(
            0.0,
            place,
            title,
            transform=panels[0].get_yaxis_transform(),
            fontsize=9,
            color=MUTED_COLOR,
            style="italic",
            va="center",
        )
    count = table["groups"][group]
    about = f"{count['queries']:,} {'' if group == ALL_QUERIES else group + ' '}queries about {count['videos']:,} videos of {table['dataset']}"
    figure.suptitle(f"{table['title']} – {about}", fontsize=11, color=TEXT_COLOR)
    key = (
        "dot and line: mean and 95 % interval over videos and seeds · light: each seed · hollow: one answer, over videos alone",
        "dashed: the section's reference · orange: surely different from it (paired)",
    )
    figure.supxlabel(" · ".join(key), fontsize=8, color=MUTED_COLOR)
    return figure


def _layout_rows(
    table: Mapping[str, Any],
) -> tuple[list[tuple[Mapping[str, Any], Mapping[str, Any], float]], list[tuple[float, str]]]:
    """Where rows and the sections' titles stand, from the top."""
    rows, titles, place = [], [], 0.0
    for section in table["sections"]:
        titles.append((place, section["title"]))
        place += 1
        for row in section["rows"]:
            rows.append((section, row, place))
            place += 1
        place += 0.4
    return rows, titles


def _plot_estimate(
    axes: Axes, table: Mapping[str, Any], section: Any, row: Any, metric: str, group: str, y: float
) -> None:
    one = table["variants"][row["variant"]]["groups"][group].get(metric)
    if one is None:
        return
    sure = is_significant(row.get("differences", {}).get(group, {}).get(metric))
    colour = TEXT_COLOR if row["variant"] == section["reference"] else ORANGE if sure else BLUE
    if len(one["seeds"]) > 1:
        axes.plot(
            [100 * seed for seed in one["seeds"]],
            [y + 0.28] * len(one["seeds"]),
            ".",
            color=colour,
            alpha=0.35,
            markersize=5,
        )
    if one["low"] is not None:
        axes.plot(
            [100 * one["low"], 100 * one["high"]],
            [y, y],
            color=colour,
            linewidth=2,
            solid_capstyle="butt",
            zorder=2,
        )
    face = colour if len(one["seeds"]) > 1 else "white"
    axes.plot(
        [100 * one["mean"]],
        [y],
        "o",
        color=colour,
        markerfacecolor=face,
        markeredgewidth=1.5,
        markersize=6,
        zorder=3,
    )


def plot_learning_curves(table: Mapping[str, Any], out: Path) -> Figure | None:
    """Learning curves of the trained runs: per variant the mean over seeds, and a band from the lowest to the highest.

    One row of panels per section, with the loss (a moving mean) and the validation's means; None without any.
    """
    sections = [
        (section["title"], _list_trained_variants(table, section)) for section in table["sections"]
    ]
    shown = [(title, names) for title, names in sections if len(names) > 1]
    curves = (
        CURVE_NAMES[1:]
        if len({one.get("system") for one in table["variants"].values()}) > 1
        else CURVE_NAMES
    )  # losses of one system compare
    known = [
        name
        for name in curves
        if any(
            _read_run_curves(table, out, variant, name) for _, names in shown for variant in names
        )
    ]
    if not known:
        return None
    figure = Figure(figsize=(3.7 * len(known) + 1, 2.7 * len(shown) + 0.6), layout="constrained")
    panels = figure.subplots(len(shown), len(known), squeeze=False)
    for (title, names), line in zip(shown, panels, strict=True):
        for axes, curve in zip(line, known, strict=True):
            for number, variant in enumerate(names):
                if (
                    not curve.startswith("val/")
                    or curve.removeprefix("val/")
                    in table["variants"][variant]["groups"][ALL_QUERIES]
                ):
                    _plot_band(
                        axes,
                        _read_run_curves(table, out, variant, curve),
                        variant,
                        number,
                        curve,
                        _get_step_cost(table, variant),
                    )
            if not axes.lines:  # the dynamic stream alone has no boxes to judge
                axes.set_axis_off()
                continue
            _style_axes(axes)
            axes.set_title(curve, fontsize=10, color=TEXT_COLOR)
            axes.grid(color=GRID_COLOR)
            axes.set_xlabel(
                f"time, in steps of {table['unit']}" if "unit" in table else "step",
                fontsize=8,
                color=MUTED_COLOR,
            )
        line[0].legend(
            title=title,
            title_fontsize=8,
            fontsize=8,
            frameon=False,
            alignment="left",
            handlelength=3,
        )
    figure.suptitle(
        f"{table['title']} – learning curves: mean over {len(table['seeds'])} seeds, band from lowest to highest",
        fontsize=11,
        color=TEXT_COLOR,
    )
    return figure


def _list_trained_variants(table: Mapping[str, Any], section: Mapping[str, Any]) -> list[str]:
    return [
        row["variant"] for row in section["rows"] if table["variants"][row["variant"]]["of"] is None
    ]


def _get_step_cost(table: Mapping[str, Any], variant: str) -> float:
    """How long a variant's step takes, so that curves of the same time end at one place."""
    return table["variants"][variant].get("cost", {"step_time": 1})["step_time"]


def _read_run_curves(
    table: Mapping[str, Any], out: Path, variant: str, curve: str
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Steps and values `[n]` of one curve in each of a variant's runs that has it."""
    paths = [
        out / run / "curves" / "plots" / "metrics" / f"{curve}.tsv"
        for run in table["variants"][variant]["runs"]
    ]
    return [found for path in paths if path.exists() and len((found := read_curve_table(path))[0])]


def _plot_band(
    axes: Axes,
    runs: Sequence[tuple[np.ndarray, np.ndarray]],
    variant: str,
    style_index: int,
    curve: str,
    step_cost: float,
) -> None:
    if not runs:
        return
    steps = runs[0][0]
    for other, _ in runs[1:]:
        steps = np.intersect1d(steps, other)
    values = np.stack([value[np.searchsorted(own, steps)] for own, value in runs])
    if curve.startswith("train/"):
        values = np.stack([smooth_curve(value) for value in values])
    colour = COLORS[style_index % len(COLORS)]
    marker = "o" if len(steps) < 12 else ""
    axes.plot(
        steps * step_cost,
        values.mean(0),
        color=colour,
        linestyle=LINE_STYLES[style_index % len(LINE_STYLES)],
        marker=marker,
        markersize=4,
        linewidth=1.6,
        label=variant,
    )
    axes.fill_between(
        steps * step_cost, values.min(0), values.max(0), color=colour, alpha=0.15, linewidth=0
    )


def _style_axes(axes: Axes) -> None:
    """No box, thin grid behind, small soft numbers."""
    axes.spines[:].set_visible(False)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=8, labelcolor=MUTED_COLOR)


def save_png(figure: Figure, path: Path) -> None:
    """Write a picture as PNG, whole or not at all."""
    with atomic_write(path) as aside:
        figure.savefig(aside, format="png", dpi=DPI, facecolor="white")
