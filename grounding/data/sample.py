"""One training or test sample."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np

from grounding.data.images import EncodedImages
from pipeline.records import Query


@dataclass(frozen=True)
class Sample:
    """One query with its features, without padding.

    Features are as stored (float16). For models that train their encoders, `appearance` holds
    images (uint8) and `text` holds token ids (int64).

    Attributes:
        query: The query.
        frame_indices: [T_s], int, the sampled frames of the video.
        appearance: [T_s, H, W, C].
        frame_positions: [T_s], positions of the frames in the segment, in [0, 1).
        motion: [T_d, h, w, C], of clips or of the sampled frames; [0, 1, 1, 0] for a model
            that reads no motion.
        picture_in_square: [4], xyxy, the picture's part of the motion maps, in [0, 1].
        text: [L, C].
        video_key: Identifies the appearance and motion rows. Samples of one dataset with equal
            keys have equal appearance and motion.
    """

    query: Query
    frame_indices: np.ndarray
    appearance: np.ndarray | EncodedImages
    frame_positions: np.ndarray
    motion: np.ndarray
    picture_in_square: np.ndarray
    text: np.ndarray
    video_key: Hashable
