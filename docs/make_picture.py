"""Draw the README's picture from the demo's own result.

Run `python docs/make_picture.py` after `make demo`.

The picture is an animated WebP of one test video: the ground truth in white, the prediction in
yellow, the sentence and both spans beneath. Every number in it comes from `runs/shapes` and
`data/shapes-index`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from grounding.structures.tubes import ground_truth_box, predicted_box
from pipeline.io.jsonl import read_jsonl
from pipeline.records import Prediction, Query
from pipeline.tracks import Tracks
from pipeline.video import open_frames, probe

ROOT = Path(__file__).parents[1]
QUERY = "test-00175-c0"
"""A declarative query of the test split. Another triangle of the same color moves differently."""

SCALE = 4
MARGIN = 12
STRIP_HEIGHT = 84
BACKGROUND = (24, 24, 24)
GRAY = (96, 96, 96)
TRUTH_COLOR = (255, 255, 255)
PREDICTION_COLOR = (255, 200, 0)


def draw_frame(
    frame: np.ndarray, index: int, query: Query, prediction: Prediction, tracks: Tracks
) -> Image.Image:
    """Return one frame with the boxes of both tubes, the sentence and the time bars.

    Args:
        frame: `[H, W, 3]` uint8 RGB.
        index: Frame index in the video.
        query: The query with its ground truth.
        prediction: The model's answer to the query.
        tracks: Boxes of the ground truth.
    """
    height, width = frame.shape[:2]
    picture = Image.fromarray(frame).resize(
        (width * SCALE, height * SCALE), Image.Resampling.NEAREST
    )
    canvas = Image.new("RGB", (picture.width, picture.height + STRIP_HEIGHT), BACKGROUND)
    canvas.paste(picture)
    draw = ImageDraw.Draw(canvas)

    assert query.truth is not None
    for span, box, color in (
        (query.truth.span, ground_truth_box(query, tracks, index), TRUTH_COLOR),
        (prediction.span, predicted_box(prediction, index), PREDICTION_COLOR),
    ):
        if span[0] <= index < span[1] and box is not None:
            outline = tuple(round(float(side) * SCALE) for side in box)
            draw.rectangle(outline, outline=color, width=3)

    _draw_strip(draw, picture, index, query, prediction)
    return canvas


def _draw_strip(
    draw: ImageDraw.ImageDraw,
    picture: Image.Image,
    index: int,
    query: Query,
    prediction: Prediction,
) -> None:
    """Draw the sentence, and one bar per tube with the current time on both."""
    font = ImageFont.load_default(22)
    small = ImageFont.load_default(14)
    draw.text((MARGIN, picture.height + 6), f"“{query.text}”", fill=TRUTH_COLOR, font=font)

    assert query.truth is not None
    label_width = 80
    left = MARGIN + label_width
    bar_width = picture.width - MARGIN - left

    for row, (label, span, color) in enumerate(
        (
            ("truth", query.truth.span, TRUTH_COLOR),
            ("predicted", prediction.span, PREDICTION_COLOR),
        )
    ):
        top = picture.height + 42 + 20 * row
        begin, end = (left + bar_width * edge / query.frame_count for edge in span)
        draw.text((MARGIN, top - 5), label, fill=color, font=small)
        draw.rectangle((left, top, left + bar_width, top + 8), fill=GRAY)
        draw.rectangle((begin, top, end, top + 8), fill=color)

    now = left + bar_width * (index + 0.5) / query.frame_count
    draw.line((now, picture.height + 38, now, picture.height + 76), fill=(255, 80, 80), width=3)


def main() -> None:
    """Write `docs/images/demo.webp`, of the query named on the command line or the default one."""
    query_id = sys.argv[1] if len(sys.argv) > 1 else QUERY
    index_path = ROOT / "data" / "shapes-index" / "index.jsonl"
    predictions_path = ROOT / "runs" / "shapes" / "predictions" / "test.jsonl"

    query = next(query for query in read_jsonl(index_path, Query) if query.id == query_id)
    prediction = next(
        answer for answer in read_jsonl(predictions_path, Prediction) if answer.id == query_id
    )
    tracks = Tracks.load(index_path.with_name("tracks.npz"))

    video = ROOT / "data" / "shapes" / query.path
    metadata = probe(video)
    with open_frames(video, metadata, range(metadata.frame_count)) as frames:
        pictures = [
            draw_frame(np.asarray(frame), index, query, prediction, tracks)
            for index, frame in frames
        ]

    target = ROOT / "docs" / "images" / "demo.webp"
    target.parent.mkdir(exist_ok=True)
    pictures[0].save(
        target,
        save_all=True,
        append_images=pictures[1:],
        duration=round(1000 / query.fps),
        loop=0,
        quality=75,
        method=6,
    )
    print(f"{target}: {target.stat().st_size:,} bytes, {len(pictures)} frames")


if __name__ == "__main__":
    main()
