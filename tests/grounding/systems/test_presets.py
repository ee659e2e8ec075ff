"""Presets hold the papers' numbers, all of them."""

from __future__ import annotations

import math
from typing import Any

import pytest

from grounding.systems.config import TrainConfig
from grounding.systems.registry import SYSTEMS, get_preset, get_system
from pipeline.config import validate
from pipeline.errors import InputError

COMMON = {
    "batch": 8,
    "lr": 1e-4,
    "lr_image": 1e-5,
    "lr_text": 1e-5,
    "weight_decay": 1e-4,
    "clip_norm": 0.1,
    "schedule": "constant",
    "model.hidden_dim": 256,
    "model.num_heads": 8,
    "model.ffn_dim": 2048,
    "model.num_layers": 6,
    "model.dropout": 0.1,
    "model.proposal_map_channels": 512,
    "model.collaboration": "full",
    "model.streams": "both",
    "model.box_head": "mlp",
    "model.clip_pooling": "mean",
    "model.guidance_scale": "none",
    "model.mask_padding": True,
    "model.detach_guidance": False,
    "loss.l1": 5,
    "loss.giou": 2,
    "loss.proposals": 5,
    "loss.temporal_attention": 1,
    "loss.temporal_attention_frame": 0.5,
    "loss.temporal_attention_clip": 1,
    "loss.box_attention": 0,
    "loss.every_layer": True,
}
SHORT = {
    "model.num_frames": 48,
    "model.num_clips": 16,
    "model.alpha": 0.1,
    "model.proposal_map_kernel": 5,
    "model.proposal_map_layers": 8,
    "ema_decay": 0.999,
}
LONG = {
    "model.num_frames": 64,
    "model.num_clips": 64,
    "model.alpha": 1.0,
    "model.proposal_map_kernel": 9,
    "model.proposal_map_layers": 4,
    "ema_decay": 0.99997,
}
PAPERS = {
    "hcstvg-v1": {**COMMON, **SHORT, "epochs": 10},
    "hcstvg-v2": {**COMMON, **SHORT, "epochs": 4},
    "vidstg": {**COMMON, **LONG, "epochs": 10},
}
"""Supplement B.1 and B.2; 2D-TAN for the maps. STVGFormer's λ (5, 2, .5, 5, 1) are the same,
multiplied out.
"""


CG_COMMON = {
    "lr": 3e-4,
    "lr_image": 2e-5,
    "lr_text": 2e-5,
    "weight_decay": 1e-4,
    "optimizer": "adam",
    "schedule": "constant",
    "model.hidden_dim": 256,
    "model.num_heads": 8,
    "model.num_layers": 6,
    "model.num_stages": 6,
    "model.num_frames": 64,
    "model.motion_product": "swin",
    "model.context": True,
    "model.refinement": "both",
    "model.temporal_context": False,
    "model.box_head": "mlp",
    "loss.box_attention": 0,
    "loss.cell_boxes": 0,
    "loss.box_confidence": 1,
    "loss.boundary_sigma": 2,
}
CG_PAPER = {
    "model.theta_t": 0.7,
    "model.theta_s": 0.8,
    "model.teacher_iou": None,
    "model.query_positions": "learned",
    "model.region_pooling": "roi_align",
    "loss.start": 10,
    "loss.end": 10,
    "loss.inside": 1,
    "loss.outside_weight": 1,
    "loss.l1": 5,
    "loss.iou": 3,
    "loss.smooth_l1": True,
    "loss.use_giou": False,
}
CG_CODE = {
    "model.query_positions": "boxes",
    "model.region_pooling": "mean",
    "loss.inside": 2,
    "loss.outside_weight": 0.3,
    "loss.l1": 5,
    "loss.smooth_l1": False,
    "loss.use_giou": True,
}
CG_PAPERS = {
    "hcstvg-v1": {**CG_COMMON, **CG_PAPER, "batch": 16, "epochs": 90},
    "hcstvg-v2": {**CG_COMMON, **CG_PAPER, "batch": 32, "epochs": 90},
    "vidstg": {**CG_COMMON, **CG_PAPER, "batch": 64, "epochs": 10},
    "hcstvg-v1-code": {
        **CG_COMMON,
        **CG_CODE,
        "batch": 16,
        "model.teacher_iou": 0.8,
        "model.theta_s": 0.4,
        "loss.iou": 4,
        "loss.start": 10,
    },
    "hcstvg-v2-code": {
        **CG_COMMON,
        **CG_CODE,
        "batch": 32,
        "model.teacher_iou": 0.7,
        "model.theta_s": 0.4,
        "loss.iou": 4,
        "loss.end": 10,
    },
    "vidstg-code": {
        **CG_COMMON,
        **CG_CODE,
        "batch": 64,
        "model.teacher_iou": 0.5,
        "model.theta_s": 0.25,
        "loss.iou": 3,
        "loss.start": 1,
    },
}
"""CG-STVG, sec. 4, and its released code."""


