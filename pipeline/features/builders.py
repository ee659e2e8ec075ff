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
from pipeline.sampling import find_nearest_frames, sample_clip_frames

JPEG_ROW_BYTES = 4096
"""Bytes per row of the `frames` product: every JPEG begins on a new row, so all videos share one array shape."""
RowBlocks = list[np.ndarray]


class FeatureBuilder(ABC):
    """`wanted` `[n]` are the frames it needs, ascending; `take` gets those (others it passes over) and returns finished rows."""

    def __init__(self, frame_indices: np.ndarray) -> None:
        self.frame_indices = frame_indices
        self._next_position = 0

    def add_frame(self, frame_index: int, image: Tensor) -> RowBlocks:
        """One frame, RGB uint8 `[3, h, w]` → the blocks of rows `[k, …]` that became ready."""
        if (
            self._next_position == len(self.frame_indices)
            or self.frame_indices[self._next_position] != frame_index
        ):
            return []
        self._next_position += 1
        return self._process_frame(frame_index, image)

    @abstractmethod
    def _process_frame(self, frame_index: int, image: Tensor) -> RowBlocks: ...

    @abstractmethod
    def finish(self) -> RowBlocks:
        """The rows that were still waiting."""

    @abstractmethod
    def columns(self, begin: int = 0, end: int | None = None) -> dict[str, np.ndarray]:
        """What is known about the rows `[begin, end)` that were made; `frame` is the frame a row shows. All of them after `finish`."""


@contextmanager
def inference_autocast(device: torch.device) -> Iterator[None]:
    """Networks compute in float16 on a GPU, as they are on a CPU; memory that does not suffice is a VideoError."""
    try:
        with torch.autocast(device.type, torch.float16, enabled=device.type == "cuda"):
            yield
    except torch.OutOfMemoryError:
        detail = f"it does not fit into the memory of {device}: set a smaller batch, or `short`, or fewer --workers"
        raise VideoError("encode", "out-of-memory", detail) from None


class _EncoderBatcher:
    """Runs an encoder on inputs as they come, `size` at a time, and gives its maps in float16."""

    def __init__(self, encoder: nn.Module, batch_size: int) -> None:
        self.encoder, self.batch_size = encoder, batch_size
        self._pending: list[Tensor] = []

    def add(self, item: Tensor) -> RowBlocks:
        self._pending.append(item)
        return self.flush() if len(self._pending) == self.batch_size else []

    def flush(self) -> RowBlocks:
        """The maps of all that waited; a VideoError where they leave float16's range, which would poison training."""
        if not self._pending:
            return []
        device = next(self.encoder.parameters()).device
        inputs = torch.stack(self._pending)
        self._pending.clear()
        with inference_autocast(device):
            maps: np.ndarray = (
                self.encoder(inputs.to(device, non_blocking=True)).half().cpu().numpy()
            )
        if not np.isfinite(maps).all():
            raise VideoError(
                "encode",
                "not-finite",
                "its features are not finite in float16: the weights are damaged or do not belong here",
            )
        return [maps]


class AppearanceBuilder(FeatureBuilder):
    """One map per frame of the grid. `size` is the resized picture's `(height, width)`."""

    def __init__(
        self,
        encoder: nn.Module,
        image_size: tuple[int, int],
        frame_indices: np.ndarray,
        batch_size: int,
    ) -> None:
        super().__init__(frame_indices)
        self.image_size = image_size
        self._batcher = _EncoderBatcher(encoder, batch_size)

    def _process_frame(self, frame_index: int, image: Tensor) -> RowBlocks:
        return self._batcher.add(resize(image[None], self.image_size)[0])

    def finish(self) -> RowBlocks:
        return self._batcher.flush()

    def columns(self, begin: int = 0, end: int | None = None) -> dict[str, np.ndarray]:
        return {"frame": self.frame_indices[begin:end]}


class SwinBuilder(FeatureBuilder):
    """One map per frame of the grid, made in windows of the encoder's length; the last one may be shorter."""

    def __init__(
        self, encoder: nn.Module, image_size: tuple[int, int], frame_indices: np.ndarray
    ) -> None:
        super().__init__(frame_indices)
        self.image_size = image_size
        self._window: list[Tensor] = []
        self._batcher = _EncoderBatcher(encoder, 1)
        self._window_length: int = encoder.num_frames  # type: ignore[assignment]

    def _process_frame(self, frame_index: int, image: Tensor) -> RowBlocks:
        self._window.append(resize(image[None], self.image_size)[0])
        return self.finish() if len(self._window) == self._window_length else []

    def finish(self) -> RowBlocks:
        if not self._window:
            return []
        window, self._window = torch.stack(self._window, 1), []
        return [maps[0] for maps in self._batcher.add(window)]

    def columns(self, begin: int = 0, end: int | None = None) -> dict[str, np.ndarray]:
        return {"frame": self.frame_indices[begin:end]}


