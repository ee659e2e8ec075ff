"""Figures for papers, in the style of the CSDVL paper.

- Strips of frames with tubes and a bar per span (Figures 6, S2 and S3).
- Rows of attention maps (Figures 5 and S1).

Frames stand above their own time: strip and bars share one time axis. Frame i of n shows the middle
of the i-th of n equal parts of the window. Figures are as wide as the text of a two-column page.
Their fonts are legible at that size, and letters remain letters in the PDF.
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

PAGE_WIDTH = 6.875
"""Inches: the text of a two-column page."""
LABEL_WIDTH = 0.62
"""Inches: the column of labels."""
FRAME_GAP = 0.03
"""Inches between frames."""
BAR_HEIGHT = 0.085
"""Inches: the bar of a span."""
BAR_GAP = 0.05
"""Inches between bars."""
LINE_HEIGHT = 0.14
"""Inches: a line of text."""

NUM_FRAMES = 8
MAX_LAYERS = 3
MAX_LABEL_LENGTH = 9
"""Letters of a label left of the frames."""
MAX_LINE_LENGTH = 105
"""Letters of a line of the sentence."""

TRUE_COLOR = "#16a34a"
"""Ground truth."""
RUN_COLOR = "#ffd60a"
"""The run."""
OTHER_COLOR = "#ef4444"
"""The run that is compared."""
TEXT_COLOR = "#111827"
MUTED_COLOR = "#6b7280"
TRACK_COLOR = "#e5e7eb"
"""Background of a bar."""
HEATMAP_COLORS = colormaps["turbo"]
GRAY_WEIGHTS = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in the luma of ITU-R BT.601."""

DPI = 300
RC_PARAMS = {"pdf.fonttype": 42, "svg.hashsalt": "stvg"}
"""matplotlib settings: TrueType fonts in PDFs, and reproducible files."""


@dataclass(frozen=True)
class RunPrediction:
    """A run's prediction for the query of a figure.

    Attributes:
        name: Name of the run.
        prediction: The prediction, if there is one.
        vIoU: Its score, if the ground truth has boxes.
    """

    name: str
    prediction: Prediction | None
    vIoU: float | None

    @property
    def span(self) -> Span | None:
        """Predicted span, if there is a prediction."""
        return self.prediction.span if self.prediction else None


def plot_window(query: Query, run_predictions: Sequence[RunPrediction]) -> Span:
    """Choose the frames of a figure: all non-empty spans and a margin of a fifth, in the segment.

    Args:
        query: The query.
        run_predictions: Predictions of the figure's runs.

    Returns:
        Frames `[begin, end)`; the whole segment if there is no span.
    """
    spans = []
    for run_prediction in run_predictions:
        span = run_prediction.span
        if span and span[0] < span[1]:
            spans.append(span)
    if query.truth:
        spans.append(query.truth.span)

    # The hull of all spans.
    segment_begin, segment_end = query.segment
    first = min((span[0] for span in spans), default=segment_begin)
    last = max((span[1] for span in spans), default=segment_end)

    margin = max(1, round(0.2 * (last - first)))

    return max(segment_begin, first - margin), min(segment_end, last + margin)


def sample_frames(window: Span, count: int = NUM_FRAMES) -> list[int]:
    """Return the middles of equal parts of a window.

    Args:
        window: Frames `[begin, end)`.
        count: Number of parts.

    Returns:
        `count` frame indices, ascending; with repetitions if the window is short.
    """
    begin, end = window
    offsets = (np.arange(count) + 0.5) * (end - begin) / count

    return (begin + np.floor(offsets).astype(int)).tolist()


