"""Attention maps are those of the model: every stored frame once, at its place in the image, for
all three systems.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from grounding.data.collate import collate
from grounding.data.dataset import GroundingDataset
from grounding.inference.predict import predict
from grounding.inference.segment_prediction import SegmentPrediction
from grounding.models.cgstvg import Cgstvg, CgstvgConfig
from grounding.models.costa import Costa, CostaConfig
from grounding.models.csdvl import Csdvl, CsdvlConfig
from grounding.structures.span_scores import BoundaryScores, ProposalScores
from grounding.visualization.attention_maps import AttentionMap, AttentionRecorder
from pipeline.encoders.appearance import AppearanceEncoder
from pipeline.errors import InputError
from pipeline.records import Query
from pipeline.store import Store
from pipeline.tracks import Tracks
from pipeline.weights.load import load_backbone

QueryMaker = Callable[..., Query]
CSDVL: dict[str, Any] = {
    "hidden_dim": 8,
    "num_heads": 2,
    "ffn_dim": 8,
    "num_layers": 2,
    "num_clips": 5,
    "proposal_map_channels": 4,
    "proposal_map_kernel": 3,
    "proposal_map_layers": 1,
}
SMALL: dict[str, Any] = {
    "hidden_dim": 8,
    "num_heads": 2,
    "ffn_dim": 8,
    "num_layers": 1,
    "num_frames": 6,
}


def make_csdvl_recorder(store: Path, frames: int, **changes: Any) -> AttentionRecorder:
    """Return a model of random weights with the store's training queries; query 2 is about a tall
    video.
    """
    torch.manual_seed(0)
    model = Csdvl((6, 5, 7), CsdvlConfig(**{**CSDVL, "num_frames": frames, **changes}))
    return AttentionRecorder(model.eval(), GroundingDataset.from_store(store, "train", frames, 5))


@pytest.mark.parametrize("query_index", [0, 2])
def test_a_pass_that_takes_every_frame_is_told_as_it_is(
    shapes_store: Path, query_index: int
) -> None:
    recorder = make_csdvl_recorder(shapes_store, 20, box_head="attention")
    query = recorder.dataset.queries[query_index]
    attention = recorder.record(query)
    with torch.inference_mode():
        out = recorder.model(collate([recorder.dataset.load_sample(query)]))
    assert attention.frame_indices.tolist() == list(range(0, 100, 5))
    assert [attention_map.kind for attention_map in attention.maps] == ["guidance", "box_attention"]
    for attention_map, weights in zip(
        attention.maps, (out.guidance, out.box_attention), strict=True
    ):
        assert attention_map.weights.shape == (2, 20, *recorder.dataset.get_map_size(query))
        np.testing.assert_allclose(attention_map.weights, weights[:, 0].numpy(), atol=1e-6)
    assert isinstance(attention.span_scores, ProposalScores)
    np.testing.assert_allclose(
        attention.span_scores.total, out.proposal_logits[0].double().sigmoid().numpy(), atol=1e-6
    )


@pytest.mark.parametrize("batch", [1, 16])
def test_what_two_passes_saw_is_averaged(shapes_store: Path, batch: int) -> None:
    """Seven frames a pass: three passes cover the twenty, and one more repeats frames."""
    recorder = make_csdvl_recorder(shapes_store, 7)
    query = recorder.dataset.queries[0]
    attention = AttentionRecorder(recorder.model, recorder.dataset, batch).record(query)
    guidance_by_frame: dict[int, list[np.ndarray]] = {}
    with torch.inference_mode():
        for rows in SegmentPrediction(query, recorder.dataset).passes:
            sample = recorder.dataset.load_sample(query, rows)
            guidance = recorder.model(collate([sample])).guidance[:, 0].numpy()
            for slot, frame in enumerate(sample.frame_indices.tolist()):
                guidance_by_frame.setdefault(frame, []).append(guidance[:, slot])
    assert max(map(len, guidance_by_frame.values())) > 1
    for slot, frame in enumerate(attention.frame_indices.tolist()):
        np.testing.assert_allclose(
            attention.maps[0].weights[:, slot], np.mean(guidance_by_frame[frame], 0), atol=1e-6
        )


def test_a_layer_is_normalised_by_its_maximum_over_all_frames() -> None:
    weights = np.zeros((2, 3, 2, 2), np.float32)
    weights[0, 1, 0, 1], weights[0, 2, 1, 1], weights[1, 0, 0, 0] = 4, 1, 0.5
    normalized = AttentionMap("guidance", weights).normalized
    assert (
        normalized[0, 1, 0, 1],
        normalized[0, 2, 1, 1],
        normalized[0, 0].max(),
        normalized[1, 0, 0, 0],
    ) == (
        1,
        0.25,
        0,
        1,
    )
    assert not AttentionMap("guidance", np.zeros((1, 1, 2, 2), np.float32)).normalized.any()


@pytest.mark.parametrize(("changes", "kinds"), [({}, ["guidance"]), ({"streams": "dynamic"}, [])])
def test_only_maps_that_say_something_are_told(
    shapes_store: Path, changes: dict[str, Any], kinds: list[str]
) -> None:
    recorder = make_csdvl_recorder(shapes_store, 6, **changes)
    attention = recorder.record(recorder.dataset.queries[0])
    assert [attention_map.kind for attention_map in attention.maps] == kinds
    assert all(attention_map.description for attention_map in attention.maps)


def make_cgstvg_recorder(store: Path) -> AttentionRecorder:
    config = CgstvgConfig(
        **SMALL, num_stages=2, motion_product="motion", refinement="none", box_head="attention"
    )
    return AttentionRecorder(
        Cgstvg((6, 5, 7), config).eval(), GroundingDataset.from_store(store, "train", 6, None)
    )


class NoiseImages:
    """Images of 96×64 pixels, or of 64×96 for the tall video, in place of the stored maps; tiny
    models make 3×2 cells of them.
    """

    def __init__(self, maps: Any) -> None:
        self.maps = maps

    def __contains__(self, key: object) -> bool:
        return key in self.maps

    def shape(self, key: str) -> tuple[int, ...]:
        count, rows, columns, _ = self.maps.shape(key)
        return (count, 64, 96, 3) if rows < columns else (count, 96, 64, 3)

    def facts(self, key: str) -> dict[str, Any]:
        return self.maps.facts(key)

    def columns(self, key: str) -> dict[str, np.ndarray]:
        return self.maps.columns(key)

    def read(self, key: str, indices: np.ndarray | None = None) -> np.ndarray:
        shape = self.shape(key) if indices is None else (len(indices), *self.shape(key)[1:])
        return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def make_costa_recorder(store: Path) -> AttentionRecorder:
    image = load_backbone("appearance", "tiny", "tiny").encoder
    assert isinstance(image, AppearanceEncoder)
    config = CostaConfig(**SMALL, num_decoder_layers=2, r3d_width=8, box_head="attention")
    opened_store = Store(store)
    queries = GroundingDataset.from_store(store, "train", 6, None).queries
    dataset = GroundingDataset(
        queries,
        Tracks(),
        NoiseImages(opened_store.open("appearance")),
        None,
        opened_store.open("text"),
        6,
        None,
    )
    return AttentionRecorder(Costa((image.channels, 0, 7), config, image).eval(), dataset)


@pytest.mark.parametrize("make_recorder", [make_cgstvg_recorder, make_costa_recorder])
@pytest.mark.parametrize("query_index", [0, 2])
def test_networks_that_answer_by_frames_tell_where_they_look(
    shapes_store: Path, make_recorder: Callable[[Path], AttentionRecorder], query_index: int
) -> None:
    torch.manual_seed(0)
    recorder = make_recorder(shapes_store)
    query = recorder.dataset.queries[query_index]
    attention = recorder.record(query)
    assert [attention_map.kind for attention_map in attention.maps] == [
        "temporal_attention",
        "box_attention",
    ]
    assert isinstance(attention.span_scores, BoundaryScores)
    assert (
        len(attention.span_scores.start_probabilities)
        == len(attention.span_scores.end_probabilities)
        == len(attention.frame_indices)
        == 20
    )
    layers, frames, rows, columns = attention.maps[0].weights.shape
    assert (layers, frames) == (2, 20)
    assert (rows < columns) == (query.size[1] < query.size[0])
    first_pass = SegmentPrediction(query, recorder.dataset).passes[0]
    sample = recorder.dataset.load_sample(query, first_pass)
    with torch.inference_mode():
        temporal_attention = recorder.model(collate([sample])).temporal_attention[-1, 0]
    slot = np.searchsorted(attention.frame_indices, sample.frame_indices[0])
    np.testing.assert_allclose(
        attention.maps[0].weights[-1, slot].ravel(), temporal_attention[0].numpy(), atol=1e-6
    )


def test_a_run_s_network_tells_what_it_answers(tiny_run: Any) -> None:
    recorder = AttentionRecorder.from_run(tiny_run.run, tiny_run.store, "test", device="cpu")
    for query, prediction in zip(
        recorder.dataset.queries,
        predict(recorder.model, recorder.dataset, recorder.dataset.queries),
        strict=True,
    ):
        assert recorder.record(query).span_scores.best_span(subframe_boundaries=True)[
            2
        ] == pytest.approx(prediction.score, abs=1e-6)


def test_without_a_checkpoint_there_is_nothing_to_ask(tiny_run: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is not a run directory"):
        AttentionRecorder.from_run(tmp_path, tiny_run.store, "test")
