"""From the store to samples: which rows each reads, and what is true of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import pytest
import torch

from grounding.data.cache import LRUCache
from grounding.data.dataset import GroundingDataset
from grounding.data.sources import FeatureSource
from grounding.inference.segment_prediction import SegmentPrediction
from pipeline.errors import InputError, StoreError
from pipeline.records import Query, Truth
from pipeline.sampling import compute_pool_bins, sample_bin_centers
from pipeline.store import Store
from pipeline.tracks import Tracks

FRAMES, CLIPS = 4, 5
Maker = Callable[..., Path]
QueryMaker = Callable[..., Query]


@pytest.fixture
def dataset(shapes_store: Path) -> GroundingDataset:
    return GroundingDataset.from_store(shapes_store, "train", FRAMES, CLIPS)


def test_a_split_s_queries_are_there_and_none_is_missing(dataset: GroundingDataset) -> None:
    assert [query.id for query in dataset.queries] == [f"train-{n}" for n in range(8)]
    assert dataset.missing_query_ids == []
    assert dataset.dims == (6, 5, 7)


def test_queries_without_features_are_named(make_store: Maker) -> None:
    store = make_store(without=("motion/v1", "train-0"))
    features = GroundingDataset.from_store(store, "train", FRAMES, CLIPS)
    assert features.missing_query_ids == ["train-0", "train-1", "train-4", "train-7"]
    assert {query.id for query in features.queries} == {f"train-{n}" for n in (2, 3, 5, 6)}


@pytest.mark.parametrize(
    ("split", "without"), [("test", ()), ("train", ("appearance/v0", "appearance/v1", "motion/v2"))]
)
def test_a_split_without_features_is_refused(
    make_store: Maker, split: str, without: tuple[str, ...]
) -> None:
    with pytest.raises(
        StoreError,
        match=rf"has no features for any query of split '{split}': run stvg-extract, or look into failures",
    ):
        GroundingDataset.from_store(make_store(without=without), split, FRAMES, CLIPS)


def test_a_store_without_truth_needs_no_tracks(make_store: Maker, make_query: QueryMaker) -> None:
    store = make_store([make_query(0, "train", truth=None)])
    (store / "tracks.npz").unlink()
    assert len(GroundingDataset.from_store(store, "train", FRAMES, CLIPS).queries) == 1


def test_queries_without_truth_may_be_left_out(make_store: Maker, make_query: QueryMaker) -> None:
    """They are not missing either: only a query with truth whose features are not there is."""
    queries = [make_query(n, "train", truth=None) for n in (0, 1)]
    queries += [make_query(n, "train") for n in (2, 3)]
    store = make_store(queries, without=("train-1", "train-3"))
    features = GroundingDataset.from_store(store, "train", FRAMES, CLIPS, with_truth=True)
    assert [query.id for query in features.queries] == ["train-2"]
    assert features.missing_query_ids == ["train-3"]


def test_a_split_may_have_features_only_for_queries_without_truth(
    make_store: Maker, make_query: QueryMaker
) -> None:
    queries = [make_query(0, "train", truth=None), make_query(1, "train")]
    store = make_store(queries, without=("train-1",))
    features = GroundingDataset.from_store(store, "train", FRAMES, CLIPS, with_truth=True)
    assert features.queries == []


def test_a_sample_takes_the_frames_at_bin_centres(dataset: GroundingDataset) -> None:
    """Twenty stored frames 0, 5 … 95 by four: places ⌊(k + ½)·5⌋ = 2, 7, 12, 17, frames 10, 35, 60,
    85.
    """
    sample = dataset.load_sample(dataset.queries[0])
    assert sample.frame_indices.tolist() == [10, 35, 60, 85]
    np.testing.assert_allclose(
        sample.frame_positions, np.array([10.5, 35.5, 60.5, 85.5]) / 100, rtol=1e-6
    )
    np.testing.assert_array_equal(
        sample.appearance, dataset.appearance.read("v0", np.array([2, 7, 12, 17]))
    )


def test_a_sample_stays_in_its_segment(make_store: Maker, make_query: QueryMaker) -> None:
    """Segment [20, 60): stored frames 20 … 55, motion clips at 25, 35, 45, 55."""
    store = make_store([make_query(0, "train", segment=(20, 60))])
    features = GroundingDataset.from_store(store, "train", 8, 2)
    sample = features.load_sample(features.queries[0])
    assert sample.frame_indices.tolist() == list(range(20, 60, 5))
    assert ((sample.frame_positions > 0) & (sample.frame_positions < 1)).all()
    clips = features.motion.read("v0", np.array([2, 3, 4, 5])).astype(np.float32)
    expected = np.stack([clips[:2].mean(0), clips[2:].mean(0)]).astype(np.float16)
    np.testing.assert_array_equal(sample.motion, expected)


def test_a_segment_between_stored_frames_takes_the_nearest(
    make_store: Maker, make_query: QueryMaker
) -> None:
    query = make_query(0, "train", segment=(36, 39), truth=Truth(span=(36, 38), track="v0"))
    features = GroundingDataset.from_store(make_store([query]), "train", 3, 2)
    sample = features.load_sample(query)
    assert sample.frame_indices.tolist() == [35, 35, 35]
    assert ((sample.frame_positions >= 0) & (sample.frame_positions < 1)).all()
    np.testing.assert_array_equal(sample.motion, features.motion.read("v0", np.array([3, 3])))


@pytest.mark.parametrize("clips", [3, 4, 10, 16])
def test_motion_is_the_mean_of_equal_bins(shapes_store: Path, clips: int) -> None:
    """Ten stored clips brought to fewer, as many, more; summed in float32, to the bit."""
    features = GroundingDataset.from_store(shapes_store, "train", FRAMES, clips)
    stored = features.motion.read("v0").astype(np.float32)
    expected = np.stack(
        [stored[begin:end].mean(0) for begin, end in compute_pool_bins(10, clips)]
    ).astype(np.float16)
    np.testing.assert_array_equal(features.load_sample(features.queries[0]).motion, expected)


@pytest.fixture
def framewise_dataset(shapes_store: Path) -> GroundingDataset:
    """Motion at each of the frames, of clips stored at frames 5, 15 … 95."""
    return GroundingDataset.from_store(shapes_store, "train", FRAMES, None)


def test_without_clips_each_frame_has_the_motion_nearest_to_it(
    framewise_dataset: GroundingDataset,
) -> None:
    """Frames 10, 35, 60, 85: the earlier one of clips 5 and 15, clip 35, the earlier one of 55 and
    65, clip 85.
    """
    sample = framewise_dataset.load_sample(framewise_dataset.queries[0])
    np.testing.assert_array_equal(
        sample.motion, framewise_dataset.motion.read("v0", np.array([0, 3, 5, 8]))
    )


def test_motion_sparser_than_the_frames_is_repeated(shapes_store: Path) -> None:
    """Frames 0, 5 … 95, each second one between two clips."""
    features = GroundingDataset.from_store(shapes_store, "train", 20, None)
    expected = features.motion.read("v0", np.array([0, 0, 0, *np.arange(1, 9).repeat(2), 9]))
    assert len(expected) == 20
    np.testing.assert_array_equal(features.load_sample(features.queries[0]).motion, expected)


def test_motion_denser_than_the_frames_is_that_of_the_frames(
    shapes_store: Path, make_query: QueryMaker, tracks: Tracks
) -> None:
    """Motion of every frame, each row full of its frame's number."""

    class EveryFrame:
        def __contains__(self, key: object) -> bool:
            return True

        def shape(self, key: str) -> tuple[int, ...]:
            return (100, 2, 3, 1)

        def facts(self, key: str) -> dict[str, Any]:
            return {"size": [64, 36]}

        def columns(self, key: str) -> dict[str, np.ndarray]:
            return {"frame": np.arange(100)}

        def read(self, key: str, indices: np.ndarray | None = None) -> np.ndarray:
            return np.ones((1, 2, 3, 1), np.float16) * np.arange(100)[indices].reshape(-1, 1, 1, 1)

    opened = Store(shapes_store)
    query = make_query(0, "train", segment=(20, 60))
    features = GroundingDataset(
        [query], tracks, opened.open("appearance"), EveryFrame(), opened.open("text"), FRAMES, None
    )
    sample = features.load_sample(query)
    assert sample.motion.shape == (FRAMES, 2, 3, 1)
    assert sample.motion[:, 0, 0, 0].tolist() == sample.frame_indices.tolist() == [25, 35, 45, 55]