def plot_tubes(
    query: Query,
    tracks: Tracks,
    run_predictions: Sequence[RunPrediction],
    window: Span,
    images: Mapping[int, np.ndarray],
) -> Figure:
    """Plot a strip of frames with ground-truth and predicted boxes, and a bar for each span.

    Args:
        query: The query.
        tracks: Ground-truth tracks.
        run_predictions: Predictions of one or two runs.
        window: Frames `[begin, end)` of the figure, from `plot_window`.
        images: RGB uint8 `[H, W, 3]` by frame index, for `sample_frames(window)`.

    Returns:
        The figure.
    """
    frame_indices = sample_frames(window)
    predictions_with_colors = list(zip(run_predictions, (RUN_COLOR, OTHER_COLOR), strict=False))

    # Bars under the frames: the ground truth, then the runs.
    true_span = query.truth.span if query.truth else None
    bars: list[tuple[str, Span | None, str]] = [("truth", true_span, TRUE_COLOR)]
    for run_prediction, color in predictions_with_colors:
        bars.append((run_prediction.name, run_prediction.span, color))

    descriptions = [f"{run.name}: {_format_viou(run)}" for run in run_predictions]
    layout = _FigureLayout(
        query,
        subtitle="   ".join(descriptions),
        image_shape=images[frame_indices[0]].shape,
        num_rows=1,
        footer_height=len(bars) * (BAR_HEIGHT + BAR_GAP) + 1.2 * LINE_HEIGHT,
    )

    for column, frame_index in enumerate(frame_indices):
        axes = layout.add_frame(0, column, images[frame_index])
        true_box = ground_truth_box(query, tracks, frame_index)
        _draw_outline(axes, true_box, query.size, TRUE_COLOR)

        # The run's box comes last, on top of the compared run's.
        for run_prediction, color in reversed(predictions_with_colors):
            box = predicted_box(run_prediction.prediction, frame_index)
            _draw_outline(axes, box, query.size, color)

    layout.add_span_bars(bars, window, query.fps)

    return layout.figure


def plot_attention(
    query: Query,
    tracks: Tracks,
    run_prediction: RunPrediction,
    window: Span,
    images: Mapping[int, np.ndarray],
    attention_frames: np.ndarray,
    attention_map: AttentionMap,
) -> Figure:
    """Plot frames with boxes, and under them the attention of up to three layers.

    The last layer is always among them. Each layer is divided by its maximum over all frames of the
    query.

    Args:
        query: The query.
        tracks: Ground-truth tracks.
        run_prediction: Prediction of the run.
        window: Frames `[begin, end)` of the figure, from `plot_window`.
        images: RGB uint8 `[H, W, 3]` by frame index, for `sample_frames(window)`.
        attention_frames: Frame indices `[m]` of the map; each plotted frame takes the nearest.
        attention_map: The map, of m frames.

    Returns:
        The figure.
    """
    frame_indices = sample_frames(window)
    weights = attention_map.normalized  # [layers, m, h, w]
    layers = select_layers(len(weights))

    score = _format_viou(run_prediction)
    boxes_legend = f"boxes: green the truth, yellow {run_prediction.name} ({score})"
    layout = _FigureLayout(
        query,
        subtitle=f"{attention_map.description}   ·   {boxes_legend}",
        image_shape=images[frame_indices[0]].shape,
        num_rows=1 + len(layers),
        footer_height=0.17,
    )

    for column, frame_index in enumerate(frame_indices):
        image = images[frame_index]

        # First row: the frame with its boxes.
        axes = layout.add_frame(0, column, image)
        true_box = ground_truth_box(query, tracks, frame_index)
        _draw_outline(axes, true_box, query.size, TRUE_COLOR)
        box = predicted_box(run_prediction.prediction, frame_index)
        _draw_outline(axes, box, query.size, RUN_COLOR)

        # Other rows: one layer each.
        nearest = int(np.abs(attention_frames - frame_index).argmin())
        for row, layer in enumerate(layers, start=1):
            layout.add_frame(row, column, overlay_heatmap(image, weights[layer, nearest]))

    for row, layer in enumerate(layers, start=1):
        label = "attention" if len(weights) == 1 else f"layer {layer + 1}"
        layout.add_row_label(row, label)

    layout.add_color_scale()
    layout.add_time_labels(window, query.fps)

    return layout.figure


def select_layers(count: int, max_layers: int = MAX_LAYERS) -> list[int]:
    """Select evenly spaced layers, among them the first and the last.

    Args:
        count: Number of layers.
        max_layers: Maximum number of selected layers.

    Returns:
        Layer indices, ascending; all of them if `count <= max_layers`.
    """
    layers = np.linspace(0, count - 1, min(count, max_layers)).round().astype(int)

    return np.unique(layers).tolist()


