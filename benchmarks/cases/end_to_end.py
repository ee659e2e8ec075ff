"""The headline: a training step of CSDVL from the store, against the same network fed by its backbones in every step.

ResNet-101 sees the frames and SlowFast the clips of every query of every step: frozen, as a run without a store would have it, and with
the image encoder training, as the paper and its peers do. The words' states are stored in all of them.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.case import Case, Floor, Group, Way
from benchmarks.synthetic_data import fill_store, make_queries
from benchmarks.timing import branched, in_turns, profile_torch
from benchmarks.training_step import CHANNELS, Step, floor_and_peak, network_of_size
from grounding.data.dataset import FeatureSet
from grounding.data.loader import Batch, Loader
from grounding.modules.freezing import tune
from grounding.structures.inputs import Inputs
from grounding.systems.config import TrainConfig
from grounding.systems.registry import preset
from pipeline.config import merge
from pipeline.encoders.image_geometry import appearance_size
from pipeline.encoders.optimize import frozen
from pipeline.store import Entry
from pipeline.weights.load import load_backbone

EVERY = 5
"""Frames of the video from one stored map to the next."""
TOGETHER = {"image": 16, "motion": 4}
"""Pictures and clips that go through a frozen backbone at once, as in extraction."""


@dataclass(frozen=True)
class Size:
    """`given` is laid over the preset `hcstvg-v1`; N_short and the sides of the clips are in pixels; the sentence has `words` tokens."""

    given: dict[str, Any]
    short: int
    video: tuple[int, int] = (1280, 720)
    clip: tuple[int, int] = (32, 256)
    words: int = 20
    backbones: str = "full"

    @classmethod
    def of(cls, device: str) -> Size:
        """The paper's for a GPU (8 queries, bfloat16); for a CPU one query, of a quarter of the frames and clips."""
        if device == "cuda":
            return cls({"batch": 8, "precision": "bfloat16"}, 320)
        return cls({"batch": 1, "model": {"frames": 12, "clips": 4}}, 320)


@dataclass
class Raw:
    """What the backbones see of every video: pictures `[T_s, h, w, 3]`, clips `[T_d, 3, frames, side, side]` uint8, and words."""

    pictures: Tensor
    clips: Tensor
    words: np.ndarray

    @classmethod
    def of(cls, size: Size, config: TrainConfig) -> Raw:
        torch.manual_seed(0)
        width, height = appearance_size(size.video, size.short)
        frames, side = size.clip
        pictures = torch.randint(0, 256, (config.model.frames, height, width, 3), dtype=torch.uint8)
        clips = torch.randint(0, 256, (config.model.clips, 3, frames, side, side), dtype=torch.uint8)
        return cls(pictures, clips, torch.randn(size.words, CHANNELS["text"]).half().numpy())

    def turned(self, number: int) -> Raw:
        """Another video: the same moments, in another order."""
        return Raw(self.pictures.roll(number, 0), self.clips.roll(number, 0), self.words)


class Fed(nn.Module):
    """CSDVL with its backbones before it, of which the image encoder `learns`. Given pictures for maps, and clips
    `[B, T_d, 3, frames, side, side]` for motion maps."""

    def __init__(self, network: nn.Module, image: nn.Module, motion: nn.Module, learns: bool) -> None:
        super().__init__()
        self.network, self.image, self.motion, self.learns = network, image, motion, learns
        tune(image, learns)  # type: ignore[arg-type]

    def train(self, mode: bool = True) -> Fed:
        """The backbones' norms keep their statistics."""
        super().train(mode)
        self.image.eval()
        self.motion.eval()
        return self

    def forward(self, inputs: Inputs) -> Any:
        pictures = inputs.appearance.permute(0, 1, 4, 2, 3)
        maps = _encoded(self.image, pictures, TOGETHER["image"], self.learns)
        clips = _encoded(self.motion, inputs.motion, TOGETHER["motion"], False)
        size = torch.tensor([maps.shape[2:4]] * len(maps), device=maps.device)
        return self.network(replace(inputs, appearance=maps, motion=clips, map_size=size))


def _encoded(encoder: nn.Module, seen: Tensor, together: int, learns: bool) -> Tensor:
    """What a backbone makes of `[B, T, …]`, a few at once, in float16 where it is frozen, as the store would hold it."""
    with torch.set_grad_enabled(learns and torch.is_grad_enabled()):
        made = torch.cat([encoder(part) for part in seen.flatten(0, 1).split(together)]).unflatten(0, seen.shape[:2])
    return made if learns else made.half()


WAYS = {
    "from the store": None,
    "ResNet-101 and SlowFast frozen": (False, False),
    "both frozen, as extraction runs them": (False, True),
    "ResNet-101 trains, SlowFast frozen": (True, False),
}
"""Whether the image encoder learns, and whether the backbones are made quick by `pipeline.encoders.optimize`."""


