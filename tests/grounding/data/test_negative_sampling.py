"""Sentences of which nothing is true: how many, whose, what is learned from them, and that parts of
a batch agree with the whole.
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from grounding.data.dataset import GroundingDataset
from grounding.data.loader import Batch, Loader
from grounding.data.negative_sampling import NegativeSentenceSampler
from grounding.losses.csdvl import proposal_loss
from grounding.losses.temporal import boundary_distributions, boundary_divergence
from grounding.systems.registry import SYSTEMS
from grounding.training.run_directory import prepare_run_dir
from grounding.training.train import train
from pipeline.config import validate
from pipeline.records import Query
from tests.grounding.conftest import StoreMaker, build_query

TEXTS = {"v0": "a red dog", "v1": "the blue cat", "v2": "a tree"}
SMALL: dict[str, Any] = {
    "hidden_dim": 8,
    "num_heads": 2,
    "ffn_dim": 8,
    "num_layers": 1,
    "num_frames": 4,
    "dropout": 0.0,
}
MODELS: dict[str, dict[str, Any]] = {
    "csdvl": {
        "model": {
            **SMALL,
            "num_clips": 4,
            "proposal_map_channels": 4,
            "proposal_map_kernel": 3,
            "proposal_map_layers": 1,
        }
    },
    "cgstvg": {"model": {**SMALL, "num_stages": 2, "motion_product": "motion"}},
    "costa": {
        "model": {**SMALL, "num_decoder_layers": 1, "r3d_width": 8},
        "encoders": {"backbones": "tiny", "image": "tiny"},
    },
}


def make_queries(split: str, count: int) -> list[Query]:
    """Queries whose sentences tell their videos."""
    queries = [build_query(n, split) for n in range(count)]
    return [query.model_copy(update={"text": TEXTS[query.video]}) for query in queries]


@pytest.fixture
def dataset(make_store: StoreMaker) -> GroundingDataset:
    return GroundingDataset.from_store(make_store(make_queries("train", 8)), "train", 6, 4)


def take_batches(
    features: GroundingDataset,
    share: float,
    steps: int = 40,
    start: int = 0,
    rank: int = 0,
    world: int = 1,
    flipped: bool = False,
) -> list[Batch]:
    changes = [NegativeSentenceSampler(share, 3, features, features.queries, flipped)]
    with Loader(features, features.queries, 8, 3, start, rank, world, transforms=changes) as loader:
        return [parts[0] for parts in islice(loader, steps)]


def collect_words(batches: list[Batch]) -> dict[tuple[int, str], tuple[torch.Tensor, torch.Tensor]]:
    """Words and span of every query of every step."""
    return {
        (step, name): (words[mask], span)
        for step, batch in enumerate(batches)
        for name, words, mask, span in zip(
            batch.query_ids,
            batch.inputs.text,
            batch.inputs.text_mask,
            batch.targets.span,
            strict=True,
        )
    }


def test_the_stated_share_is_asked_with_another_videos_sentence_and_nothing_is_true_of_it(
    dataset: GroundingDataset,
) -> None:
    by_query_id = {query.id: query for query in dataset.queries}
    texts = {query.id: torch.from_numpy(dataset.load_text(query)) for query in dataset.queries}
    num_negatives = 0
    for batch in take_batches(dataset, 0.25):
        for place, name in enumerate(batch.query_ids):
            words = batch.inputs.text[place][batch.inputs.text_mask[place]]
            writers = {
                by_query_id[other].video
                for other, text in texts.items()
                if text.shape == words.shape and torch.equal(text, words)
            }
            truth = batch.targets
            masks = (truth.box_mask, truth.frame_labels, truth.clip_labels, truth.clip_box_mask)
            if truth.span[place].any():
                assert writers == {by_query_id[name].video}
                assert all(of[place].any() for of in masks)
            else:
                num_negatives += 1
                assert (by_query_id[name].video in writers, len(writers)) == (False, 1)
                assert not any(of[place].any() for of in masks)
    assert 50 < num_negatives < 110  # of 320


def test_every_epoch_draws_anew_and_alike(dataset: GroundingDataset) -> None:
    first, again = (collect_words(take_batches(dataset, 0.5)) for _ in range(2))
    assert all(torch.equal(first[key][0], again[key][0]) for key in first)
    of_one = {
        bool(span.any()) for (_, name), (_, span) in first.items() if name == dataset.queries[0].id
    }
    assert of_one == {True, False}


def test_parts_are_as_the_whole_wherever_it_begins(dataset: GroundingDataset) -> None:
    expected = collect_words(take_batches(dataset, 0.5, 4))
    parts = collect_words(take_batches(dataset, 0.5, 4, rank=0, world=2)) | collect_words(
        take_batches(dataset, 0.5, 4, rank=1, world=2)
    )
    later = {
        (step + 2, name): result
        for (step, name), result in collect_words(take_batches(dataset, 0.5, 2, start=2)).items()
    }
    assert parts.keys() == expected.keys()
    for result in (parts, later):
        for key, (words, span) in result.items():
            assert torch.equal(words, expected[key][0])
            assert torch.equal(span, expected[key][1])


def test_where_every_video_has_the_same_sentences_none_is_absent(make_store: StoreMaker) -> None:
    features = GroundingDataset.from_store(make_store(), "train", 6, 4)  # all ask "x"
    assert all(batch.targets.span.any(-1).all() for batch in take_batches(features, 0.9, 4))


@pytest.mark.parametrize("flipped", [False, True])
def test_what_a_mirror_makes_true_is_absent_only_where_nothing_is_mirrored(
    make_store: StoreMaker, flipped: bool
) -> None:
    texts = {"v0": "a dog runs to the left.", "v1": "a dog runs to the right.", "v2": "a tree"}
    queries = [
        query.model_copy(update={"text": texts[query.video]}) for query in make_queries("train", 8)
    ]
    features = GroundingDataset.from_store(make_store(queries), "train", 6, 4)
    by_query_id = {query.id: query.video for query in features.queries}
    words = {query.video: torch.from_numpy(features.load_text(query)) for query in features.queries}
    pairs = set()
    for (_, name), (tokens, span) in collect_words(
        take_batches(features, 0.9, flipped=flipped)
    ).items():
        if not span.any():
            pairs |= {
                (by_query_id[name], video)
                for video, text in words.items()
                if text.shape == tokens.shape and torch.equal(text, tokens)
            }
    assert {("v0", "v2"), ("v1", "v2"), ("v2", "v0")} <= pairs
    assert (("v0", "v1") in pairs, ("v1", "v0") in pairs) == (not flipped, not flipped)


def test_no_proposal_answers_what_is_absent(dataset: GroundingDataset) -> None:
    logits = torch.randn(1, 4, 4, requires_grad=True)
    proposal_loss(logits, torch.zeros(1, 2)).backward()
    assert logits.grad is not None
    assert (logits.grad[0].triu() > 0).eq(torch.ones(4, 4).triu().bool()).all()


def test_of_an_absent_event_no_frame_is_the_first(dataset: GroundingDataset) -> None:
    tau = (torch.arange(6) + 0.5)[None] / 6
    first, last = boundary_distributions(
        torch.tensor([[0.2, 0.7], [0.0, 0.0]]), tau.expand(2, -1), 1.0
    )
    assert first[0].sum() == pytest.approx(1)
    assert not torch.stack([first, last])[:, 1].any()
    logits = torch.randn(1, 2, 6, requires_grad=True)
    loss = boundary_divergence(logits, first)
    loss.backward()
    assert torch.isfinite(loss)
    assert logits.grad is not None
    assert logits.grad[0].any(-1).tolist() == [True, False]


@pytest.mark.parametrize("system", MODELS)
def test_of_batches_without_any_event_every_system_learns_when_alone(
    make_store: StoreMaker, tmp_path: Path, system: str
) -> None:
    """With every sentence absent boxes teach nothing; what says when does, and all numbers stay
    finite.
    """
    store = make_store(
        make_queries("train", 8) + make_queries("val", 3), visual=("appearance", "motion", "frames")
    )
    result = {}
    for share in (0.0, 1 - 1e-9):
        values = {
            **MODELS[system],
            "negative_rate": share,
            "device": "cpu",
            "batch": 4,
            "max_steps": 3,
            "log_every": 1,
        }
        config, run = (
            validate(SYSTEMS[system].config_class, values, "test"),
            tmp_path / f"run{share}",
        )
        prepare_run_dir(store, run, config)
        train(store, run, config)
        curves = run / "curves" / "plots" / "metrics" / "train"
        result[share] = {
            path.stem: [float(line.split()[1]) for line in path.read_text().splitlines()[1:]]
            for path in curves.glob("*.tsv")
        }
    positive, negative = result.values()
    assert set(positive) == set(negative)
    assert all(positive["l1"])
    assert not any(negative["l1"])
    assert negative["loss"] != positive["loss"]
    assert all(loss > 0 for loss in negative["loss"])
