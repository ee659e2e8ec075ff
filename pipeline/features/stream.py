"""One video → its features. One decode pass feeds all visual products; frames stream, forwards are batched."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from pipeline.encoders.image_geometry import appearance_size
from pipeline.errors import VideoError
from pipeline.features.builders import AppearanceMaker, JpegMaker, Maker, MotionMaker, SwinMaker
from pipeline.features.config import SamplingConfig
from pipeline.sampling import clip_centres, grid_frames
from pipeline.store import Entry
from pipeline.video import VideoFacts, open_frames, probe

VISUAL = ("appearance", "motion", "swin", "frames")
DIGEST_BYTES = 1 << 20
Progress = Callable[[int, int], None]


class Decoder(Protocol):
    """Where frames come from: this process (`HERE`) or a child of it (`pipeline.video.process_decoder.DecodeChild`)."""

    def probe(self, path: Path) -> VideoFacts: ...

    def frames(self, path: Path, facts: VideoFacts, wanted: np.ndarray) -> Any:
        """A context manager and iterator of `(frame number, RGB uint8 [h, w, 3])`, with `decoder` and `reason`."""


class _Here:
    def probe(self, path: Path) -> VideoFacts:
        return probe(path)

    def frames(self, path: Path, facts: VideoFacts, wanted: np.ndarray) -> Any:
        return open_frames(path, facts, wanted)


HERE: Decoder = _Here()


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
        batch: int = 16,
        decoder: Decoder = HERE,
        progress: Progress = lambda done, total: None,
    ) -> None:
        self.path, self.decoder, self.progress = path, decoder, progress
        self.video = decoder.probe(path)
        self.about: dict[str, Any] = {"size": list(self.video.size), "fps": self.video.fps, "frame_count": self.video.frame_count}
        self._digest = _digest(path)
        self.makers = {product: _maker(product, encoder, self.video, sampling, batch) for product, encoder in encoders.items()}
        self.columns: dict[str, dict[str, np.ndarray]] = {}
        self.facts: dict[str, Any] = {}

    @torch.inference_mode()
    def __iter__(self) -> Iterator[tuple[str, np.ndarray]]:
        wanted = np.unique(np.concatenate([maker.wanted for maker in self.makers.values()]))
        with self.decoder.frames(self.path, self.video, wanted) as frames:
            self.progress(0, len(wanted))
            for done, (number, rgb) in enumerate(frames, start=1):
                picture = torch.from_numpy(rgb if rgb.flags.writeable else rgb.copy()).permute(2, 0, 1)
                for product, maker in self.makers.items():
                    for rows in maker.take(number, picture):
                        yield product, rows
                self.progress(done, len(wanted))
            for product, maker in self.makers.items():
                for rows in maker.finish():
                    yield product, rows
            seen_by = {"decoder": frames.decoder, "why": frames.reason}
        for product, maker in self.makers.items():
            columns = maker.columns()
            self.columns[product] = columns | {"second": self.video.seconds[columns["frame"]]}
        if _digest(self.path) != self._digest:
            detail = f"{self.path} has become another file while it was read; run again when it is whole"
            raise VideoError("decode", "changed", detail)
        self.facts = self.about | {"digest": self._digest, **seen_by}


def _maker(product: str, encoder: nn.Module, video: VideoFacts, sampling: SamplingConfig, batch: int) -> Maker:
    size = appearance_size(video.size, sampling.short)
    if product == "motion":
        centres = clip_centres(video.seconds, sampling.clip_every)
        return MotionMaker(encoder, video.seconds, centres, sampling.clip_span, sampling.pool_motion, max(1, batch // 4))
    grid = grid_frames(video.seconds, sampling.fps)
    if product == "frames":
        return JpegMaker(size, grid, sampling.jpeg_quality)
    return SwinMaker(encoder, size, grid) if product == "swin" else AppearanceMaker(encoder, size, grid, batch)


@dataclass(frozen=True)
class Features:
    """What one video gave: product → (rows, columns), the facts kept with every entry of it, and the frames' times.

    `frame_edges` are `VideoFacts.edges`. They are not stored: an hour of video has 100,000 of them.
    """

    products: dict[str, tuple[np.ndarray, dict[str, np.ndarray]]]
    facts: dict[str, Any]
    frame_edges: np.ndarray = field(repr=False)

    def entry(self, product: str, video: str) -> Entry:
        rows, columns = self.products[product]
        return Entry(video, video, rows, columns, self.facts)


def extract_video(
    path: Path,
    sampling: SamplingConfig,
    encoders: Mapping[str, nn.Module],
    batch: int = 16,
    progress: Progress = lambda done, total: None,
) -> Features:
    """One video's whole features in memory, as `FeatureStream` makes them."""
    stream = FeatureStream(path, sampling, encoders, batch, progress=progress)
    blocks: dict[str, list[np.ndarray]] = defaultdict(list)
    for product, rows in stream:
        blocks[product].append(rows)
    products = {product: (np.concatenate(parts), stream.columns[product]) for product, parts in blocks.items()}
    return Features(products, stream.facts, stream.video.edges)


def _digest(path: Path) -> str:
    """`file_digest`, or the VideoError that the file cannot be read."""
    try:
        return file_digest(path)
    except OSError as error:
        reason = "missing" if isinstance(error, FileNotFoundError) else "unreadable"
        raise VideoError("open", reason, f"{path} cannot be read any more ({error.strerror}); put it back and run again") from None


def file_digest(path: Path) -> str:
    """SHA-256 of a video's size, first and last MiB: notices another file under the same name without reading terabytes."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        digest.update(file.read(DIGEST_BYTES))
        file.seek(max(DIGEST_BYTES, size - DIGEST_BYTES))
        digest.update(file.read())
    return digest.hexdigest()
