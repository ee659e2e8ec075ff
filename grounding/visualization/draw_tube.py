"""A video with a tube drawn on it: the box in yellow while the event lasts; beneath the picture the sentence and a time bar."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from grounding.visualization.video_writer import write_mp4
from pipeline.records import Span

Box = tuple[float, float, float, float]
ProgressCallback = Callable[[int, int], None]
YELLOW, BLACK, WHITE, GRAY, BACKGROUND_COLOR = (
    (255, 221, 0),
    (0, 0, 0),
    (255, 255, 255),
    (96, 96, 96),
    (24, 24, 24),
)
MIN_LEGIBLE_SIDE = 480
"""Videos whose longer side is shorter are enlarged by a whole number, or no sentence could be read beneath them."""
MAX_LINES = 4


@dataclass(frozen=True)
class LabeledTube:
    """What is drawn: the sentence, its span `[begin, end)` in frames, and a box (xyxy pixels) for each frame of it."""

    text: str
    span: Span
    boxes: Mapping[int, Box]


@dataclass(frozen=True)
class Canvas:
    """Where things lie, in pixels of the drawn video: the picture `scale` times enlarged at the top left, the strip beneath it."""

    size: tuple[int, int]
    image_size: tuple[int, int]
    scale: int
    line_width: int
    font: Any
    text_lines: tuple[str, ...]

    @classmethod
    def from_video_size(cls, size: tuple[int, int], text: str) -> Canvas:
        """The canvas for videos of `size` (width, height); its sides are even, as yuv420p asks."""
        scale = math.ceil(MIN_LEGIBLE_SIDE / max(size))
        width, height = size[0] * scale, size[1] * scale
        points = max(14, round(width / 40))
        font = ImageFont.load_default(points)
        lines = wrap_text(text, font, width - points)
        strip = round(points * (1.3 * len(lines) + 1.9))
        even = (width + width % 2, height + strip + (height + strip) % 2)
        return cls(
            even, (width, height), scale, max(3, round(min(width, height) / 120)), font, lines
        )

    @property
    def time_bar(self) -> tuple[int, int, int, int]:
        """The time bar, xyxy: from the video's first to its last moment."""
        margin = self.font.size // 2
        bottom = self.size[1] - margin
        return (
            margin,
            bottom - max(6, round(self.font.size / 2.5)),
            self.image_size[0] - margin,
            bottom,
        )

    def get_time_bar_x(self, fraction: float) -> int:
        """Where a share of the video's duration lies on the bar."""
        left, _, right, _ = self.time_bar
        return round(left + fraction * (right - left))


def draw_tube(
    out: Path,
    frames: Iterable[np.ndarray],
    frame_edges: np.ndarray,
    size: tuple[int, int],
    tube: LabeledTube,
    progress: ProgressCallback = lambda done, total: None,
) -> None:
    """Write `out`, an mp4 (h264, yuv420p, index at the front), atomically.

    `frames` are all of the video's, RGB uint8 `[h, w, 3]` of `size` (width, height), in order; frame n is shown from
    `frame_edges[n]` to `frame_edges[n + 1]` seconds, `[n + 1]`.
    """
    canvas = Canvas.from_video_size(size, tube.text)
    strip = draw_background(canvas, tube.span, frame_edges)
    total = len(frame_edges) - 1

    def pictures() -> Iterator[np.ndarray]:
        progress(0, total)
        for number, picture in enumerate(frames):
            yield render_frame(canvas, strip, picture, number, tube, frame_edges)
            progress(number + 1, total)

    write_mp4(out, pictures(), frame_edges, canvas.size, {"crf": "20"})


def render_frame(
    canvas: Canvas,
    background: Image.Image,
    image: np.ndarray,
    frame_index: int,
    tube: LabeledTube,
    frame_edges: np.ndarray,
) -> np.ndarray:
    """One frame as it will be shown, RGB uint8 `[H, W, 3]`: the picture, its box if it has one, the strip with the moment marked."""
    whole = background.copy()
    shown = Image.fromarray(image)
    whole.paste(
        shown.resize(canvas.image_size, Image.Resampling.BILINEAR) if canvas.scale > 1 else shown,
        (0, 0),
    )
    pencil = ImageDraw.Draw(whole)
    if tube.span[0] <= frame_index < tube.span[1] and frame_index in tube.boxes:
        draw_box(pencil, canvas, tube.boxes[frame_index])
    left, top, _, bottom = canvas.time_bar
    x = canvas.get_time_bar_x(
        (frame_edges[frame_index] - frame_edges[0]) / max(frame_edges[-1] - frame_edges[0], 1e-9)
    )
    pencil.rectangle(
        (
            max(left, x - canvas.line_width // 2),
            top - canvas.line_width,
            x + (canvas.line_width + 1) // 2,
            bottom - 1 + canvas.line_width,
        ),
        fill=WHITE,
    )
    return np.asarray(whole)


def draw_box(draw: ImageDraw.ImageDraw, canvas: Canvas, box: Box) -> None:
    """A yellow outline just inside the box's edges, with a thin black one on either side, so that it shows on any ground."""
    width, height = canvas.image_size
    x1, x2 = (round(min(max(x * canvas.scale, 0), width)) for x in box[::2])
    y1, y2 = (round(min(max(y * canvas.scale, 0), height)) for y in box[1::2])
    x2, y2 = max(x2 - 1, x1), max(y2 - 1, y1)
    draw.rectangle(
        (max(x1 - 1, 0), max(y1 - 1, 0), min(x2 + 1, width - 1), min(y2 + 1, height - 1)),
        outline=BLACK,
    )
    if min(x2 - x1, y2 - y1) > 2 * canvas.line_width + 2:
        inner = canvas.line_width
        draw.rectangle((x1 + inner, y1 + inner, x2 - inner, y2 - inner), outline=BLACK)
    draw.rectangle((x1, y1, x2, y2), outline=YELLOW, width=canvas.line_width)


def draw_background(canvas: Canvas, span: Span, frame_edges: np.ndarray) -> Image.Image:
    """What is the same in every frame: the strip with the sentence and the time bar, the span in yellow on it."""
    whole = Image.new("RGB", canvas.size, BACKGROUND_COLOR)
    pencil = ImageDraw.Draw(whole)
    points = canvas.font.size
    for row, line in enumerate(canvas.text_lines):
        pencil.text(
            (points // 2, canvas.image_size[1] + points * (0.35 + 1.3 * row)),
            line,
            font=canvas.font,
            fill=WHITE,
        )
    left, top, right, bottom = canvas.time_bar
    pencil.rectangle((left, top, right, bottom - 1), fill=GRAY)
    length = max(frame_edges[-1] - frame_edges[0], 1e-9)
    begin, end = (
        canvas.get_time_bar_x((frame_edges[edge] - frame_edges[0]) / length) for edge in span
    )
    pencil.rectangle((begin, top, max(end, begin + 1), bottom - 1), fill=YELLOW)
    return whole


def wrap_text(text: str, font: Any, width: int) -> tuple[str, ...]:
    """The text in lines of at most `width` pixels, at most `MAX_LINES`; what does not fit ends in an ellipsis."""
    lines: list[str] = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:  # a word longer than a line is broken anywhere
            if lines[-1] and font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    if len(lines) > MAX_LINES:
        last = lines[MAX_LINES - 1]
        while last and font.getlength(last + "…") > width:
            last = last[:-1]
        lines = [*lines[: MAX_LINES - 1], last + "…"]
    return tuple(lines)
