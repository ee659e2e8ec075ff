"""Training steps of the systems beside each other.

Each system's preset for HC-STVG v1 on full-size features, or pictures for CoSTA, whose image encoder is a part of it: on a GPU 8 queries
in bfloat16; on a CPU one without dropout, and without CoSTA, whose step would take more memory than most machines have, and once more
all of them with few small frames. And each system's preset for `shapes`, as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from benchmarks.case import Case, Floor, Group, Way
from benchmarks.timing import branched, in_turns, profile_torch
from benchmarks.training_step import CHANNELS, SLOWFAST, STRIDE, Step, feature_bytes, floor_and_peak, network_of_size, random_batch
from grounding.data.loader import Batch
from grounding.systems.config import Recipe
from grounding.systems.registry import preset, system_of
from pipeline.config import merge

PAPER_SHORT = {"csdvl": 320, "cgstvg": 420, "costa": 320}
"""N_short of each paper; CoSTA's states none."""


@dataclass(frozen=True)
class Size:
    """What steps see: `given` is laid over each system's preset; `short` is N_short of each system that is measured."""

    title: str
    preset: str
    given: dict[str, Any]
    short: dict[str, int]
    video: tuple[int, int]
    words: int
    backbones: str
    """Of a system that is given pictures."""
    channels: Mapping[str, int]
    square: tuple[int, int]
    """Rows and columns of SlowFast's maps."""
    stride: int
    """Pixels between cells of the appearance maps."""
    together: bool = True
    """A system that is given pictures takes a step's queries at once, and not one after the other."""
    rounds: int = 3
    """Of one, a CPU takes minutes for each step: there the systems are not checked again at this size."""


def sizes_for(device: str) -> tuple[Size, ...]:
    """Of the papers, for a CPU less of them, and what `make demo` trains on."""
    full: dict[str, Any] = {"preset": "hcstvg-v1", "video": (1280, 720), "words": 20, "backbones": "full"}
    full |= {"channels": CHANNELS, "square": SLOWFAST, "stride": STRIDE, "together": False}
    tiny = {"appearance": 128, "motion": 384, "text": 64}
    shapes = Size("shapes", "shapes", {}, dict.fromkeys(PAPER_SHORT, 96), (160, 96), 8, "tiny", tiny, (8, 8), 16)
    if device == "cuda":
        return Size("hcstvg-v1", given={"batch": 8, "precision": "bfloat16"}, short=PAPER_SHORT, **full), shapes
    alone = {"batch": 1, "model": {"dropout": 0.0}}  # with dropout a CPU's attention holds all its weights
    paper = Size("hcstvg-v1, no dropout", given=alone, short={name: PAPER_SHORT[name] for name in ("csdvl", "cgstvg")}, rounds=1, **full)
    few = {"batch": 1, "model": {"frames": 12, "clips": 4}}
    return paper, Size("hcstvg-v1, small", given=few, short=dict.fromkeys(PAPER_SHORT, 160), **full), shapes


@dataclass
class Systems(Case):
    """Whole training steps (forward, loss, backward, clipping, optimiser, moving average) of each system's presets `hcstvg-v1` and `shapes`
    from features at hand (CoSTA: from pictures; with `hcstvg-v1` its ResNet-101 trains), against CSDVL's. A step is on the preset's
    own batch. Memory: what a step takes at its peak beyond what was there before. A query's boxes alone and in a batch of two are checked
    to be the same first.
    """

    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    sizes: tuple[Size, ...] = ()
    steps: dict[tuple[str, str], tuple[Step, list[Batch]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.sizes = self.sizes or sizes_for(self.device)
        self.precision = self.sizes[0].given.get("precision", "float32")
        self.steps = {(size.title, name): step_of(name, size, self.device) for size in self.sizes for name in size.short}

    @torch.inference_mode()
    def agree(self) -> None:
        """Systems answer differently, so each is held against itself: a query's boxes alone and beside another, of other pictures and
        fewer words, are the same."""
        checked = [size.title for size in self.sizes if size.rounds > 1] or [self.sizes[-1].title]
        for step, parts in (own for (title, _), own in self.steps.items() if title in checked):
            inputs, network = parts[0].inputs, step.state.model.eval()
            held = {name: value[:1] for name, value in vars(inputs).items() if value is not None}
            alone = type(inputs)(**held)
            other = {name: getattr(alone, name).roll(1, 1) for name in ("appearance", "motion", "text")}
            other["text_mask"] = alone.text_mask & (torch.arange(alone.text.shape[1], device=alone.text.device) > 0)
            beside = type(inputs)(
                **{name: torch.cat([value, other.get(name, value)]) for name, value in vars(alone).items() if value is not None}
            )
            boxes = network(beside).boxes[-1]
            torch.testing.assert_close(network(alone).boxes[-1, 0], boxes[0], rtol=1e-3, atol=1e-3)
            assert not torch.equal(boxes[0], boxes[1])

    def measure(self) -> list[Group]:
        return [self._group(size) for size in self.sizes]

    def _group(self, size: Size) -> Group:
        least = {name: branched(_floor_and_peak, name, size, self.device) for name in size.short}  # while this process holds little
        steps = {name: self.steps[size.title, name] for name in size.short}
        ways = {name: partial(step, parts) for name, (step, parts) in steps.items()}
        tops = {name: profile_torch(way, self.device) for name, way in ways.items()}  # each has now begun
        seconds = in_turns(ways, size.rounds, warm=int(self.device == "cuda"), settle=int(size.rounds > 1))
        return Group(size.title, {name: Way(own, *least[name], tops[name], _about(*steps[name])) for name, own in seconds.items()})


def step_of(name: str, size: Size, device: str) -> tuple[Step, list[Batch]]:
    """A system's step with what it is made on."""
    config: Recipe = system_of(name).config.model_validate(merge(preset(size.preset, name), _known(name, size)))
    model = config.model
    parts = config.batch if model.pictures and not size.together else 1
    step = Step(config, network_of_size(config, size.channels), torch.device(device))
    part = random_batch(
        model,
        size.video,
        size.short[name],
        size.words,
        config.batch // parts,
        torch.device(device),
        size.channels,
        size.square,
        size.stride,
    )
    return step, [part] * parts


def _known(name: str, size: Size) -> dict[str, Any]:
    """The settings without those of clips where a system answers by frames; CoSTA's words are stored, as the others' are."""
    fields = type(system_of(name).config.model_fields["model"].default).model_fields
    own = {**size.given, "model": {key: value for key, value in size.given.get("model", {}).items() if key in fields}}
    return own | ({"encoders": {"backbones": size.backbones, "image": "random:0", "text": None}} if name == "costa" else {})


def _about(step: Step, parts: list[Batch]) -> dict[str, Any]:
    return {"parameters": step.parameters, "feature_bytes": sum(map(feature_bytes, parts)), "sees": _sees(parts)}


def _sees(parts: list[Batch]) -> str:
    maps, motion = parts[0].inputs.appearance.shape, parts[0].inputs.motion.shape
    seen = f"{maps[1]} of {maps[2]}×{maps[3]}" + (f", {motion[1]} of {motion[2]}×{motion[3]}" if motion[1] else "")
    return f"batch {len(parts) * maps[0]}: {seen}"


def _floor_and_peak(name: str, size: Size, device: str) -> tuple[Floor, int]:
    return floor_and_peak(*step_of(name, size, device), device)
