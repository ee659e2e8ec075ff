"""Feature builders: one class per visual product, from a video's frames to the product's rows.

A builder takes the frames in order and returns rows as soon as they are complete. It keeps the
frames of its next batch or clip only, so its memory does not depend on the length of the video.
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
"""Bytes per row of the product `frames`.

Every JPEG begins on a new row, so the arrays of all videos have one shape.
"""
RowBlocks = list[np.ndarray]
"""Consecutive blocks of rows, `[k, ...]` each."""


class FeatureBuilder(ABC):
    """Base of the feature builders.

    Attributes:
        frame_indices: `[n]`, ascending indices of the frames that the product needs.
    """

    def __init__(self, frame_indices: np.ndarray) -> None:
        self.frame_indices = frame_indices
        self._next_position = 0

    def add_frame(self, frame_index: int, image: Tensor) -> RowBlocks:
        """Process one frame; frames must come in ascending order.

        Args:
            frame_index: index of the frame. Frames outside `frame_indices` are skipped.
            image: RGB uint8 `[3, h, w]`.

        Returns:
            The blocks of rows that the frame completed.
        """
        if self._next_position == len(self.frame_indices):
            return []
        if self.frame_indices[self._next_position] != frame_index:
            return []
        self._next_position += 1
        return self._process_frame(frame_index, image)

    @abstractmethod
    def _process_frame(self, frame_index: int, image: Tensor) -> RowBlocks: ...

    @abstractmethod
    def finish(self) -> RowBlocks:
        """Return the remaining rows, after the last frame."""

    @abstractmethod
    def columns(self, begin: int = 0, end: int | None = None) -> dict[str, np.ndarray]:
        """Return the facts about rows that were already returned.

        Args:
            begin: first row.
            end: row after the last one; None for all, which requires `finish`.

        Returns:
            Arrays by column, one value per row. `frame` is the index of the frame that a row shows.
        """


@contextmanager
def inference_autocast(device: torch.device) -> Iterator[None]:
    """Compute networks in float16 on a GPU, and in their own type on a CPU.

    Args:
        device: the device of the networks.

    Yields:
        None.

    Raises:
        VideoError: the device has too little memory.
    """
    try:
        with torch.autocast(device.type, torch.float16, enabled=device.type == "cuda"):
            yield
    except torch.OutOfMemoryError:
        detail = (
            f"it does not fit into the memory of {device}: "
            "set a smaller batch, or `short_side`, or fewer --workers"
        )
        raise VideoError("encode", "out-of-memory", detail) from None


class _EncoderBatcher:
    """Collects the inputs of an encoder into batches and returns its maps in float16."""

    def __init__(self, encoder: nn.Module, batch_size: int) -> None:
        self.encoder = encoder
        self.batch_size = batch_size
        self._pending: list[Tensor] = []

    def add(self, item: Tensor) -> RowBlocks:
        """Add one input; return the maps of the batch that it fills."""
        self._pending.append(item)
        if len(self._pending) < self.batch_size:
            return []
        return self.flush()

    def flush(self) -> RowBlocks:
        """Return the maps of the pending inputs.

        Raises VideoError if a map is outside the range of float16, because infinite features would
        make every loss of the video infinite.
        """
        if not self._pending:
            return []
        device = next(self.encoder.parameters()).device
        inputs = torch.stack(self._pending)  # [n, 3, ...]
        self._pending.clear()

        with inference_autocast(device):
            outputs = self.encoder(inputs.to(device, non_blocking=True))
            maps: np.ndarray = outputs.half().cpu().numpy()  # [n, ..., C]

        if not np.isfinite(maps).all():
            raise VideoError(
                "encode",
                "not-finite",
                "its features are not finite in float16: "
                "the weights are damaged or do not belong here",
            )
        return [maps]


class AppearanceBuilder(FeatureBuilder):
    """Builder of one map per frame of the grid.

    Args:
        encoder: from images `[n, 3, h, w]` to maps `[n, H, W, C]`.
        image_size: `(width, height)` of the resized frames.
        frame_indices: `[n]`, the frames of the grid.
        batch_size: frames per forward pass.
    """

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
        """Return the maps of the last, incomplete batch."""
        return self._batcher.flush()

    def columns(self, begin: int = 0, end: int | None = None) -> dict[str, np.ndarray]:
        """Return `frame`, the frames of the grid."""
        return {"frame": self.frame_indices[begin:end]}


class SwinBuilder(FeatureBuilder):
    """Builder of one map per frame of the grid, from windows of frames.

    Windows have the encoder's length; the last one may be shorter.

    Args:
        encoder: from windows `[1, 3, T, h, w]` to maps `[1, T, H, W, C]`; `num_frames` is T.
        image_size: `(width, height)` of the resized frames.
        frame_indices: `[n]`, the frames of the grid.
    """

    def __init__(
        self, encoder: nn.Module, image_size: tuple[int, int], frame_indices: np.ndarray
    ) -> None:
        super().__init__(frame_indices)
        self.image_size = image_size
        self._window: list[Tensor] = []
        # A window is a batch of its own: the last one may have another length.
        self._batcher = _EncoderBatcher(encoder, 1)
        self._window_length: int = encoder.num_frames  # type: ignore[assignment]

    def _process_frame(self, frame_index: int, image: Tensor) -> RowBlocks:
        self._window.append(resize(image[None], self.image_size)[0])
        if len(self._window) < self._window_length:
            return []
        return self.finish()

    def finish(self) -> RowBlocks:
        """Return the maps of the last, incomplete window."""
        if not self._window:
            return []
        window = torch.stack(self._window, 1)  # [3, T, h, w]
        self._window = []
        batches = self._batcher.add(window)  # [1, T, H, W, C] each
        return [maps[0] for maps in batches]

    def columns(self, begin: int = 0, end: int | None = None) -> dict[str, np.ndarray]:
        """Return `frame`, the frames of the grid."""
        return {"frame": self.frame_indices[begin:end]}


class JpegBuilder(FeatureBuilder):
    """Builder of one JPEG per frame of the grid, in rows of `JPEG_ROW_BYTES` bytes.

    Args:
        image_size: `(width, height)` of the resized frames.
        frame_indices: `[n]`, the frames of the grid.
        quality: JPEG quality, 1 to 100.
    """

    def __init__(
        self, image_size: tuple[int, int], frame_indices: np.ndarray, quality: int
    ) -> None:
        super().__init__(frame_indices)
        self.image_size = image_size
        self.quality = quality
        self._row_frames: list[int] = []
        self._row_bytes: list[int] = []

    def _process_frame(self, frame_index: int, image: Tensor) -> RowBlocks:
        pixels = resize(image[None], self.image_size)[0]
        jpeg = np.frombuffer(encode_jpeg(pixels, self.quality), np.uint8)  # [bytes]

        # Spread the bytes over rows; the last row is padded with zeros.
        num_rows = -(-len(jpeg) // JPEG_ROW_BYTES)
        rows = np.zeros((num_rows, JPEG_ROW_BYTES), np.uint8)
        rows.reshape(-1)[: len(jpeg)] = jpeg

        num_full_rows = num_rows - 1
        self._row_frames += [frame_index] * num_rows
        self._row_bytes += [JPEG_ROW_BYTES] * num_full_rows
        self._row_bytes.append(len(jpeg) - JPEG_ROW_BYTES * num_full_rows)
        return [rows]

    def finish(self) -> RowBlocks:
        """Return no rows: every frame's rows are complete at once."""
        return []

    def columns(self, begin: int = 0, end: int | None = None) -> dict[str, np.ndarray]:
        """Return `frame`, and `bytes`, the number of used bytes of each row."""
        return {
            "frame": np.array(self._row_frames[begin:end], np.int64),
            "bytes": np.array(self._row_bytes[begin:end], np.int64),
        }


