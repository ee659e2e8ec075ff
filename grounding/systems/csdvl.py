"""CSDVL and STVGFormer, which are the same network: training config, presets and system specs."""

from __future__ import annotations

from typing import Any, Literal

from grounding.losses.csdvl import CsdvlLossConfig, csdvl_loss
from grounding.models.csdvl import Csdvl, CsdvlConfig
from grounding.systems.config import TrainConfig
from grounding.systems.mdetr_weights import initialize_from_mdetr
from grounding.systems.presets import SHORT_TRAINING, SMALL_MODEL, Presets
from grounding.systems.spec import SystemSpec


class CsdvlTrainConfig(TrainConfig):
    """Training config of CSDVL and of STVGFormer."""

    system: Literal["csdvl", "stvgformer"] = "csdvl"
    model: CsdvlConfig = CsdvlConfig()
    loss: CsdvlLossConfig = CsdvlLossConfig()


_OPTIMIZATION: dict[str, Any] = {
    "lr": 1e-4,
    "lr_image": 1e-5,
    "lr_text": 1e-5,
    "weight_decay": 1e-4,
    "clip_norm": 0.1,
    "batch": 8,
}
_HCSTVG_MODEL: dict[str, Any] = {
    "num_frames": 48,
    "num_clips": 16,
    "alpha": 0.1,
    "proposal_map_kernel": 5,
    "proposal_map_layers": 8,
}
_VIDSTG_MODEL: dict[str, Any] = {
    "num_frames": 64,
    "num_clips": 64,
    "alpha": 1.0,
    "proposal_map_kernel": 9,
    "proposal_map_layers": 4,
}

# The paper's MLP box head and spatial mean rely on MDETR's weights. From scratch, boxes and clip
# features are attention-weighted sums over cells (`box_head`, `clip_pooling`), with losses on the
# cells inside the object (`box_attention`) and on the boxes of these cells (`cell_boxes`).
# A of eq. (2) is taken relative to its mean (`guidance_scale`), because a short training does not
# teach FC the scale of A.
_FROM_SCRATCH_MODEL: dict[str, Any] = {
    "alpha": 1.0,
    "guidance_scale": "num_cells",
    "box_head": "attention",
    "clip_pooling": "attention",
}

# The model sizes and λ of the papers' presets are the config's defaults.
CSDVL_PRESETS: Presets = {
    "hcstvg-v1": {"model": _HCSTVG_MODEL, **_OPTIMIZATION, "ema_decay": 0.999, "epochs": 10},
    "hcstvg-v2": {"model": _HCSTVG_MODEL, **_OPTIMIZATION, "ema_decay": 0.999, "epochs": 4},
    "vidstg": {"model": _VIDSTG_MODEL, **_OPTIMIZATION, "ema_decay": 0.99997, "epochs": 10},
    "shapes": {
        "model": {
            **_FROM_SCRATCH_MODEL,
            **SMALL_MODEL,
            "num_layers": 2,
            "num_frames": 6,
            "num_clips": 16,
            "proposal_map_channels": 64,
            "proposal_map_kernel": 5,
            "proposal_map_layers": 3,
        },
        "loss": {"box_attention": 1.0, "cell_boxes": 2.0},
        **SHORT_TRAINING,
    },
    # The papers' model size, for a GPU.
    "shapes-large": {
        "model": {
            **_FROM_SCRATCH_MODEL,
            "hidden_dim": 256,
            "num_heads": 8,
            "ffn_dim": 1024,
            "num_layers": 6,
            "num_frames": 48,
            "num_clips": 16,
            "proposal_map_channels": 256,
        },
        "loss": {"box_attention": 1.0, "cell_boxes": 6.0},
        "batch": 16,
        "precision": "bfloat16",
        "lr": 2e-4,
        "schedule": "one-cycle",
        "clip_norm": 1.0,
        "ema_decay": 0.999,
        "max_steps": 8000,
        "validate_every": 1000,
        "checkpoint_every": 500,
    },
}

# STVGFormer's λ1..λ5 = 5, 2, .5, 5, 1 are CSDVL's weights, multiplied out:
# λ3 weighs the frames, λ4 the proposals, λ5 the clips.
_STVGFORMER_LOSS: dict[str, Any] = {
    "l1": 5.0,
    "giou": 2.0,
    "temporal_attention_frame": 0.5,
    "proposals": 5.0,
    "temporal_attention_clip": 1.0,
    "temporal_attention": 1.0,
}


def _build_stvgformer_presets() -> Presets:
    """Return CSDVL's presets with STVGFormer's loss weights; a preset's own weights win."""
    presets: Presets = {}
    for name, values in CSDVL_PRESETS.items():
        loss = {**_STVGFORMER_LOSS, **values.get("loss", {})}
        presets[name] = {**values, "loss": loss}
    return presets


def _selection_metric(model: CsdvlConfig) -> str:
    """Return m_tIoU for the dynamic stream alone, which predicts no boxes, otherwise m_vIoU."""
    return "m_tIoU" if model.streams == "dynamic" else "m_vIoU"


CSDVL = SystemSpec(
    name="csdvl",
    config_class=CsdvlTrainConfig,
    presets=CSDVL_PRESETS,
    build=Csdvl,
    loss=csdvl_loss,
    load_pretrained=initialize_from_mdetr,
    selection_metric=_selection_metric,
)

# STVGFormer differs at test time: 96 frames per pass (`stvg-eval --set frames=96`), and an ensemble
# of five seeds (`--run` five times).
STVGFORMER = SystemSpec(
    name="stvgformer",
    config_class=CsdvlTrainConfig,
    presets=_build_stvgformer_presets(),
    build=Csdvl,
    loss=csdvl_loss,
    load_pretrained=initialize_from_mdetr,
    selection_metric=_selection_metric,
)
