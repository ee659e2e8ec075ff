"""Source of the video frames that reports and figures show.

The command supplies the opener: `grounding` decodes no videos itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from pipeline.errors import VideoError


@dataclass(frozen=True)
class VideoSource:
    """One video.

    Attributes:
        path: Path of the video, for messages.
        frame_edges: `[n + 1]` seconds; frame i is shown from `frame_edges[i]` to
            `frame_edges[i + 1]`.
        fingerprint: Text that changes when the file changes.
        decode_frames: Decodes ascending frame indices, one RGB uint8 `[H, W, 3]` image at a time;
            raises VideoError if decoding fails.
    """

    path: str
    frame_edges: np.ndarray = field(repr=False)
    fingerprint: str
    decode_frames: Callable[[Sequence[int]], Iterator[np.ndarray]]

    def read_frames(self, frame_indices: Sequence[int]) -> Iterator[np.ndarray]:
        """Decode frames.

        Args:
            frame_indices: Ascending frame indices; at least one.

        Returns:
            Iterator over the frames, RGB uint8 `[H, W, 3]`.

        Raises:
            VideoError: If the video lacks a frame or decoding fails.
        """
        self.check_has_frame(frame_indices[-1])

        return self.decode_frames(frame_indices)

    def check_has_frame(self, frame_index: int) -> None:
        """Check that the video has a frame.

        Args:
            frame_index: Index of the frame.

        Raises:
            VideoError: If the video is shorter.
        """
        num_frames = len(self.frame_edges) - 1
        if frame_index >= num_frames:
            raise VideoError(
                "decode",
                "changed",
                f"{self.path} has {num_frames} frames, but the index has more",
            )


VideoOpener = Callable[[str], VideoSource]
"""Opens the video at a query's path; raises StvgError if it cannot be read."""
