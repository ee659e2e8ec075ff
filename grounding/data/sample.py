"""One training or test sample."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np

from grounding.data.images import EncodedImages
from pipeline.records import Query


@dataclass(frozen=True)
class Sample:
    """One query, not yet padded. Features are as stored (float16); for encoders that train, pictures (uint8) and ids (int64)."""

    query: Query
    frame_indices: np.ndarray
    """`[T_s]` int: the frames that were taken."""
    appearance: np.ndarray | EncodedImages
    """`[T_s, H, W, C]`."""
    frame_positions: np.ndarray
    """`[T_s]` the frames' places in the segment."""
    motion: np.ndarray
    """`[T_d, h, w, C]`, of clips, or of the frames that were taken; for a network that reads none `[0, 1, 1, 0]`."""
    picture_in_square: np.ndarray
    """`[4]` where the picture lies in the motion maps."""
    text: np.ndarray
    """`[L, C]`."""
    video_key: Hashable
    """Identifies the appearance and motion rows: samples of one dataset with equal keys share them."""
