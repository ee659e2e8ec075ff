"""Figures for papers: their frames, the places of boxes, bars and heat, and any sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from grounding.visualization.attention_maps import AttentionMap
from grounding.visualization.paper_figures import (
    DPI,
    HEATMAP_COLORS,
    NUM_FRAMES,
    OTHER_COLOR,
    PAGE_WIDTH,
    RUN_COLOR,
    TRUE_COLOR,
    RunPrediction,
    overlay_heatmap,
    plot_attention,
    plot_tubes,
    plot_window,
    sample_frames,
    save_figure,
    select_layers,
)
from pipeline.records import Prediction, Query, Span
from pipeline.tracks import Tracks

QueryMaker = Callable[..., Query]
WINDOW = (20, 60)
"""Its frames are 22, 27, 32, … 57."""


def make_run_prediction(span: Span, left: float = 0.0, name: str = "full") -> RunPrediction:
    """Return a run's box of half the image's width and height. Its left edge moves by a hundredth
    of 64 pixels a frame.
    """
    rows = [(frame, left + 0.64 * frame, 0.0, left + 0.64 * frame + 32, 18.0) for frame in (0, 100)]
    return RunPrediction(name, Prediction(id="test-0", span=span, score=1.0, boxes=rows), 0.5)


def make_images(window: Span = WINDOW) -> dict[int, np.ndarray]:
    return {frame: np.full((36, 64, 3), 128, np.uint8) for frame in sample_frames(window)}


def list_frames(figure: Figure) -> list[Axes]:
    """The frames of a figure, row after row."""
    frames = [axes for axes in figure.axes if axes.images and axes.get_position().width < 0.2]
    return sorted(
        frames, key=lambda axes: (-round(axes.get_position().y0, 3), axes.get_position().x0)
    )


def list_boxes(figure: Figure, color: str) -> dict[int, list[float]]:
    """Return the boxes of one color by column: x, y, width and height relative to the image."""
    return {
        column: [
            round(value, 6) for value in (*patch.get_xy(), patch.get_width(), patch.get_height())
        ]
        for column, axes in enumerate(list_frames(figure))
        for patch in axes.patches
        if isinstance(patch, Rectangle) and to_hex(patch.get_edgecolor()) == to_hex(color)
    }


def list_bars(figure: Figure) -> dict[str, list[float]]:
    """Return begin and end of the colored bars, relative to the strip."""
    patches = [patch for axes in figure.axes if not axes.images for patch in axes.patches]
    return {
        to_hex(patch.get_facecolor()): [patch.get_x(), patch.get_x() + patch.get_width()]
        for patch in patches
        if to_hex(patch.get_facecolor()) != "#e5e7eb"
    }


@pytest.mark.parametrize(
    ("window", "numbers"),
    [
        ((0, 8), list(range(8))),
        ((20, 60), list(range(22, 60, 5))),
        ((10, 12), [10] * 4 + [11] * 4),
        ((5, 6), [5] * 8),
    ],
)
def test_frames_are_the_middles_of_equal_parts(window: Span, numbers: list[int]) -> None:
    assert sample_frames(window) == numbers


def test_the_window_holds_every_span_and_a_fifth_around_within_the_segment(
    make_query: QueryMaker,
) -> None:
    query = make_query(0, "test")  # [30, 60) of 100 frames
    assert plot_window(query, [make_run_prediction((40, 70))]) == (22, 78)
    assert plot_window(query, [make_run_prediction((40, 70)), make_run_prediction((0, 20))]) == (
        0,
        84,
    )
    assert plot_window(query, [make_run_prediction((5, 5)), RunPrediction("none", None, None)]) == (
        24,
        66,
    )
    assert plot_window(make_query(0, "test", truth=None), []) == (0, 100)


def test_boxes_stand_where_they_are_and_only_while_they_hold(
    make_query: QueryMaker, tracks: Tracks
) -> None:
    query = make_query(0, "test")
    figure = plot_tubes(
        query,
        tracks,
        [make_run_prediction((25, 40)), make_run_prediction((50, 100), 10, "none")],
        WINDOW,
        make_images(),
    )
    true_boxes, run_boxes, other_boxes = (
        list_boxes(figure, color) for color in (TRUE_COLOR, RUN_COLOR, OTHER_COLOR)
    )
    assert list(true_boxes) == [2, 3, 4, 5, 6, 7]  # frames 32 to 57 of [30, 60)
    assert true_boxes[2] == [
        round(8.2 / 64, 6),
        round(8.2 / 36, 6),
        round(10 / 64, 6),
        round(20 / 36, 6),
    ]
    assert run_boxes == {1: [0.27, 0, 0.5, 0.5], 2: [0.32, 0, 0.5, 0.5], 3: [0.37, 0, 0.5, 0.5]}
    assert list(other_boxes) == [6, 7]
    assert other_boxes[6] == [
        round(10 / 64 + 0.52, 6),
        0,
        round(1 - 10 / 64 - 0.52, 6),
        0.5,
    ]  # cut at the picture's edge
    assert list_bars(figure) == {
        TRUE_COLOR: [0.25, 1.0],
        RUN_COLOR: [0.125, 0.5],
        OTHER_COLOR: [0.75, 2.0],
    }


def test_a_query_without_truth_or_answer_is_drawn_without_them(
    make_query: QueryMaker, tracks: Tracks
) -> None:
    figure = plot_tubes(
        make_query(0, "test", truth=None),
        tracks,
        [RunPrediction("full", None, None)],
        WINDOW,
        make_images(),
    )
    assert not list_boxes(figure, TRUE_COLOR)
    assert not list_boxes(figure, RUN_COLOR)
    assert not list_bars(figure)


def test_attention_is_that_of_the_nearest_frame_in_every_layer_shown(
    make_query: QueryMaker, tracks: Tracks
) -> None:
    """Layer l gives frame i the weight (l + 1)·i in its left half: normalized by each layer's
    maximum all layers look alike.
    """
    attention_frames = np.arange(0, 100, 10)
    weights = np.zeros((2, 10, 2, 4), np.float32)
    weights[..., :2] = np.arange(1, 3)[:, None, None, None] * np.arange(10)[:, None, None]
    figure = plot_attention(
        make_query(0, "test"),
        tracks,
        make_run_prediction((25, 40)),
        WINDOW,
        make_images(),
        attention_frames,
        AttentionMap("guidance", weights),
    )
    images = [axes.images[0].get_array() for axes in list_frames(figure)]
    assert len(images) == 3 * NUM_FRAMES
    for column, frame in enumerate(
        (2, 3, 3, 4, 4, 5, 5, 6)
    ):  # the attention frames 20, 30, … that are nearest to 22, 27, 32, …
        expected = overlay_heatmap(make_images()[22], weights[1, frame] / weights[1].max())
        assert np.allclose(images[NUM_FRAMES + column], expected)
        assert np.allclose(images[2 * NUM_FRAMES + column], expected)
    assert any("A of eq. (2)" in text.get_text() for text in figure.texts)
    assert [text.get_text() for text in figure.texts if text.get_text().startswith("layer")] == [
        "layer 1",
        "layer 2",
    ]


def test_the_map_covers_the_whole_picture() -> None:
    weights = np.zeros((2, 4), np.float32)
    weights[1, 3] = 1
    heatmap = overlay_heatmap(np.full((36, 64, 3), 255, np.uint8), weights)
    assert heatmap.shape == (36, 64, 3)
    assert heatmap[-1, -1] == pytest.approx(
        0.45 + 0.55 * np.array(HEATMAP_COLORS(1.0)[:3]), abs=1e-6
    )
    assert heatmap[0, 0] == pytest.approx(0.45 + 0.55 * np.array(HEATMAP_COLORS(0.0)[:3]), abs=1e-6)


@pytest.mark.parametrize(
    ("count", "layers"), [(1, [0]), (2, [0, 1]), (3, [0, 1, 2]), (6, [0, 2, 5]), (12, [0, 6, 11])]
)
def test_layers_are_shown_evenly_with_the_last(count: int, layers: list[int]) -> None:
    assert select_layers(count) == layers


@pytest.mark.parametrize(
    "text", ["costs $5 and $6 <b>\\frac{1}{2}</b> & %", "一人の男\x07\n" + "a long word " * 60]
)
def test_any_sentence_is_drawn(
    text: str, make_query: QueryMaker, tracks: Tracks, tmp_path: Path
) -> None:
    figure = plot_tubes(
        make_query(0, "test", text=text),
        tracks,
        [make_run_prediction((25, 40), name="a very long run's name")],
        WINDOW,
        make_images(),
    )
    save_figure(figure, tmp_path / "one")
    with Image.open(tmp_path / "one.png") as image:
        assert image.width == int(PAGE_WIDTH * DPI)
    assert (tmp_path / "one.pdf").read_bytes().startswith(b"%PDF-")


def test_the_same_figure_is_the_same_file(
    make_query: QueryMaker, tracks: Tracks, tmp_path: Path
) -> None:
    for name in ("one", "two"):
        save_figure(
            plot_tubes(
                make_query(0, "test"),
                tracks,
                [make_run_prediction((25, 40))],
                WINDOW,
                make_images(),
            ),
            tmp_path / name,
        )
    for kind in ("png", "pdf"):
        assert (tmp_path / f"one.{kind}").read_bytes() == (tmp_path / f"two.{kind}").read_bytes()
