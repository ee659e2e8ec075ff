"""The parts of an extraction, each alone: decoding, the networks, and the networks' shapes without their numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.flops import operations_of

PRODUCTS = ("appearance", "motion")


@dataclass(frozen=True)
class Clips:
    """`videos` clips of `seconds`, `size` (width, height) pixels, through backbones of one size; `short` is N_short."""

    backbones: str
    videos: int
    seconds: int
    size: tuple[int, int]
    short: int
    device: str = "cpu"
    rounds: int = 2
    """The first of them is also the one whose features are checked."""

    @property
    def title(self) -> str:
        return f"{self.backbones} backbones, {self.videos} videos of {self.seconds} s, {self.size[0]}×{self.size[1]}"


def config(clips: Clips, workers: int = 0) -> Any:
    from pipeline.extraction.config import ExtractConfig

    given = {"backbones": clips.backbones, "products": PRODUCTS, "shard_mb": 4 if clips.device == "cpu" else 256, "device": clips.device}
    weights = dict.fromkeys(PRODUCTS, "random:0")
    return ExtractConfig.model_validate({**given, "weights": weights, "workers": workers, "sampling": {"short": clips.short}})


def decode_alone(paths: list[Path], clips: Clips) -> None:
    """Every frame that the products need, decoded and dropped."""
    from pipeline.features.stream import FeatureStream
    from pipeline.video.process_decoder import DecodeChild

    settings, encoders = config(clips), encoders_of(clips)
    with DecodeChild() as child:
        for path in paths:
            stream = FeatureStream(path, settings.sampling, encoders, decoder=child)
            wanted = np.unique(np.concatenate([maker.wanted for maker in stream.makers.values()]))
            with child.frames(path, stream.video, wanted) as frames:
                for _ in frames:
                    pass


class Still:
    """Stands in for a decoder: the first picture again and again."""

    decoder, reason = "none", "benchmark"

    def __init__(self) -> None:
        from pipeline.video import probe

        self.probe = probe

    @contextmanager
    def frames(self, path: Path, facts: Any, wanted: np.ndarray) -> Iterator[Still]:
        from pipeline.video import open_frames

        with open_frames(path, facts, [0]) as frames:
            self._picture = next(iter(frames))[1]
        self._wanted = wanted
        yield self

    def __iter__(self) -> Iterator[tuple[int, np.ndarray]]:
        return ((int(number), self._picture) for number in self._wanted)


def networks_alone(paths: list[Path], clips: Clips) -> None:
    """Resizing and both networks, with pictures at hand."""
    _see(paths, clips, encoders_of(clips))


def operations_each(path: Path, clips: Clips) -> float:
    """Of the networks on one of the videos, counted without computing anything but shapes: on networks as they are loaded, for oneDNN's
    convolutions must compute."""
    from pipeline.extraction.config import source_of
    from pipeline.weights.load import load_backbone

    settings = config(clips)
    shapes = {name: OnlyShapes(load_backbone(name, clips.backbones, source_of(name, settings)).encoder) for name in settings.products}
    return operations_of(partial(_see, [path], clips, shapes))


def encoders_of(clips: Clips) -> dict[str, nn.Module]:
    """The networks, which a process makes once."""
    from pipeline.extraction.shard_task import encoder_of

    settings = config(clips)
    return {name: encoder_of(name, settings) for name in settings.products}


def _see(paths: list[Path], clips: Clips, encoders: Mapping[str, nn.Module]) -> None:
    from pipeline.features.stream import FeatureStream

    settings = config(clips)
    for path in paths:
        for _ in FeatureStream(path, settings.sampling, encoders, settings.batch, Still()):  # type: ignore[arg-type]
            pass


class OnlyShapes(nn.Module):
    """Stands in for a network: gives zeros of the shape of what it would make."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.here = nn.Parameter(torch.zeros(()), requires_grad=False)  # on the CPU, where its pictures are to be
        self.network = network.to("meta")

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("network"), name)

    def forward(self, seen: Tensor) -> Tensor:
        return torch.zeros(self.network(seen.to("meta")).shape)


def usual_way(paths: list[Path], clips: Clips, folder: str) -> None:
    """One decode pass per product, in the same process as the network, one file per video and product."""
    from pipeline.features.stream import extract_video

    settings = config(clips)
    for product, encoder in encoders_of(clips).items():
        (Path(folder) / product).mkdir(parents=True, exist_ok=True)
        for path in paths:
            rows, _ = extract_video(path, settings.sampling, {product: encoder}, settings.batch).products[product]
            np.save(Path(folder) / product / f"{path.stem}.npy", rows)
