"""Training steps of the systems beside each other.

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
    """What steps see: `given` is laid over each system's preset; `short` is N_short of each system
    that is measured.
    """

    title: str
    preset: str
    overrides: dict[str, Any]
    short_sides: dict[str, int]
    video_size: tuple[int, int]
    num_tokens: int
    backbones: str
    """Of a system that is given pictures."""
    channels: Mapping[str, int]
    motion_grid: tuple[int, int]
    """Rows and columns of SlowFast's maps."""
    stride: int
    """Pixels between cells of the appearance maps."""
    single_batch: bool = True
    """A system that is given pictures takes a step's queries at once, and not one after the other.
    """
    rounds: int = 3
    """Of one, a CPU takes minutes for each step: there the systems are not checked again at this
    size.
    """


def get_sizes(device: str) -> tuple[SystemsSize, ...]:
    """Of the papers, for a CPU less of them, and what `make demo` trains on."""
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
        """Systems answer differently, so each is held against itself: a query's boxes alone and beside another, of other pictures and
        fewer words, are the same.
        """
        checked = [size.title for size in self.sizes if size.rounds > 1] or [self.sizes[-1].title]
        for step, parts in (own for (title, _), own in self.steps.items() if title in checked):
            inputs, network = parts[0].inputs, step.state.model.eval()
            held = {name: value[:1] for name, value in vars(inputs).items() if value is not None}
            alone = type(inputs)(**held)
            other = {
                name: getattr(alone, name).roll(1, 1) for name in ("appearance", "motion", "text")
            }
            other["text_mask"] = alone.text_mask & (
                torch.arange(alone.text.shape[1], device=alone.text.device) > 0
            )
            beside = type(inputs)(
                **{
                    name: torch.cat([value, other.get(name, value)])
                    for name, value in vars(alone).items()
                    if value is not None
                }
            )
            boxes = network(beside).boxes[-1]
            torch.testing.assert_close(network(alone).boxes[-1, 0], boxes[0], rtol=1e-3, atol=1e-3)
            assert not torch.equal(boxes[0], boxes[1])

    def measure(self) -> list[Comparison]:
        """Measure all variants."""
        return [self._measure_size(size) for size in self.sizes]

    def _measure_size(self, size: SystemsSize) -> Comparison:
        least = {
            name: run_in_forked_process(_measure_bound_and_peak, name, size, self.device)
            for name in size.short_sides
        }  # while this process holds little
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
                name: Measurement(own, *least[name], tops[name], _describe_step(*steps[name]))
                for name, own in seconds.items()
            },
        )


def build_step(name: str, size: SystemsSize, device: str) -> tuple[TrainingStep, list[Batch]]:
    """A system's step with what it is made on."""
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
    """The settings without those of clips where a system answers by frames; CoSTA's words are
    stored, as the others' are.
    """
    fields = type(get_system(name).config_class.model_fields["model"].default).model_fields
    own = {
        **size.overrides,
        "model": {
            key: value for key, value in size.overrides.get("model", {}).items() if key in fields
        },
    }
    return own | (
        {"encoders": {"backbones": size.backbones, "image": "random:0", "text": None}}
        if name == "costa"
        else {}
    )


def _describe_step(step: TrainingStep, parts: list[Batch]) -> dict[str, Any]:
    return {
        "parameters": step.num_parameters,
        "feature_bytes": sum(map(count_feature_bytes, parts)),
        "sees": _describe_inputs(parts),
    }


def _describe_inputs(parts: list[Batch]) -> str:
    maps, motion = parts[0].inputs.appearance.shape, parts[0].inputs.motion.shape
    seen = f"{maps[1]} of {maps[2]}×{maps[3]}" + (
        f", {motion[1]} of {motion[2]}×{motion[3]}" if motion[1] else ""
    )
    return f"batch {len(parts) * maps[0]}: {seen}"


def _measure_bound_and_peak(name: str, size: SystemsSize, device: str) -> tuple[LowerBound, int]:
    return measure_bound_and_peak(*build_step(name, size, device), device)
