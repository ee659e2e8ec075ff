"""One training step of a system on random features."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.case import LowerBound
from benchmarks.flops import count_flops
from benchmarks.timing import measure_peak_bytes
from grounding.data.collate import to_device
from grounding.data.dataset import FULL_FRAME, SQUARE_MOTION_PRODUCTS
from grounding.data.loader import Batch
from grounding.structures.inputs import ModelInputs
from grounding.structures.targets import Targets
from grounding.systems.config import TrainConfig
from grounding.systems.registry import get_system
from grounding.training.distributed import DistributedContext
from grounding.training.train import train_step
from grounding.training.train_state import TrainState
from pipeline.encoders.appearance import AppearanceEncoder
from pipeline.encoders.image_geometry import compute_appearance_size, picture_in_square
from pipeline.weights.load import load_backbone

CELL_STRIDE = 32
"""Pixels between two cells of appearance maps."""
SLOWFAST_GRID = (16, 16)
"""Rows and columns of SlowFast's maps."""
CHANNELS = {"appearance": 2048, "motion": 2304, "swin": 768, "text": 768}
"""Channels of the full-size backbones."""
PARAMETER_BYTES = 4 * 15
"""Bytes of memory traffic per trainable parameter and step, in float32.

The weight is read four times (forward, backward, optimizer, moving average) and written. The
gradient is written and read, and read and written again by clipping. Two moments and the moving
average are read and written.
"""


class TrainingStep:
    """A network with its optimizer. Each call is one training step on micro-batches.

    Args:
        config: Training config.
        network: The network.
        device: Device of the step.
    """

    def __init__(self, config: TrainConfig, network: nn.Module, device: torch.device) -> None:
        self.config = config
        self.state = TrainState.create(network.to(device), config, 10**6)
        self.distributed = DistributedContext()

    def __call__(self, parts: list[Batch]) -> None:
        """Run one step on micro-batches."""
        train_step(self.state.model, self.state, parts, self.config, self.distributed)

    @property
    def num_parameters(self) -> int:
        """Number of all parameters."""
        return sum(parameter.numel() for parameter in self.state.model.parameters())

    def compute_lower_bound(self, parts: list[Batch]) -> LowerBound:
        """Count the operations and bytes of a step, and run the step to do so.

        Args:
            parts: Micro-batches of the step.

        Returns:
            Operations; bytes of the features, read once, and of the optimizer's traffic.
        """
        num_trainable = sum(
            parameter.numel()
            for parameter in self.state.model.parameters()
            if parameter.requires_grad
        )
        operations = count_flops(lambda: self(parts))
        feature_bytes = sum(count_feature_bytes(part) for part in parts)
        return LowerBound(operations, num_trainable * PARAMETER_BYTES + feature_bytes)


def measure_bound_and_peak(
    step: TrainingStep, parts: list[Batch], device: str
) -> tuple[LowerBound, int]:
    """Measure the lower bound and the peak memory of a step, in a separate process.

    Args:
        step: A step that has not run yet.
        parts: Micro-batches of the step.
        device: `cpu` or `cuda`.

    Returns:
        Lower bound, and bytes at the peak of the second step.
    """
    lower_bound = step.compute_lower_bound(parts)  # runs the first step
    return lower_bound, measure_peak_bytes(lambda: step(parts), device)


def count_feature_bytes(part: Batch) -> int:
    """Sum the bytes of a batch's appearance, motion and text features.

    Args:
        part: The batch.

    Returns:
        Number of bytes.
    """
    return sum(getattr(part.inputs, name).nbytes for name in ("appearance", "motion", "text"))


def build_network(config: TrainConfig, channels: Mapping[str, int] = CHANNELS) -> nn.Module:
    """Build a system's network from a fixed seed.

    A network that reads images gets the image encoder of its config.

    Args:
        config: Training config.
        channels: Channels by product.

    Returns:
        The network.
    """
    torch.manual_seed(0)
    model = config.model
    system = get_system(config.system)

    if not model.uses_images:
        dims = (channels["appearance"], channels[model.motion_product], channels["text"])
        return system.build(dims, model)

    assert config.encoders is not None
    encoders = config.encoders
    image_encoder = load_backbone("appearance", encoders.backbones, encoders.image).encoder
    assert isinstance(image_encoder, AppearanceEncoder)
    dims = (image_encoder.channels, 0, channels["text"])
    return system.build(dims, model, image_encoder, None)