class MotionBuilder(FeatureBuilder):
    """Builder of one map per clip. It keeps only frames of the clips that are still to come.

    Args:
        encoder: from clips `[n, 3, T, s, s]` to maps `[n, h, w, C]`; `num_frames` is T and
            `square_side` is s.
        seconds: `[frame_count]`, presentation times of the video's frames.
        centers: `[num_clips]`, ascending times of the clips' centers, in seconds.
        clip_seconds: duration of a clip.
        pool_2x2: average the maps over 2×2 cells.
        batch_size: clips per forward pass.
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
        num_frames: int = encoder.num_frames  # type: ignore[assignment]
        clips = [
            sample_clip_frames(seconds, center, clip_seconds, num_frames) for center in centers
        ]
        self._clip_frames = np.stack(clips)  # [num_clips, T]
        super().__init__(np.unique(self._clip_frames))
        self.pool_2x2 = pool_2x2
        self._center_frames = find_nearest_frames(seconds, centers)  # [num_clips]
        self._square_side: int = encoder.square_side  # type: ignore[assignment]
        # Resized frames of the clips to come, by ascending index.
        self._images: dict[int, Tensor] = {}
        self._next_clip = 0
        self._batcher = _EncoderBatcher(encoder, batch_size)

    def _process_frame(self, frame_index: int, image: Tensor) -> RowBlocks:
        square = pad_to_square(image[None])
        self._images[frame_index] = resize(square, (self._square_side, self._square_side))[0]

        # Encode the clips that end with this frame.
        blocks: RowBlocks = []
        while (
            self._next_clip < len(self._clip_frames)
            and self._clip_frames[self._next_clip][-1] <= frame_index
        ):
            images = [self._images[index] for index in self._clip_frames[self._next_clip].tolist()]
            clip = torch.stack(images, 1)  # [3, T, s, s]
            blocks += self._pool_blocks(self._batcher.add(clip))
            self._next_clip += 1

        self._discard_used_images(frame_index)
        return blocks

    def _discard_used_images(self, frame_index: int) -> None:
        """Drop the frames before the next clip; without a next clip, all frames up to this one."""
        first_needed = frame_index + 1
        if self._next_clip < len(self._clip_frames):
            first_needed = self._clip_frames[self._next_clip][0]

        for index in list(self._images):
            if index >= first_needed:
                break
            del self._images[index]

    def finish(self) -> RowBlocks:
        """Return the maps of the last, incomplete batch."""
        return self._pool_blocks(self._batcher.flush())

    def columns(self, begin: int = 0, end: int | None = None) -> dict[str, np.ndarray]:
        """Return `frame`, the frame nearest to each clip's center."""
        return {"frame": self._center_frames[begin:end]}

    def _pool_blocks(self, blocks: RowBlocks) -> RowBlocks:
        """Return the blocks, pooled if the settings ask for pooling."""
        if not self.pool_2x2:
            return blocks
        return [average_pool_2x2(maps) for maps in blocks]


