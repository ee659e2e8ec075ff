"""Training steps of all systems, side by side.

Each system's preset for HC-STVG v1 on full-size features, or pictures for CoSTA, whose image
encoder is a part of it: on a GPU 8 queries in bfloat16; on a CPU one without dropout, and without
CoSTA, whose step would take more memory than most machines have, and once more all of them with few
small frames. And each system's preset for `shapes`, as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from benchmarks.case import Case, Comparison, LowerBound, Measurement
from benchmarks.timing import profile_torch, run_in_forked_process, time_interleaved
from benchmarks.training_step import (
    CELL_STRIDE,
    CHANNELS,
    SLOWFAST_GRID,
    TrainingStep,
    build_network,
    build_random_batch,
    count_feature_bytes,
    measure_bound_and_peak,
)
from grounding.data.loader import Batch
from grounding.systems.config import TrainConfig
from grounding.systems.registry import get_preset, get_system
from pipeline.config import merge

PAPER_SHORT_SIDES = {"csdvl": 320, "cgstvg": 420, "costa": 320}
"""N_short of each paper; CoSTA's states none."""


@dataclass(frozen=True)
class SystemsSize:
    """Sizes of the inputs of each system's step.

    `overrides` are merged into each system's preset. `short_sides` is N_short by measured system.
    """

    title: str
    preset: str
    overrides: dict[str, Any]
    short_sides: dict[str, int]
    video_size: tuple[int, int]
    num_tokens: int
    backbones: str
    """Size of the image encoder, for a system that reads images."""
    channels: Mapping[str, int]
    motion_grid: tuple[int, int]
    """Rows and columns of SlowFast's maps."""
    stride: int
    """Pixels between cells of the appearance maps."""
    single_batch: bool = True
    """A system that reads images processes all queries of a step in one micro-batch."""
    rounds: int = 3
    """Number of rounds. Sizes with one round take minutes per step on a CPU and are not checked."""


def get_sizes(device: str) -> tuple[SystemsSize, ...]:
    """Return the sizes for a device.

    Args:
        device: `cpu` or `cuda`.

    Returns:
        The papers' sizes (on a CPU reduced ones too), and that of `make demo`.
    """
    full: dict[str, Any] = {
        "preset": "hcstvg-v1",
        "video_size": (1280, 720),
        "num_tokens": 20,
        "backbones": "full",
    }
    full |= {
        "channels": CHANNELS,
        "motion_grid": SLOWFAST_GRID,
        "stride": CELL_STRIDE,
        "single_batch": False,
    }
    tiny = {"appearance": 128, "motion": 384, "text": 64}
    shapes = SystemsSize(
        "shapes",
        "shapes",
        {},
        dict.fromkeys(PAPER_SHORT_SIDES, 96),
        (160, 96),
        8,
        "tiny",
        tiny,
        (8, 8),
        16,
    )
    if device == "cuda":
        return SystemsSize(
            "hcstvg-v1",
            overrides={"batch": 8, "precision": "bfloat16"},
            short_sides=PAPER_SHORT_SIDES,
            **full,
        ), shapes
    alone = {
        "batch": 1,
        "model": {"dropout": 0.0},
    }  # with dropout a CPU's attention holds all its weights
    paper = SystemsSize(
        "hcstvg-v1, no dropout",
        overrides=alone,
        short_sides={name: PAPER_SHORT_SIDES[name] for name in ("csdvl", "cgstvg")},
        rounds=1,
        **full,
    )
    few = {"batch": 1, "model": {"num_frames": 12, "num_clips": 4}}
    return (
        paper,
        SystemsSize(
            "hcstvg-v1, small",
            overrides=few,
            short_sides=dict.fromkeys(PAPER_SHORT_SIDES, 160),
            **full,
        ),
        shapes,
    )


