"""Augmented samples: boxes, sizes and words are true of the pictures, and each is a function of
seed, epoch and query alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from grounding.data.augmentation import Augmentation, AugmentConfig
from grounding.data.dataset import GroundingDataset
from grounding.data.loader import Batch, Loader
from grounding.data.sample import Sample
from grounding.structures.targets import Targets
from grounding.systems.cgstvg import CgstvgTrainConfig
from grounding.systems.costa import CostaTrainConfig
from grounding.systems.csdvl import CsdvlTrainConfig
from pipeline.boxes import cxcywh_to_xyxy
from pipeline.config import validate
from pipeline.encoders.text import TextEncoder
from pipeline.errors import InputError
from pipeline.records import Query, Truth

FRAMES, SEED = 6, 3
ALL = {"flip_probability": 0.5, "min_scale": 0.5, "crop_probability": 0.7, "min_crop_fraction": 0.5}
Maker = Callable[..., Path]
QueryMaker = Callable[..., Query]
LEFT, RIGHT, NONE, PLAIN = "it goes left.", "it goes right.", "he left.", "it spins."


@pytest.fixture
def dataset(image_store: Path) -> GroundingDataset:
    return GroundingDataset.from_store(
        image_store, "train", FRAMES, None, None, None, use_images=True
    )


def loader(
    features: GroundingDataset,
    start: int = 0,
    rank: int = 0,
    world: int = 1,
    accumulate: int = 1,
    **config: float,
) -> Loader:
    augment = Augmentation(
        AugmentConfig.model_validate(config or ALL), SEED, features.queries, None
    )
    return Loader(
        features, features.queries, 4, SEED, start, rank, world, accumulate, transforms=[augment]
    )


def take_steps(loader: Loader, steps: int) -> list[list[Batch]]:
    with loader:
        return list(islice(loader, steps))


def samples(steps: list[list[Batch]]) -> dict[tuple[int, str], tuple[torch.Tensor, torch.Tensor]]:
    """Pictures without padding and boxes of every query of every step."""
    result = {}
    for number, parts in enumerate(steps):
        for part in parts:
            for name, recorded, size, boxes in zip(
                part.query_ids,
                part.inputs.appearance,
                part.inputs.map_size,
                part.targets.boxes,
                strict=True,
            ):
                result[number, name] = (recorded[:, : size[0], : size[1]], boxes)
    return result


def augment_epochs(
    query: Query, config: dict[str, float], tokenize: Any = None, text: np.ndarray | None = None
) -> list[tuple[Sample, Targets]]:
    """What becomes of black pictures with a white left half and a box there, in forty epochs."""
    pictures = np.zeros((1, 20, 40, 3), np.uint8)
    pictures[:, :, :20] = 255
    words = np.zeros((3, 1), np.int64) if text is None else text
    sample = Sample(
        query,
        np.array([0]),
        pictures,
        np.zeros(1, np.float32),
        pictures,
        np.array([0, 0, 1, 1], np.float32),
        words,
        "video",
    )
    boxes, boxed = torch.tensor([[[0.25, 0.5, 0.5, 1]]]), torch.ones(1, 1, dtype=torch.bool)
    truth = Targets(
        boxes, boxed, torch.tensor([[0.2, 0.6]]), boxed.float(), boxed.float(), boxes.clone(), boxed
    )
    augment = Augmentation(AugmentConfig.model_validate(config), SEED, [query], tokenize)
    return [augment(sample, truth, epoch, 0) for epoch in range(40)]


def test_true_boxes_are_around_what_is_seen(dataset: GroundingDataset) -> None:
    """From the store through the loader: the box of a pass' every frame bounds its grey object to a
    pixel; what is padding stays black.
    """
    sizes = set()
    for parts in take_steps(loader(dataset), 12):
        for part in parts:
            inputs, targets = part.inputs, part.targets
            for recorded, (rows, columns), boxes, boxed in zip(
                inputs.appearance,
                inputs.map_size.tolist(),
                targets.boxes,
                targets.box_mask,
                strict=True,
            ):
                sizes.add((rows, columns))
                assert boxed.any()
                assert not recorded[:, rows:].any()
                assert not recorded[:, :, columns:].any()
                corners = cxcywh_to_xyxy(boxes[boxed].numpy(), (columns, rows))
                for picture, expected in zip(recorded[boxed].numpy(), corners, strict=True):
                    result = np.argwhere(picture[..., 0] > 100)
                    (top, left), (bottom, right) = result.min(0), result.max(0) + 1
                    np.testing.assert_allclose([left, top, right, bottom], expected, atol=1.2)
            assert torch.equal(targets.boxes, targets.clip_boxes)
            assert (inputs.picture_in_square == torch.tensor([0, 0, 1, 1])).all()
    assert len(sizes) > 20


def test_a_pass_is_seen_in_one_way(dataset: GroundingDataset) -> None:
    """What does not move from frame to frame does not move: the box goes right by a tenth of a
    pixel a frame, or left in a mirror.
    """
    ways = set()
    for _, boxes in samples(take_steps(loader(dataset, flip_probability=0.5), 4)).values():
        steps = torch.diff(boxes[0:1, 1:4, 0] if boxes.ndim == 3 else boxes[1:4, 0]).sign()
        assert len(steps.unique()) == 1
        ways.add(float(steps.flatten()[0]))
    assert ways == {-1.0, 1.0}


@pytest.mark.parametrize(("world", "accumulate"), [(2, 1), (1, 4), (2, 2)])
def test_parts_of_a_batch_are_augmented_as_the_whole(
    dataset: GroundingDataset, world: int, accumulate: int
) -> None:
    complete = samples(take_steps(loader(dataset), 4))
    parts: dict[Any, Any] = {}
    for rank in range(world):
        parts |= samples(take_steps(loader(dataset, 0, rank, world, accumulate), 4))
    assert_same(parts, complete)


@pytest.mark.parametrize("start", [1, 3])
def test_a_loader_that_starts_anywhere_augments_alike(
    dataset: GroundingDataset, start: int
) -> None:
    later = samples(take_steps(loader(dataset, start), 5 - start))
    complete = samples(take_steps(loader(dataset), 5))
    assert_same(
        {(step + start, name): recorded for (step, name), recorded in later.items()},
        {k: v for k, v in complete.items() if k[0] >= start},
    )


def assert_same(result: dict[Any, Any], expected_result: dict[Any, Any]) -> None:
    assert result.keys() == expected_result.keys()
    for key, (pictures, boxes) in expected_result.items():
        assert torch.equal(result[key][0], pictures), key
        assert torch.equal(result[key][1], boxes), key


def test_every_epoch_and_every_seed_draws_anew(make_query: QueryMaker) -> None:
    recorded = augment_epochs(make_query(0, "train", text=PLAIN), ALL)
    assert len({sample.appearance.tobytes() for sample, _ in recorded}) > 35
    again = augment_epochs(make_query(0, "train", text=PLAIN), ALL)
    assert [sample.appearance.tobytes() for sample, _ in again] == [
        sample.appearance.tobytes() for sample, _ in recorded
    ]


def test_half_are_mirrored_with_their_boxes(make_query: QueryMaker) -> None:
    """White is where the box is."""
    sides = []
    for sample, truth in augment_epochs(
        make_query(0, "train", text=PLAIN), {"flip_probability": 0.5}
    ):
        right = bool(sample.appearance[0, 0, -1, 0])
        assert truth.boxes[0, 0, 0] == truth.clip_boxes[0, 0, 0] == (0.75 if right else 0.25)
        sides.append(right)
    assert 10 < sum(sides) < 30


def tokenized(texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """One number per sentence, twice."""
    ids = torch.tensor([[[LEFT, RIGHT, NONE, PLAIN].index(text)] * 2 for text in texts])
    return ids, torch.ones_like(ids, dtype=torch.bool)


@pytest.mark.parametrize(("text", "other"), [(LEFT, RIGHT), (RIGHT, LEFT), (PLAIN, PLAIN)])
def test_tokens_are_those_of_the_mirrored_sentence(
    make_query: QueryMaker, text: str, other: str
) -> None:
    tokens = tokenized([text])[0][0, :, None].numpy()
    ways = set()
    for sample, _ in augment_epochs(
        make_query(0, "train", text=text), {"flip_probability": 0.5}, tokenized, tokens
    ):
        right = bool(sample.appearance[0, 0, -1, 0])
        np.testing.assert_array_equal(
            sample.text, tokenized([other if right else text])[0][0, :, None].numpy()
        )
        ways.add(right)
    assert ways == {True, False}


@pytest.mark.parametrize(("text", "tokenize"), [(NONE, tokenized), (NONE, None), (LEFT, None)])
def test_what_has_no_mirrored_words_is_never_mirrored(
    make_query: QueryMaker, text: str, tokenize: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """With cached token states that is all that names a side; and it is said."""
    with caplog.at_level(logging.INFO):
        recorded = augment_epochs(
            make_query(0, "train", text=text), {"flip_probability": 1.0}, tokenize
        )
    assert not any(sample.appearance[0, 0, -1, 0] for sample, _ in recorded)
    assert "augment.flip: 1 of 1 sentences are never mirrored" in caplog.text


def test_the_shipped_tokenizer_gives_the_mirrored_sentence_s_tokens(make_query: QueryMaker) -> None:
    encoder = TextEncoder("tiny")
    ids, mask = encoder.tokenize([LEFT, RIGHT])
    tokens, other = (row[kept, None].numpy() for row, kept in zip(ids, mask, strict=True))
    for sample, _ in augment_epochs(
        make_query(0, "train", text=LEFT), {"flip_probability": 1.0}, encoder.tokenize, tokens
    ):
        np.testing.assert_array_equal(sample.text, other)


def test_what_has_no_boxes_is_not_cut(make_store: Maker, make_query: QueryMaker) -> None:
    """It is resized and mirrored all the same: a wide picture stays as wide."""
    store = make_store(
        [make_query(n, "train", truth=Truth(span=(30, 60))) for n in (0, 1, 3, 4)],
        visual=("frames",),
    )
    features = GroundingDataset.from_store(
        store, "train", FRAMES, None, None, None, use_images=True
    )
    for recorded, _ in samples(take_steps(loader(features), 6)).values():
        assert recorded.shape[2] / recorded.shape[1] == pytest.approx(64 / 36, rel=0.06)


@pytest.mark.parametrize("kind", [CsdvlTrainConfig, CgstvgTrainConfig])
def test_what_reads_cached_features_cannot_be_augmented(kind: type[CsdvlTrainConfig]) -> None:
    with pytest.raises(
        InputError,
        match=r"augment: (csdvl|cgstvg) reads cached features, which are of unaugmented frames: set augment=null",
    ):
        validate(kind, {"augment": {"flip_probability": 0.5}}, "section 'train'")


def test_a_wrong_share_is_named() -> None:
    with pytest.raises(InputError, match=r"augment\.flip_probability: .*1 \(got 2"):
        validate(CostaTrainConfig, {"augment": {"flip_probability": 2}}, "section 'train'")