def average_pool_2x2(maps: np.ndarray) -> np.ndarray:
    """Average maps over 2×2 cells.

    Args:
        maps: `[n, h, w, C]` float16.

    Returns:
        `[n, ⌈h/2⌉, ⌈w/2⌉, C]` float16. An odd last row or column is averaged by itself.
    """
    cells = torch.from_numpy(maps).float().permute(0, 3, 1, 2)  # [n, C, h, w]
    pooled = nn.functional.avg_pool2d(cells, 2, ceil_mode=True)
    return pooled.permute(0, 2, 3, 1).half().numpy()


def encode_texts(
    texts: list[str], encoder: nn.Module, batch_size: int = 64
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Encode sentences.

    Args:
        texts: the sentences.
        encoder: the text encoder, with its tokenizer.
        batch_size: sentences per forward pass.

    Yields:
        For each sentence in order: token states `[L, C]` float16 and token ids `[L]`.

    Raises:
        VideoError: the device has too little memory.
    """
    device = next(encoder.parameters()).device
    for start in range(0, len(texts), batch_size):
        batch = texts[start : start + batch_size]
        # tokens: [n, L], mask: [n, L], True for tokens of the sentence
        tokens, mask = encoder.tokenize(batch)  # type: ignore[operator]

        with torch.inference_mode(), inference_autocast(device):
            states = encoder(tokens.to(device), mask.to(device)).half().cpu()  # [n, L, C]

        for sentence_states, sentence_tokens, sentence_mask in zip(
            states, tokens, mask, strict=True
        ):
            yield (
                sentence_states[sentence_mask].numpy(),
                sentence_tokens[sentence_mask].numpy(),
            )