def test_motion_at_frames_stays_in_the_segment(make_store: Maker, make_query: QueryMaker) -> None:
    """Segment [20, 60): frames 20, 25 … 55; frame 20 takes the clip at 25, for that at 15, as near,
    is outside.
    """
    features = GroundingDataset.from_store(
        make_store([make_query(0, "train", segment=(20, 60))]), "train", 8, None
    )
    expected = features.motion.read("v0", np.array([2, 2, 2, 3, 3, 4, 4, 5]))
    np.testing.assert_array_equal(features.load_sample(features.queries[0]).motion, expected)


def test_motion_of_the_same_rows_is_that_of_the_same_frames(shapes_store: Path) -> None:
    """Whatever the product: with that of appearance both are the same, and its maps are of the
    whole picture.
    """
    features = GroundingDataset.from_store(shapes_store, "train", FRAMES, None, motion="appearance")
    for query in features.queries[:3]:
        sample = features.load_sample(query, np.array([3, 3, 0, 19]))
        np.testing.assert_array_equal(sample.motion, sample.appearance)
        assert sample.picture_in_square.tolist() == [0, 0, 1, 1]


def test_motion_that_is_not_of_the_square_is_of_the_whole_picture(
    shapes_store: Path, tracks: Tracks, dataset: GroundingDataset
) -> None:
    products = dataset.appearance, dataset.motion, dataset.text
    for squared, expected in ((True, [14 / 64, 0, 50 / 64, 1]), (False, [0, 0, 1, 1])):
        variant = GroundingDataset(
            dataset.queries, tracks, *products, FRAMES, None, motion_in_square=squared
        )
        assert variant.load_sample(variant.queries[2]).picture_in_square.tolist() == expected