COSTA_COMMON = {
    "lr": 1e-4,
    "lr_text": 5e-5,
    "weight_decay": 1e-4,
    "clip_norm": 0.1,
    "optimizer": "adamw",
    "schedule": "constant",
    "encoders.text": None,
    "encoders.backbones": "full",
    "model.hidden_dim": 256,
    "model.num_heads": 8,
    "model.num_layers": 6,
    "model.num_decoder_layers": 6,
    "model.num_frames": 64,
    "model.backbones": "both",
    "model.connection": "sum",
    "model.r3d_width": 64,
    "model.train_image_encoder": True,
    "model.temporal_fusion": True,
    "model.entangled_queries": True,
    "model.teacher_forcing_rate": 0.9,
    "model.box_head": "mlp",
    "loss.l1": 5,
    "loss.start": 10,
    "loss.end": 10,
    "loss.boundary_sigma": 2,
    "loss.encoder_presence": 2,
    "loss.decoder_presence": 2,
    "loss.outside_weight": 0.3,
    "loss.box_attention": 0,
    "loss.cell_boxes": 0,
    "augment.flip_probability": 0.5,
    "augment.min_scale": 0.79,
    "augment.crop_probability": 0.5,
}
COSTA_PAPERS = {
    "hcstvg-v1": {**COSTA_COMMON, "loss.giou": 4, "lr_image": 2e-5, "epochs": 90},
    "hcstvg-v2": {**COSTA_COMMON, "loss.giou": 4, "lr_image": 2e-5, "epochs": 90},
    "vidstg": {**COSTA_COMMON, "loss.giou": 3, "lr_image": 1e-5, "epochs": 10},
}
"""CoSTA prints β and nothing else: STCAT's numbers."""


def config_of(name: str, system: str = "csdvl") -> TrainConfig:
    return validate(get_system(system).config_class, get_preset(name, system), name)


def value(config: TrainConfig, key: str) -> Any:
    for part in key.split("."):
        config = getattr(config, part)
    return config


@pytest.mark.parametrize("system", ["csdvl", "stvgformer"])
@pytest.mark.parametrize("name", PAPERS)
def test_presets_hold_the_papers_numbers(system: str, name: str) -> None:
    config = config_of(name, system)
    assert {key: value(config, key) for key in PAPERS[name]} == PAPERS[name]
    assert config.system == system
    assert config.max_steps is None


@pytest.mark.parametrize("name", CG_PAPERS)
def test_cg_stvg_s_presets_hold_its_paper_s_and_its_code_s_numbers(name: str) -> None:
    config = config_of(name, "cgstvg")
    assert {key: value(config, key) for key in CG_PAPERS[name]} == CG_PAPERS[name]


@pytest.mark.parametrize("name", COSTA_PAPERS)
def test_costa_s_presets_hold_its_paper_s_and_stcat_s_numbers(name: str) -> None:
    config = config_of(name, "costa")
    assert {key: value(config, key) for key in COSTA_PAPERS[name]} == COSTA_PAPERS[name]


@pytest.mark.parametrize(
    ("name", "logit"), [("hcstvg-v1-code", 0.5), ("hcstvg-v2-code", 0.5), ("vidstg-code", -0.5)]
)
def test_the_released_code_s_temporal_threshold_is_of_the_logit(name: str, logit: float) -> None:
    theta = config_of(name, "cgstvg").model.theta_t
    assert math.log(theta / (1 - theta)) == pytest.approx(logit)


@pytest.mark.parametrize(
    ("system", "name"), [(system, name) for system, row in SYSTEMS.items() for name in row.presets]
)
def test_every_preset_is_a_valid_config_of_its_system(system: str, name: str) -> None:
    config = config_of(name, system)
    assert isinstance(config, SYSTEMS[system].config_class)
    assert config.model.hidden_dim % config.model.num_heads == 0


def test_stvgformer_is_csdvl_s_network() -> None:
    for name in PAPERS:
        current, expected = (
            config_of(name, system).model_dump() for system in ("csdvl", "stvgformer")
        )
        assert {**current, "system": "stvgformer"} == expected


def test_shapes_large_is_of_the_papers_size() -> None:
    config = config_of("shapes-large")
    model = config.model
    assert (
        model.hidden_dim,
        model.num_heads,
        model.num_layers,
        model.num_frames,
        model.num_clips,
    ) == (256, 8, 6, 48, 16)
    assert config.precision == "bfloat16"


def test_an_unknown_preset_is_refused() -> None:
    names = "hcstvg-v1, hcstvg-v2, vidstg, shapes, shapes-large"
    with pytest.raises(
        InputError,
        match=f"there is no preset 'shape' of csdvl; its presets are {names}: give one "
        f"with --preset",
    ):
        get_preset("shape")


def test_an_unknown_system_is_refused() -> None:
    with pytest.raises(
        InputError,
        match="there is no system 'detr'; the systems are csdvl, stvgformer, cgstvg, "
        "costa: give one with --model",
    ):
        get_preset("shapes", "detr")