def overlay_heatmap(image: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Blend an image in gray with the colors of an attention map.

    Args:
        image: RGB uint8 `[H, W, 3]`.
        weights: Map `[h, w]` in [0, 1] that covers the whole image.

    Returns:
        RGB `[H, W, 3]` in [0, 1].
    """
    # The map at the image's size.
    height, width = image.shape[:2]
    heatmap = Image.fromarray(weights.astype(np.float32))
    heatmap = heatmap.resize((width, height), Image.Resampling.BILINEAR)
    smooth_weights = np.asarray(heatmap).clip(0, 1)  # [H, W]

    gray = (image.astype(np.float32) / 255) @ np.array(GRAY_WEIGHTS, np.float32)  # [H, W]
    colors = HEATMAP_COLORS(smooth_weights)[..., :3]  # [H, W, 3]

    return np.asarray(0.45 * gray[..., None] + 0.55 * colors)


class _FigureLayout:
    """Layout of a figure in inches from the top left: the sentence, rows of frames, a footer.

    Attributes:
        frame_width: Width of a frame.
        frame_height: Height of a frame.
        frames_top: Top of the first row of frames.
        frames_bottom: Bottom of the last row of frames.
        height: Height of the figure.
        figure: The figure.
    """

    def __init__(
        self,
        query: Query,
        subtitle: str,
        image_shape: Sequence[int],
        num_rows: int,
        footer_height: float,
    ) -> None:
        lines = textwrap.wrap(f"“{query.text}”", MAX_LINE_LENGTH, max_lines=3, placeholder=" …")

        # Frames fill the page beside the labels, with the aspect ratio of the images.
        all_frames_width = PAGE_WIDTH - LABEL_WIDTH - (NUM_FRAMES - 1) * FRAME_GAP
        self.frame_width = all_frames_width / NUM_FRAMES
        self.frame_height = self.frame_width * image_shape[0] / image_shape[1]

        # Rows, from top to bottom.
        self.frames_top = LINE_HEIGHT * (len(lines) + 1) + 0.05
        self.frames_bottom = self.frames_top + num_rows * (self.frame_height + FRAME_GAP)
        self.height = self.frames_bottom + footer_height

        self.figure = Figure(figsize=(PAGE_WIDTH, self.height))
        sentence_bottom = LINE_HEIGHT * len(lines) + 0.01
        self.add_text(LABEL_WIDTH, sentence_bottom, "\n".join(lines), size=8, style="italic")
        self.add_text(LABEL_WIDTH, self.frames_top - 0.045, subtitle, size=6.5, color=MUTED_COLOR)

    def add_text(self, x: float, y: float, text: str, **style: Any) -> None:
        """Add text whose last line ends `y` inches below the top; `style` goes to matplotlib."""
        default_style: dict[str, Any] = {
            "ha": "left",
            "va": "bottom",
            "color": TEXT_COLOR,
            "size": 7,
            "parse_math": False,
            "linespacing": 1.15,
        }
        self.figure.text(x / PAGE_WIDTH, 1 - y / self.height, text, **(default_style | style))

    def add_axes(self, x: float, y: float, width: float, height: float) -> Axes:
        """Add axes without decoration, their top left corner at (x, y) inches."""
        # matplotlib counts in fractions of the figure, from the bottom left.
        rectangle = (
            x / PAGE_WIDTH,
            1 - (y + height) / self.height,
            width / PAGE_WIDTH,
            height / self.height,
        )
        axes = self.figure.add_axes(rectangle)
        axes.set_axis_off()

        return axes

    def add_frame(self, row: int, column: int, image: np.ndarray) -> Axes:
        """Add one image; its axes have the corners (0, 0), top left, and (1, 1)."""
        axes = self.add_axes(
            x=LABEL_WIDTH + column * (self.frame_width + FRAME_GAP),
            y=self.frames_top + row * (self.frame_height + FRAME_GAP),
            width=self.frame_width,
            height=self.frame_height,
        )
        axes.imshow(image, extent=(0, 1, 1, 0), aspect="auto", interpolation="antialiased")

        return axes

    def add_label(self, y: float, text: str) -> None:
        """Add a short text left of the frames, its middle `y` inches below the top."""
        if len(text) > MAX_LABEL_LENGTH:
            text = f"{text[: MAX_LABEL_LENGTH - 1]}…"

        self.add_text(LABEL_WIDTH - 0.07, y, text, ha="right", va="center")

    def add_row_label(self, row: int, text: str) -> None:
        """Add a label left of the middle of a row of frames."""
        row_top = self.frames_top + row * (self.frame_height + FRAME_GAP)
        self.add_label(row_top + self.frame_height / 2, text)

    def add_span_bars(
        self, bars: Sequence[tuple[str, Span | None, str]], window: Span, fps: float
    ) -> None:
        """Add a bar `(label, span, color)` for each span, and the times of the window's ends."""
        for row, (label, span, color) in enumerate(bars):
            top = self.frames_bottom + 0.035 + row * (BAR_HEIGHT + BAR_GAP)

            # The whole window.
            axes = self.add_axes(LABEL_WIDTH, top, PAGE_WIDTH - LABEL_WIDTH, BAR_HEIGHT)
            axes.set(xlim=(0, 1), ylim=(0, 1))
            axes.add_patch(Rectangle((0, 0), 1, 1, facecolor=TRACK_COLOR, linewidth=0))

            if span and span[0] < span[1]:
                axes.add_patch(_make_span_bar(span, window, color))

            self.add_label(top + BAR_HEIGHT / 2, label)

        self.add_time_labels(window, fps)

    def add_time_labels(self, window: Span, fps: float) -> None:
        """Add the times of the window's ends, in seconds, at the bottom."""
        y = self.height - 0.01
        style = {"size": 6, "color": MUTED_COLOR}

        self.add_text(LABEL_WIDTH, y, f"{window[0] / fps:.1f} s", ha="left", **style)
        self.add_text(PAGE_WIDTH, y, f"{window[1] / fps:.1f} s", ha="right", **style)

    def add_color_scale(self) -> None:
        """Add the colors of the attention maps, under the frames."""
        top = self.frames_bottom + 0.04
        left = LABEL_WIDTH + 3 * (self.frame_width + FRAME_GAP)
        width = 2 * self.frame_width + FRAME_GAP

        # A row of 256 colors.
        colors = HEATMAP_COLORS(np.linspace(0, 1, 256))[None, :, :3]  # [1, 256, 3]
        axes = self.add_axes(left, top, width, 0.07)
        axes.imshow(colors, aspect="auto")

        y = top + 0.085
        style = {"size": 6, "color": MUTED_COLOR}
        self.add_text(left - 0.05, y, "0", ha="right", **style)
        self.add_text(left + width + 0.05, y, "maximum over all frames", **style)


def _make_span_bar(span: Span, window: Span, color: str) -> Rectangle:
    """Return the bar of a span, in fractions of the window."""
    window_length = window[1] - window[0]
    begin = (span[0] - window[0]) / window_length
    end = (span[1] - window[0]) / window_length

    return Rectangle(
        (begin, 0), end - begin, 1, facecolor=color, edgecolor=TEXT_COLOR, linewidth=0.4
    )


def _format_viou(run_prediction: RunPrediction) -> str:
    """Return a prediction's score as text."""
    if run_prediction.vIoU is None:
        return "vIoU unknown"

    return f"vIoU {run_prediction.vIoU:.2f}"


def _draw_outline(axes: Axes, box: np.ndarray | None, size: tuple[int, int], color: str) -> None:
    """Draw the outline of a box, xyxy in pixels of the video, with a dark edge.

    The ground truth's outline is wide, so that it shows under the narrower ones drawn on it.
    """
    if box is None:
        return

    # Corners in fractions of the image, clipped to it.
    x1, y1, x2, y2 = (box / [*size, *size]).clip(0, 1)

    line_width = 1.6 if color == TRUE_COLOR else 0.7
    dark_edge = withStroke(linewidth=line_width + 0.4, foreground="black")
    outline = Rectangle(
        (x1, y1),
        x2 - x1,
        y2 - y1,
        fill=False,
        edgecolor=color,
        linewidth=line_width,
        linestyle="--" if color == OTHER_COLOR else "-",
        path_effects=[dark_edge],
    )
    axes.add_patch(outline)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG and PDF, each atomically. Equal figures give equal bytes.

    Args:
        figure: The figure.
        path: Path without suffix; `.png` and `.pdf` are appended.
    """
    # Without the version of the software and the date files are reproducible.
    metadata_by_format: dict[str, dict[str, Any]] = {
        "png": {"Software": None},
        "pdf": {"CreationDate": None},
    }

    for file_format, metadata in metadata_by_format.items():
        file_path = path.with_name(f"{path.name}.{file_format}")
        with rc_context(RC_PARAMS), catch_warnings(), atomic_write(file_path) as temporary_path:
            # Letters that the font lacks are drawn as boxes.
            filterwarnings("ignore", "Glyph .* missing from")
            figure.savefig(
                temporary_path, format=file_format, dpi=DPI, facecolor="white", metadata=metadata
            )
