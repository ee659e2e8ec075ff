"""One video → its features. One decode pass feeds all visual products; frames stream, forwards are batched."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from pipeline.config import Config
from pipeline.decode import VideoFacts, open_frames, probe
from pipeline.encoders.geometry import appearance_size, pad_to_square, resize
from pipeline.encoders.text import tokenise
from pipeline.errors import VideoError
from pipeline.sampling import clip_centres, clip_frames, grid_frames, nearest_frames
from pipeline.store import Entry

VISUAL = ("appearance", "motion", "frames")
PAGE = 4096
"""Bytes per row of the `frames` product: every JPEG begins on a new row, so all videos share one array shape."""
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
    facts: VideoFacts | None = None,
    progress: Progress = lambda done, total: None,
) -> Features:
    """Features of every visual product in `encoders` (`frames` maps to no network: any module will do).

    Rows: appearance `[n, H, W, C]` and motion `[m, h, w, C]` float16, frames `[pages, 4096]` uint8. Columns `frame` and
    `second` say which frame a row shows, or (motion) the middle of its clip. `progress` counts the frames that are
    looked at. Raises VideoError.
    """
    facts = facts or probe(path)
    grid = grid_frames(facts.seconds, sampling.fps)
    makers: dict[str, _Maker] = {}
    if "appearance" in encoders:
        makers["appearance"] = _AppearanceMaker(encoders["appearance"], appearance_size(facts.size, sampling.short), grid, batch)
    if "frames" in encoders:
        makers["frames"] = _JpegMaker(appearance_size(facts.size, sampling.short), grid, sampling.jpeg_quality)
    if "motion" in encoders:
        makers["motion"] = _MotionMaker(encoders["motion"], facts, sampling, max(1, batch // 4))
    wanted = np.unique(np.concatenate([maker.wanted for maker in makers.values()]))
    with torch.inference_mode(), open_frames(path, facts, wanted) as frames:
        progress(0, len(wanted))
        for done, (number, rgb) in enumerate(frames, start=1):
            picture = torch.from_numpy(rgb.copy()).permute(2, 0, 1)
            for maker in makers.values():
                maker.take(number, picture)
            progress(done, len(wanted))
        products = {name: maker.finish() for name, maker in makers.items()}
        seen_by = {"decoder": frames.decoder, "why": frames.reason}
    for _, columns in products.values():
        columns["second"] = facts.seconds[columns["frame"]]
    about = {"size": list(facts.size), "fps": facts.fps, "frame_count": facts.frame_count, "digest": file_digest(path), **seen_by}
    return Features(products, about, np.append(facts.seconds, facts.seconds[0] + facts.duration) - facts.seconds[0])


def file_digest(path: Path) -> str:
    """SHA-256 of a video's size, first and last MiB: notices another file under the same name without reading terabytes."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        digest.update(file.read(DIGEST_BYTES))
        file.seek(max(DIGEST_BYTES, size - DIGEST_BYTES))
        digest.update(file.read())
    return digest.hexdigest()


class _Batches:
    """Runs an encoder on inputs as they come, `size` at a time, and keeps its maps in float16."""

    def __init__(self, encoder: nn.Module, size: int) -> None:
        self.encoder, self.size = encoder, size
        self._waiting: list[Tensor] = []
        self._maps: list[np.ndarray] = []

    def add(self, item: Tensor) -> None:
        self._waiting.append(item)
        if len(self._waiting) == self.size:
            self._encode()

    def maps(self) -> np.ndarray:
        """The maps of all inputs, in order; a VideoError where they leave float16's range, which would poison training."""
        self._encode()
        return np.concatenate(self._maps)

    def _encode(self) -> None:
        if not self._waiting:
            return
        device = next(self.encoder.parameters()).device
        maps: np.ndarray = self.encoder(torch.stack(self._waiting).to(device)).half().cpu().numpy()
        if not np.isfinite(maps).all():
            raise VideoError(
                "encode", "not-finite", "its features are not finite in float16: the weights are damaged or do not belong here"
            )
        self._maps.append(maps)
        self._waiting.clear()


def _pooled(maps: np.ndarray) -> np.ndarray:
    """Means of 2×2 cells, `[n, h, w, C]` → `[n, h/2, w/2, C]`; an odd last row or column stands alone."""
    cells = torch.from_numpy(maps).float().permute(0, 3, 1, 2)
    return nn.functional.avg_pool2d(cells, 2, ceil_mode=True).permute(0, 2, 3, 1).half().numpy()


