"""What is true of a batch.

A batch may be cut into parts, over processes and over time: a part's loss is its share of the whole batch's, so that the
parts' losses, and their gradients, add up to it. That takes the whole batch's `Totals`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass
class Targets:
    """What is true of B queries: boxes `[B, T_s, 4]` cxcywh, where there is one `[B, T_s]` (inside the span only),
    span `[B, 2]` in τ, labels of frames `[B, T_s]` and clips `[B, T_d]` inside the span (float 0/1), and boxes at the
    middles of clips, `[B, T_d, 4]` and `[B, T_d]`.
    """

    boxes: Tensor
    box_mask: Tensor
    span: Tensor
    frame_labels: Tensor
    clip_labels: Tensor
    clip_boxes: Tensor
    clip_box_mask: Tensor


class LossNormalizers(NamedTuple):
    """How many queries, boxed samples and boxed clips a whole batch has; numbers as 0-dim float tensors."""

    num_queries: Tensor
    num_boxed_frames: Tensor
    num_boxed_clips: Tensor

    @classmethod
    def from_targets(cls, targets: Targets) -> LossNormalizers:
        """Those of targets that are the whole batch; those of parts add up."""
        queries = targets.span.new_full((), len(targets.span), dtype=torch.float32)
        return cls(queries, targets.box_mask.sum().float(), targets.clip_box_mask.sum().float())
