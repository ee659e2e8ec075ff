"""Parts of the model configuration shared by all systems."""

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
    """Transformer sizes. The defaults are DETR's, which all three papers adopt."""

    hidden_dim_divisor: ClassVar[tuple[int, str]] = (4, "two dimensions of sine positions")
    """Number that divides `hidden_dim`, and the reason for the requirement."""

    hidden_dim: int = Field(default=256, ge=8)
    """Channels d of all token states."""
    num_heads: int = Field(default=8, ge=1)
    """Attention heads; their number divides `hidden_dim`."""
    ffn_dim: int = Field(default=2048, ge=1)
    """Hidden channels of the feed-forward networks."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout probability of attention weights and residual branches."""

    @model_validator(mode="after")
    def _check_heads_divide_hidden_dim(self) -> Self:
        """Reject sizes that position encodings or attention heads cannot split evenly."""
        divisor, reason = self.hidden_dim_divisor

        if self.hidden_dim % divisor or self.hidden_dim % self.num_heads:
            raise ValueError(
                f"hidden_dim must be a multiple of {divisor} ({reason}) and of num_heads, "
                f"not {self.hidden_dim} with num_heads {self.num_heads}"
            )

        return self
