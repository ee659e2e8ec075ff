"""Sampling and encoder size: the keys of section `extract` that concern one video."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipeline.config import StrictModel

BackboneSize = Literal["full", "tiny"]
"""Size of the encoders."""


class SamplingConfig(StrictModel):
    """Frames and clips to encode, and their size; part of every visual product's provenance."""

    fps: float = Field(default=5.0, gt=0)
    """Appearance maps and JPEG frames per second: the nearest frame at each 1/fps seconds."""
    short_side: int = Field(default=320, ge=16)
    """N_short: the shorter side in pixels (the longer at most 1.8 times this)."""
    clip_stride_seconds: float = Field(default=0.4, gt=0)
    """Seconds from the center of one motion clip to the next."""
    clip_seconds: float = Field(default=64 / 30, gt=0)
    """Duration of a motion clip in seconds."""
    pool_motion_2x2: bool = False
    """Average motion maps over 2×2 cells (AVA's 16×16 becomes 8×8): a quarter of the bytes."""
    jpeg_quality: int = Field(default=90, ge=1, le=100)
    """Quality of the JPEG frames."""
