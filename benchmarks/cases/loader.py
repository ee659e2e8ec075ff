"""Training steps of CSDVL with the loader, against steps on a resident batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch

from benchmarks.case import Case, Comparison, LowerBound, Measurement
from benchmarks.synthetic_data import build_rolled_features, fill_store, make_queries, make_tracks
from benchmarks.timing import profile_python, profile_torch, time_interleaved
from benchmarks.training_step import TrainingStep, count_feature_bytes
from grounding.data.collate import collate, join_targets, to_device
from grounding.data.dataset import GroundingDataset
from grounding.data.loader import Batch, Loader
from grounding.systems.csdvl import CsdvlTrainConfig
from grounding.systems.registry import get_preset, get_system
from pipeline.records import Query

FRAME_STRIDES = {"appearance": 5, "motion": 10}
"""Frames between two stored rows, by product."""
TINY_SHAPES = {"appearance": (32, 6, 10, 128), "motion": (16, 8, 8, 384), "text": (8, 64)}
FULL_SHAPES = {"appearance": (64, 10, 18, 2048), "motion": (50, 16, 16, 2304), "text": (25, 768)}
"""Shapes of a video's entry: rows, then the shape of a row."""
COLD_READ = "from the store, read anew"
CACHED_READ = "from the store, read before"
IN_MEMORY = "at hand"
COLLATE_ONLY = "making a batch alone, one thread"


