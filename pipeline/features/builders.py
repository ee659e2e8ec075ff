"""One maker per visual product: it takes a video's frames in order and gives the product's rows as they are ready.

A maker holds what its next batch or clip needs and no more, whatever the length of the video.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.encoders.image_geometry import pad_to_square, resize
from pipeline.errors import VideoError
from pipeline.features.images import encode_jpeg
from pipeline.sampling import clip_frames, nearest_frames

PAGE = 4096
"""Bytes per row of the `frames` product: every JPEG begins on a new row, so all videos share one array shape."""
Rows = list[np.ndarray]


class Maker(ABC):
    """`wanted` `[n]` are the frames it needs, ascending; `take` gets those (others it passes over) and returns finished rows."""

    def __init__(self, wanted: np.ndarray) -> None:
        self.wanted = wanted
        self._place = 0

    def take(self, number: int, picture: Tensor) -> Rows:
        """One frame, RGB uint8 `[3, h, w]` → the blocks of rows `[k, …]` that became ready."""
        if self._place == len(self.wanted) or self.wanted[self._place] != number:
            return []
        self._place += 1
        return self._add(number, picture)

    @abstractmethod
    def _add(self, number: int, picture: Tensor) -> Rows: ...

    @abstractmethod
    def finish(self) -> Rows:
        """The rows that were still waiting."""

    @abstractmethod
    def columns(self, begin: int = 0, end: int | None = None) -> dict[str, np.ndarray]:
        """What is known about the rows `[begin, end)` that were made; `frame` is the frame a row shows. All of them after `finish`."""


@contextmanager
def on_device(device: torch.device) -> Iterator[None]:
    """Networks compute in float16 on a GPU, as they are on a CPU; memory that does not suffice is a VideoError."""
    try:
        with torch.autocast(device.type, torch.float16, enabled=device.type == "cuda"):
            yield
    except torch.OutOfMemoryError:
        detail = f"it does not fit into the memory of {device}: set a smaller batch, or `short`, or fewer --workers"
        raise VideoError("encode", "out-of-memory", detail) from None


class _Batches:
    """Runs an encoder on inputs as they come, `size` at a time, and gives its maps in float16."""

    def __init__(self, encoder: nn.Module, size: int) -> None:
        self.encoder, self.size = encoder, size
        self._waiting: list[Tensor] = []

    def add(self, item: Tensor) -> Rows:
        self._waiting.append(item)
        return self.flush() if len(self._waiting) == self.size else []

    def flush(self) -> Rows:
        """The maps of all that waited; a VideoError where they leave float16's range, which would poison training."""
        if not self._waiting:
            return []
        device = next(self.encoder.parameters()).device
        inputs = torch.stack(self._waiting)
        self._waiting.clear()
        with on_device(device):
            maps: np.ndarray = self.encoder(inputs.to(device, non_blocking=True)).half().cpu().numpy()
        if not np.isfinite(maps).all():
            raise VideoError(
                "encode", "not-finite", "its features are not finite in float16: the weights are damaged or do not belong here"
            )
        return [maps]


class AppearanceMaker(Maker):
    """One map per frame of the grid. `size` is the resized picture's `(height, width)`."""

    def __init__(self, encoder: nn.Module, size: tuple[int, int], grid: np.ndarray, batch: int) -> None:
        super().__init__(grid)
        self.size = size
        self._batches = _Batches(encoder, batch)

    def _add(self, number: int, picture: Tensor) -> Rows:
        return self._batches.add(resize(picture[None], self.size)[0])

    def finish(self) -> Rows:
        return self._batches.flush()

    def columns(self, begin: int = 0, end: int | None = None) -> dict[str, np.ndarray]:
        return {"frame": self.wanted[begin:end]}


class SwinMaker(Maker):
    """One map per frame of the grid, made in windows of the encoder's length; the last one may be shorter."""

    def __init__(self, encoder: nn.Module, size: tuple[int, int], grid: np.ndarray) -> None:
        super().__init__(grid)
        self.size = size
        self._window: list[Tensor] = []
        self._batches = _Batches(encoder, 1)
        self._length: int = encoder.frames  # type: ignore[assignment]

    def _add(self, number: int, picture: Tensor) -> Rows:
        self._window.append(resize(picture[None], self.size)[0])
        return self.finish() if len(self._window) == self._length else []

    def finish(self) -> Rows:
        if not self._window:
            return []
        window, self._window = torch.stack(self._window, 1), []
        return [maps[0] for maps in self._batches.add(window)]

    def columns(self, begin: int = 0, end: int | None = None) -> dict[str, np.ndarray]:
        return {"frame": self.wanted[begin:end]}


