"""One training step of a system on random features, for the cases that measure steps."""

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

CELL_STRIDE, SLOWFAST_GRID = 32, (16, 16)
CHANNELS = {"appearance": 2048, "motion": 2304, "swin": 768, "text": 768}
"""Of the full-size backbones."""
PARAMETER_BYTES = 4 * 15
"""Of each that learns, in float32: its weight is read four times (forward, backward, optimiser,
moving average) and written, its gradient written and read, and read and written once more by
clipping, its two moments and its moving average read and written.
"""


class TrainingStep:
    """A network with its optimiser; each call is one training step on `parts`."""

    def __init__(self, config: TrainConfig, network: nn.Module, device: torch.device) -> None:
        self.config, self.state, self.distributed = (
            config,
            TrainState.create(network.to(device), config, 10**6),
            DistributedContext(),
        )

    def __call__(self, parts: list[Batch]) -> None:
        train_step(self.state.model, self.state, parts, self.config, self.distributed)

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.state.model.parameters())

    def compute_lower_bound(self, parts: list[Batch]) -> LowerBound:
        """Of a step on these: its operations; its features read once, and what the optimiser does
        with each parameter that learns.
        """
        learning = sum(
            parameter.numel()
            for parameter in self.state.model.parameters()
            if parameter.requires_grad
        )
        return LowerBound(
            count_flops(lambda: self(parts)),
            learning * PARAMETER_BYTES + sum(count_feature_bytes(part) for part in parts),
        )


def measure_bound_and_peak(
    step: TrainingStep, parts: list[Batch], device: str
) -> tuple[LowerBound, int]:
    """Of a step that is made for the first time, in a process of its own: the peak is that of the
    second.
    """
    floor = step.compute_lower_bound(parts)  # a whole step
    return floor, measure_peak_bytes(lambda: step(parts), device)


def count_feature_bytes(part: Batch) -> int:
    """Bytes of a batch's appearance, motion and words."""
    return sum(getattr(part.inputs, name).nbytes for name in ("appearance", "motion", "text"))


def build_network(config: TrainConfig, channels: Mapping[str, int] = CHANNELS) -> nn.Module:
    """A system's network for features of these channels, from a seed; one that is given pictures
    has the image encoder of its recipe.
    """
    torch.manual_seed(0)
    model = config.model
    if not model.uses_images:
        return get_system(config.system).build(
            (channels["appearance"], channels[model.motion_product], channels["text"]), model
        )
    assert config.encoders is not None
    image = load_backbone("appearance", config.encoders.backbones, config.encoders.image).encoder
    assert isinstance(image, AppearanceEncoder)
    return get_system(config.system).build(
        (image.channels, 0, channels["text"]), model, image, None
    )


def build_random_batch(
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
    """Random features (of a network that is given pictures: pictures) of a `video` (width, height)
    at N_short; `square` are the rows and columns of maps of the padded square, `stride` the pixels
    between cells of a picture's own.
    """
    width, height = compute_appearance_size(video_size, short_side)
    rows, columns = (
        (height, width) if model.uses_images else (-(-height // stride), -(-width // stride))
    )
    clips = model.num_clips or model.frames
    tau = (torch.arange(model.num_frames) + 0.5) / model.frames
    torch.manual_seed(0)
    inputs = ModelInputs(
        appearance=_random_appearance(
            model, (batch, model.num_frames, rows, columns), channels["appearance"]
        ),
        map_size=torch.tensor([[rows, columns]] * batch),
        frame_positions=tau.expand(batch, -1),
        motion=_random_motion(
            model,
            (batch, clips),
            motion_grid if model.motion_product in SQUARE_MOTION_PRODUCTS else (rows, columns),
            channels,
        ),
        picture_in_square=torch.tensor(
            [
                picture_in_square(video_size)
                if model.motion_product in SQUARE_MOTION_PRODUCTS
                else FULL_FRAME
            ]
            * batch
        ),
        text=torch.randn(batch, num_tokens, channels["text"]).half(),
        text_mask=torch.ones(batch, num_tokens, dtype=torch.bool),
    )
    return Batch(
        to_device(inputs, device),
        to_device(build_middle_half_targets(tau, clips, batch), device),
        [f"q{number}" for number in range(batch)],
    )


def _random_appearance(model: Any, shape: tuple[int, ...], channels: int) -> Tensor:
    if model.uses_images:
        return torch.randint(0, 256, (*shape, 3), dtype=torch.uint8)
    return torch.randn(*shape, channels).half()


def _random_motion(
    model: Any, shape: tuple[int, int], cells: tuple[int, int], channels: Mapping[str, int]
) -> Tensor:
    if model.motion_product is None:
        return torch.zeros(shape[0], 0, 1, 1, 0).half()
    return torch.randn(*shape, *cells, channels[model.motion_product]).half()


def build_middle_half_targets(frame_positions: Tensor, num_clips: int, batch: int) -> Targets:
    """Targets of an event that takes the middle half of its segment, with one box that stands
    still.
    """
    at, box = (torch.arange(num_clips) + 0.5) / num_clips, torch.tensor([0.5, 0.5, 0.2, 0.4])
    inside, inside_clips = (
        ((place > 0.25) & (place < 0.75)).expand(batch, -1) for place in (frame_positions, at)
    )
    return Targets(
        boxes=box.expand(batch, len(frame_positions), 4),
        box_mask=inside,
        span=torch.tensor([[0.25, 0.75]] * batch),
        frame_labels=inside.float(),
        clip_labels=inside_clips.float(),
        clip_boxes=box.expand(batch, num_clips, 4),
        clip_box_mask=inside_clips,
    )
