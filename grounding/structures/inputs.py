"""What every network is given: a batch of queries with their features."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass
class ModelInputs:
    """A batch of B queries about V ≤ B looks at videos: what several of them ask about is there once. Masks are True at what counts.

    Before `grounding.data.collate.to_device` appearance and motion may be what makes these tensors on the device.
    """

    appearance: Tensor
    """C5 maps `[V, T_s, H, W, C_a]`, zero-padded to the batch's largest map."""
    map_size: Tensor
    """`[V, 2]` rows and columns of each map that are not padding."""
    frame_positions: Tensor
    """`[B, T_s]` each frame's place in its segment."""
    motion: Tensor
    """`[V, T_d, h, w, C_m]`, maps of clips, or of the frames (T_d = T_s); zero-padded as the C5 maps are."""
    picture_in_square: Tensor
    """`[V, 4]` where the picture lies in the motion maps, xyxy shares of their sides: SlowFast sees it in a padded square."""
    text: Tensor
    """Token states `[B, L, C_t]`."""
    text_mask: Tensor
    """`[B, L]`."""
    video_indices: Tensor | None = None
    """`[B]` which of the V each query is about; None where each has its own (V = B)."""

    def expand_to_queries(self, per_video: Tensor) -> Tensor:
        """What was made of the V looks, `[V, …]`, for each query, `[B, …]`."""
        if self.video_indices is None:
            return per_video
        # of the two, gradients add up in a fixed order by index_select on a CPU, by an index on a GPU
        return (
            per_video[self.video_indices]
            if per_video.is_cuda
            else per_video.index_select(0, self.video_indices)
        )
