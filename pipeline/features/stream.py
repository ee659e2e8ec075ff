"""From one video to its features: one decoding pass feeds all visual products.

Frames are streamed and forward passes are batched, so memory does not depend on the video's length.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from pipeline.callbacks import ProgressCallback
from pipeline.errors import VideoError
from pipeline.features.builders import FeatureBuilder
from pipeline.features.config import SamplingConfig
from pipeline.features.products import PRODUCTS
from pipeline.store import Entry
from pipeline.video import VideoMetadata, open_frames, probe

DIGEST_BYTES = 1 << 20
"""Bytes at each end of a file that its digest covers."""


class FrameDecoder(Protocol):
    """Source of decoded frames.

    `IN_PROCESS` decodes in this process, `pipeline.video.process_decoder.ProcessDecoder` in a child
    process.
    """

    def probe(self, path: Path) -> VideoMetadata:
        """Read the metadata of a video.

        Args:
            path: the video file.

        Returns:
            The metadata, with the presentation time of every frame.
        """

    def frames(self, path: Path, metadata: VideoMetadata, frame_indices: np.ndarray) -> Any:
        """Open some frames of a video.

        Args:
            path: the video file.
            metadata: the metadata of the video.
            frame_indices: `[n]`, ascending indices of the frames to decode.

        Returns:
            A context manager and iterator of frame index and RGB uint8 `[h, w, 3]`. Its attributes
            `decoder` and `reason` say which decoder was chosen, and why.
        """


class InProcessDecoder:
    """Decoder in the calling process."""

    def probe(self, path: Path) -> VideoMetadata:
        """Read the metadata of a video; see `FrameDecoder`."""
        return probe(path)

    def frames(self, path: Path, metadata: VideoMetadata, frame_indices: np.ndarray) -> Any:
        """Open some frames of a video; see `FrameDecoder`."""
        return open_frames(path, metadata, frame_indices)


IN_PROCESS: FrameDecoder = InProcessDecoder()
"""The decoder in the calling process."""


def _ignore_progress(done: int, total: int) -> None:
    """Do nothing."""


class FeatureStream:
    """Iterator over the features of one video as they are computed.

    It yields the name of a product and its next block of rows: appearance and swin
    `[k, H, W, C]` float16, motion `[k, h, w, C]` float16, frames `[k, JPEG_ROW_BYTES]` uint8.
    Iteration raises VideoError if the video cannot be decoded or encoded, or changed meanwhile.

    Args:
        path: the video file.
        sampling: frames and clips to encode.
        encoders: the network of each product to compute; `frames` uses none, so any module will do.
        batch_size: frames per forward pass.
        decoder: source of the frames.
        progress: called after each decoded frame.

    Attributes:
        metadata: metadata of the video.
        initial_facts: facts about the video that are known before decoding.
        builders: the feature builder of each product.
        columns: arrays with one value per row, by product and column; set by the iteration's end.
            `frame` is the frame that a row shows, or the center of its clip; `second` is its time.
        facts: facts about the video; set by the iteration's end.

    Raises:
        VideoError: the file cannot be read, or is no video.
    """

    def __init__(
        self,
        path: Path,
        sampling: SamplingConfig,
        encoders: Mapping[str, nn.Module],
        batch_size: int = 16,
        decoder: FrameDecoder = IN_PROCESS,
        progress: ProgressCallback = _ignore_progress,
    ) -> None:
        self.path = path
        self.decoder = decoder
        self.progress = progress
        self.metadata = decoder.probe(path)
        self.initial_facts: dict[str, Any] = {
            "size": list(self.metadata.size),
            "fps": self.metadata.fps,
            "frame_count": self.metadata.frame_count,
        }
        self._initial_digest = _read_digest(path)

        self.builders: dict[str, FeatureBuilder] = {}
        for product, encoder in encoders.items():
            self.builders[product] = _create_builder(
                product, encoder, self.metadata, sampling, batch_size
            )
        self.columns: dict[str, dict[str, np.ndarray]] = {}
        self.facts: dict[str, Any] = {}

    @torch.inference_mode()
    def __iter__(self) -> Iterator[tuple[str, np.ndarray]]:
        # Decode each frame once, for all products that need it.
        frame_indices = np.unique(
            np.concatenate([builder.frame_indices for builder in self.builders.values()])
        )
        num_frames = len(frame_indices)
        with self.decoder.frames(self.path, self.metadata, frame_indices) as frames:
            self.progress(0, num_frames)
            for num_decoded, (frame_index, pixels) in enumerate(frames, start=1):
                image = _as_image(pixels)
                for product, builder in self.builders.items():
                    for rows in builder.add_frame(frame_index, image):
                        yield product, rows
                self.progress(num_decoded, num_frames)

            # Encode the last, incomplete batches.
            for product, builder in self.builders.items():
                for rows in builder.finish():
                    yield product, rows
            decoder_facts = {"decoder": frames.decoder, "why": frames.reason}

        for product, builder in self.builders.items():
            columns = builder.columns()
            seconds = self.metadata.pts_seconds[columns["frame"]]
            self.columns[product] = columns | {"second": seconds}

        # Features of two files must not be mixed: check that the file is still the same.
        if _read_digest(self.path) != self._initial_digest:
            detail = (
                f"{self.path} changed while it was being read; run again when the file is complete"
            )
            raise VideoError("decode", "changed", detail)
        self.facts = self.initial_facts | {"digest": self._initial_digest, **decoder_facts}


def _as_image(pixels: np.ndarray) -> torch.Tensor:
    """Return pixels `[h, w, 3]` as an image `[3, h, w]`, without a copy where torch allows it."""
    if not pixels.flags.writeable:  # torch has no read-only tensors
        pixels = pixels.copy()
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _create_builder(
    product: str,
    encoder: nn.Module,
    video: VideoMetadata,
    sampling: SamplingConfig,
    batch_size: int,
) -> FeatureBuilder:
    """Return the feature builder of a visual product."""
    create_builder = PRODUCTS[product].create_builder
    if create_builder is None:
        raise ValueError(f"product {product!r} is not computed from frames")
    return create_builder(encoder, video, sampling, batch_size)


@dataclass(frozen=True)
class ExtractedFeatures:
    """All features of one video.

    Attributes:
        products: rows and columns by product.
        facts: facts about the video, stored with the entry of every product.
        frame_edges: `[frame_count + 1]`, times between frames, see `VideoMetadata.edges`. They are
            not stored: one hour of video has 100,000 of them.
    """

    products: dict[str, tuple[np.ndarray, dict[str, np.ndarray]]]
    facts: dict[str, Any]
    frame_edges: np.ndarray = field(repr=False)

    def build_entry(self, product: str, video: str) -> Entry:
        """Return the store's entry of one product.

        Args:
            product: name of the product.
            video: id of the video, which is also the key of the entry.

        Returns:
            The entry.
        """
        rows, columns = self.products[product]
        return Entry(video, video, rows, columns, self.facts)


def extract_video(
    path: Path,
    sampling: SamplingConfig,
    encoders: Mapping[str, nn.Module],
    batch_size: int = 16,
    progress: ProgressCallback = _ignore_progress,
) -> ExtractedFeatures:
    """Compute all features of one video in memory.

    Args:
        path: the video file.
        sampling: frames and clips to encode.
        encoders: the network of each product to compute.
        batch_size: frames per forward pass.
        progress: called after each decoded frame.

    Returns:
        The features.

    Raises:
        VideoError: the video cannot be decoded or encoded.
    """
    stream = FeatureStream(path, sampling, encoders, batch_size, progress=progress)
    blocks: dict[str, list[np.ndarray]] = defaultdict(list)
    for product, rows in stream:
        blocks[product].append(rows)

    products = {}
    for product, product_blocks in blocks.items():
        products[product] = (np.concatenate(product_blocks), stream.columns[product])
    return ExtractedFeatures(products, stream.facts, stream.metadata.edges)


def _read_digest(path: Path) -> str:
    """Return the digest of a file; raise VideoError if the file cannot be read."""
    try:
        return compute_file_digest(path)
    except OSError as error:
        reason = "missing" if isinstance(error, FileNotFoundError) else "unreadable"
        raise VideoError(
            "open",
            reason,
            f"{path} cannot be read any more ({error.strerror}); put it back and run again",
        ) from None


def compute_file_digest(path: Path) -> str:
    """Compute a digest that detects another video under the same name.

    The digest covers the file's size, its first and its last MiB, so that no terabytes are read.

    Args:
        path: the video file.

    Returns:
        The hexadecimal SHA-256.

    Raises:
        OSError: the file cannot be read.
    """
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        digest.update(file.read(DIGEST_BYTES))
        # A short file has no second part: the position is then at or past its end.
        file.seek(max(DIGEST_BYTES, size - DIGEST_BYTES))
        digest.update(file.read())
    return digest.hexdigest()
