"""Figures for papers, as CSDVL's: strips of tubes with a bar per span (Figures 6, S2, S3), and rows of attention (Figures 5, S1).

Frames stand over the time they were taken from: bar and strip share one time axis, and frame i of n shows the middle of the i-th of n
equal parts. Figures are as wide as the text of a two-column page, with fonts that are still read at that size; letters stay
letters in the PDF.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from warnings import catch_warnings, filterwarnings

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from PIL import Image

from grounding.structures.tubes import ground_truth_box, predicted_box
from pipeline.io.atomic import atomic_write
from pipeline.records import Prediction, Query, Span
from pipeline.tracks import Tracks

if TYPE_CHECKING:
    from grounding.visualization.attention_maps import AttentionMap

PAGE_WIDTH, LABEL_WIDTH, FRAME_GAP, BAR_HEIGHT, LINE_HEIGHT = 6.875, 0.62, 0.03, 0.085, 0.14
"""Inches: the text of a two-column page, the column of labels, the space between frames, the height of a bar and of a line of text."""
NUM_FRAMES, MAX_LAYERS = 8, 3
TRUE_COLOR, RUN_COLOR, OTHER_COLOR = "#16a34a", "#ffd60a", "#ef4444"
"""The truth, the run, and the one it is compared with."""
TEXT_COLOR, MUTED_COLOR, TRACK_COLOR = "#111827", "#6b7280", "#e5e7eb"
HEATMAP_COLORS = colormaps["turbo"]
DPI = 300
RC_PARAMS = {"pdf.fonttype": 42, "svg.hashsalt": "stvg"}


@dataclass(frozen=True)
class RunPrediction:
    """A run's answer to the query of a figure."""

    name: str
    prediction: Prediction | None
    vIoU: float | None


def plot_window(query: Query, run_predictions: Sequence[RunPrediction]) -> Span:
    """The frames `[begin, end)` that a figure is about: every span, and a fifth of their reach before and after, in the segment."""
    spans = [
        one.prediction.span
        for one in run_predictions
        if one.prediction and one.prediction.span[0] < one.prediction.span[1]
    ]
    spans += [query.truth.span] if query.truth else []
    first, last = (
        (min(span[0] for span in spans), max(span[1] for span in spans)) if spans else query.segment
    )
    margin = max(1, round(0.2 * (last - first)))
    return max(query.segment[0], first - margin), min(query.segment[1], last + margin)


def sample_frames(window: Span, count: int = NUM_FRAMES) -> list[int]:
    """The frames a figure shows: the middles of `count` equal parts of the window, ascending; a frame more than once in a short one."""
    begin, end = window
    return (begin + np.floor((np.arange(count) + 0.5) * (end - begin) / count).astype(int)).tolist()


def plot_tubes(
    query: Query,
    tracks: Tracks,
    run_predictions: Sequence[RunPrediction],
    window: Span,
    images: Mapping[int, np.ndarray],
) -> Figure:
    """A strip of frames with the true tube and what one run or two said, and beneath it a bar for each span.

    `pictures` by frame number, RGB uint8 `[H, W, 3]`, holds `sample_frames(window)`.
    """
    numbers = sample_frames(window)
    subtitle = "   ".join(f"{one.name}: {_format_viou(one)}" for one in run_predictions)
    spans: list[tuple[str, Span | None, str]] = [
        ("truth", query.truth.span if query.truth else None, TRUE_COLOR)
    ]
    spans += [
        (one.name, one.prediction.span if one.prediction else None, colour)
        for one, colour in zip(run_predictions, (RUN_COLOR, OTHER_COLOR), strict=False)
    ]
    page = _FigureLayout(
        query,
        subtitle,
        images[numbers[0]].shape,
        rows=1,
        footer_height=len(spans) * (BAR_HEIGHT + 0.05) + 1.2 * LINE_HEIGHT,
    )
    for place, number in enumerate(numbers):
        axes = page.add_frame(0, place, images[number])
        _draw_outline(axes, ground_truth_box(query, tracks, number), query.size, TRUE_COLOR)
        for one, colour in reversed(
            [*zip(run_predictions, (RUN_COLOR, OTHER_COLOR), strict=False)]
        ):
            _draw_outline(axes, predicted_box(one.prediction, number), query.size, colour)
    page.add_span_bars(spans, window, query.fps)
    return page.figure


