"""Every model's outputs and configuration satisfy the shared interfaces."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from grounding.models.cgstvg import CgstvgConfig, CgstvgOutputs
from grounding.models.config import ModelConfig
from grounding.models.costa import CostaConfig, CostaOutputs
from grounding.models.csdvl import CsdvlConfig, CsdvlOutputs
from grounding.models.output import GroundingOutput

LAYERS, QUERIES, FRAMES, ROWS, COLUMNS, CLIPS = 2, 3, 4, 2, 5, 6
CELLS = ROWS * COLUMNS


def cell_centers() -> Tensor:
    """Centers (x, y) of a map's cells, row by row, `[QUERIES, CELLS, 2]`."""
    y = (torch.arange(ROWS) + 0.5) / ROWS
    x = (torch.arange(COLUMNS) + 0.5) / COLUMNS
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)
    return grid.flatten(0, 1).expand(QUERIES, CELLS, 2)


def make_csdvl_outputs(has_static_stream: bool, has_cell_boxes: bool) -> CsdvlOutputs:
    empty = torch.zeros(0)
    map_shape = (LAYERS, QUERIES, FRAMES, ROWS, COLUMNS)
    return CsdvlOutputs(
        boxes=torch.rand(LAYERS, QUERIES, FRAMES, 4),
        proposal_logits=torch.randn(QUERIES, CLIPS, CLIPS),
        frame_logits=torch.randn(QUERIES, FRAMES),
        clip_logits=torch.randn(QUERIES, CLIPS),
        guidance=torch.rand(map_shape) if has_static_stream else empty,
        box_attention=torch.rand(map_shape) if has_static_stream else empty,
        cell_boxes=torch.rand(QUERIES, FRAMES, CELLS, 4) if has_cell_boxes else empty,
        cell_centers=cell_centers(),
        temporal_attention=torch.rand(QUERIES, CLIPS, 7),
        temporal_cell_centers=torch.rand(QUERIES, 7, 2),
    )


def framewise_fields(has_cell_boxes: bool) -> dict[str, Tensor]:
    return {
        "boxes": torch.rand(LAYERS, QUERIES, FRAMES, 4),
        "start_logits": torch.randn(LAYERS, QUERIES, FRAMES),
        "end_logits": torch.randn(LAYERS, QUERIES, FRAMES),
        "frame_positions": torch.rand(QUERIES, FRAMES).sort(-1).values,
        "box_attention": torch.rand(LAYERS, QUERIES, FRAMES, CELLS),
        "cell_boxes": torch.rand(QUERIES, FRAMES, CELLS, 4) if has_cell_boxes else torch.zeros(0),
        "cell_centers": cell_centers(),
        "temporal_attention": torch.rand(LAYERS, QUERIES, FRAMES, CELLS),
    }


def make_cgstvg_outputs(has_cell_boxes: bool) -> CgstvgOutputs:
    return CgstvgOutputs(
        **framewise_fields(has_cell_boxes),
        inside_logits=torch.randn(LAYERS, QUERIES, FRAMES),
        box_confidence=torch.rand(LAYERS, QUERIES, FRAMES),
        context_mask=torch.ones(LAYERS, QUERIES, FRAMES, dtype=torch.bool),
    )


def make_costa_outputs(has_cell_boxes: bool) -> CostaOutputs:
    return CostaOutputs(
        **framewise_fields(has_cell_boxes),
        encoder_presence_logits=torch.randn(QUERIES, FRAMES),
        decoder_presence_logits=torch.randn(QUERIES, FRAMES),
        event_mask=torch.ones(QUERIES, FRAMES, dtype=torch.bool),
    )


@pytest.mark.parametrize(
    ("has_static_stream", "has_cell_boxes", "kinds"),
    [
        (True, True, ["guidance", "box_attention"]),
        (True, False, ["guidance"]),
        (False, False, []),
    ],
    ids=["attention head", "MLP head", "dynamic stream alone"],
)
def test_csdvl_shows_its_guidance_and_box_attention(
    has_static_stream: bool, has_cell_boxes: bool, kinds: list[str]
) -> None:
    outputs = make_csdvl_outputs(has_static_stream, has_cell_boxes)
    maps = outputs.attention_maps()
    assert list(maps) == kinds
    fields = {"guidance": outputs.guidance, "box_attention": outputs.box_attention}
    for kind, weights in maps.items():
        assert torch.equal(weights, fields[kind])


@pytest.mark.parametrize("make_outputs", [make_cgstvg_outputs, make_costa_outputs])
@pytest.mark.parametrize("has_cell_boxes", [True, False])
def test_framewise_models_show_temporal_and_box_attention_as_maps(
    make_outputs: Any, has_cell_boxes: bool
) -> None:
    """Rows of cells become maps of the picture's rows and columns."""
    outputs = make_outputs(has_cell_boxes)
    maps = outputs.attention_maps()
    assert list(maps) == (
        ["temporal_attention", "box_attention"] if has_cell_boxes else ["temporal_attention"]
    )
    fields = {
        "temporal_attention": outputs.temporal_attention,
        "box_attention": outputs.box_attention,
    }
    for kind, weights in maps.items():
        assert weights.shape == (LAYERS, QUERIES, FRAMES, ROWS, COLUMNS)
        assert torch.equal(weights.flatten(3), fields[kind])
        assert torch.equal(weights[..., 1, 2], fields[kind][..., COLUMNS + 2])


@pytest.mark.parametrize(
    "outputs",
    [make_csdvl_outputs(True, True), make_cgstvg_outputs(True), make_costa_outputs(True)],
    ids=["csdvl", "cgstvg", "costa"],
)
def test_every_model_predicts_a_span_for_every_query(outputs: GroundingOutput) -> None:
    predictions = outputs.span_predictions()
    assert len(predictions) == outputs.boxes.shape[1] == QUERIES
    for prediction in predictions:
        prediction.init_scores((0, 40), torch.arange(FRAMES).numpy())


@pytest.mark.parametrize(
    ("config", "num_frames", "num_clips", "motion_product", "uses_images"),
    [
        (CsdvlConfig(), 48, 16, "motion", False),
        (CgstvgConfig(), 64, None, "swin", False),
        (CgstvgConfig(motion_product="motion"), 64, None, "motion", False),
        (CostaConfig(num_frames=32), 32, None, None, True),
    ],
    ids=["csdvl", "cgstvg", "cgstvg with SlowFast", "costa"],
)
def test_every_configuration_says_what_the_model_reads(
    config: ModelConfig,
    num_frames: int,
    num_clips: int | None,
    motion_product: str | None,
    uses_images: bool,
) -> None:
    assert config.num_frames == num_frames
    assert config.num_clips == num_clips
    assert config.motion_product == motion_product
    assert config.uses_images == uses_images
