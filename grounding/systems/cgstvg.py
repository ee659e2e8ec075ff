"""CG-STVG: training config, presets and system spec."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal, NoReturn

from pydantic import Field

from grounding.losses.cgstvg import CgstvgLossConfig, cgstvg_loss
from grounding.models.cgstvg import Cgstvg, CgstvgConfig
from grounding.systems.config import TrainConfig
from grounding.systems.presets import SHORT_TRAINING, SMALL_MODEL, Presets
from grounding.systems.spec import SystemSpec
from pipeline.errors import InputError
from pipeline.features.reduction import Projection


class CgstvgTrainConfig(TrainConfig):
    """Training config of CG-STVG (sec. 4, Implementation)."""

    system: Literal["cgstvg"] = "cgstvg"
    model: CgstvgConfig = CgstvgConfig()
    loss: CgstvgLossConfig = CgstvgLossConfig()
    lr: float = Field(default=3e-4, gt=0)
    lr_image: float = Field(default=2e-5, gt=0)
    lr_text: float = Field(default=2e-5, gt=0)
    optimizer: Literal["adamw", "adam"] = "adam"
    batch: int = Field(default=16, ge=1)


# Sec. 4; λ and the model sizes are the config's defaults. The paper states no epochs: the released
# code's stand in. The paper states no gradient clipping, no EMA and no schedule: CSDVL's stand in.
_OPTIMIZATION: dict[str, Any] = {
    "optimizer": "adam",
    "lr": 3e-4,
    "lr_image": 2e-5,
    "lr_text": 2e-5,
    "weight_decay": 1e-4,
    "clip_norm": 0.1,
}
_PAPER_PRESETS: Presets = {
    "hcstvg-v1": {**_OPTIMIZATION, "batch": 16, "epochs": 90},
    "hcstvg-v2": {**_OPTIMIZATION, "batch": 32, "epochs": 90},
    "vidstg": {**_OPTIMIZATION, "batch": 64, "epochs": 10},
}


def _build_released_preset(
    paper_preset: str,
    theta_t_logit: float,
    truth_iou: float,
    theta_s_sum: float,
    giou_weight: float,
    kl_weight: float,
) -> dict[str, Any]:
    """Return a preset with the choices of the released code.

    The released θ_t applies to the logit of s^t, and the released θ_s to the sum of the two
    spatial confidences. The config's θ_t applies to s^t, and θ_s to the confidences' mean.
    """
    theta_t = 1 / (1 + math.exp(-theta_t_logit))
    model = {
        "query_positions": "boxes",
        "region_pooling": "mean",
        "theta_t": theta_t,
        "theta_s": theta_s_sum / 2,
        "teacher_iou": truth_iou,
    }
    loss = {
        "l1": 5.0,
        "smooth_l1": False,
        "iou": giou_weight,
        "use_giou": True,
        "start": kl_weight,
        "end": kl_weight,
        "inside": 2.0,
        "outside_weight": 0.3,
    }
    return {**_PAPER_PRESETS[paper_preset], "model": model, "loss": loss}


# `-code`: the choices of the released code, which differ from the paper's. The released random
# resize and crop is left out, because features are cached.
CGSTVG_PRESETS: Presets = {
    **_PAPER_PRESETS,
    "hcstvg-v1-code": _build_released_preset(
        "hcstvg-v1", 0.5, 0.8, 0.8, giou_weight=4.0, kl_weight=10.0
    ),
    "hcstvg-v2-code": _build_released_preset(
        "hcstvg-v2", 0.5, 0.7, 0.8, giou_weight=4.0, kl_weight=10.0
    ),
    "vidstg-code": _build_released_preset("vidstg", -0.5, 0.5, 0.5, giou_weight=3.0, kl_weight=1.0),
    # Trains as long as CSDVL's recipe, in fewer steps.
    "shapes": {
        "model": {
            **SMALL_MODEL,
            "num_layers": 1,
            "num_stages": 2,
            "num_frames": 16,
            "motion_product": "motion",
            "box_head": "attention",
            "text_balance": "num_cells",
        },
        "loss": {"box_attention": 4.0, "cell_boxes": 2.0, "boundary_sigma": 1.0},
        **SHORT_TRAINING,
        "max_steps": 1200,
        "validate_every": 600,
    },
}


def _reject_mdetr(model: Cgstvg, path: Path, projection: Projection | None) -> NoReturn:
    """Raise an InputError: the network has no part of MDETR's transformer."""
    raise InputError(
        f"init_from {path}: CG-STVG uses only MDETR's image and text encoders:"
        " extract with weights mdetr:FILE, and set init_from=null"
    )


def _needs_targets(model: CgstvgConfig) -> bool:
    """Return True if ground truth selects the context frames in training."""
    return model.teacher_iou is not None


CGSTVG = SystemSpec(
    name="cgstvg",
    config_class=CgstvgTrainConfig,
    presets=CGSTVG_PRESETS,
    build=Cgstvg,
    loss=cgstvg_loss,
    load_pretrained=_reject_mdetr,
    needs_targets=_needs_targets,
)
