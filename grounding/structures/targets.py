"""Ground-truth targets of a batch.

Losses are normalized by the totals of the global batch (`LossNormalizers`). Losses and gradients of
micro-batches and ranks therefore sum to those of the whole batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass
class Targets:
    """Ground truth of B queries.

    Attributes:
        boxes: [B, T_s, 4], cxcywh in [0, 1], of each frame.
        box_mask: [B, T_s], True at frames with a box; only frames inside the span have a box.
        span: [B, 2], begin and end of the event in τ.
        frame_labels: [B, T_s], 1.0 for frames inside the span, else 0.0.
        clip_labels: [B, T_d], 1.0 for clips inside the span, else 0.0.
        clip_boxes: [B, T_d, 4], cxcywh in [0, 1], at the middle of each clip.
        clip_box_mask: [B, T_d], True at clips with a box.
    """

    boxes: Tensor
    box_mask: Tensor
    span: Tensor
    frame_labels: Tensor
    clip_labels: Tensor
    clip_boxes: Tensor
    clip_box_mask: Tensor


class LossNormalizers(NamedTuple):
    """Totals of a global batch that losses are divided by.

    Attributes:
        num_queries: Number of queries, 0-dim float32.
        num_boxed_frames: Number of frames with a box, 0-dim float32.
        num_boxed_clips: Number of clips with a box, 0-dim float32.
    """

    num_queries: Tensor
    num_boxed_frames: Tensor
    num_boxed_clips: Tensor

    @classmethod
    def from_targets(cls, targets: Targets) -> LossNormalizers:
        """Count the targets of a batch.

        Args:
            targets: A batch or a micro-batch; counts of micro-batches sum to the batch's.

        Returns:
            The totals, on the device of the targets.
        """
        num_queries = targets.span.new_full((), len(targets.span), dtype=torch.float32)
        num_boxed_frames = targets.box_mask.sum().float()
        num_boxed_clips = targets.clip_box_mask.sum().float()

        return cls(num_queries, num_boxed_frames, num_boxed_clips)
