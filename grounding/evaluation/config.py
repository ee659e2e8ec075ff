"""Section `evaluate` of the configuration."""

from __future__ import annotations

from pydantic import Field

from grounding.evaluation.hcstvg_challenge import FIRST_FRAME
from pipeline.config import StrictModel


class EvaluateConfig(StrictModel):
    """Section `evaluate`: which split is judged; `seed` is that of the random baseline and of the intervals."""

    split: str = "test"
    seed: int = 0
    frames: int | None = Field(None, ge=1)
    """T_s: frames a model sees at once at test time; by default as in training."""
    batch: int = Field(16, ge=1)
    """Passes of T_s frames that run at once."""
    refine_boundaries: bool = False
    """A second look at clips and frames taken densely around the span that the first one found."""
    subframe_boundaries: bool = True
    """Spans begin and end between clips, where the scores around the best proposal point; false: at clips' edges, as in the paper."""
    device: str = "auto"
    first_frame: int = Field(FIRST_FRAME, ge=0, le=1)
    """The number of a video's first frame in the challenge's files."""