class JpegBuilder(FeatureBuilder):
    """Each frame of the grid as a JPEG, in rows of PAGE bytes; `bytes` says how many of a row's are used."""

    def __init__(
        self, image_size: tuple[int, int], frame_indices: np.ndarray, quality: int
    ) -> None:
        super().__init__(frame_indices)
        self.image_size, self.quality = image_size, quality
        self._row_frames: list[int] = []
        self._row_bytes: list[int] = []

    def _process_frame(self, frame_index: int, image: Tensor) -> RowBlocks:
        pixels = resize(image[None], self.image_size)[0]
        data = np.frombuffer(encode_jpeg(pixels, self.quality), np.uint8)
        pages = np.zeros((-(-len(data) // JPEG_ROW_BYTES), JPEG_ROW_BYTES), np.uint8)
        pages.reshape(-1)[: len(data)] = data
        self._row_frames += [frame_index] * len(pages)
        self._row_bytes += [JPEG_ROW_BYTES] * (len(pages) - 1) + [
            len(data) - JPEG_ROW_BYTES * (len(pages) - 1)
        ]
        return [pages]

    def finish(self) -> RowBlocks:
        return []

    def columns(self, begin: int = 0, end: int | None = None) -> dict[str, np.ndarray]:
        return {
            "frame": np.array(self._row_frames[begin:end], np.int64),
            "bytes": np.array(self._row_bytes[begin:end], np.int64),
        }


class MotionBuilder(FeatureBuilder):
    """One map per clip. Keeps only the frames that clips still to come need.

    `seconds` `[frame_count]` are the frames' times, `centres` `[clips]` the clips' middles, `span` their length, all in
    seconds. `pool` keeps the means of 2×2 cells.
    """

    def __init__(
        self,
        encoder: nn.Module,
        seconds: np.ndarray,
        centers: np.ndarray,
        clip_seconds: float,
        pool_2x2: bool,
        batch_size: int,
    ) -> None:
        self._clip_frames = np.stack(
            [
                sample_clip_frames(seconds, center, clip_seconds, encoder.num_frames)  # type: ignore[arg-type]
                for center in centers
            ]
        )
        super().__init__(np.unique(self._clip_frames))
        self.pool_2x2 = pool_2x2
        self._center_frames = find_nearest_frames(seconds, centers)
        self._square_side: int = encoder.square_side  # type: ignore[assignment]
        self._images: dict[int, Tensor] = {}
        self._next_clip = 0
        self._batcher = _EncoderBatcher(encoder, batch_size)

    def _process_frame(self, frame_index: int, image: Tensor) -> RowBlocks:
        self._images[frame_index] = resize(
            pad_to_square(image[None]), (self._square_side, self._square_side)
        )[0]
        ready: RowBlocks = []
        while (
            self._next_clip < len(self._clip_frames)
            and self._clip_frames[self._next_clip][-1] <= frame_index
        ):
            clip = torch.stack(
                [self._images[frame] for frame in self._clip_frames[self._next_clip].tolist()], 1
            )
            ready += self._pool_blocks(self._batcher.add(clip))
            self._next_clip += 1
        first = (
            self._clip_frames[self._next_clip][0]
            if self._next_clip < len(self._clip_frames)
            else frame_index + 1
        )
        while self._images and next(iter(self._images)) < first:
            del self._images[next(iter(self._images))]
        return ready

    def finish(self) -> RowBlocks:
        return self._pool_blocks(self._batcher.flush())

    def columns(self, begin: int = 0, end: int | None = None) -> dict[str, np.ndarray]:
        return {"frame": self._center_frames[begin:end]}

    def _pool_blocks(self, blocks: RowBlocks) -> RowBlocks:
        return [average_pool_2x2(maps) for maps in blocks] if self.pool_2x2 else blocks


def average_pool_2x2(maps: np.ndarray) -> np.ndarray:
    """Means of 2×2 cells, `[n, h, w, C]` → `[n, h/2, w/2, C]`; an odd last row or column stands alone."""
    cells = torch.from_numpy(maps).float().permute(0, 3, 1, 2)
    return nn.functional.avg_pool2d(cells, 2, ceil_mode=True).permute(0, 2, 3, 1).half().numpy()


def encode_texts(
    texts: list[str], encoder: nn.Module, batch_size: int = 64
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Token states `[L, C]` float16 and token ids `[L]` of each sentence, in order."""
    device = next(encoder.parameters()).device
    for start in range(0, len(texts), batch_size):
        tokens, mask = encoder.tokenize(texts[start : start + batch_size])  # type: ignore[operator]
        with torch.inference_mode(), inference_autocast(device):
            states = encoder(tokens.to(device), mask.to(device)).half().cpu()
        for row, ids, kept in zip(states, tokens, mask, strict=True):
            yield row[kept].numpy(), ids[kept].numpy()
