"""What getting its batch adds to a training step of CSDVL."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch

from benchmarks.case import Case, Floor, Group, Way
from benchmarks.synthetic_data import fill_store, make_queries, make_tracks, rolled_features
from benchmarks.timing import in_turns, profile_python, profile_torch
from benchmarks.training_step import Step, feature_bytes
from grounding.data.collate import collate, join_targets, to_device
from grounding.data.dataset import FeatureSet
from grounding.data.loader import Batch, Loader
from grounding.systems.config import TrainConfig
from grounding.systems.registry import preset, system_of
from pipeline.records import Query

EVERY = {"appearance": 5, "motion": 10}
"""Frames between two stored rows."""
TINY = {"appearance": (32, 6, 10, 128), "motion": (16, 8, 8, 384), "text": (8, 64)}
FULL = {"appearance": (64, 10, 18, 2048), "motion": (50, 16, 16, 2304), "text": (25, 768)}
"""Entries of a video: rows, then a row's shape."""
READ_ANEW, READ_BEFORE, AT_HAND, MADE_IN_THE_LOOP = (
    "from the store, read anew",
    "from the store, read before",
    "at hand",
    "making a batch alone, one thread",
)


@dataclass
class LoaderStep(Case):
    """Whole training steps of CSDVL with one batch that is on the device already, against the same with batches from the store
    through the loader: with nothing of it in the process' memory (the system's cache is warm), and with all of it, as in later
    epochs over a store that fits. Features are random, of real shapes, every query about a video of its own. Both ways give the
    same batch, to the bit. Last, what making a batch takes on one thread: what the loop would wait without the loader. On a GPU at
    the papers' size in bfloat16.
    """

    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    name: str = "hcstvg-v2" if torch.cuda.is_available() else "shapes"
    given: dict[str, Any] = field(default_factory=lambda: {"batch": 8, "precision": "bfloat16"} if torch.cuda.is_available() else {})
    shapes: dict[str, tuple[int, ...]] = field(default_factory=lambda: FULL if torch.cuda.is_available() else TINY)
    warm: int = 8
    """Steps that are not timed, so that what the loader had ready before the clock is used up."""
    steps: int = 16
    rounds: int = 5

    def __post_init__(self) -> None:
        self.config = TrainConfig.model_validate({**preset(self.name), **self.given})
        self.precision = self.config.precision

    def __enter__(self) -> LoaderStep:
        super().__enter__()
        count = (self.warm + self.steps) * self.config.batch
        self.queries = make_queries(
            [f"v{number:03}" for number in range(count)], self.shapes["appearance"][0] * EVERY["appearance"], (160, 90)
        )
        self.made = rolled_features(self.queries, self.shapes, EVERY)
        fill_store(self.place / "store", self.queries, {name: product.entries() for name, product in self.made.items()})
        torch.manual_seed(0)
        dims = (self.shapes["appearance"][-1], self.shapes["motion"][-1], self.shapes["text"][-1])
        network = system_of(self.config.system).build(dims, self.config.model)
        self.step = Step(self.config, network, torch.device(self.device))
        self.ready = [self._at_hand()]
        return self

    def agree(self) -> None:
        with self._loader(self._features()) as loader:
            read = next(iter(loader))
        assert [part.ids for part in read] == [part.ids for part in self.ready]
        for one, other in zip(read, self.ready, strict=True):
            for held in ("inputs", "targets"):
                for own in fields(getattr(one, held)):
                    given = [getattr(getattr(part, held), own.name) for part in (one, other)]
                    torch.testing.assert_close(*given, rtol=0, atol=0, msg=f"{held}.{own.name}")

    def measure(self) -> list[Group]:
        known = self._features()
        seconds: dict[str, list[float]] = {name: [] for name in (AT_HAND, READ_ANEW, READ_BEFORE, MADE_IN_THE_LOOP)}
        for turn in range(self.rounds + 1):  # the first is not counted
            with self._loader(self._features()) as anew, self._loader(known) as before:
                ways = {
                    AT_HAND: self._steps(lambda: self.ready),
                    READ_ANEW: self._steps(self._warmed(anew)),
                    READ_BEFORE: self._steps(self._warmed(before)),
                    MADE_IN_THE_LOOP: self._making(self._features()),
                }
                for name, own in in_turns(ways, 1, warm=0, begin=turn).items():
                    seconds[name] += [one / self.steps for one in own if turn]
        size = feature_bytes(self.ready[0])
        floors = {AT_HAND: self.step.floor(self.ready), MADE_IN_THE_LOOP: Floor(bytes=2 * size)}
        floors |= dict.fromkeys((READ_ANEW, READ_BEFORE), floors[AT_HAND])
        top = {
            AT_HAND: profile_torch(lambda: self.step(self.ready), self.device),
            MADE_IN_THE_LOOP: profile_python(self._making(self._features())),
        }
        title = f"`{self.name}`, {self.config.batch} queries a step, {size / 1e6:,.1f} MB of features"
        return [Group(title, {name: Way(own, floors[name], top=top.get(name, [])) for name, own in seconds.items()})]

    def _features(self) -> FeatureSet:
        size = (self.config.model.frames, self.config.model.clips)
        return FeatureSet.of_store(self.place / "store", "train", *size, device=torch.device(self.device))

    def _loader(self, features: FeatureSet) -> Loader:
        return Loader(features, self.queries, self.config.batch, 0, 0, device=torch.device(self.device))

    def _warmed(self, loader: Loader) -> Callable[[], list[Batch]]:
        """What gives the loader's next batch, after those it had ready were used."""
        batches = iter(loader)
        for _ in range(self.warm):
            self.step(next(batches))
        return lambda: next(batches)

    def _steps(self, parts: Callable[[], list[Batch]]) -> Callable[[], None]:
        def work() -> None:
            for _ in range(self.steps):
                self.step(parts())

        return work

    def _making(self, features: FeatureSet) -> Callable[[], None]:
        """Makes as many batches as there are steps, on the calling thread."""

        def work() -> None:
            for numbers in np.arange(self.steps * self.config.batch).reshape(self.steps, -1):
                batch_of(features, [self.queries[number] for number in numbers])

        return work

    def _at_hand(self) -> Batch:
        """The loader's first batch, from features that were never stored."""
        model, device = self.config.model, torch.device(self.device)
        appearance, motion, text = (self.made[name] for name in ("appearance", "motion", "text"))
        features = FeatureSet(self.queries, make_tracks(self.queries), appearance, motion, text, model.frames, model.clips)
        order = np.random.default_rng([0, 0]).permutation(len(self.queries))[: self.config.batch]
        batch = batch_of(features, [self.queries[number] for number in order])
        return Batch(to_device(batch.inputs, device), to_device(batch.targets, device), batch.ids)


def batch_of(features: FeatureSet, queries: Sequence[Query]) -> Batch:
    samples = [features.sample(query) for query in queries]
    return Batch(collate(samples), join_targets([features.truth(sample) for sample in samples]), [query.id for query in queries])
