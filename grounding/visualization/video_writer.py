"""Writing videos that play everywhere: mp4, h264, yuv420p, the index at the front; sound is left out.

Pictures come one by one and go to the encoder at once, so memory does not grow with the video. Each is shown exactly as long as
its edges say, at a variable rate too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.io.atomic import atomic_write

TIME_BASE = Fraction(1, 90_000)


def write_mp4(
    out: Path,
    images: Iterable[np.ndarray],
    frame_edges: np.ndarray,
    size: tuple[int, int],
    encoder_options: Mapping[str, str],
) -> None:
    """Write `out` atomically.

    `pictures` are RGB uint8 `[h, w, 3]`, one for each interval of `edges` `[n + 1]` (seconds); they are scaled to `size` (width,
    height; both even, as yuv420p asks). `options` are the encoder's.
    """
    import av

    ticks = compute_ticks(frame_edges)
    rate = Fraction(
        float((len(ticks) - 1) / max(frame_edges[-1] - frame_edges[0], 1e-3))
    ).limit_denominator(1001)
    with (
        atomic_write(out) as aside,
        av.open(str(aside), "w", format="mp4", options={"movflags": "+faststart"}) as container,
    ):
        # without B-frames packets leave in the order of showing, and every one can carry its own duration
        stream = container.add_stream(
            "libx264", rate=rate, options={"preset": "veryfast", "bf": "0", **encoder_options}
        )
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.time_base = stream.codec_context.time_base = TIME_BASE

        def write(packets: Iterable[Any]) -> None:
            for packet in packets:
                number = int(np.searchsorted(ticks, packet.pts))
                packet.duration = int(ticks[number + 1] - ticks[number])
                container.mux(packet)

        for number, picture in enumerate(images):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if (frame.width, frame.height) != size:
                frame = frame.reformat(width=size[0], height=size[1], interpolation="AREA")
            frame.pts, frame.time_base = int(ticks[number]), TIME_BASE
            write(stream.encode(frame))
        write(stream.encode(None))


def compute_ticks(frame_edges: np.ndarray) -> np.ndarray:
    """Edges in seconds as whole ticks from 0 on, each later than the one before: the encoder takes no two frames at one time."""
    ticks = np.round((frame_edges - frame_edges[0]) / float(TIME_BASE)).astype(np.int64)
    steps = np.arange(len(ticks))
    return np.maximum.accumulate(ticks - steps) + steps


def round_to_even(length: float) -> int:
    """The even number nearest to a length in pixels, at least 2."""
    return max(2, 2 * round(length / 2))
