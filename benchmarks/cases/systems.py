"""Training steps of the systems beside each other.

Each system's preset for HC-STVG v1 on full-size features, or pictures for CoSTA, whose image encoder is a part of it. On a GPU at the
papers' sizes, 8 queries in bfloat16; on a CPU with one query of few small frames.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from benchmarks.case import Case, Floor, Group, Way
from benchmarks.measuring import apart, in_turns, peak_of, profile_torch
from benchmarks.steps import Step, feature_bytes, network_of_size, random_batch
from grounding.loader import Batch
from grounding.recipe import Recipe
from grounding.systems import preset, system_of
from pipeline.config import merge

PRESET = "hcstvg-v1"
PAPER_SHORT = {"csdvl": 320, "cgstvg": 420, "costa": 320}
"""N_short of each paper; CoSTA's states none."""


@dataclass(frozen=True)
class Size:
    """What a step sees: `given` is laid over each system's preset; `short` is N_short of each system."""

    given: dict[str, Any]
    short: dict[str, int]
    video: tuple[int, int] = (1280, 720)
    words: int = 20
    backbones: str = "full"
    """Of a system that is given pictures."""

    @classmethod
    def of(cls, device: str) -> Size:
        """The papers' for a GPU; for a CPU, 12 frames and 4 clips, of 160 pixels."""
        if device == "cuda":
            return cls({"batch": 8, "precision": "bfloat16"}, PAPER_SHORT)
        return cls({"batch": 1, "model": {"frames": 12, "clips": 4}}, dict.fromkeys(PAPER_SHORT, 160))


@dataclass
class Systems(Case):
    """Whole training steps (forward, loss, backward, clipping, optimiser, moving average) of each system's preset `hcstvg-v1` from
    full-size features that are at hand (CoSTA: from pictures, its ResNet-101 trains), against CSDVL's. Memory: what a step takes at
    its peak beyond what there was before it. A query's boxes alone and in a batch of two are checked to be the same first.
    """

    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    size: Size | None = None
    rounds: int = 3
    names: tuple[str, ...] = ("csdvl", "cgstvg", "costa")
    steps: dict[str, tuple[Step, list[Batch]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.sizes = self.size or Size.of(self.device)
        self.precision = self.sizes.given.get("precision", "float32")
        self.steps = {name: step_of(name, self.sizes, self.device) for name in self.names}

    @torch.inference_mode()
    def agree(self) -> None:
        """Systems answer differently, so each is held against itself: a query's boxes alone and beside another are the same."""
        for step, parts in self.steps.values():
            inputs, network = parts[0].inputs, step.state.model.eval()
            alone = type(inputs)(**{name: value[:1] for name, value in vars(inputs).items()})
            beside = type(inputs)(**{name: torch.cat([value[:1]] * 2) for name, value in vars(inputs).items()})
            torch.testing.assert_close(network(alone).boxes[-1, 0], network(beside).boxes[-1, 1], rtol=1e-3, atol=1e-3)

    def measure(self) -> list[Group]:
        peaks = {name: apart(_peak, name, self.sizes, self.device) for name in self.names}  # while this process holds little
        floors = {name: step.floor(parts) for name, (step, parts) in self.steps.items()}  # each has now begun
        ways = {name: partial(step, parts) for name, (step, parts) in self.steps.items()}
        seconds = in_turns(ways, self.rounds, warm=int(self.device == "cuda"))
        title = f"{PRESET}, batch {len(self.steps[self.names[0]][1][0].ids)}"
        return [Group(title, {name: self._way(name, own, floors[name], peaks[name]) for name, own in seconds.items()})]

    def _way(self, name: str, seconds: list[float], floor: Floor, peak: int) -> Way:
        step, parts = self.steps[name]
        about = {"parameters": step.parameters, "feature_bytes": sum(map(feature_bytes, parts)), "sees": _sees(parts[0])}
        return Way(seconds, floor, peak, profile_torch(lambda: step(parts), self.device), about)


def step_of(name: str, size: Size, device: str) -> tuple[Step, list[Batch]]:
    """A system's step with what it is made on; one that is given pictures takes its queries one after the other."""
    config: Recipe = system_of(name).config.model_validate(merge(preset(PRESET, name), _known(name, size)))
    model = config.model
    parts = config.batch if model.pictures else 1
    step = Step(config, network_of_size(config), torch.device(device))
    part = random_batch(model, size.video, size.short[name], size.words, config.batch // parts, torch.device(device))
    return step, [part] * parts


def _known(name: str, size: Size) -> dict[str, Any]:
    """The settings without those of clips where a system answers by frames; CoSTA's words are stored, as the others' are."""
    fields = type(system_of(name).config.model_fields["model"].default).model_fields
    own = {**size.given, "model": {key: value for key, value in size.given.get("model", {}).items() if key in fields}}
    return own | ({"encoders": {"backbones": size.backbones, "image": "random:0", "text": None}} if name == "costa" else {})


def _sees(part: Batch) -> str:
    maps, motion = part.inputs.appearance.shape, part.inputs.motion.shape
    return f"{maps[1]} of {maps[2]}×{maps[3]}" + (f", {motion[1]} of {motion[2]}×{motion[3]}" if motion[1] else "")


def _peak(name: str, size: Size, device: str) -> int:
    step, parts = step_of(name, size, device)
    step(parts)
    return peak_of(lambda: step(parts), device)