class JpegMaker(Maker):
    """Each frame of the grid as a JPEG, in rows of PAGE bytes; `bytes` says how many of a row's are used."""

    def __init__(self, size: tuple[int, int], grid: np.ndarray, quality: int) -> None:
        super().__init__(grid)
        self.size, self.quality = size, quality
        self._numbers: list[int] = []
        self._used: list[int] = []

    def _add(self, number: int, picture: Tensor) -> Rows:
        pixels = resize(picture[None], self.size)[0]
        data = np.frombuffer(encode_jpeg(pixels, self.quality), np.uint8)
        pages = np.zeros((-(-len(data) // PAGE), PAGE), np.uint8)
        pages.reshape(-1)[: len(data)] = data
        self._numbers += [number] * len(pages)
        self._used += [PAGE] * (len(pages) - 1) + [len(data) - PAGE * (len(pages) - 1)]
        return [pages]

    def finish(self) -> Rows:
        return []

    def columns(self, begin: int = 0, end: int | None = None) -> dict[str, np.ndarray]:
        return {"frame": np.array(self._numbers[begin:end], np.int64), "bytes": np.array(self._used[begin:end], np.int64)}


class MotionMaker(Maker):
    """One map per clip. Keeps only the frames that clips still to come need.

    `seconds` `[frame_count]` are the frames' times, `centres` `[clips]` the clips' middles, `span` their length, all in
    seconds. `pool` keeps the means of 2×2 cells.
    """

    def __init__(self, encoder: nn.Module, seconds: np.ndarray, centres: np.ndarray, span: float, pool: bool, batch: int) -> None:
        self._clips = np.stack([clip_frames(seconds, centre, span, encoder.frames) for centre in centres])  # type: ignore[arg-type]
        super().__init__(np.unique(self._clips))
        self.pool = pool
        self._middles = nearest_frames(seconds, centres)
        self._side: int = encoder.side  # type: ignore[assignment]
        self._pictures: dict[int, Tensor] = {}
        self._next = 0
        self._batches = _Batches(encoder, batch)

    def _add(self, number: int, picture: Tensor) -> Rows:
        self._pictures[number] = resize(pad_to_square(picture[None]), (self._side, self._side))[0]
        ready: Rows = []
        while self._next < len(self._clips) and self._clips[self._next][-1] <= number:
            clip = torch.stack([self._pictures[frame] for frame in self._clips[self._next].tolist()], 1)
            ready += self._pooled(self._batches.add(clip))
            self._next += 1
        first = self._clips[self._next][0] if self._next < len(self._clips) else number + 1
        while self._pictures and next(iter(self._pictures)) < first:
            del self._pictures[next(iter(self._pictures))]
        return ready

    def finish(self) -> Rows:
        return self._pooled(self._batches.flush())

    def columns(self, begin: int = 0, end: int | None = None) -> dict[str, np.ndarray]:
        return {"frame": self._middles[begin:end]}

    def _pooled(self, blocks: Rows) -> Rows:
        return [pooled(maps) for maps in blocks] if self.pool else blocks


def pooled(maps: np.ndarray) -> np.ndarray:
    """Means of 2×2 cells, `[n, h, w, C]` → `[n, h/2, w/2, C]`; an odd last row or column stands alone."""
    cells = torch.from_numpy(maps).float().permute(0, 3, 1, 2)
    return nn.functional.avg_pool2d(cells, 2, ceil_mode=True).permute(0, 2, 3, 1).half().numpy()


def encode_texts(texts: list[str], encoder: nn.Module, batch: int = 64) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Token states `[L, C]` float16 and token ids `[L]` of each sentence, in order."""
    device = next(encoder.parameters()).device
    for start in range(0, len(texts), batch):
        tokens, mask = encoder.tokenise(texts[start : start + batch])  # type: ignore[operator]
        with torch.inference_mode(), on_device(device):
            states = encoder(tokens.to(device), mask.to(device)).half().cpu()
        for row, ids, kept in zip(states, tokens, mask, strict=True):
            yield row[kept].numpy(), ids[kept].numpy()
