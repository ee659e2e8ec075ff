"""What the networks of all systems have in common in their configuration."""

from __future__ import annotations

from typing import ClassVar, Self

from pydantic import Field, model_validator

from pipeline.config import StrictModel


class TransformerConfig(StrictModel):
    """The sizes of a transformer; the defaults are DETR's, which all three papers take over."""

    parts: ClassVar[tuple[int, str]] = (4, "two dimensions of sine positions")
    """What d must be a multiple of, and why."""
    d: int = Field(default=256, ge=8)
    heads: int = Field(default=8, ge=1)
    ffn: int = Field(default=2048, ge=1)
    dropout: float = Field(default=0.1, ge=0, lt=1)

    @model_validator(mode="after")
    def _d_is_divided(self) -> Self:
        count, why = self.parts
        if self.d % count or self.d % self.heads:
            raise ValueError(
                f"d must be a multiple of {count} ({why}) and of heads, not {self.d} with {self.heads} heads"
            )
        return self