def plot_attention(
    query: Query,
    tracks: Tracks,
    run_prediction: RunPrediction,
    window: Span,
    images: Mapping[int, np.ndarray],
    attention_frames: np.ndarray,
    attention_map: AttentionMap,
) -> Figure:
    """Frames with the true and the predicted box, and under them the attention of up to three layers, the last one among them.

    `seen` `[m]`: the frames that `attention` is about; of each frame shown the nearest is taken. Each layer is divided by its maximum
    over all frames of the query.
    """
    numbers, layers = sample_frames(window), select_layers(len(attention_map.weights))
    weights = attention_map.normalized
    about = f"{attention_map.description}   ·   boxes: green the truth, yellow {run_prediction.name} ({_format_viou(run_prediction)})"
    page = _FigureLayout(
        query, about, images[numbers[0]].shape, rows=1 + len(layers), footer_height=0.17
    )
    for place, number in enumerate(numbers):
        axes = page.add_frame(0, place, images[number])
        _draw_outline(axes, ground_truth_box(query, tracks, number), query.size, TRUE_COLOR)
        _draw_outline(axes, predicted_box(run_prediction.prediction, number), query.size, RUN_COLOR)
        nearest = int(np.abs(attention_frames - number).argmin())
        for row, layer in enumerate(layers, start=1):
            page.add_frame(row, place, overlay_heatmap(images[number], weights[layer, nearest]))
    for row, layer in enumerate(layers, start=1):
        page.add_label(
            page.frames_top + row * (page.frame_height + FRAME_GAP) + page.frame_height / 2,
            "attention" if len(weights) == 1 else f"layer {layer + 1}",
        )
    page.add_color_scale()
    page.add_time_labels(window, query.fps)
    return page.figure


def select_layers(count: int, max_layers: int = MAX_LAYERS) -> list[int]:
    """All layers or, where they are more than `most`, evenly many of them with the first and the last."""
    return np.unique(np.linspace(0, count - 1, min(count, max_layers)).round().astype(int)).tolist()


