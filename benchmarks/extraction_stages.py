"""The stages of extraction: decoding alone, the encoders alone, and the encoders' shapes alone."""

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
    """Videos of equal size and length, and the encoders that process them.

    Attributes:
        backbones: Size of the encoders, `tiny` or `full`.
        num_videos: Number of videos.
        seconds: Length of each video.
        size: (width, height) in pixels.
        short_side: N_short in pixels.
        device: `cpu` or `cuda`.
        rounds: Number of rounds. The features of the first round are checked.
    """

    backbones: str
    num_videos: int
    seconds: int
    size: tuple[int, int]
    short_side: int
    device: str = "cpu"
    rounds: int = 2

    @property
    def title(self) -> str:
        """Name of the workload on the results page."""
        width, height = self.size
        videos = f"{self.num_videos} videos of {self.seconds} s, {width}×{height}"
        return f"{self.backbones} backbones, {videos}"


def build_config(workload: ExtractionWorkload, workers: int = 0) -> Any:
    """Build the extraction config of a workload, with random weights.

    Args:
        workload: The workload.
        workers: Number of worker processes; 0 for this process alone.

    Returns:
        An `ExtractConfig`.
    """
    from pipeline.extraction.config import ExtractConfig

    settings = {
        "backbones": workload.backbones,
        "products": PRODUCTS,
        "shard_mb": 4 if workload.device == "cpu" else 256,
        "device": workload.device,
        "weights": dict.fromkeys(PRODUCTS, "random:0"),
        "workers": workers,
        "sampling": {"short_side": workload.short_side},
    }
    return ExtractConfig.model_validate(settings)


def run_decoding(paths: list[Path], workload: ExtractionWorkload) -> None:
    """Decode and discard every frame that the products need.

    Args:
        paths: Paths of the videos.
        workload: Workload with the settings.
    """
    from pipeline.features.stream import FeatureStream
    from pipeline.video.process_decoder import ProcessDecoder

    config = build_config(workload)
    encoders = get_encoders(workload)

    with ProcessDecoder() as decoder:
        for path in paths:
            # Frames of all products, each once
            stream = FeatureStream(path, config.sampling, encoders, decoder=decoder)
            builders = stream.builders.values()
            frame_indices = np.unique(
                np.concatenate([builder.frame_indices for builder in builders])
            )

            with decoder.frames(path, stream.metadata, frame_indices) as frames:
                for _ in frames:
                    pass


class StillDecoder:
    """A decoder that repeats the first frame of a video."""

    decoder = "none"
    reason = "benchmark"

    def __init__(self) -> None:
        from pipeline.video import probe

        self.probe = probe

    @contextmanager
    def frames(
        self, path: Path, metadata: Any, frame_indices: np.ndarray
    ) -> Iterator[StillDecoder]:
        """Open a video.

        Args:
            path: Path of the video.
            metadata: The video's metadata.
            frame_indices: Frame indices to yield.

        Yields:
            An iterable of pairs (frame index, first frame `[H, W, 3]`).
        """
        from pipeline.video import open_frames

        with open_frames(path, metadata, [0]) as frames:
            _, self._frame = next(iter(frames))

        self._frame_indices = frame_indices
        yield self

    def __iter__(self) -> Iterator[tuple[int, np.ndarray]]:
        for frame_index in self._frame_indices:
            yield int(frame_index), self._frame


def run_encoders(paths: list[Path], workload: ExtractionWorkload) -> None:
    """Resize frames and run the encoders, without decoding.

    Args:
        paths: Paths of the videos.
        workload: Workload with the settings.
    """
    _run_stream(paths, workload, get_encoders(workload))


def count_video_flops(path: Path, workload: ExtractionWorkload) -> float:
    """Count the operations of the encoders on one video, computing shapes alone.

    The encoders are not optimized for inference, because oneDNN's convolutions cannot run on
    shapes.

    Args:
        path: Path of the video.
        workload: Workload with the settings.

    Returns:
        Number of floating point operations.
    """
    from pipeline.extraction.config import get_weight_source
    from pipeline.weights.load import load_backbone

    config = build_config(workload)
    shape_encoders = {}
    for name in config.products:
        source = get_weight_source(name, config)
        encoder = load_backbone(name, workload.backbones, source).encoder
        shape_encoders[name] = ShapeOnlyModule(encoder)

    return count_flops(partial(_run_stream, [path], workload, shape_encoders))


def get_encoders(workload: ExtractionWorkload) -> dict[str, nn.Module]:
    """Return the encoders of the products, which a process builds once.

    Args:
        workload: Workload with the settings.

    Returns:
        Encoders by product.
    """
    from pipeline.extraction.shard_task import get_encoder

    config = build_config(workload)
    return {name: get_encoder(name, config) for name in config.products}


def _run_stream(
    paths: list[Path], workload: ExtractionWorkload, encoders: Mapping[str, nn.Module]
) -> None:
    """Compute and discard the features of repeated first frames."""
    from pipeline.features.stream import FeatureStream

    config = build_config(workload)
    for path in paths:
        decoder: Any = StillDecoder()
        for _ in FeatureStream(path, config.sampling, encoders, config.batch_size, decoder):
            pass


class ShapeOnlyModule(nn.Module):
    """An encoder that returns zeros of the right shape.

    Args:
        network: The encoder to replace; it moves to the meta device.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        # Callers send inputs to the device of the parameters: to the CPU.
        self.device_anchor = nn.Parameter(torch.zeros(()), requires_grad=False)
        self.network = network.to("meta")

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("network"), name)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return zeros of the output's shape.

        Args:
            inputs: Inputs of the encoder.
        """
        return torch.zeros(self.network(inputs.to("meta")).shape)


def extract_per_product(paths: list[Path], workload: ExtractionWorkload, folder: str) -> None:
    """Extract features in one decode pass per product, decoding and encoding in this process.

    Args:
        paths: Paths of the videos.
        workload: Workload with the settings.
        folder: Folder of the results, `PRODUCT/VIDEO.npy`.
    """
    from pipeline.features.stream import extract_video

    config = build_config(workload)
    for product, encoder in get_encoders(workload).items():
        product_dir = Path(folder) / product
        product_dir.mkdir(parents=True, exist_ok=True)

        for path in paths:
            features = extract_video(path, config.sampling, {product: encoder}, config.batch_size)
            rows, _ = features.products[product]
            np.save(product_dir / f"{path.stem}.npy", rows)
