"""Section `train`: the settings that all systems share.

Each system adds the configs of its model and loss in a file of its own (such as
`grounding.systems.costa`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from grounding.data.augmentation import AugmentConfig
from pipeline.config import StrictModel
from pipeline.features.config import BackboneSize

if TYPE_CHECKING:
    from grounding.models.config import ModelConfig

Schedule = Literal["constant", "one-cycle"]


class EncodersConfig(StrictModel):
    """Encoders that train with the model, and their initial weights.

    Sources of weights are written as in `weights` of section `extract`. `text` may be None for
    models that read images; token states are then read from the store.
    """

    backbones: BackboneSize = "full"
    """Size of the encoders, `full` or `tiny`."""
    image: str = "torchvision"
    """Source of the image encoder's weights, as in `extract.weights`."""
    text: str | None = None
    """Source of the text encoder's weights; null reads cached token states."""


class TrainConfig(StrictModel):
    """Training settings; the defaults are CSDVL's (supplement B.1)."""

    system: str
    """The system: `csdvl`, `stvgformer`, `cgstvg` or `costa`; `--model` sets it."""
    if TYPE_CHECKING:
        model: ModelConfig
        loss: StrictModel
    else:
        # Pydantic cannot validate a protocol. Each system declares its own classes.
        model: Any
        loss: Any
    seed: int = Field(default=0, ge=0)
    """Seed of the weights, the batch order, dropout and augmentation."""
    device: str = "auto"
    """Device of the training: `auto`, `cpu` or `cuda`."""
    init_from: Path | None = None
    """MDETR's checkpoint, for CSDVL's static stream. By default the model trains from scratch."""
    encoders: EncodersConfig | None = None
    """Image and text encoders that train with the model, on the store's `frames` and the sentences.
    By default their features are read from the store."""
    augment: AugmentConfig | None = None
    """Augmentation of frames in training, for models that read images."""
    negative_rate: float = Field(default=0.0, ge=0, lt=1)
    """Share of queries that are paired with another video's sentence, which the video does not
    show. With negatives, scores of different videos, and of a long video's windows, are
    comparable."""
    batch: int = Field(default=8, ge=1)
    """Queries per step, over all processes and micro-batches."""
    accumulation_steps: int = Field(default=1, ge=1)
    """Micro-batches per process and step: less memory, and the same step. With dropout, the step is
    the same where processes × micro-batches stays the same, because each micro-batch has its own
    random numbers."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Compute dtype of the model. Weights, losses and box heads stay float32."""
    activation_checkpointing: bool = False
    """Recompute the layers' activations in the backward pass: less memory, more time."""
    compile: bool = False
    """Compile the model with torch.compile."""
    lr: float = Field(default=1e-4, gt=0)
    """Learning rate of the transformers and heads."""
    lr_image: float = Field(default=1e-5, gt=0)
    """Learning rate of the image encoder, if it trains."""
    lr_text: float = Field(default=1e-5, gt=0)
    """Learning rate of the text encoder, if it trains."""
    optimizer: Literal["adamw", "adam"] = "adamw"
    """Optimizer."""
    weight_decay: float = Field(default=1e-4, ge=0)
    """Weight decay of all parameters."""
    clip_norm: float = Field(default=0.1, gt=0)
    """Largest norm of the gradient; a larger gradient is scaled down."""
    ema_decay: float = Field(default=0.999, ge=0, le=1)
    """Decay of the exponential moving average of the weights, which is validated and saved as
    `best`.
    """
    schedule: Schedule = "constant"
    """Schedule of `lr`; the encoders' rates have their own. `one-cycle`: 5 % linear warm-up, then
    cosine to 0 over `lr_schedule_steps`."""
    epochs: int = Field(default=10, ge=1)
    """Passes over the train split, where `max_steps` is null."""
    max_steps: int | None = Field(default=None, ge=1)
    """Steps to train; by default `epochs` passes over the train split."""
    lr_schedule_steps: int | None = Field(default=None, ge=1)
    """Length of the schedules in steps; by default `max_steps`."""
    validate_every: int | None = Field(default=None, ge=1)
    """Steps between validations of the EMA weights; by default one epoch."""
    checkpoint_every: int = Field(default=100, ge=1)
    """Steps between checkpoints."""
    log_every: int = Field(default=20, ge=1)
    """Steps between points of the curves."""

    @model_validator(mode="after")
    def _check_encoders(self) -> TrainConfig:
        """Check that encoders and augmentation fit the model's inputs."""
        uses_images = self.model.uses_images
        if self.encoders is None and uses_images:
            raise ValueError(
                f"encoders: {self.system} reads images: give its image encoder's weights,"
                " {backbones: …, image: …}"
            )
        if self.encoders is not None and self.encoders.text is None and not uses_images:
            raise ValueError(
                f"encoders.text: give the weights of {self.system}'s text encoder:"
                " both encoders train, or neither with encoders=null"
            )
        if self.augment is not None and not uses_images:
            raise ValueError(
                f"augment: {self.system} reads cached features, which are of unaugmented frames:"
                " set augment=null"
            )
        return self
