"""Writer of videos that play everywhere: mp4, h264, yuv420p, index at the front, no sound.

Images go to the encoder one by one, so memory does not grow with the video. Each image is shown
exactly as long as its edges say, with a variable frame rate too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.io.atomic import atomic_write

TIME_BASE = Fraction(1, 90_000)
"""Seconds of one tick of the written video's clock."""
MIN_DURATION = 1e-3
"""Seconds; keeps the nominal frame rate finite."""


def write_mp4(
    out: Path,
    images: Iterable[np.ndarray],
    frame_edges: np.ndarray,
    size: tuple[int, int],
    encoder_options: Mapping[str, str],
) -> None:
    """Write a video, atomically.

    Args:
        out: The file to write.
        images: n images, RGB uint8 `[h, w, 3]`; resized to `size`.
        frame_edges: `[n + 1]` seconds; image i is shown from `frame_edges[i]` to
            `frame_edges[i + 1]`.
        size: `(width, height)` of the video; both even, as yuv420p requires.
        encoder_options: Options of libx264.
    """
    import av

    # Presentation times, and the nominal rate that players display.
    ticks = compute_ticks(frame_edges)
    duration = max(frame_edges[-1] - frame_edges[0], MIN_DURATION)
    num_frames = len(ticks) - 1
    rate = Fraction(float(num_frames / duration)).limit_denominator(1001)

    # Without B-frames packets leave in display order, and each can carry its own duration.
    options = {"preset": "veryfast", "bf": "0", **encoder_options}

    with (
        atomic_write(out) as temporary_path,
        av.open(
            str(temporary_path), "w", format="mp4", options={"movflags": "+faststart"}
        ) as container,
    ):
        stream = container.add_stream("libx264", rate=rate, options=options)
        stream.width = size[0]
        stream.height = size[1]
        stream.pix_fmt = "yuv420p"
        stream.time_base = TIME_BASE
        stream.codec_context.time_base = TIME_BASE

        def write_packets(packets: Iterable[Any]) -> None:
            """Write encoded packets, each with the duration of its frame."""
            for packet in packets:
                index = int(np.searchsorted(ticks, packet.pts))
                packet.duration = int(ticks[index + 1] - ticks[index])
                container.mux(packet)

        for index, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            if (frame.width, frame.height) != size:
                frame = frame.reformat(width=size[0], height=size[1], interpolation="AREA")

            frame.pts = int(ticks[index])
            frame.time_base = TIME_BASE
            write_packets(stream.encode(frame))

        # Flush the encoder.
        write_packets(stream.encode(None))


def compute_ticks(frame_edges: np.ndarray) -> np.ndarray:
    """Convert edges into strictly increasing ticks: the encoder rejects two frames at one time.

    Args:
        frame_edges: `[n + 1]` seconds, ascending.

    Returns:
        `[n + 1]` int64 multiples of `TIME_BASE`, from 0.
    """
    seconds = frame_edges - frame_edges[0]
    ticks = np.round(seconds / float(TIME_BASE)).astype(np.int64)

    # Raise each tick to at least its predecessor's plus one.
    offsets = np.arange(len(ticks))

    return np.maximum.accumulate(ticks - offsets) + offsets


def round_to_even(length: float) -> int:
    """Round a length to an even number.

    Args:
        length: Pixels.

    Returns:
        The nearest even number; at least 2.
    """
    return max(2, 2 * round(length / 2))