@dataclass
class LoaderStep(Case):
    """Training steps with the loader, against steps on a resident batch.

    Whole training steps of CSDVL with one batch that is on the device already, against the same
    with batches from the store through the loader: with nothing of it in the process' memory (the
    system's cache is warm), and with all of it, as in later epochs over a store that fits. Features
    are random, of real shapes, every query about a video of its own. Both ways give the same batch,
    to the bit. Last, what making a batch takes on one thread: what the loop would wait without the
    loader. On a GPU at the papers' size in bfloat16.
    """

    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    preset_name: str = "hcstvg-v2" if torch.cuda.is_available() else "shapes"
    overrides: dict[str, Any] = field(
        default_factory=lambda: (
            {"batch": 8, "precision": "bfloat16"} if torch.cuda.is_available() else {}
        )
    )
    shapes: dict[str, tuple[int, ...]] = field(
        default_factory=lambda: FULL_SHAPES if torch.cuda.is_available() else TINY_SHAPES
    )
    warmup_steps: int = 8
    """Untimed steps, which use up the batches that the loader has prefetched."""
    num_steps: int = 16
    rounds: int = 5

    def __post_init__(self) -> None:
        self.config = CsdvlTrainConfig.model_validate(
            {**get_preset(self.preset_name), **self.overrides}
        )
        self.precision = self.config.precision

    def __enter__(self) -> LoaderStep:
        super().__enter__()
        count = (self.warmup_steps + self.num_steps) * self.config.batch
        self.queries = make_queries(
            [f"v{number:03}" for number in range(count)],
            self.shapes["appearance"][0] * FRAME_STRIDES["appearance"],
            (160, 90),
        )
        self.products = build_rolled_features(self.queries, self.shapes, FRAME_STRIDES)
        fill_store(
            self.work_dir / "store",
            self.queries,
            {name: product.entries() for name, product in self.products.items()},
        )
        torch.manual_seed(0)
        dims = (self.shapes["appearance"][-1], self.shapes["motion"][-1], self.shapes["text"][-1])
        network = get_system(self.config.system).build(dims, self.config.model)
        self.step = TrainingStep(self.config, network, torch.device(self.device))
        self.resident_batch = [self._build_first_batch()]
        return self

    def check_agreement(self) -> None:
        """Check that all variants agree."""
        with self._build_loader(self._open_features()) as loader:
            read = next(iter(loader))
        assert [part.query_ids for part in read] == [part.query_ids for part in self.resident_batch]

        for loaded, resident in zip(read, self.resident_batch, strict=True):
            for group in ("inputs", "targets"):
                actual = getattr(loaded, group)
                expected = getattr(resident, group)
                for tensor_field in fields(actual):
                    name = tensor_field.name
                    torch.testing.assert_close(
                        getattr(actual, name),
                        getattr(expected, name),
                        rtol=0,
                        atol=0,
                        msg=f"{group}.{name}",
                    )

    def measure(self) -> list[Comparison]:
        """Measure all variants."""
        cached_features = self._open_features()
        seconds: dict[str, list[float]] = {
            name: [] for name in (IN_MEMORY, COLD_READ, CACHED_READ, COLLATE_ONLY)
        }
        for round_index in range(self.rounds + 1):  # round 0 is a warm-up
            with (
                self._build_loader(self._open_features()) as cold_loader,
                self._build_loader(cached_features) as cached_loader,
            ):
                ways = {
                    IN_MEMORY: self._build_step_loop(lambda: self.resident_batch),
                    COLD_READ: self._build_step_loop(self._warm_up(cold_loader)),
                    CACHED_READ: self._build_step_loop(self._warm_up(cached_loader)),
                    COLLATE_ONLY: self._build_collate_loop(self._open_features()),
                }
                for name, rounds in time_interleaved(
                    ways, 1, warmup_rounds=0, first_index=round_index
                ).items():
                    if round_index:
                        seconds[name] += [loop / self.num_steps for loop in rounds]
        size = count_feature_bytes(self.resident_batch[0])
        floors = {
            IN_MEMORY: self.step.compute_lower_bound(self.resident_batch),
            COLLATE_ONLY: LowerBound(bytes=2 * size),
        }
        floors |= dict.fromkeys((COLD_READ, CACHED_READ), floors[IN_MEMORY])
        top = {
            IN_MEMORY: profile_torch(lambda: self.step(self.resident_batch), self.device),
            COLLATE_ONLY: profile_python(self._build_collate_loop(self._open_features())),
        }
        queries = f"{self.config.batch} queries a step"
        title = f"`{self.preset_name}`, {queries}, {size / 1e6:,.1f} MB of features"
        return [
            Comparison(
                title,
                {
                    name: Measurement(rounds, floors[name], hotspots=top.get(name, []))
                    for name, rounds in seconds.items()
                },
            )
        ]

    def _open_features(self) -> GroundingDataset:
        """Open the store with empty caches."""
        size = (self.config.model.num_frames, self.config.model.num_clips)
        return GroundingDataset.from_store(
            self.work_dir / "store", "train", *size, device=torch.device(self.device)
        )

    def _build_loader(self, features: GroundingDataset) -> Loader:
        """Build a loader of all queries."""
        return Loader(
            features, self.queries, self.config.batch, 0, 0, device=torch.device(self.device)
        )

    def _warm_up(self, loader: Loader) -> Callable[[], list[Batch]]:
        """Use up the prefetched batches, and return a function that returns the next batch."""
        batches = iter(loader)
        for _ in range(self.warmup_steps):
            self.step(next(batches))
        return lambda: next(batches)

    def _build_step_loop(self, parts: Callable[[], list[Batch]]) -> Callable[[], None]:
        """Return a function that runs the steps of one round."""

        def run_steps() -> None:
            for _ in range(self.num_steps):
                self.step(parts())

        return run_steps

    def _build_collate_loop(self, features: GroundingDataset) -> Callable[[], None]:
        """Return a function that builds the batches of one round on the calling thread."""

        def build_batches() -> None:
            for query_indices in np.arange(self.num_steps * self.config.batch).reshape(
                self.num_steps, -1
            ):
                build_batch(features, [self.queries[index] for index in query_indices])

        return build_batches

    def _build_first_batch(self) -> Batch:
        """Return the loader's first batch, built from features in memory."""
        model = self.config.model
        device = torch.device(self.device)

        features = GroundingDataset(
            self.queries,
            make_tracks(self.queries),
            self.products["appearance"],
            self.products["motion"],
            self.products["text"],
            model.num_frames,
            model.num_clips,
        )
        order = np.random.default_rng([0, 0]).permutation(len(self.queries))[: self.config.batch]
        batch = build_batch(features, [self.queries[index] for index in order])
        return Batch(
            to_device(batch.inputs, device), to_device(batch.targets, device), batch.query_ids
        )


def build_batch(features: GroundingDataset, queries: Sequence[Query]) -> Batch:
    """Load and collate the samples of one batch.

    Args:
        features: The dataset.
        queries: Queries of the batch.

    Returns:
        Batch on the CPU.
    """
    samples = [features.load_sample(query) for query in queries]
    return Batch(
        collate(samples),
        join_targets([features.load_targets(sample) for sample in samples]),
        [query.id for query in queries],
    )
