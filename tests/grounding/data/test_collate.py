"""How samples become a batch: padded, masked, what is shared in it once, and brought to a device."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from grounding.data.collate import collate, join_targets, to_device
from grounding.data.dataset import GroundingDataset
from grounding.structures.inputs import ModelInputs

FRAMES, CLIPS = 4, 5
CPU = torch.device("cpu")


@pytest.fixture
def dataset(shapes_store: Path) -> GroundingDataset:
    return GroundingDataset.from_store(shapes_store, "train", FRAMES, CLIPS)


def assert_same(one: ModelInputs, other: ModelInputs) -> None:
    for field in fields(ModelInputs):
        value, other_value = getattr(one, field.name), getattr(other, field.name)
        assert value is other_value is None or torch.equal(value, other_value), field.name


def test_a_batch_is_padded_and_says_what_is_real(dataset: GroundingDataset) -> None:
    samples = [dataset.load_sample(dataset.queries[number]) for number in (0, 2)]
    inputs = collate(samples)
    assert inputs.appearance.shape == (2, FRAMES, 7, 7, 6)
    assert inputs.map_size.tolist() == [[4, 7], [7, 4]]
    for number, sample in enumerate(samples):
        rows, columns = sample.appearance.shape[1:3]
        expected = np.zeros(inputs.appearance.shape[1:], np.float16)
        expected[:, :rows, :columns] = sample.appearance
        np.testing.assert_array_equal(inputs.appearance[number].numpy(), expected)
        np.testing.assert_array_equal(inputs.motion[number].numpy(), sample.motion)
        words = len(sample.text)
        assert inputs.text_mask[number].tolist() == [
            place < words for place in range(inputs.text.shape[1])
        ]
        np.testing.assert_array_equal(inputs.text[number, :words].numpy(), sample.text)
        assert not inputs.text[number, words:].any()


def test_the_picture_s_place_in_padded_motion_maps_is_a_share_of_those(
    dataset: GroundingDataset,
) -> None:
    """Whole pictures on 3×5 and 6×4 cells, in a batch on 6×5: half of the rows, and four fifths of
    the columns.
    """
    sample = dataset.load_sample(dataset.queries[0])
    maps = [np.ones((CLIPS, *shape, 5), np.float16) for shape in ((3, 5), (6, 4))]
    inputs = collate(
        [
            replace(
                sample,
                motion=motion,
                picture_in_square=np.array([0, 0, 1, 1], np.float32),
                video_key=motion.shape,
            )
            for motion in maps
        ]
    )
    assert inputs.motion.shape == (2, CLIPS, 6, 5, 5)
    torch.testing.assert_close(
        inputs.picture_in_square, torch.tensor([[0, 0, 1, 1 / 2], [0, 0, 4 / 5, 1]])
    )
    for motion, (_, _, right, bottom) in zip(
        inputs.motion, inputs.picture_in_square.tolist(), strict=True
    ):
        assert motion[:, : round(6 * bottom), : round(5 * right)].eq(1).all()
        assert motion.sum() == motion[:, : round(6 * bottom), : round(5 * right)].numel()


def test_so_it_is_in_padded_squares(dataset: GroundingDataset) -> None:
    """A tall picture in the middle of 4×4 cells that lie in a corner of 8×8."""
    sample = dataset.load_sample(dataset.queries[2])
    larger = replace(sample, motion=np.ones((CLIPS, 8, 8, 5), np.float16), video_key="larger")
    squares = collate([sample, larger]).picture_in_square
    torch.testing.assert_close(
        squares, torch.tensor([[7 / 64, 0, 25 / 64, 1 / 2], [14 / 64, 0, 50 / 64, 1]])
    )


def test_features_stay_in_half_precision(dataset: GroundingDataset) -> None:
    inputs = collate([dataset.load_sample(query) for query in dataset.queries[:3]])
    assert {inputs.appearance.dtype, inputs.motion.dtype, inputs.text.dtype} == {torch.float16}


def test_targets_join_in_order(dataset: GroundingDataset) -> None:
    single_targets = [
        dataset.load_targets(dataset.load_sample(dataset.queries[number])) for number in (0, 2)
    ]
    joined = join_targets(single_targets)
    assert joined.boxes.shape == (2, FRAMES, 4)
    torch.testing.assert_close(joined.clip_boxes[1:], single_targets[1].clip_boxes)


def test_a_batch_moves_to_a_device_whole(dataset: GroundingDataset) -> None:
    query = dataset.queries[0]
    for samples in ([dataset.load_sample(query)], [dataset.load_sample(query)] * 2):
        device_batch = to_device(collate(samples), torch.device("meta"))
        assert {
            value.device.type for value in vars(device_batch).values() if value is not None
        } == {"meta"}


def test_what_several_ask_about_is_in_a_batch_once(dataset: GroundingDataset) -> None:
    """Queries 0 and 3 are about one video, 2 about another; 1 about a third that is of the first's
    size.
    """
    samples = [dataset.load_sample(dataset.queries[number]) for number in (3, 2, 0, 1)]
    inputs = collate(samples)
    assert inputs.video_indices is not None
    assert inputs.video_indices.tolist() == [0, 1, 0, 2]
    assert {
        len(value)
        for value in (inputs.appearance, inputs.map_size, inputs.motion, inputs.picture_in_square)
    } == {3}
    assert {len(value) for value in (inputs.frame_positions, inputs.text, inputs.text_mask)} == {4}
    separate = collate([replace(sample, video_key=number) for number, sample in enumerate(samples)])
    assert separate.video_indices is None
    for name in ("appearance", "map_size", "motion", "picture_in_square"):
        assert torch.equal(
            inputs.expand_to_queries(getattr(inputs, name)),
            separate.expand_to_queries(getattr(separate, name)),
        )


def test_other_frames_of_a_video_are_another_look(dataset: GroundingDataset) -> None:
    query = dataset.queries[0]
    inputs = collate(
        [dataset.load_sample(query, np.arange(first, first + FRAMES)) for first in (0, 2, 0)]
    )
    assert inputs.video_indices is not None
    assert inputs.video_indices.tolist() == [0, 1, 0]


@pytest.mark.parametrize("numbers", [(0,), (0, 3, 6), (0, 2, 5)])
def test_what_is_padded_on_the_device_is_what_is_padded_before(
    dataset: GroundingDataset, numbers: tuple[int, ...]
) -> None:
    """Maps of one size, and of two; two queries about one video."""
    samples = [dataset.load_sample(dataset.queries[number]) for number in numbers]
    assert_same(to_device(collate(samples, defer=True), CPU), collate(samples))


def test_what_is_apart_is_not_copied_before_it_moves(dataset: GroundingDataset) -> None:
    samples = [dataset.load_sample(dataset.queries[number]) for number in (0, 1)]
    deferred = collate(samples, defer=True)
    assert [id(value) for value in deferred.appearance.arrays] == [
        id(sample.appearance) for sample in samples
    ]  # type: ignore[attr-defined]
    assert [id(value) for value in deferred.motion.arrays] == [
        id(sample.motion) for sample in samples
    ]  # type: ignore[attr-defined]


def test_mirrored_pictures_are_padded_on_the_device_too(dataset: GroundingDataset) -> None:
    """What a view gives need not lie in memory as it is counted."""
    samples = [
        replace(sample, appearance=sample.appearance[:, :, ::-1])
        for sample in map(dataset.load_sample, dataset.queries[:2])
    ]
    assert_same(to_device(collate(samples, defer=True), CPU), collate(samples))


def test_what_is_not_to_be_shared_is_there_for_each(dataset: GroundingDataset) -> None:
    inputs = collate(
        [dataset.load_sample(dataset.queries[number]) for number in (0, 3)], deduplicate=False
    )
    assert inputs.video_indices is None
    assert torch.equal(*inputs.appearance)
