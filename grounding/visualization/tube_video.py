"""Video with a predicted tube drawn on it.

A yellow box marks the object during the predicted span. A footer under the image shows the sentence
and a time bar.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from grounding.visualization.video_writer import write_mp4
from pipeline.callbacks import ProgressCallback
from pipeline.records import Span

Box = tuple[float, float, float, float]
"""Corners `(x1, y1, x2, y2)` in pixels of the source video."""

YELLOW = (255, 221, 0)
BLACK = (0, 0, 0)
WHITE = (255, 255, 255)
GRAY = (96, 96, 96)
BACKGROUND_COLOR = (24, 24, 24)

MIN_LEGIBLE_SIDE = 480
"""Longer side, in pixels, below which a video is enlarged by an integer factor.

The sentence under a smaller image would be illegible.
"""
MAX_LINES = 4
"""Maximum number of lines of the sentence."""
MIN_FONT_SIZE = 14
LINE_SPACING = 1.3
"""Height of a line of text, relative to the font size."""
MIN_DURATION = 1e-9
"""Seconds; keeps divisions finite for a video whose frames share one time."""


@dataclass(frozen=True)
class LabeledTube:
    """A tube to draw, with its sentence.

    Attributes:
        text: The sentence.
        span: Frames `[begin, end)`.
        boxes: Box of each frame of the span, by frame index.
    """

    text: str
    span: Span
    boxes: Mapping[int, Box]


@dataclass(frozen=True)
class Canvas:
    """Layout of the drawn video, in pixels: the image at the top left, the footer under it.

    Attributes:
        size: `(width, height)` of the drawn video; both even.
        image_size: `(width, height)` of the enlarged image.
        scale: Integer factor by which the image is enlarged.
        line_width: Width of the box's outline.
        font: Font of the sentence.
        text_lines: The sentence, wrapped.
    """

    size: tuple[int, int]
    image_size: tuple[int, int]
    scale: int
    line_width: int
    font: Any
    text_lines: tuple[str, ...]

    @classmethod
    def from_video_size(cls, size: tuple[int, int], text: str) -> Canvas:
        """Lay out the canvas of a video.

        Args:
            size: `(width, height)` of the source video in pixels.
            text: The sentence.

        Returns:
            A canvas with even sides, as yuv420p requires.
        """
        # The enlarged image.
        scale = math.ceil(MIN_LEGIBLE_SIDE / max(size))
        width = size[0] * scale
        height = size[1] * scale

        # The sentence, wrapped with half a font size of margin on either side.
        font_size = max(MIN_FONT_SIZE, round(width / 40))
        font = ImageFont.load_default(font_size)
        text_lines = wrap_text(text, font, width - font_size)

        # The footer: lines of text and the time bar.
        footer_height = round(font_size * (LINE_SPACING * len(text_lines) + 1.9))
        total_height = height + footer_height
        even_size = (width + width % 2, total_height + total_height % 2)

        return cls(
            size=even_size,
            image_size=(width, height),
            scale=scale,
            line_width=max(3, round(min(width, height) / 120)),
            font=font,
            text_lines=text_lines,
        )

    @property
    def time_bar(self) -> tuple[int, int, int, int]:
        """Corners `(x1, y1, x2, y2)` of the time bar, which covers the video's duration."""
        margin = self.font.size // 2
        bar_height = max(6, round(self.font.size / 2.5))
        bottom = self.size[1] - margin

        return margin, bottom - bar_height, self.image_size[0] - margin, bottom

    def get_time_bar_x(self, fraction: float) -> int:
        """Return the x coordinate of a time on the bar.

        Args:
            fraction: Time relative to the video's duration, in [0, 1].

        Returns:
            Pixels from the canvas's left edge.
        """
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
    """Write a video with the tube drawn on it, atomically: mp4, h264, yuv420p, index at the front.

    Args:
        out: The file to write.
        frames: All n frames of the source video in order, RGB uint8 `[h, w, 3]`.
        frame_edges: `[n + 1]` seconds; frame i is shown from `frame_edges[i]` to
            `frame_edges[i + 1]`.
        size: `(width, height)` of the frames.
        tube: The tube to draw.
        progress: Called with the number of frames written and in all.
    """
    canvas = Canvas.from_video_size(size, tube.text)
    background = draw_background(canvas, tube.span, frame_edges)
    total = len(frame_edges) - 1

    def iterate_images() -> Iterator[np.ndarray]:
        """Yield the drawn frames and report each one."""
        progress(0, total)

        for frame_index, image in enumerate(frames):
            yield render_frame(canvas, background, image, frame_index, tube, frame_edges)
            progress(frame_index + 1, total)

    write_mp4(out, iterate_images(), frame_edges, canvas.size, {"crf": "20"})


