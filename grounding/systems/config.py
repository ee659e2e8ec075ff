"""Section `train`: how a system is trained. What every system has in common is `Recipe`; each adds its network and losses."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from grounding.data.augmentation import AugmentConfig
from grounding.losses.cgstvg import CgstvgLossConfig
from grounding.losses.costa import CostaLossConfig
from grounding.losses.csdvl import CsdvlLossConfig
from grounding.models.cgstvg import CgstvgConfig
from grounding.models.costa import CostaConfig
from grounding.models.csdvl import CsdvlConfig
from pipeline.config import StrictModel
from pipeline.features.config import BackboneSize

Schedule = Literal["constant", "one-cycle"]


class EncodersConfig(StrictModel):
    """Encoders that train, and where their weights begin; sources are those of `weights` in section `extract`.

    `text` may be None where the network reads pictures in any case: then token states are read from the store.
    """

    backbones: BackboneSize = "full"
    image: str = "torchvision"
    text: str | None = None


class TrainConfig(StrictModel):
    """The numbers of training; defaults are CSDVL's (supplement B.1)."""

    system: str
    model: Any
    loss: Any
    seed: int = Field(default=0, ge=0)
    device: str = "auto"
    init_from: Path | None = None
    """MDETR's checkpoint, for CSDVL's static stream; by default it starts from scratch."""
    encoders: EncodersConfig | None = None
    """Image and text encoders that train with the network, on the store's `frames` and the sentences; by default their
    features are read from the store."""
    augment: AugmentConfig | None = None
    """What pictures become in training, for networks that are given these."""
    negative_rate: float = Field(default=0.0, ge=0, lt=1)
    """The share of queries that are asked with another video's sentence, of which nothing is true: so that scores of different videos,
    and of a long video's windows, can be compared."""
    batch: int = Field(default=8, ge=1)
    """Queries per step, over all processes and accumulated parts."""
    accumulation_steps: int = Field(default=1, ge=1)
    """Parts that each process cuts its queries of a step into, one after the other: less memory, the same step (with dropout
    where processes × parts stay the same: each part draws its own)."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """What the network computes in; weights, losses and box heads stay float32."""
    activation_checkpointing: bool = False
    """Compute the layers' activations again in the backward pass instead of keeping them: less memory, more time."""
    compile: bool = False
    """Compile the network with torch.compile."""
    lr: float = Field(default=1e-4, gt=0)
    lr_image: float = Field(default=1e-5, gt=0)
    lr_text: float = Field(default=1e-5, gt=0)
    """Rates of the transformers and heads, and of the `encoders`, where these train."""
    optimizer: Literal["adamw", "adam"] = "adamw"
    weight_decay: float = Field(default=1e-4, ge=0)
    clip_norm: float = Field(default=0.1, gt=0)
    ema_decay: float = Field(default=0.999, ge=0, le=1)
    schedule: Schedule = "constant"
    """`one-cycle`: 5 % linear warm-up, then cosine to 0 over `lr_schedule_steps`. It is `lr`'s; the encoders have their own."""
    epochs: int = Field(default=10, ge=1)
    max_steps: int | None = Field(default=None, ge=1)
    """Steps to train; by default `epochs` passes over the train split."""
    lr_schedule_steps: int | None = Field(default=None, ge=1)
    """Steps the schedules run over; by default `max_steps`."""
    validate_every: int | None = Field(default=None, ge=1)
    """Steps between validations on the EMA weights; by default once an epoch."""
    checkpoint_every: int = Field(default=100, ge=1)
    log_every: int = Field(default=20, ge=1)

    @model_validator(mode="after")
    def _check_encoders(self) -> TrainConfig:
        if self.encoders is None and self.model.uses_images:
            raise ValueError(
                f"encoders: {self.system} reads pictures: name its image encoder's weights, {{backbones: …, image: …}}"
            )
        if self.encoders is not None and self.encoders.text is None and not self.model.uses_images:
            raise ValueError(
                f"encoders.text: name the weights of {self.system}'s text encoder: both train, or, with encoders=null, none"
            )
        if self.augment is not None and not self.model.uses_images:
            raise ValueError(
                f"augment: {self.system} reads cached features, which are of the pictures as they are: augment=null"
            )
        return self


class CsdvlTrainConfig(TrainConfig):
    """The recipe of CSDVL and of STVGFormer, which is the same network."""

    system: Literal["csdvl", "stvgformer"] = "csdvl"
    model: CsdvlConfig = CsdvlConfig()
    loss: CsdvlLossConfig = CsdvlLossConfig()


class CgstvgTrainConfig(TrainConfig):
    """The recipe of CG-STVG (sec. 4, Implementation)."""

    system: Literal["cgstvg"] = "cgstvg"
    model: CgstvgConfig = CgstvgConfig()
    loss: CgstvgLossConfig = CgstvgLossConfig()
    lr: float = Field(default=3e-4, gt=0)
    lr_image: float = Field(default=2e-5, gt=0)
    lr_text: float = Field(default=2e-5, gt=0)
    optimizer: Literal["adamw", "adam"] = "adam"
    batch: int = Field(default=16, ge=1)


class CostaTrainConfig(TrainConfig):
    """The recipe of CoSTA: the paper states none, these are STCAT's numbers."""

    system: Literal["costa"] = "costa"
    model: CostaConfig = CostaConfig()
    loss: CostaLossConfig = CostaLossConfig()
    encoders: EncodersConfig | None = EncodersConfig()
    """Its image encoder is a part of it; with `text: null` token states are read from the store."""
    lr_image: float = Field(default=2e-5, gt=0)
    lr_text: float = Field(default=5e-5, gt=0)
    epochs: int = Field(default=90, ge=1)
