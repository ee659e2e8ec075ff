"""Videos that a report or a figure shows. The command brings them: `grounding` reads no videos itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from pipeline.errors import VideoError


@dataclass(frozen=True)
class VideoSource:
    """One video: frame n is shown from `edges[n]` to `edges[n + 1]` seconds; `stamp` changes with the file."""

    path: str
    frame_edges: np.ndarray = field(repr=False)
    fingerprint: str
    decode_frames: Callable[[Sequence[int]], Iterator[np.ndarray]]
    """Ascending frame numbers → RGB pictures uint8 `[H, W, 3]`, one by one; VideoError where they cannot be decoded."""

    def read_frames(self, frame_indices: Sequence[int]) -> Iterator[np.ndarray]:
        """The frames of these ascending numbers; a VideoError where the video does not have them."""
        self.check_has_frame(frame_indices[-1])
        return self.decode_frames(frame_indices)

    def check_has_frame(self, frame_index: int) -> None:
        """VideoError where there is no such frame."""
        count = len(self.frame_edges) - 1
        if frame_index >= count:
            raise VideoError(
                "decode", "changed", f"{self.path} has {count} frames, the index says more"
            )


VideoOpener = Callable[[str], VideoSource]
"""A query's path → its video; a StvgError where it cannot be read."""
