"""One video → its features. One decode pass feeds all visual products; frames stream, forwards are batched."""

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


class FrameDecoder(Protocol):
    """Where frames come from: this process (`HERE`) or a child of it (`pipeline.video.process_decoder.ProcessDecoder`)."""

    def probe(self, path: Path) -> VideoMetadata: ...

    def frames(self, path: Path, metadata: VideoMetadata, frame_indices: np.ndarray) -> Any:
        """A context manager and iterator of `(frame number, RGB uint8 [h, w, 3])`, with `decoder` and `reason`."""


class InProcessDecoder:
    def probe(self, path: Path) -> VideoMetadata:
        return probe(path)

    def frames(self, path: Path, metadata: VideoMetadata, frame_indices: np.ndarray) -> Any:
        return open_frames(path, metadata, frame_indices)


IN_PROCESS: FrameDecoder = InProcessDecoder()


class FeatureStream:
    """Iterator over one video's features as they are made: `(product, rows)`, blocks of rows in order.

    `encoders` name the products (`frames` maps to no network: any module will do). Rows: appearance and swin
    `[k, H, W, C]`, motion `[k, h, w, C]` float16, frames `[k, 4096]` uint8. After the last block `columns` hold each
    product's facts by row (`frame` says which frame a row shows, or the middle of its clip, `second` when that is) and
    `facts` those of the video; those in `about` are known from the start. `progress` counts the frames that are looked at.
    Memory does not grow with the video.
    Raises VideoError.
    """

    def __init__(
        self,
        path: Path,
        sampling: SamplingConfig,
        encoders: Mapping[str, nn.Module],
        batch_size: int = 16,
        decoder: FrameDecoder = IN_PROCESS,
        progress: ProgressCallback = lambda done, total: None,
    ) -> None:
        self.path, self.decoder, self.progress = path, decoder, progress
        self.video_metadata = decoder.probe(path)
        self.initial_facts: dict[str, Any] = {
            "size": list(self.video_metadata.size),
            "fps": self.video_metadata.fps,
            "frame_count": self.video_metadata.frame_count,
        }
        self._initial_digest = _read_digest(path)
        self.builders = {
            product: _create_builder(product, encoder, self.video_metadata, sampling, batch_size)
            for product, encoder in encoders.items()
        }
        self.columns: dict[str, dict[str, np.ndarray]] = {}
        self.facts: dict[str, Any] = {}

    @torch.inference_mode()
    def __iter__(self) -> Iterator[tuple[str, np.ndarray]]:
        wanted = np.unique(
            np.concatenate([maker.frame_indices for maker in self.builders.values()])
        )
        with self.decoder.frames(self.path, self.video_metadata, wanted) as frames:
            self.progress(0, len(wanted))
            for done, (number, rgb) in enumerate(frames, start=1):
                picture = torch.from_numpy(rgb if rgb.flags.writeable else rgb.copy()).permute(
                    2, 0, 1
                )
                for product, maker in self.builders.items():
                    for rows in maker.add_frame(number, picture):
                        yield product, rows
                self.progress(done, len(wanted))
            for product, maker in self.builders.items():
                for rows in maker.finish():
                    yield product, rows
            seen_by = {"decoder": frames.decoder, "why": frames.reason}
        for product, maker in self.builders.items():
            columns = maker.columns()
            self.columns[product] = columns | {
                "second": self.video_metadata.pts_seconds[columns["frame"]]
            }
        if _read_digest(self.path) != self._initial_digest:
            detail = (
                f"{self.path} has become another file while it was read; run again when it is whole"
            )
            raise VideoError("decode", "changed", detail)
        self.facts = self.initial_facts | {"digest": self._initial_digest, **seen_by}


def _create_builder(
    product: str, encoder: nn.Module, video: VideoMetadata, sampling: SamplingConfig, batch: int
) -> FeatureBuilder:
    create_builder = PRODUCTS[product].create_builder
    if create_builder is None:
        raise ValueError(f"product {product!r} is not made of frames")
    return create_builder(encoder, video, sampling, batch)


@dataclass(frozen=True)
class ExtractedFeatures:
    """What one video gave: product → (rows, columns), the facts kept with every entry of it, and the frames' times.

    `frame_edges` are `VideoMetadata.edges`. They are not stored: an hour of video has 100,000 of them.
    """

    products: dict[str, tuple[np.ndarray, dict[str, np.ndarray]]]
    facts: dict[str, Any]
    frame_edges: np.ndarray = field(repr=False)

    def build_entry(self, product: str, video: str) -> Entry:
        rows, columns = self.products[product]
        return Entry(video, video, rows, columns, self.facts)


def extract_video(
    path: Path,
    sampling: SamplingConfig,
    encoders: Mapping[str, nn.Module],
    batch_size: int = 16,
    progress: ProgressCallback = lambda done, total: None,
) -> ExtractedFeatures:
    """One video's whole features in memory, as `FeatureStream` makes them."""
    stream = FeatureStream(path, sampling, encoders, batch_size, progress=progress)
    blocks: dict[str, list[np.ndarray]] = defaultdict(list)
    for product, rows in stream:
        blocks[product].append(rows)
    products = {
        product: (np.concatenate(parts), stream.columns[product])
        for product, parts in blocks.items()
    }
    return ExtractedFeatures(products, stream.facts, stream.video_metadata.edges)


def _read_digest(path: Path) -> str:
    """`compute_file_digest`, or the VideoError that the file cannot be read."""
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
    """SHA-256 of a video's size, first and last MiB: notices another file under the same name without reading terabytes."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        digest.update(file.read(DIGEST_BYTES))
        file.seek(max(DIGEST_BYTES, size - DIGEST_BYTES))
        digest.update(file.read())
    return digest.hexdigest()