def test_without_clips_what_is_true_of_clips_is_what_is_true_of_frames(
    framewise_dataset: GroundingDataset,
) -> None:
    targets = framewise_dataset.load_targets(
        framewise_dataset.load_sample(framewise_dataset.queries[0])
    )
    assert targets.frame_labels.tolist() == targets.clip_labels.tolist() == [[0, 1, 0, 0]]
    assert (
        targets.box_mask.tolist() == targets.clip_box_mask.tolist() == [[False, True, False, False]]
    )
    torch.testing.assert_close(targets.clip_boxes, targets.boxes)


def test_what_a_query_takes_in_memory_without_clips(framewise_dataset: GroundingDataset) -> None:
    """Of float16, four maps of 4×7 cells and 6 channels, and of 4×4 cells and 5 channels."""
    query = framewise_dataset.queries[0]
    sample = framewise_dataset.load_sample(query)
    assert (
        framewise_dataset.count_bytes(query)
        == sample.appearance.nbytes + sample.motion.nbytes
        == 2 * 4 * (28 * 6 + 16 * 5)
    )


def test_what_a_query_takes_in_memory(dataset: GroundingDataset) -> None:
    for query in dataset.queries[:3]:
        sample = dataset.load_sample(query)
        assert dataset.get_map_size(query) == sample.appearance.shape[1:3]
        assert dataset.count_bytes(query) == sample.appearance.nbytes + sample.motion.nbytes


def test_a_sample_knows_where_its_picture_lies_in_the_square(dataset: GroundingDataset) -> None:
    wide, tall = (
        dataset.load_sample(dataset.queries[number]).picture_in_square for number in (0, 2)
    )
    np.testing.assert_allclose(wide, [0, 14 / 64, 1, 50 / 64])
    np.testing.assert_allclose(tall, [14 / 64, 0, 50 / 64, 1])


