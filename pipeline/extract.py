"""One video → its features. One decode pass feeds all visual products; frames stream, forwards are batched."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from pydantic import Field
from torch import nn

from pipeline.config import Config
from pipeline.decode import VideoFacts, open_frames, probe
from pipeline.encoders.geometry import appearance_size
from pipeline.errors import VideoError
from pipeline.makers import AppearanceMaker, JpegMaker, Maker, MotionMaker, SwinMaker, on_device
from pipeline.sampling import clip_centres, grid_frames
from pipeline.store import Entry

VISUAL = ("appearance", "motion", "swin", "frames")
DIGEST_BYTES = 1 << 20
Progress = Callable[[int, int], None]


Backbones = Literal["full", "tiny"]


class SamplingConfig(Config):
    """Which moments of a video are looked at, and how large. Part of every visual product's provenance."""

    fps: float = Field(default=5.0, gt=0)
    """Appearance maps and JPEG frames: one at each 1/fps seconds, the nearest frame."""
    short: int = Field(default=320, ge=16)
    """N_short: the shorter side in pixels (the longer at most 1.8 times this)."""
    clip_every: float = Field(default=0.4, gt=0)
    """Seconds from one motion clip to the next."""
    clip_span: float = Field(default=64 / 30, gt=0)
    """Seconds a motion clip spans."""
    pool_motion: bool = False
    """Keep the means of 2×2 motion cells (AVA's 16×16 becomes 8×8): a quarter of the bytes."""
    jpeg_quality: int = Field(default=90, ge=1, le=100)


class Decoder(Protocol):
    """Where frames come from: this process (`HERE`) or a child of it (`pipeline.decode.child.DecodeChild`)."""

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
    `facts` those of the video. `progress` counts the frames that are looked at. Memory does not grow with the video.
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
        about = {"size": list(self.video.size), "fps": self.video.fps, "frame_count": self.video.frame_count}
        if _digest(self.path) != self._digest:
            detail = f"{self.path} has become another file while it was read; run again when it is whole"
            raise VideoError("decode", "changed", detail)
        self.facts = about | {"digest": self._digest, **seen_by}


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

    `frame_edges` `[frame_count + 1]` are seconds after the first frame: frame n is shown from `frame_edges[n]` to
    `frame_edges[n + 1]`, whatever the rate. They are not stored: an hour of video has 100,000 of them.
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
    video = stream.video
    return Features(products, stream.facts, np.append(video.seconds, video.seconds[0] + video.duration) - video.seconds[0])


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


def encode_texts(texts: list[str], encoder: nn.Module, batch: int = 64) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Token states `[L, C]` float16 and token ids `[L]` of each sentence, in order."""
    device = next(encoder.parameters()).device
    for start in range(0, len(texts), batch):
        tokens, mask = encoder.tokenise(texts[start : start + batch])  # type: ignore[operator]
        with torch.inference_mode(), on_device(device):
            states = encoder(tokens.to(device), mask.to(device)).half().cpu()
        for row, ids, kept in zip(states, tokens, mask, strict=True):
            yield row[kept].numpy(), ids[kept].numpy()


def jpegs_of(rows: np.ndarray, columns: Mapping[str, np.ndarray]) -> Iterator[tuple[int, np.ndarray]]:
    """The JPEGs of an entry of the `frames` product: `(frame number, bytes [n] uint8)` in order; the bytes are views of `rows`."""
    frame, count = columns["frame"], columns["bytes"]
    begins = np.flatnonzero(np.diff(frame, prepend=frame[:1] - 1))
    for begin, end in zip(begins.tolist(), [*begins[1:].tolist(), len(frame)], strict=True):
        yield int(frame[begin]), rows[begin:end].reshape(-1)[: int(count[begin:end].sum())]


def jpeg_frames(rows: np.ndarray, columns: Mapping[str, np.ndarray]) -> Iterator[tuple[int, np.ndarray]]:
    """Decode an entry of the `frames` product on the CPU: `(frame number, RGB uint8 [h, w, 3])` in order.

    By torchvision, which takes two thirds of Pillow's time to the same pixels: both end in libjpeg-turbo.
    """
    from torchvision.io import ImageReadMode, decode_jpeg

    for number, jpeg in jpegs_of(rows, columns):
        yield number, decode_jpeg(torch.from_numpy(jpeg), ImageReadMode.RGB).permute(1, 2, 0).numpy()