def render_frame(
    canvas: Canvas,
    background: Image.Image,
    image: np.ndarray,
    frame_index: int,
    tube: LabeledTube,
    frame_edges: np.ndarray,
) -> np.ndarray:
    """Draw one frame: the image, its box if the tube has one, and the time cursor.

    Args:
        canvas: Layout of the drawn video.
        background: The parts that all frames share, from `draw_background`.
        image: The source frame, RGB uint8 `[h, w, 3]`.
        frame_index: Index of the frame in the video.
        tube: The tube to draw.
        frame_edges: `[n + 1]` seconds, as in `draw_tube`.

    Returns:
        The drawn frame, RGB uint8 `[H, W, 3]` of the canvas's size.
    """
    drawn_frame = background.copy()

    # The image.
    source = Image.fromarray(image)
    if canvas.scale > 1:
        source = source.resize(canvas.image_size, Image.Resampling.BILINEAR)
    drawn_frame.paste(source, (0, 0))

    # The box, inside the span only.
    draw = ImageDraw.Draw(drawn_frame)
    begin, end = tube.span
    if begin <= frame_index < end and frame_index in tube.boxes:
        draw_box(draw, canvas, tube.boxes[frame_index])

    # The time cursor, a little taller than the bar.
    left, top, _, bottom = canvas.time_bar
    x = canvas.get_time_bar_x(_get_time_fraction(frame_edges, frame_index))
    cursor = (
        max(left, x - canvas.line_width // 2),
        top - canvas.line_width,
        x + (canvas.line_width + 1) // 2,
        bottom - 1 + canvas.line_width,
    )
    draw.rectangle(cursor, fill=WHITE)

    return np.asarray(drawn_frame)


def draw_box(draw: ImageDraw.ImageDraw, canvas: Canvas, box: Box) -> None:
    """Draw a yellow outline just inside the box's edges.

    A thin black outline on either side keeps the yellow visible on any background.

    Args:
        draw: Drawing context of the canvas's image.
        canvas: Layout of the drawn video.
        box: Corners in pixels of the source video; clipped to the image.
    """
    # The box in pixels of the canvas. Its last row and column belong to the box.
    width, height = canvas.image_size
    x1 = _scale_and_clip(box[0], canvas.scale, width)
    y1 = _scale_and_clip(box[1], canvas.scale, height)
    x2 = _scale_and_clip(box[2], canvas.scale, width)
    y2 = _scale_and_clip(box[3], canvas.scale, height)
    x2 = max(x2 - 1, x1)
    y2 = max(y2 - 1, y1)

    # Black outside.
    outside = (max(x1 - 1, 0), max(y1 - 1, 0), min(x2 + 1, width - 1), min(y2 + 1, height - 1))
    draw.rectangle(outside, outline=BLACK)

    # Black inside, if the box is large enough.
    inset = canvas.line_width
    if min(x2 - x1, y2 - y1) > 2 * inset + 2:
        draw.rectangle((x1 + inset, y1 + inset, x2 - inset, y2 - inset), outline=BLACK)

    draw.rectangle((x1, y1, x2, y2), outline=YELLOW, width=canvas.line_width)


def _scale_and_clip(coordinate: float, scale: int, limit: int) -> int:
    """Return a coordinate of the source video in whole pixels of the canvas, in [0, limit]."""
    return round(min(max(coordinate * scale, 0), limit))


def draw_background(canvas: Canvas, span: Span, frame_edges: np.ndarray) -> Image.Image:
    """Draw the parts that all frames share: the sentence, and the time bar with the span in yellow.

    Args:
        canvas: Layout of the drawn video.
        span: Frames `[begin, end)` of the tube.
        frame_edges: `[n + 1]` seconds, as in `draw_tube`.

    Returns:
        An image of the canvas's size.
    """
    background = Image.new("RGB", canvas.size, BACKGROUND_COLOR)
    draw = ImageDraw.Draw(background)

    # The sentence.
    font_size = canvas.font.size
    image_height = canvas.image_size[1]
    for row, line in enumerate(canvas.text_lines):
        y = image_height + font_size * (0.35 + LINE_SPACING * row)
        draw.text((font_size // 2, y), line, font=canvas.font, fill=WHITE)

    # The whole duration in gray.
    left, top, right, bottom = canvas.time_bar
    draw.rectangle((left, top, right, bottom - 1), fill=GRAY)

    # The span in yellow, at least one pixel wide.
    begin = canvas.get_time_bar_x(_get_time_fraction(frame_edges, span[0]))
    end = canvas.get_time_bar_x(_get_time_fraction(frame_edges, span[1]))
    draw.rectangle((begin, top, max(end, begin + 1), bottom - 1), fill=YELLOW)

    return background


def _get_time_fraction(frame_edges: np.ndarray, edge_index: int) -> float:
    """Return the time of an edge `[n + 1]` relative to the video's duration, in [0, 1]."""
    duration = max(frame_edges[-1] - frame_edges[0], MIN_DURATION)

    return (frame_edges[edge_index] - frame_edges[0]) / duration


def wrap_text(text: str, font: Any, width: int) -> tuple[str, ...]:
    """Wrap text into at most `MAX_LINES` lines.

    Args:
        text: The text.
        font: PIL font that measures the lines.
        width: Maximum width of a line in pixels.

    Returns:
        The lines; at least one. The last one ends in an ellipsis if the text is too long.
    """
    lines: list[str] = [""]
    for word in text.split():
        extended_line = f"{lines[-1]} {word}".strip()
        if font.getlength(extended_line) <= width:
            lines[-1] = extended_line
            continue

        if lines[-1]:
            lines.append("")

        # A word longer than a line is broken at any letter.
        for letter in word:
            if lines[-1] and font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter

    if len(lines) <= MAX_LINES:
        return tuple(lines)

    # Shorten the last line that fits until the ellipsis fits too.
    last_line = lines[MAX_LINES - 1]
    while last_line and font.getlength(last_line + "…") > width:
        last_line = last_line[:-1]

    return (*lines[: MAX_LINES - 1], last_line + "…")
