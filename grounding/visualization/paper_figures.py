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

from grounding.structures.tubes import predicted_box, true_box
from pipeline.io.atomic import atomic_write
from pipeline.records import Prediction, Query, Span
from pipeline.tracks import Tracks

if TYPE_CHECKING:
    from grounding.visualization.attention_maps import Attention

WIDTH, LABELS, GAP, BAR, LINE = 6.875, 0.62, 0.03, 0.085, 0.14
"""Inches: the text of a two-column page, the column of labels, the space between frames, the height of a bar and of a line of text."""
FRAMES, LAYERS = 8, 3
TRUE, OURS, OTHER = "#16a34a", "#ffd60a", "#ef4444"
"""The truth, the run, and the one it is compared with."""
INK, SOFT, TRACK = "#111827", "#6b7280", "#e5e7eb"
HEAT = colormaps["turbo"]
DPI = 300
STYLE = {"pdf.fonttype": 42, "svg.hashsalt": "stvg"}


@dataclass(frozen=True)
class Told:
    """A run's answer to the query of a figure."""

    name: str
    prediction: Prediction | None
    vIoU: float | None


def window_of(query: Query, told: Sequence[Told]) -> Span:
    """The frames `[begin, end)` that a figure is about: every span, and a fifth of their reach before and after, in the segment."""
    spans = [one.prediction.span for one in told if one.prediction and one.prediction.span[0] < one.prediction.span[1]]
    spans += [query.truth.span] if query.truth else []
    first, last = (min(span[0] for span in spans), max(span[1] for span in spans)) if spans else query.segment
    margin = max(1, round(0.2 * (last - first)))
    return max(query.segment[0], first - margin), min(query.segment[1], last + margin)


def frames_in(window: Span, count: int = FRAMES) -> list[int]:
    """The frames a figure shows: the middles of `count` equal parts of the window, ascending; a frame more than once in a short one."""
    begin, end = window
    return (begin + np.floor((np.arange(count) + 0.5) * (end - begin) / count).astype(int)).tolist()


def tubes_figure(query: Query, tracks: Tracks, told: Sequence[Told], window: Span, pictures: Mapping[int, np.ndarray]) -> Figure:
    """A strip of frames with the true tube and what one run or two said, and beneath it a bar for each span.

    `pictures` by frame number, RGB uint8 `[H, W, 3]`, holds `frames_in(window)`.
    """
    numbers = frames_in(window)
    subtitle = "   ".join(f"{one.name}: {_measured(one)}" for one in told)
    spans: list[tuple[str, Span | None, str]] = [("truth", query.truth.span if query.truth else None, TRUE)]
    spans += [(one.name, one.prediction.span if one.prediction else None, colour) for one, colour in zip(told, (OURS, OTHER), strict=False)]
    page = _Page(query, subtitle, pictures[numbers[0]].shape, rows=1, below=len(spans) * (BAR + 0.05) + 1.2 * LINE)
    for place, number in enumerate(numbers):
        axes = page.frame(0, place, pictures[number])
        _outline(axes, true_box(query, tracks, number), query.size, TRUE)
        for one, colour in reversed([*zip(told, (OURS, OTHER), strict=False)]):
            _outline(axes, predicted_box(one.prediction, number), query.size, colour)
    page.bars(spans, window, query.fps)
    return page.figure


def attention_figure(
    query: Query,
    tracks: Tracks,
    told: Told,
    window: Span,
    pictures: Mapping[int, np.ndarray],
    seen: np.ndarray,
    attention: Attention,
) -> Figure:
    """Frames with the true and the predicted box, and under them the attention of up to three layers, the last one among them.

    `seen` `[m]`: the frames that `attention` is about; of each frame shown the nearest is taken. Each layer is divided by its maximum
    over all frames of the query.
    """
    numbers, layers = frames_in(window), shown_layers(len(attention.weights))
    weights = attention.normalised
    about = f"{attention.about}   ·   boxes: green the truth, yellow {told.name} ({_measured(told)})"
    page = _Page(query, about, pictures[numbers[0]].shape, rows=1 + len(layers), below=0.17)
    for place, number in enumerate(numbers):
        axes = page.frame(0, place, pictures[number])
        _outline(axes, true_box(query, tracks, number), query.size, TRUE)
        _outline(axes, predicted_box(told.prediction, number), query.size, OURS)
        nearest = int(np.abs(seen - number).argmin())
        for row, layer in enumerate(layers, start=1):
            page.frame(row, place, heated(pictures[number], weights[layer, nearest]))
    for row, layer in enumerate(layers, start=1):
        page.label(page.top + row * (page.tall + GAP) + page.tall / 2, "attention" if len(weights) == 1 else f"layer {layer + 1}")
    page.scale()
    page.times(window, query.fps)
    return page.figure


