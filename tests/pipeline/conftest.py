"""Small videos whose pictures carry their own number, painted as a row of black and white blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

BITS, BLOCK = 8, 16
WIDTH, HEIGHT = BITS * BLOCK, 48
VideoMaker = Callable[..., Path]


def painted(number: int) -> np.ndarray:
    """RGB `[48, 128, 3]`: block i of the top 16 rows is white where bit i of the number is set; the rest is grey."""
    picture = np.full((HEIGHT, WIDTH, 3), 96, np.uint8)
    for bit in range(BITS):
        picture[:BLOCK, bit * BLOCK : (bit + 1) * BLOCK] = 255 if number >> bit & 1 else 0
    return picture


def number_in(picture: np.ndarray) -> int:
    """The number painted into a decoded picture."""
    inner = picture[4 : BLOCK - 4].mean((0, 2)).reshape(BITS, BLOCK).mean(1)
    return int(sum(1 << bit for bit in range(BITS) if inner[bit] > 128))


def write_video(path: Path, count: int = 40, *, milliseconds: Sequence[int] | None = None, rotation: int = 0, **options: Any) -> Path:
    """A video of painted pictures: h264 with B-frames, a key frame every 12; 25 fps, or shown at the given `milliseconds`."""
    import av

    codec = options.pop("codec", "libx264")
    settings = options.pop("settings", {"bf": "2", "g": "12", "sc_threshold": "0"} if codec == "libx264" else {})
    with av.open(str(path), "w", options=options.pop("container", {})) as container:
        stream = container.add_stream(codec, rate=25, options=settings)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.thread_count = 1
        if rotation:
            stream.set_display_rotation(rotation)
        base = Fraction(1, 25) if milliseconds is None else Fraction(1, 1000)
        stream.time_base = stream.codec_context.time_base = base
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(painted(number), format="rgb24")
            frame.pts = number if milliseconds is None else milliseconds[number]
            frame.time_base = base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.fixture
def make_video() -> VideoMaker:
    return write_video


@pytest.fixture
def read_number() -> Callable[[np.ndarray], int]:
    return number_in


@pytest.fixture
def cut() -> Callable[[Path, float], Path]:
    """Cut a file to a share of its bytes, in place."""

    def cut_file(path: Path, share: float) -> Path:
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
        return path

    return cut_file


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As in the extraction's workers: the number of threads may change the last bit."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
