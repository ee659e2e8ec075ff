"""The order of training: every query once an epoch, the same for any number of processes; and
batches made ahead of use.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import fields
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pytest
import torch

from grounding.data.batch_sampler import BucketBatchSampler, compute_steps_per_epoch, shuffle_epoch
from grounding.data.collate import collate, join_targets, to_device
from grounding.data.dataset import GroundingDataset
from grounding.data.loader import CPU, Batch, Loader
from pipeline.errors import InputError, StoreError
from pipeline.records import Query
from pipeline.store import buffer_pool as memory

FRAMES, CLIPS = 4, 5
SEED = 3
WIDE, NARROW, TALL = (10, 18), (10, 14), (18, 10)
Maker = Callable[..., Path]
QueryMaker = Callable[..., Query]


def make_sampler(
    sources: list[int],
    sizes: list[tuple[int, int]] | None = None,
    batch: int = 4,
    memory: int = 1000,
    weight: int = 1,
) -> BucketBatchSampler:
    """A plan of queries that read `sources` of `weight` bytes each."""
    count = len(sources)
    return BucketBatchSampler(
        np.array(sources),
        np.full(count, weight),
        np.array(sizes or [WIDE] * count),
        batch,
        SEED,
        memory,
    )


def mixed_sampler() -> BucketBatchSampler:
    """Sixty videos of five queries; 35 are wide, 15 narrow, 9 tall, and one has a size of its own.
    Twelve fit into memory.
    """
    sizes = [WIDE] * 35 + [NARROW] * 15 + [TALL] * 9 + [(10, 10)]
    return make_sampler(
        [source for source in range(60) for _ in range(5)],
        [size for size in sizes for _ in range(5)],
        8,
        memory=16,
    )


@pytest.fixture
def dataset(shapes_store: Path) -> GroundingDataset:
    return GroundingDataset.from_store(shapes_store, "train", FRAMES, CLIPS)


def loader(
    features: GroundingDataset,
    start: int = 0,
    rank: int = 0,
    world: int = 1,
    accumulate: int = 1,
    batch: int = 4,
) -> Loader:
    return Loader(features, features.queries, batch, SEED, start, rank, world, accumulate)


def take_steps(loader: Loader, steps: int) -> list[list[Batch]]:
    with loader:
        return list(islice(loader, steps))


def ids(steps: list[list[Batch]]) -> list[list[str]]:
    return [[name for part in step for name in part.query_ids] for step in steps]


def assert_same(first: object, other: object) -> None:
    """Every tensor of two dataclasses, to the bit."""
    for field in fields(first):  # type: ignore[arg-type]
        torch.testing.assert_close(
            getattr(first, field.name), getattr(other, field.name), rtol=0, atol=0
        )


@pytest.mark.parametrize(
    ("count", "batch", "steps"), [(10, 5, 2), (10, 4, 2), (3, 8, 1), (8, 8, 1)]
)
def test_an_epoch_is_as_many_steps_as_there_are_whole_batches(
    count: int, batch: int, steps: int
) -> None:
    assert compute_steps_per_epoch(count, batch) == steps
    assert len(make_sampler([*range(count)], batch=batch).get_epoch_batches(0)) == steps


@pytest.mark.parametrize("epoch", [0, 1])
def test_an_epoch_sees_every_query_once(epoch: int) -> None:
    indices = mixed_sampler().get_epoch_batches(epoch).flatten().tolist()
    assert len(indices) == len(set(indices)) == 296
    expected_batches = make_sampler([*range(12)], [WIDE, TALL] * 6).get_epoch_batches(epoch)
    assert sorted(expected_batches.flatten().tolist()) == list(range(12))


def test_what_sits_out_an_epoch_is_drawn_anew() -> None:
    """Also the only query whose map has its size is not the one that always does."""
    left_out = [
        set(range(10))
        - set(
            make_sampler([*range(10)], [WIDE] * 9 + [TALL])
            .get_epoch_batches(epoch)
            .flatten()
            .tolist()
        )
        for epoch in range(200)
    ]
    counts = Counter(number for left in left_out for number in left)
    assert all(20 <= counts[number] <= 60 for number in range(10))


@pytest.mark.parametrize("sources", [[*range(30)], [number // 3 for number in range(30)]])
def test_one_map_size_that_fits_into_memory_is_a_plain_permutation(sources: list[int]) -> None:
    for epoch in range(3):
        np.testing.assert_array_equal(
            make_sampler(sources).get_epoch_batches(epoch),
            shuffle_epoch(30, SEED, epoch)[:28].reshape(7, 4),
        )


def test_one_query_per_video_is_a_plain_permutation_however_little_fits() -> None:
    np.testing.assert_array_equal(
        make_sampler([*range(30)], memory=5).get_epoch_batches(1),
        shuffle_epoch(30, SEED, 1)[:28].reshape(7, 4),
    )


@pytest.mark.parametrize("start", [1, 2, 36, 37, 38, 75])
def test_batches_go_on_from_any_step(start: int) -> None:
    expected_batches = np.array(list(islice(mixed_sampler().iterate_batches(0), 80)))
    np.testing.assert_array_equal(
        list(islice(mixed_sampler().iterate_batches(start), 80 - start)), expected_batches[start:]
    )


def test_the_order_depends_on_seed_and_epoch_only() -> None:
    assert shuffle_epoch(20, 1, 2).tolist() == shuffle_epoch(20, 1, 2).tolist()
    assert (
        len(
            {
                tuple(shuffle_epoch(20, seed, epoch).tolist())
                for seed in range(3)
                for epoch in range(3)
            }
        )
        == 9
    )


def test_maps_of_one_size_go_together() -> None:
    """Only what is left over of the four sizes, at most seven of each, is mixed; a plain
    permutation mixes nearly every batch.
    """
    sizes = np.repeat(np.array([WIDE] * 35 + [NARROW] * 15 + [TALL] * 9 + [(10, 10)]), 5, 0)

    def padding_ratio(batches: np.ndarray) -> float:
        """Cells computed ÷ cells that are real."""
        return float((sizes[batches].max(1).prod(-1) * 8).sum() / sizes[batches].prod(-1).sum())

    plain = shuffle_epoch(300, SEED, 0)[:296].reshape(37, 8)
    assert padding_ratio(mixed_sampler().get_epoch_batches(0)) < 1.05 < 1.4 < padding_ratio(plain)
    assert (
        sum(
            len(np.unique(sizes[batch], axis=0)) > 1
            for batch in mixed_sampler().get_epoch_batches(0)
        )
        <= 4
    )


def count_reads(plan: BucketBatchSampler, sources: np.ndarray, memory: int) -> float:
    """Reads per query of an epoch, with a memory of the `memory` sources used last."""
    recent: dict[int, None] = {}
    num_reads = 0
    for source in sources[plan.get_epoch_batches(0).flatten()].tolist():
        num_reads += source not in recent
        recent.pop(source, None)
        recent[source] = None
        if len(recent) > memory:
            del recent[next(iter(recent))]
    return num_reads / plan.get_epoch_batches(0).size


def test_one_read_serves_the_queries_of_a_video() -> None:
    """200 videos of ten queries, twenty in memory: each is read about once, not about nine times;
    and batches are of many videos.
    """
    sources = np.repeat(np.arange(200), 10)
    small_cache, large_cache = (
        make_sampler(sources.tolist(), batch=8, memory=memory) for memory in (20, 10**6)
    )
    assert count_reads(small_cache, sources, 20) < 0.11
    assert count_reads(large_cache, sources, 20) > 0.85
    of_batch = [len(set(sources[batch])) for batch in small_cache.get_epoch_batches(0)]
    assert min(of_batch) >= 3
    assert np.mean(of_batch) > 6


def test_videos_larger_than_memory_are_still_mixed() -> None:
    sources = np.repeat(np.arange(50), 10)
    assert (
        np.mean(
            [
                len(set(sources[batch]))
                for batch in make_sampler(sources.tolist(), batch=8, memory=1).get_epoch_batches(0)
            ]
        )
        > 5
    )


def test_videos_with_many_queries_come_no_earlier() -> None:
    """One video has 50 queries, 50 have one: where its window comes is even."""
    sources = [0] * 50 + [*range(1, 51)]
    places = [
        np.mean(
            np.flatnonzero(make_sampler(sources, memory=8).get_epoch_batches(epoch).flatten() < 50)
        )
        for epoch in range(200)
    ]
    assert 40 < np.mean(places) < 60


def test_batches_are_what_samples_give(dataset: GroundingDataset) -> None:
    for step, (parts, numbers) in enumerate(
        zip(
            take_steps(loader(dataset), 5),
            BucketBatchSampler.from_dataset(dataset, dataset.queries, 4, SEED).iterate_batches(0),
            strict=False,
        )
    ):
        samples = [dataset.load_sample(dataset.queries[number]) for number in numbers]
        (part,) = parts
        assert part.query_ids == [sample.query.id for sample in samples], step
        assert_same(part.inputs, collate(samples, deduplicate=False))
        assert_same(
            part.targets, join_targets([dataset.load_targets(sample) for sample in samples])
        )


@pytest.mark.parametrize(("world", "accumulate"), [(1, 2), (2, 1), (2, 2), (4, 1), (1, 4)])
def test_all_parts_together_are_the_same_batch(
    dataset: GroundingDataset, world: int, accumulate: int
) -> None:
    expected_batches = ids(take_steps(loader(dataset), 5))
    parts = [take_steps(loader(dataset, 0, rank, world, accumulate), 5) for rank in range(world)]
    for step, expected in enumerate(expected_batches):
        rank_parts = [part[step] for part in parts]
        assert [len(accumulated) for accumulated in rank_parts] == [accumulate] * world
        assert {len(batch.query_ids) for accumulated in rank_parts for batch in accumulated} == {
            4 // world // accumulate
        }
        assert [
            name for accumulated in rank_parts for batch in accumulated for name in batch.query_ids
        ] == expected


@pytest.mark.parametrize("start", [1, 3])
def test_a_loader_starts_anywhere(dataset: GroundingDataset, start: int) -> None:
    assert (
        ids(take_steps(loader(dataset, start), 6 - start))
        == ids(take_steps(loader(dataset), 6))[start:]
    )


def test_a_batch_that_cannot_be_cut_is_refused(dataset: GroundingDataset) -> None:
    with pytest.raises(
        InputError,
        match="a batch of 4 queries cannot be cut into 3 processes × 1 accumulated parts: choose a batch that",
    ):
        loader(dataset, world=3)
    with pytest.raises(InputError, match="a batch of 8 queries cannot be cut into 1 processes × 3"):
        loader(dataset, accumulate=3, batch=100)


def threads() -> Iterator[str]:
    return (thread.name for thread in threading.enumerate() if thread.name.startswith("loader"))


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_no_thread_is_left(dataset: GroundingDataset, error: type[BaseException]) -> None:
    with pytest.raises(error), loader(dataset) as batches:  # noqa: PT012
        for _ in batches:
            assert [*threads()]
            raise error
    assert not [*threads()]


def test_closing_waits_for_one_batch_at_most(
    dataset: GroundingDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded_ids: list[str] = []
    sample = dataset.load_sample

    def slow(query: Query) -> object:
        loaded_ids.append(query.id)
        time.sleep(0.02)
        return sample(query)

    monkeypatch.setattr(dataset, "load_sample", slow)
    with loader(dataset) as batches:
        next(iter(batches))
        before = len(loaded_ids)
    assert len(loaded_ids) - before <= 4


def test_only_a_few_batches_are_made_ahead(
    dataset: GroundingDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded_ids: list[str] = []
    sample = dataset.load_sample
    monkeypatch.setattr(
        dataset, "load_sample", lambda query: (loaded_ids.append(query.id), sample(query))[1]
    )
    with loader(dataset) as batches:
        steps = iter(batches)
        for step in range(1, 5):
            next(steps)
            time.sleep(0.1)
            assert len(loaded_ids) <= 4 * (step + 2)


def test_an_error_of_a_thread_is_raised_in_the_loop(
    make_store: Maker, make_query: QueryMaker
) -> None:
    """The query without truth comes in the third batch; the two before it are whole."""
    queries = [make_query(number, "train") for number in range(12)]
    features = GroundingDataset.from_store(make_store(queries), "train", FRAMES, CLIPS)
    bad = next(
        islice(BucketBatchSampler.from_dataset(features, queries, 4, SEED).iterate_batches(2), 1)
    )[1]
    features.queries[bad] = features.queries[bad].model_copy(update={"truth": None})
    num_steps = 0
    with (  # noqa: PT012
        pytest.raises(InputError, match=f"query train-{bad} has no truth to learn from"),
        loader(features) as batches,
    ):
        for _ in batches:
            num_steps += 1
    assert num_steps == 2
    assert not [*threads()]


def test_damage_is_raised_in_the_loop(make_store: Maker) -> None:
    store = make_store()
    features = GroundingDataset.from_store(store, "train", FRAMES, CLIPS)
    (rows,) = (path for path in (store / "motion").rglob("rows_*/c/**/*") if path.is_file())
    damaged = bytearray(rows.read_bytes())
    damaged[:64] = bytes(64)
    rows.write_bytes(damaged)
    with (
        pytest.raises(StoreError, match=r"product 'motion'.*does not match its checksum"),
        loader(features) as batches,
    ):
        list(islice(batches, 2))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_batches_come_to_a_gpu_whole(
    dataset: GroundingDataset, shapes_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = torch.device("cuda")
    monkeypatch.setattr(
        memory, "MIN_POOLED_BYTES", 0
    )  # so that memory is used again while copies are under way
    monkeypatch.setattr("grounding.data.dataset.CACHE_BYTES", 0)
    cpu_steps = take_steps(loader(dataset, accumulate=2), 40)
    pinned = GroundingDataset.from_store(shapes_store, "train", FRAMES, CLIPS, device=device)
    gpu_steps = take_steps(
        Loader(pinned, pinned.queries, 4, SEED, 0, accumulation_steps=2, device=device), 40
    )
    assert ids(cpu_steps) == ids(gpu_steps)
    for first, other in zip(chain(*cpu_steps), chain(*gpu_steps), strict=True):
        assert {
            value.device.type for value in vars(other.inputs).values() if value is not None
        } == {"cuda"}
        assert_same(first.inputs, to_device(other.inputs, CPU))
        assert_same(first.targets, to_device(other.targets, CPU))
    assert not [*threads()]