class Fixture:
    """The network, its backbones and the batches of every way; `store` holds what the backbones make of the pictures."""

    def __init__(self, size: Size, device: str) -> None:
        self.size, self.device = size, torch.device(device)
        settings = merge(preset("hcstvg-v1"), size.given)
        self.config = TrainConfig.model_validate(settings)
        self.raw = Raw.of(size, self.config)
        loaded = {name: load_backbone(name, size.backbones, "random:0").encoder.to(self.device) for name in ("appearance", "motion")}
        self.image, self.motion = loaded.values()
        self.network = network_of_size(self.config, CHANNELS | {name: encoder.channels for name, encoder in loaded.items()})
        self.queries = make_queries([f"v{number:03}" for number in range(self.config.batch)], self.config.model.frames * EVERY, size.video)

    @torch.inference_mode()
    def fill(self, store: Path) -> None:
        """Extraction in short: every video's maps and clips, in float16."""
        maps = _encoded(self.image, self.raw.pictures.permute(0, 3, 1, 2)[None].to(self.device), TOGETHER["image"], False)[0].cpu().numpy()
        clips = _encoded(self.motion, self.raw.clips[None].to(self.device), TOGETHER["motion"], False)[0].cpu().numpy()
        rows = {"appearance": maps, "motion": clips}
        fill_store(store, self.queries, {**{name: self._entries(name, own) for name, own in rows.items()}, "text": self._words()})

    def _entries(self, name: str, rows: np.ndarray) -> Iterator[Entry]:
        query = self.queries[0]
        frames = (np.arange(len(rows)) + 0.5) / len(rows) * query.frame_count
        facts = {"size": list(query.size), "fps": query.fps, "frame_count": query.frame_count}
        for number, own in enumerate(self.queries):
            yield Entry(own.video, own.video, np.roll(rows, number, 0), {"frame": frames.astype(np.int64)}, facts)

    def _words(self) -> Iterator[Entry]:
        for query in self.queries:
            yield Entry(query.id, query.video, self.raw.words, {"token": np.arange(len(self.raw.words))}, {})

    def loader(self, store: Path) -> Loader:
        model = self.config.model
        features = FeatureSet.of_store(store, "train", model.frames, model.clips, device=self.device)
        return Loader(features, features.queries, self.config.batch, 0, 0, device=self.device)

    def raw_batch(self, batch: Batch) -> Batch:
        """The batch with what the backbones see in the place of what they make."""
        own = [self.raw.turned(int(name[1:])) for name in batch.ids]
        pictures, clips = (torch.stack([getattr(raw, name) for raw in own]).to(self.device) for name in ("pictures", "clips"))
        return Batch(replace(batch.inputs, appearance=pictures, motion=clips), batch.targets, batch.ids)

    def step(self, way: str) -> Step:
        how, network = WAYS[way], copy.deepcopy(self.network)
        if how is None:
            return Step(self.config, network, self.device)
        (learns, quick), backbones = how, (copy.deepcopy(self.image), copy.deepcopy(self.motion))
        fed = Fed(network, *map(frozen, backbones) if quick else backbones, learns)
        return Step(self.config, fed, self.device)


@dataclass
class EndToEndStep(Case):
    """A whole training step of CSDVL (preset `hcstvg-v1`) on batches that the loader reads from the store, against the same step on
    the same queries' decoded pictures and clips, with ResNet-101 and SlowFast R50 before the same network: frozen, as their libraries
    give them and as quick as extraction makes them, and with the image encoder training, as the paper's does. The second of two steps
    in a row is timed. Decoding is in none of them. On a CPU with a quarter of the paper's frames and clips and one query, on a GPU at
    the paper's size. The boxes of the first three are checked to agree (features are float16 in all). Wanted: at least 4 against frozen
    backbones and 8 against fine-tuned ones. Memory: a step's peak less what there was before it.
    """

    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    size: Size | None = None
    rounds: int = 2

    def __post_init__(self) -> None:
        self.sizes = self.size or Size.of(self.device)
        self.precision = self.sizes.given.get("precision", "float32")

    def __enter__(self) -> EndToEndStep:
        super().__enter__()
        self.made = Fixture(self.sizes, self.device)
        self.made.fill(self.place / "store")
        return self

    @torch.inference_mode()
    def agree(self) -> None:
        made = self.made
        with made.loader(self.place / "store") as loader:
            (part,) = next(iter(loader))
        stored, *fed = (made.step(way).state.model.eval() for way in list(WAYS)[:3])
        expected, raw = stored(part.inputs).boxes, made.raw_batch(part).inputs
        for network in fed:
            torch.testing.assert_close(network(raw).boxes, expected, rtol=1e-2, atol=1e-3)

    def measure(self) -> list[Group]:
        made = self.made
        store = self.place / "store"
        least = {way: branched(_floor_and_peak, way, self.sizes, self.device, store) for way in WAYS}  # while this process holds little
        with made.loader(store) as loader:
            batches = iter(loader)
            raw = [made.raw_batch(part) for part in next(batches)]
            steps = {way: made.step(way) for way in WAYS}
            first, *others = WAYS
            ways = {first: lambda: steps[first](next(batches))} | {way: (lambda way=way: steps[way](raw)) for way in others}
            tops = {way: profile_torch(step, self.device) for way, step in ways.items()}  # each has now begun
            seconds = in_turns(ways, self.rounds, warm=0, settle=1)
        found = {way: Way(own, *least[way], tops[way], {"parameters": steps[way].parameters}) for way, own in seconds.items()}
        return [Group(self.title(raw[0]), found)]

    def title(self, part: Batch) -> str:
        pictures, clips = part.inputs.appearance.shape, part.inputs.motion.shape
        return f"{pictures[0]} × {pictures[1]} frames of {pictures[3]}×{pictures[2]}, {clips[1]} clips of {clips[3]}×{clips[4]}×{clips[5]}"


def _floor_and_peak(way: str, size: Size, device: str, store: Path) -> tuple[Floor, int]:
    made = Fixture(size, device)
    with made.loader(store) as loader:
        parts = next(iter(loader))
    parts = parts if WAYS[way] is None else [made.raw_batch(part) for part in parts]
    return floor_and_peak(made.step(way), parts, device)
