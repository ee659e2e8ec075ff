"""The parts of an extraction, each alone: decoding, the networks, and the networks' shapes without
their numbers.
"""

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

from benchmarks.flops import count_flops

PRODUCTS = ("appearance", "motion")


@dataclass(frozen=True)
class ExtractionWorkload:
    """`videos` clips of `seconds`, `size` (width, height) pixels, through backbones of one size;
    `short` is N_short.
    """

    backbones: str
    num_videos: int
    seconds: int
    size: tuple[int, int]
    short_side: int
    device: str = "cpu"
    rounds: int = 2
    """The first of them is also the one whose features are checked."""

    @property
    def title(self) -> str:
        return f"{self.backbones} backbones, {self.num_videos} videos of {self.seconds} s, {self.size[0]}×{self.size[1]}"


def build_config(workload: ExtractionWorkload, workers: int = 0) -> Any:
    from pipeline.extraction.config import ExtractConfig

    given = {
        "backbones": workload.backbones,
        "products": PRODUCTS,
        "shard_mb": 4 if workload.device == "cpu" else 256,
        "device": workload.device,
    }
    weights = dict.fromkeys(PRODUCTS, "random:0")
    return ExtractConfig.model_validate(
        {
            **given,
            "weights": weights,
            "workers": workers,
            "sampling": {"short_side": workload.short_side},
        }
    )


def run_decoding(paths: list[Path], workload: ExtractionWorkload) -> None:
    """Every frame that the products need, decoded and dropped."""
    from pipeline.features.stream import FeatureStream
    from pipeline.video.process_decoder import ProcessDecoder

    settings, encoders = build_config(workload), get_encoders(workload)
    with ProcessDecoder() as child:
        for path in paths:
            stream = FeatureStream(path, settings.sampling, encoders, decoder=child)
            wanted = np.unique(
                np.concatenate([maker.frame_indices for maker in stream.builders.values()])
            )
            with child.frames(path, stream.video_metadata, wanted) as frames:
                for _ in frames:
                    pass


class StillDecoder:
    """Stands in for a decoder: the first picture again and again."""

    decoder, reason = "none", "benchmark"

    def __init__(self) -> None:
        from pipeline.video import probe

        self.probe = probe

    @contextmanager
    def frames(
        self, path: Path, metadata: Any, frame_indices: np.ndarray
    ) -> Iterator[StillDecoder]:
        from pipeline.video import open_frames

        with open_frames(path, metadata, [0]) as frames:
            self._frame = next(iter(frames))[1]
        self._frame_indices = frame_indices
        yield self

    def __iter__(self) -> Iterator[tuple[int, np.ndarray]]:
        return ((int(number), self._frame) for number in self._frame_indices)


def run_encoders(paths: list[Path], workload: ExtractionWorkload) -> None:
    """Resizing and both networks, with pictures at hand."""
    _run_stream(paths, workload, get_encoders(workload))


def count_video_flops(path: Path, workload: ExtractionWorkload) -> float:
    """Of the networks on one of the videos, counted without computing anything but shapes: on
    networks as they are loaded, for oneDNN's convolutions must compute.
    """
    from pipeline.extraction.config import get_weight_source
    from pipeline.weights.load import load_backbone

    settings = build_config(workload)
    shapes = {
        name: ShapeOnlyModule(
            load_backbone(name, workload.backbones, get_weight_source(name, settings)).encoder
        )
        for name in settings.products
    }
    return count_flops(partial(_run_stream, [path], workload, shapes))


def get_encoders(workload: ExtractionWorkload) -> dict[str, nn.Module]:
    """The networks, which a process makes once."""
    from pipeline.extraction.shard_task import get_encoder

    settings = build_config(workload)
    return {name: get_encoder(name, settings) for name in settings.products}


def _run_stream(
    paths: list[Path], clips: ExtractionWorkload, encoders: Mapping[str, nn.Module]
) -> None:
    from pipeline.features.stream import FeatureStream

    settings = build_config(clips)
    for path in paths:
        for _ in FeatureStream(path, settings.sampling, encoders, settings.batch, StillDecoder()):  # type: ignore[arg-type]
            pass


class ShapeOnlyModule(nn.Module):
    """Stands in for a network: gives zeros of the shape of what it would make."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.device_anchor = nn.Parameter(
            torch.zeros(()), requires_grad=False
        )  # on the CPU, where its pictures are to be
        self.network = network.to("meta")

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("network"), name)

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.zeros(self.network(inputs.to("meta")).shape)


def extract_per_product(paths: list[Path], workload: ExtractionWorkload, folder: str) -> None:
    """One decode pass per product, in the same process as the network, one file per video and
    product.
    """
    from pipeline.features.stream import extract_video

    settings = build_config(workload)
    for product, encoder in get_encoders(workload).items():
        (Path(folder) / product).mkdir(parents=True, exist_ok=True)
        for path in paths:
            rows, _ = extract_video(
                path, settings.sampling, {product: encoder}, settings.batch
            ).products[product]
            np.save(Path(folder) / product / f"{path.stem}.npy", rows)
