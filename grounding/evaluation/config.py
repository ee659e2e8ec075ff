"""Section `evaluate` of the configuration."""

from __future__ import annotations

from pydantic import Field

from grounding.evaluation.hcstvg_challenge import FIRST_FRAME
from pipeline.config import StrictModel


class EvaluateConfig(StrictModel):
    """Section `evaluate`: the split, and the settings of inference and of the intervals."""

    split: str = "test"
    """Split that is evaluated."""
    seed: int = 0
    """Seed of the random baseline and of the bootstrap intervals."""
    frames: int | None = Field(None, ge=1)
    """T_s: frames of one forward pass at test time; by default as in training."""
    batch: int = Field(16, ge=1)
    """Forward passes of T_s frames that run at once."""
    refine_boundaries: bool = False
    """Run a second, denser pass on clips and frames around the predicted span."""
    subframe_boundaries: bool = True
    """Place boundaries between clips, at the center of the scores around the best proposal.

    With false, boundaries are at the edges of clips, as in the paper.
    """
    device: str = "auto"
    """Device of the models: auto, cpu, or cuda."""
    first_frame: int = Field(FIRST_FRAME, ge=0, le=1)
    """Number of a video's first frame in files of the HC-STVG challenge."""
