"""Model inputs: a batch of queries with their features."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass
class ModelInputs:
    """A batch of B queries about V ≤ B videos.

    Queries about the same frames of a video share one entry. Masks are True at valid positions.
    Before `grounding.data.collate.to_device`, `appearance` and `motion` may be objects that build
    the tensors on the device.
    """

    appearance: Tensor
    """`[V, T_s, H, W, C_a]`, C5 maps, zero-padded to the batch's largest map."""
    map_size: Tensor
    """`[V, 2]`, (rows, columns) of each map that are no padding."""
    frame_positions: Tensor
    """`[B, T_s]`, τ of each frame in its segment, in [0, 1)."""
    motion: Tensor
    """`[V, T_d, h, w, C_m]`, maps of clips or of frames (T_d = T_s), zero-padded like the C5
    maps."""
    picture_in_square: Tensor
    """`[V, 4]`, the picture in the motion maps, xyxy as shares of the maps' sides.
    SlowFast's input is a padded square."""
    text: Tensor
    """`[B, L, C_t]`, token states."""
    text_mask: Tensor
    """`[B, L]`, True at tokens."""
    video_indices: Tensor | None = None
    """`[B]`, the video of each query; None if every query has its own (V = B)."""

    def expand_to_queries(self, per_video: Tensor) -> Tensor:
        """Repeat values of videos for the queries about them.

        Args:
            per_video: [V, …].

        Returns:
            [B, …].
        """
        if self.video_indices is None:
            return per_video

        # Only these two sum gradients in a fixed order: indexing on a GPU, index_select on a CPU.
        if per_video.is_cuda:
            return per_video[self.video_indices]

        return per_video.index_select(0, self.video_indices)
