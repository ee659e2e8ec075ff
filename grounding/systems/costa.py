"""CoSTA: training config, presets and system spec."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NoReturn

from pydantic import Field

from grounding.losses.costa import CostaLossConfig, costa_loss
from grounding.models.costa import Costa, CostaConfig
from grounding.systems.config import EncodersConfig, TrainConfig
from grounding.systems.presets import SHORT_TRAINING, SMALL_MODEL, Presets
from grounding.systems.spec import SystemSpec
from pipeline.errors import InputError
from pipeline.features.reduction import Projection


class CostaTrainConfig(TrainConfig):
    """Training config of CoSTA; the paper states no values, so STCAT's stand in."""

    system: Literal["costa"] = "costa"
    model: CostaConfig = CostaConfig()
    loss: CostaLossConfig = CostaLossConfig()
    encoders: EncodersConfig | None = EncodersConfig()
    """The image encoder is part of the model. With `text: null`, token states are read from the
    store."""
    lr_image: float = Field(default=2e-5, gt=0)
    lr_text: float = Field(default=5e-5, gt=0)
    epochs: int = Field(default=90, ge=1)


# The paper states β only; STCAT's values stand in for the rest. Defaults are those for HC-STVG.
# Pictures are stored with a short side of 448, and augmentation scales it to 352 … 448.
_OPTIMIZATION: dict[str, Any] = {
    "lr": 1e-4,
    "lr_text": 5e-5,
    "weight_decay": 1e-4,
    "clip_norm": 0.1,
    "augment": {"flip_probability": 0.5, "min_scale": 0.79, "crop_probability": 0.5},
}

# The image encoder trains on the store's pictures. The text encoder trains if `encoders.text` names
# its weights.
COSTA_PRESETS: Presets = {
    "hcstvg-v1": {**_OPTIMIZATION, "loss": {"giou": 4.0}, "lr_image": 2e-5, "epochs": 90},
    "hcstvg-v2": {**_OPTIMIZATION, "loss": {"giou": 4.0}, "lr_image": 2e-5, "epochs": 90},
    "vidstg": {**_OPTIMIZATION, "loss": {"giou": 3.0}, "lr_image": 1e-5, "epochs": 10},
    "shapes": {
        "model": {
            **SMALL_MODEL,
            "num_layers": 2,
            "num_decoder_layers": 2,
            "num_frames": 16,
            "r3d_width": 8,
            "train_image_encoder": False,
            "box_head": "attention",
            "text_balance": "num_cells",
        },
        "encoders": {"backbones": "tiny", "image": "tiny"},
        "loss": {
            "l1": 1.0,
            "giou": 1.0,
            "start": 4.0,
            "end": 4.0,
            "box_attention": 4.0,
            "cell_boxes": 4.0,
            "boundary_sigma": 1.0,
        },
        **SHORT_TRAINING,
        "batch": 4,
    },
}


def _reject_mdetr(model: Costa, path: Path, projection: Projection | None) -> NoReturn:
    """Raise an InputError: the network has no part of MDETR's transformer."""
    raise InputError(
        f"init_from {path}: CoSTA uses only MDETR's image and text encoders:"
        " set encoders.image=mdetr:FILE and init_from=null"
    )


def _needs_targets(model: CostaConfig) -> bool:
    """Return True if the spatial decoder is given the ground-truth span at rate β in training."""
    return model.entangled_queries and model.teacher_forcing_rate > 0


COSTA = SystemSpec(
    name="costa",
    config_class=CostaTrainConfig,
    presets=COSTA_PRESETS,
    build=Costa,
    loss=costa_loss,
    load_pretrained=_reject_mdetr,
    needs_targets=_needs_targets,
)