def test_passes_see_every_stored_frame_of_the_segment(
    make_store: Maker, make_query: QueryMaker
) -> None:
    query = make_query(0, "train", segment=(3, 98))
    features = GroundingDataset.from_store(make_store([query]), "train", 6, CLIPS)
    passes = [
        features.load_sample(query, rows) for rows in SegmentPrediction(query, features).passes
    ]
    assert {len(sample.frame_indices) for sample in passes} == {6}
    assert set(np.concatenate([sample.frame_indices for sample in passes]).tolist()) == set(
        range(5, 98, 5)
    )
    for sample in passes:
        np.testing.assert_array_equal(
            sample.appearance, features.appearance.read("v0", sample.frame_indices // 5)
        )
        np.testing.assert_allclose(
            sample.frame_positions, (sample.frame_indices + 0.5 - 3) / 95, rtol=1e-6
        )


def test_what_is_true_of_a_sample(dataset: GroundingDataset) -> None:
    """Span [30, 60) of [0, 100), frames 10, 35, 60, 85: one is inside. At frame 35 the box is [8.5,
    18.5] × [8.5, 28.5] of 64×36.
    """
    targets = dataset.load_targets(dataset.load_sample(dataset.queries[0]))
    torch.testing.assert_close(targets.span, torch.tensor([[0.3, 0.6]]))
    assert targets.frame_labels.tolist() == [[0, 1, 0, 0]]
    assert targets.box_mask.tolist() == [[False, True, False, False]]
    torch.testing.assert_close(
        targets.boxes[0, 1], torch.tensor([13.5 / 64, 18.5 / 36, 10 / 64, 20 / 36])
    )
    # five clips of .2: [.2, .4) is half covered, [.4, .6) wholly; their middles are frames 10, 30,
    # 50, 70, 90
    assert targets.clip_labels.tolist() == [[0, 1, 1, 0, 0]]
    assert targets.clip_box_mask.tolist() == [[False, True, True, False, False]]
    torch.testing.assert_close(
        targets.clip_boxes[0, 2], torch.tensor([15 / 64, 20 / 36, 10 / 64, 20 / 36])
    )


def test_frames_where_the_object_has_no_box_are_not_boxed(
    make_store: Maker, make_query: QueryMaker
) -> None:
    """The track holds frames [20, 80); the span [0, 100) reaches beyond."""
    query = make_query(0, "train", truth=Truth(span=(0, 100), track="v0"))
    targets = (
        features := GroundingDataset.from_store(make_store([query]), "train", FRAMES, CLIPS)
    ).load_targets(features.load_sample(query))
    assert targets.box_mask.tolist() == [[False, True, True, False]]
    assert targets.frame_labels.tolist() == [[1, 1, 1, 1]]


def test_a_truth_without_boxes_teaches_time_only(make_store: Maker, make_query: QueryMaker) -> None:
    query = make_query(0, "train", truth=Truth(span=(30, 60)))
    targets = (
        features := GroundingDataset.from_store(make_store([query]), "train", FRAMES, CLIPS)
    ).load_targets(features.load_sample(query))
    assert not targets.box_mask.any()
    assert not targets.clip_box_mask.any()
    assert targets.frame_labels.any()


def test_a_query_without_truth_cannot_teach(make_store: Maker, make_query: QueryMaker) -> None:
    query = make_query(0, "train", truth=None)
    features = GroundingDataset.from_store(make_store([query]), "train", FRAMES, CLIPS)
    with pytest.raises(
        InputError, match="query train-0 has no truth to learn from: keep it out of split 'train'"
    ):
        features.load_targets(features.load_sample(query))


def test_any_product_with_the_reader_s_methods_will_do(
    shapes_store: Path, make_query: QueryMaker, tracks: Tracks
) -> None:
    """Features just made, never stored (`stvg-predict`), give the same sample."""

    class InMemory:
        def __init__(self, name: str) -> None:
            self.reader = Store(shapes_store).open(name)

        def __contains__(self, key: object) -> bool:
            return key in self.reader

        def __getattr__(self, name: str) -> Any:
            return getattr(self.reader, name)

    query = make_query(1, "train")
    products: list[FeatureSource] = [InMemory(name) for name in ("appearance", "motion", "text")]
    in_memory = GroundingDataset([query], tracks, *products, num_frames=FRAMES, num_clips=CLIPS)
    stored = GroundingDataset.from_store(shapes_store, "train", FRAMES, CLIPS)
    np.testing.assert_array_equal(
        in_memory.load_sample(query).appearance, stored.load_sample(query).appearance
    )
    np.testing.assert_array_equal(
        in_memory.load_sample(query).motion, stored.load_sample(query).motion
    )


def test_recent_arrays_are_read_once_and_the_oldest_forgotten() -> None:
    recent, reads = LRUCache(max_bytes=20), []

    def get(key: str) -> None:
        recent.get(key, lambda: (reads.append(key), np.zeros(1))[1])

    for key in "abacab":
        get(key)
    assert reads == ["a", "b", "c", "b"]
    assert recent.cached_bytes <= 20


def test_threads_that_want_one_array_read_it_once() -> None:
    """The others wait for the first; what it cannot read, none of them gets, and the next one tries
    again.
    """
    recent, reads, start = LRUCache(max_bytes=100), [], Barrier(4)

    def read() -> np.ndarray:
        reads.append(1)
        time.sleep(0.1)
        if len(reads) == 1:
            raise OSError("unreadable")
        return np.ones(1)

    def get(_: int) -> str:
        start.wait()
        try:
            return str(recent.get("a", read).sum())
        except OSError as error:
            return str(error)

    with ThreadPoolExecutor(4) as pool:
        assert [*pool.map(get, range(4))] == ["unreadable"] * 4
        assert [*pool.map(get, range(4))] == ["1.0"] * 4
    assert len(reads) == 2
    assert recent.cached_bytes == 8


def test_an_array_larger_than_the_limit_is_still_given() -> None:
    assert LRUCache(max_bytes=1).get("a", lambda: np.ones(9)).sum() == 9


def test_bins_and_rows_agree(dataset: GroundingDataset) -> None:
    query = dataset.queries[0]
    chosen_sample = dataset.load_sample(query, np.array([3, 3, 0, 19]))
    assert chosen_sample.frame_indices.tolist() == [15, 15, 0, 95]
    assert (
        dataset.load_sample(query).frame_indices.tolist()
        == (sample_bin_centers(20, FRAMES) * 5).tolist()
    )
