"""Sampling and backbones: the keys of section `extract` that concern one video."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipeline.config import StrictModel

BackboneSize = Literal["full", "tiny"]


class SamplingConfig(StrictModel):
    """Which moments of a video are looked at, and how large. Part of every visual product's provenance."""

    fps: float = Field(default=5.0, gt=0)
    """Appearance maps and JPEG frames: one at each 1/fps seconds, the nearest frame."""
    short_side: int = Field(default=320, ge=16)
    """N_short: the shorter side in pixels (the longer at most 1.8 times this)."""
    clip_stride_seconds: float = Field(default=0.4, gt=0)
    """Seconds from one motion clip to the next."""
    clip_seconds: float = Field(default=64 / 30, gt=0)
    """Seconds a motion clip spans."""
    pool_motion_2x2: bool = False
    """Keep the means of 2×2 motion cells (AVA's 16×16 becomes 8×8): a quarter of the bytes."""
    jpeg_quality: int = Field(default=90, ge=1, le=100)