def build_random_batch(  # noqa: PLR0913  (sizes of all inputs)
    model: Any,
    video_size: tuple[int, int],
    short_side: int,
    num_tokens: int,
    batch: int,
    device: torch.device,
    channels: Mapping[str, int] = CHANNELS,
    motion_grid: tuple[int, int] = SLOWFAST_GRID,
    stride: int = CELL_STRIDE,
) -> Batch:
    """Build a batch of random features, or of random images for a network that reads images.

    Args:
        model: Model config.
        video_size: (width, height) of the video in pixels.
        short_side: N_short in pixels.
        num_tokens: Tokens of a sentence.
        batch: Number of queries.
        device: Device of the batch.
        channels: Channels by product.
        motion_grid: Rows and columns of motion maps of the padded square.
        stride: Pixels between two cells of maps in the frame's own shape.

    Returns:
        Inputs and targets on the device.
    """
    # Appearance: cells of the maps, or pixels of the images
    width, height = compute_appearance_size(video_size, short_side)
    if model.uses_images:
        rows, columns = height, width
    else:
        rows, columns = -(-height // stride), -(-width // stride)

    # Motion: cells of the padded square, or of the frame
    motion_cells = (rows, columns)
    square = FULL_FRAME
    if model.motion_product in SQUARE_MOTION_PRODUCTS:
        motion_cells = motion_grid
        square = picture_in_square(video_size)

    num_clips = model.num_clips or model.num_frames
    frame_positions = (torch.arange(model.num_frames) + 0.5) / model.num_frames  # [T_s]
    appearance_shape = (batch, model.num_frames, rows, columns)

    torch.manual_seed(0)
    inputs = ModelInputs(
        appearance=_random_appearance(model, appearance_shape, channels["appearance"]),
        map_size=torch.tensor([[rows, columns]] * batch),
        frame_positions=frame_positions.expand(batch, -1),
        motion=_random_motion(model, (batch, num_clips), motion_cells, channels),
        picture_in_square=torch.tensor([square] * batch),
        text=torch.randn(batch, num_tokens, channels["text"]).half(),
        text_mask=torch.ones(batch, num_tokens, dtype=torch.bool),
    )
    targets = build_middle_half_targets(frame_positions, num_clips, batch)
    query_ids = [f"q{query_index}" for query_index in range(batch)]

    return Batch(to_device(inputs, device), to_device(targets, device), query_ids)


def _random_appearance(model: Any, shape: tuple[int, ...], channels: int) -> Tensor:
    """Return random images `[B, T_s, H, W, 3]` uint8, or maps `[B, T_s, H, W, C]` float16."""
    if model.uses_images:
        return torch.randint(0, 256, (*shape, 3), dtype=torch.uint8)
    return torch.randn(*shape, channels).half()


def _random_motion(
    model: Any, shape: tuple[int, int], cells: tuple[int, int], channels: Mapping[str, int]
) -> Tensor:
    """Return random maps `[B, T_d, H, W, C]` float16, empty for a model without motion."""
    if model.motion_product is None:
        return torch.zeros(shape[0], 0, 1, 1, 0).half()
    return torch.randn(*shape, *cells, channels[model.motion_product]).half()


def build_middle_half_targets(frame_positions: Tensor, num_clips: int, batch: int) -> Targets:
    """Build targets of an event in the middle half of its segment, with one static box.

    Args:
        frame_positions: `[T_s]`, positions of the frames in [0, 1].
        num_clips: Number of clips (T_d).
        batch: Number of queries (B).

    Returns:
        Targets of B equal queries.
    """
    clip_positions = (torch.arange(num_clips) + 0.5) / num_clips  # [T_d]
    box = torch.tensor([0.5, 0.5, 0.2, 0.4])  # cxcywh

    frame_mask = ((frame_positions > 0.25) & (frame_positions < 0.75)).expand(batch, -1)
    clip_mask = ((clip_positions > 0.25) & (clip_positions < 0.75)).expand(batch, -1)

    return Targets(
        boxes=box.expand(batch, len(frame_positions), 4),
        box_mask=frame_mask,
        span=torch.tensor([[0.25, 0.75]] * batch),
        frame_labels=frame_mask.float(),
        clip_labels=clip_mask.float(),
        clip_boxes=box.expand(batch, num_clips, 4),
        clip_box_mask=clip_mask,
    )