def overlay_heatmap(image: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """A picture `[H, W, 3]` in grey under the colours of a map `[h, w]` in [0, 1] that covers it all."""
    height, width = image.shape[:2]
    smooth = np.asarray(
        Image.fromarray(weights.astype(np.float32)).resize(
            (width, height), Image.Resampling.BILINEAR
        )
    ).clip(0, 1)
    grey = (image.astype(np.float32) / 255) @ np.array([0.299, 0.587, 0.114], np.float32)
    return np.asarray(0.45 * grey[..., None] + 0.55 * HEATMAP_COLORS(smooth)[..., :3])


class _FigureLayout:
    """A figure laid out in inches from the top: the sentence, rows of frames, and `below` inches beneath them."""

    def __init__(
        self, query: Query, subtitle: str, shape: Sequence[int], rows: int, footer_height: float
    ) -> None:
        lines = textwrap.wrap(f"“{query.text}”", 105, max_lines=3, placeholder=" …”")
        self.frame_width = (PAGE_WIDTH - LABEL_WIDTH - (NUM_FRAMES - 1) * FRAME_GAP) / NUM_FRAMES
        self.frame_height = self.frame_width * shape[0] / shape[1]
        self.frames_top = LINE_HEIGHT * (len(lines) + 1) + 0.05
        self.height = self.frames_top + rows * (self.frame_height + FRAME_GAP) + footer_height
        self.frames_bottom = self.frames_top + rows * (self.frame_height + FRAME_GAP)
        self.figure = Figure(figsize=(PAGE_WIDTH, self.height))
        self.add_text(
            LABEL_WIDTH, LINE_HEIGHT * len(lines) + 0.01, "\n".join(lines), size=8, style="italic"
        )
        self.add_text(LABEL_WIDTH, self.frames_top - 0.045, subtitle, size=6.5, color=MUTED_COLOR)

    def add_text(self, x: float, y: float, text: str, **style: Any) -> None:
        """Text whose last line ends `y` inches below the top."""
        whole: dict[str, Any] = {
            "ha": "left",
            "va": "bottom",
            "color": TEXT_COLOR,
            "size": 7,
            "parse_math": False,
            "linespacing": 1.15,
        } | style
        self.figure.text(x / PAGE_WIDTH, 1 - y / self.height, text, **whole)

    def add_axes(self, x: float, y: float, width: float, height: float) -> Axes:
        """Axes without any decoration, their top left corner at (x, y) inches."""
        axes = self.figure.add_axes(
            (
                x / PAGE_WIDTH,
                1 - (y + height) / self.height,
                width / PAGE_WIDTH,
                height / self.height,
            )
        )
        axes.set_axis_off()
        return axes

    def add_frame(self, row: int, column: int, image: np.ndarray) -> Axes:
        """One picture of a row; its axes have the corners (0, 0) and (1, 1), from the top left."""
        axes = self.add_axes(
            LABEL_WIDTH + column * (self.frame_width + FRAME_GAP),
            self.frames_top + row * (self.frame_height + FRAME_GAP),
            self.frame_width,
            self.frame_height,
        )
        axes.imshow(image, extent=(0, 1, 1, 0), aspect="auto", interpolation="antialiased")
        return axes

    def add_label(self, y: float, text: str) -> None:
        """A short text left of the frames, its middle `y` inches below the top."""
        self.add_text(
            LABEL_WIDTH - 0.07,
            y,
            text if len(text) <= 9 else f"{text[:8]}…",
            ha="right",
            va="center",
        )

    def add_span_bars(
        self, spans: Sequence[tuple[str, Span | None, str]], window: Span, fps: float
    ) -> None:
        """A bar for each span under the frames, and the time in seconds of the window's ends."""
        length = window[1] - window[0]
        for row, (name, span, colour) in enumerate(spans):
            top = self.frames_bottom + 0.035 + row * (BAR_HEIGHT + 0.05)
            axes = self.add_axes(LABEL_WIDTH, top, PAGE_WIDTH - LABEL_WIDTH, BAR_HEIGHT)
            axes.set(xlim=(0, 1), ylim=(0, 1))
            axes.add_patch(Rectangle((0, 0), 1, 1, facecolor=TRACK_COLOR, linewidth=0))
            if span and span[0] < span[1]:
                begin, end = ((edge - window[0]) / length for edge in span)
                axes.add_patch(
                    Rectangle(
                        (begin, 0),
                        end - begin,
                        1,
                        facecolor=colour,
                        edgecolor=TEXT_COLOR,
                        linewidth=0.4,
                    )
                )
            self.add_label(top + BAR_HEIGHT / 2, name)
        self.add_time_labels(window, fps)

    def add_time_labels(self, window: Span, fps: float) -> None:
        """When the window begins and ends, in seconds."""
        for x, edge, side in ((LABEL_WIDTH, window[0], "left"), (PAGE_WIDTH, window[1], "right")):
            self.add_text(
                x, self.height - 0.01, f"{edge / fps:.1f} s", ha=side, size=6, color=MUTED_COLOR
            )

    def add_color_scale(self) -> None:
        """The colours of the maps, under them."""
        top = self.frames_bottom + 0.04
        left, width = (
            LABEL_WIDTH + 3 * (self.frame_width + FRAME_GAP),
            2 * self.frame_width + FRAME_GAP,
        )
        self.add_axes(left, top, width, 0.07).imshow(
            HEATMAP_COLORS(np.linspace(0, 1, 256))[None, :, :3], aspect="auto"
        )
        self.add_text(left - 0.05, top + 0.085, "0", ha="right", size=6, color=MUTED_COLOR)
        self.add_text(
            left + width + 0.05, top + 0.085, "maximum over all frames", size=6, color=MUTED_COLOR
        )


def _format_viou(run_prediction: RunPrediction) -> str:
    return "vIoU unknown" if run_prediction.vIoU is None else f"vIoU {run_prediction.vIoU:.2f}"


def _draw_outline(axes: Axes, box: np.ndarray | None, size: tuple[int, int], color: str) -> None:
    """A coloured frame, `box` is xyxy in pixels of the video: the truth's wide with a dark edge, thinner ones drawn over it."""
    if box is None:
        return
    x1, y1, x2, y2 = (box / [*size, *size]).clip(0, 1)
    width = 1.6 if color == TRUE_COLOR else 0.7
    edge = [withStroke(linewidth=width + 0.4, foreground="black")]
    style: dict[str, Any] = {
        "linewidth": width,
        "linestyle": "--" if color == OTHER_COLOR else "-",
        "path_effects": edge,
    }
    axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=color, **style))


def save_figure(figure: Figure, path: Path) -> None:
    """`path`.png and `path`.pdf, each whole or not at all, and the same bytes for the same figure."""
    for kind, about in (("png", {"Software": None}), ("pdf", {"CreationDate": None})):
        with (
            rc_context(RC_PARAMS),
            catch_warnings(),
            atomic_write(path.with_name(f"{path.name}.{kind}")) as aside,
        ):
            filterwarnings(
                "ignore", "Glyph .* missing from"
            )  # a script that the font lacks is drawn as boxes
            figure.savefig(aside, format=kind, dpi=DPI, facecolor="white", metadata=about)