class _Maker:
    """Takes frames in increasing order, gives a product's rows and columns. `wanted` are the frames it needs."""

    wanted: np.ndarray

    def take(self, number: int, picture: Tensor) -> None:
        raise NotImplementedError

    def finish(self) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        raise NotImplementedError


class _AppearanceMaker(_Maker):
    def __init__(self, encoder: nn.Module, size: tuple[int, int], grid: np.ndarray, batch: int) -> None:
        self.size, self.wanted = size, grid
        self._needed = set(grid.tolist())
        self._batches = _Batches(encoder, batch)

    def take(self, number: int, picture: Tensor) -> None:
        if number in self._needed:
            self._batches.add(resize(picture[None], self.size)[0])

    def finish(self) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        return self._batches.maps(), {"frame": self.wanted}


class _JpegMaker(_Maker):
    def __init__(self, size: tuple[int, int], grid: np.ndarray, quality: int) -> None:
        self.size, self.wanted, self.quality = size, grid, quality
        self._needed = set(grid.tolist())
        self._pages: list[np.ndarray] = []
        self._numbers: list[int] = []
        self._used: list[int] = []

    def take(self, number: int, picture: Tensor) -> None:
        if number not in self._needed:
            return
        from torchvision.io import encode_jpeg

        pixels = resize(picture[None], self.size)[0].round().clamp(0, 255).byte()
        data = encode_jpeg(pixels, self.quality).numpy()
        for start in range(0, len(data), PAGE):
            page = np.zeros(PAGE, np.uint8)
            part = data[start : start + PAGE]
            page[: len(part)] = part
            self._pages.append(page)
            self._numbers.append(number)
            self._used.append(len(part))

    def finish(self) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        return np.stack(self._pages), {"frame": np.array(self._numbers, np.int64), "bytes": np.array(self._used, np.int64)}


class _MotionMaker(_Maker):
    """Keeps only the frames that clips still to come need."""

    def __init__(self, encoder: nn.Module, facts: VideoFacts, sampling: SamplingConfig, batch: int) -> None:
        self.encoder, self.pool = encoder, sampling.pool_motion
        centres = clip_centres(facts.seconds, sampling.clip_every)
        self._clips = [clip_frames(facts.seconds, centre, sampling.clip_span, encoder.frames) for centre in centres]  # type: ignore[arg-type]
        self._middles = nearest_frames(facts.seconds, centres)
        self.wanted = np.unique(np.concatenate(self._clips))
        self._needed = set(self.wanted.tolist())
        self._pictures: dict[int, Tensor] = {}
        self._next = 0
        self._batches = _Batches(encoder, batch)

    def take(self, number: int, picture: Tensor) -> None:
        if number not in self._needed:
            return
        side: int = self.encoder.side  # type: ignore[assignment]
        self._pictures[number] = resize(pad_to_square(picture[None]), (side, side))[0]
        while self._next < len(self._clips) and self._clips[self._next][-1] <= number:
            self._batches.add(torch.stack([self._pictures[frame] for frame in self._clips[self._next].tolist()], 1))
            self._next += 1
        if self._next < len(self._clips):
            first = self._clips[self._next][0]
            self._pictures = {frame: kept for frame, kept in self._pictures.items() if frame >= first}

    def finish(self) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        maps = self._batches.maps()
        return _pooled(maps) if self.pool else maps, {"frame": self._middles}


def encode_texts(texts: list[str], encoder: nn.Module, batch: int = 64) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Token states `[L, C]` float16 and token ids `[L]` of each sentence, in order."""
    device = next(encoder.parameters()).device
    for start in range(0, len(texts), batch):
        tokens, mask = tokenise(texts[start : start + batch])
        with torch.inference_mode():
            states = encoder(tokens.to(device), mask.to(device)).half().cpu()
        for row, ids, kept in zip(states, tokens, mask, strict=True):
            yield row[kept].numpy(), ids[kept].numpy()


def jpeg_frames(rows: np.ndarray, columns: Mapping[str, np.ndarray]) -> Iterator[tuple[int, Tensor]]:
    """Decode an entry of the `frames` product: `(frame number, RGB uint8 [3, h, w])` in order."""
    from torchvision.io import decode_jpeg

    for number in np.unique(columns["frame"]).tolist():
        pages = np.flatnonzero(columns["frame"] == number)
        data = np.concatenate([rows[page, : columns["bytes"][page]] for page in pages])
        yield number, decode_jpeg(torch.from_numpy(data))