def shown_layers(count: int, most: int = LAYERS) -> list[int]:
    """All layers or, where they are more than `most`, evenly many of them with the first and the last."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int)).tolist()


def heated(picture: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """A picture `[H, W, 3]` in grey under the colours of a map `[h, w]` in [0, 1] that covers it all."""
    height, width = picture.shape[:2]
    smooth = np.asarray(Image.fromarray(weights.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR)).clip(0, 1)
    grey = (picture.astype(np.float32) / 255) @ np.array([0.299, 0.587, 0.114], np.float32)
    return np.asarray(0.45 * grey[..., None] + 0.55 * HEAT(smooth)[..., :3])


class _Page:
    """A figure laid out in inches from the top: the sentence, rows of frames, and `below` inches beneath them."""

    def __init__(self, query: Query, subtitle: str, shape: Sequence[int], rows: int, below: float) -> None:
        lines = textwrap.wrap(f"“{query.text}”", 105, max_lines=3, placeholder=" …”")
        self.side = (WIDTH - LABELS - (FRAMES - 1) * GAP) / FRAMES
        self.tall = self.side * shape[0] / shape[1]
        self.top = LINE * (len(lines) + 1) + 0.05
        self.height = self.top + rows * (self.tall + GAP) + below
        self.bottom = self.top + rows * (self.tall + GAP)
        self.figure = Figure(figsize=(WIDTH, self.height))
        self.text(LABELS, LINE * len(lines) + 0.01, "\n".join(lines), size=8, style="italic")
        self.text(LABELS, self.top - 0.045, subtitle, size=6.5, color=SOFT)

    def text(self, x: float, y: float, text: str, **style: Any) -> None:
        """Text whose last line ends `y` inches below the top."""
        whole: dict[str, Any] = {"ha": "left", "va": "bottom", "color": INK, "size": 7, "parse_math": False, "linespacing": 1.15} | style
        self.figure.text(x / WIDTH, 1 - y / self.height, text, **whole)

    def axes(self, x: float, y: float, width: float, height: float) -> Axes:
        """Axes without any decoration, their top left corner at (x, y) inches."""
        axes = self.figure.add_axes((x / WIDTH, 1 - (y + height) / self.height, width / WIDTH, height / self.height))
        axes.set_axis_off()
        return axes

    def frame(self, row: int, place: int, picture: np.ndarray) -> Axes:
        """One picture of a row; its axes have the corners (0, 0) and (1, 1), from the top left."""
        axes = self.axes(LABELS + place * (self.side + GAP), self.top + row * (self.tall + GAP), self.side, self.tall)
        axes.imshow(picture, extent=(0, 1, 1, 0), aspect="auto", interpolation="antialiased")
        return axes

    def label(self, y: float, text: str) -> None:
        """A short text left of the frames, its middle `y` inches below the top."""
        self.text(LABELS - 0.07, y, text if len(text) <= 9 else f"{text[:8]}…", ha="right", va="center")

    def bars(self, spans: Sequence[tuple[str, Span | None, str]], window: Span, fps: float) -> None:
        """A bar for each span under the frames, and the time in seconds of the window's ends."""
        length = window[1] - window[0]
        for row, (name, span, colour) in enumerate(spans):
            top = self.bottom + 0.035 + row * (BAR + 0.05)
            axes = self.axes(LABELS, top, WIDTH - LABELS, BAR)
            axes.set(xlim=(0, 1), ylim=(0, 1))
            axes.add_patch(Rectangle((0, 0), 1, 1, facecolor=TRACK, linewidth=0))
            if span and span[0] < span[1]:
                begin, end = ((edge - window[0]) / length for edge in span)
                axes.add_patch(Rectangle((begin, 0), end - begin, 1, facecolor=colour, edgecolor=INK, linewidth=0.4))
            self.label(top + BAR / 2, name)
        self.times(window, fps)

    def times(self, window: Span, fps: float) -> None:
        """When the window begins and ends, in seconds."""
        for x, edge, side in ((LABELS, window[0], "left"), (WIDTH, window[1], "right")):
            self.text(x, self.height - 0.01, f"{edge / fps:.1f} s", ha=side, size=6, color=SOFT)

    def scale(self) -> None:
        """The colours of the maps, under them."""
        top = self.bottom + 0.04
        left, width = LABELS + 3 * (self.side + GAP), 2 * self.side + GAP
        self.axes(left, top, width, 0.07).imshow(HEAT(np.linspace(0, 1, 256))[None, :, :3], aspect="auto")
        self.text(left - 0.05, top + 0.085, "0", ha="right", size=6, color=SOFT)
        self.text(left + width + 0.05, top + 0.085, "maximum over all frames", size=6, color=SOFT)


def _measured(told: Told) -> str:
    return "vIoU unknown" if told.vIoU is None else f"vIoU {told.vIoU:.2f}"


def _outline(axes: Axes, box: np.ndarray | None, size: tuple[int, int], colour: str) -> None:
    """A coloured frame, `box` is xyxy in pixels of the video: the truth's wide with a dark edge, thinner ones drawn over it."""
    if box is None:
        return
    x1, y1, x2, y2 = (box / [*size, *size]).clip(0, 1)
    width = 1.6 if colour == TRUE else 0.7
    edge = [withStroke(linewidth=width + 0.4, foreground="black")]
    style: dict[str, Any] = {"linewidth": width, "linestyle": "--" if colour == OTHER else "-", "path_effects": edge}
    axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, **style))


def save_figure(figure: Figure, path: Path) -> None:
    """`path`.png and `path`.pdf, each whole or not at all, and the same bytes for the same figure."""
    for kind, about in (("png", {"Software": None}), ("pdf", {"CreationDate": None})):
        with rc_context(STYLE), catch_warnings(), atomic_write(path.with_name(f"{path.name}.{kind}")) as aside:
            filterwarnings("ignore", "Glyph .* missing from")  # a script that the font lacks is drawn as boxes
            figure.savefig(aside, format=kind, dpi=DPI, facecolor="white", metadata=about)
