"""What the networks of all systems have in common in their configuration."""

from __future__ import annotations

from typing import ClassVar, Protocol, Self

from pydantic import Field, model_validator

from pipeline.config import StrictModel


class ModelConfig(Protocol):
    """Properties of a model's configuration that data loading, training and prediction read."""

    @property
    def num_frames(self) -> int:
        """T_s, the number of frames of a training pass."""

    @property
    def num_clips(self) -> int | None:
        """T_d, the number of clips of a pass; None for models without clips."""

    @property
    def motion_product(self) -> str | None:
        """Store product with the motion maps; None for models without cached motion."""

    @property
    def uses_images(self) -> bool:
        """True if the model reads images, False if it reads cached appearance maps."""


class TransformerConfig(StrictModel):
    """The sizes of a transformer; the defaults are DETR's, which all three papers take over."""

    parts: ClassVar[tuple[int, str]] = (4, "two dimensions of sine positions")
    """What d must be a multiple of, and why."""
    hidden_dim: int = Field(default=256, ge=8)
    num_heads: int = Field(default=8, ge=1)
    ffn_dim: int = Field(default=2048, ge=1)
    dropout: float = Field(default=0.1, ge=0, lt=1)

    @model_validator(mode="after")
    def _check_heads_divide_hidden_dim(self) -> Self:
        count, why = self.parts
        if self.hidden_dim % count or self.hidden_dim % self.num_heads:
            raise ValueError(
                f"d must be a multiple of {count} ({why}) and of heads, not {self.hidden_dim} with {self.num_heads} heads"
            )
        return self