@dataclass
class Systems(Case):
    """Training steps of all systems, against CSDVL.

    Whole training steps (forward, loss, backward, clipping, optimiser, moving average) of each
    system's presets `hcstvg-v1` and `shapes` from features at hand (CoSTA: from pictures; with
    `hcstvg-v1` its ResNet-101 trains), against CSDVL's. A step is on the preset's own batch.
    Memory: what a step takes at its peak beyond what was there before. A query's boxes alone and in
    a batch of two are checked to be the same first.
    """

    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    sizes: tuple[SystemsSize, ...] = ()
    steps: dict[tuple[str, str], tuple[TrainingStep, list[Batch]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.sizes = self.sizes or get_sizes(self.device)
        self.precision = self.sizes[0].overrides.get("precision", "float32")
        self.steps = {
            (size.title, name): build_step(name, size, self.device)
            for size in self.sizes
            for name in size.short_sides
        }

    @torch.inference_mode()
    def check_agreement(self) -> None:
        """Check that batching leaves each system's boxes unchanged.

        Systems predict different boxes, so each is compared with itself: a query alone, and in a
        batch with a query of other images and fewer tokens.
        """
        checked = [size.title for size in self.sizes if size.rounds > 1] or [self.sizes[-1].title]
        for (title, _), (step, parts) in self.steps.items():
            if title not in checked:
                continue

            inputs, network = parts[0].inputs, step.state.model.eval()
            fields = {name: value[:1] for name, value in vars(inputs).items() if value is not None}
            alone = type(inputs)(**fields)
            other = {
                name: getattr(alone, name).roll(1, 1) for name in ("appearance", "motion", "text")
            }
            other["text_mask"] = alone.text_mask & (
                torch.arange(alone.text.shape[1], device=alone.text.device) > 0
            )
            pair = type(inputs)(
                **{
                    name: torch.cat([value, other.get(name, value)])
                    for name, value in vars(alone).items()
                    if value is not None
                }
            )
            boxes = network(pair).boxes[-1]
            torch.testing.assert_close(network(alone).boxes[-1, 0], boxes[0], rtol=1e-3, atol=1e-3)
            assert not torch.equal(boxes[0], boxes[1])

    def measure(self) -> list[Comparison]:
        """Measure all variants."""
        return [self._measure_size(size) for size in self.sizes]

    def _measure_size(self, size: SystemsSize) -> Comparison:
        """Measure the steps of all systems at one size."""
        # Before this process allocates more
        bounds_and_peaks = {
            name: run_in_forked_process(_measure_bound_and_peak, name, size, self.device)
            for name in size.short_sides
        }

        steps = {name: self.steps[size.title, name] for name in size.short_sides}
        ways = {name: partial(step, parts) for name, (step, parts) in steps.items()}
        tops = {
            name: profile_torch(way, self.device) for name, way in ways.items()
        }  # each has now begun
        seconds = time_interleaved(
            ways,
            size.rounds,
            warmup_rounds=int(self.device == "cuda"),
            untimed_calls=int(size.rounds > 1),
        )
        return Comparison(
            size.title,
            {
                name: Measurement(
                    rounds, *bounds_and_peaks[name], tops[name], _describe_step(*steps[name])
                )
                for name, rounds in seconds.items()
            },
        )


def build_step(name: str, size: SystemsSize, device: str) -> tuple[TrainingStep, list[Batch]]:
    """Build a system's training step and its micro-batches.

    Args:
        name: Name of the system.
        size: Sizes of the inputs.
        device: `cpu` or `cuda`.

    Returns:
        The step, and its micro-batches.
    """
    config: TrainConfig = get_system(name).config_class.model_validate(
        merge(get_preset(size.preset, name), _select_overrides(name, size))
    )
    model = config.model
    parts = config.batch if model.uses_images and not size.single_batch else 1
    step = TrainingStep(config, build_network(config, size.channels), torch.device(device))
    part = build_random_batch(
        model,
        size.video_size,
        size.short_sides[name],
        size.num_tokens,
        config.batch // parts,
        torch.device(device),
        size.channels,
        size.motion_grid,
        size.stride,
    )
    return step, [part] * parts


def _select_overrides(name: str, size: SystemsSize) -> dict[str, Any]:
    """Return the overrides that a system's config has.

    Systems without clips have no clip settings. CoSTA reads stored text features, like the others.
    """
    fields = type(get_system(name).config_class.model_fields["model"].default).model_fields
    overrides = {
        **size.overrides,
        "model": {
            key: value for key, value in size.overrides.get("model", {}).items() if key in fields
        },
    }
    if name == "costa":
        overrides["encoders"] = {"backbones": size.backbones, "image": "random:0", "text": None}

    return overrides


def _describe_step(step: TrainingStep, parts: list[Batch]) -> dict[str, Any]:
    """Return facts of a step for its record."""
    return {
        "parameters": step.num_parameters,
        "feature_bytes": sum(map(count_feature_bytes, parts)),
        "sees": _describe_inputs(parts),
    }


def _describe_inputs(parts: list[Batch]) -> str:
    """Return the batch size and the shapes of the maps, as text."""
    batch, num_frames, height, width, _ = parts[0].inputs.appearance.shape
    _, num_clips, motion_height, motion_width, _ = parts[0].inputs.motion.shape

    shapes = f"{num_frames} of {height}×{width}"
    if num_clips:
        shapes += f", {num_clips} of {motion_height}×{motion_width}"
    return f"batch {len(parts) * batch}: {shapes}"


def _measure_bound_and_peak(name: str, size: SystemsSize, device: str) -> tuple[LowerBound, int]:
    """Return the lower bound and the peak bytes of a system's step."""
    return measure_bound_and_peak(*build_step(name, size, device), device)
