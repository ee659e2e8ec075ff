"""Logits of each frame to be the event's first, and its last, and the spans they speak for."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from grounding.structures.span_scores import BoundaryPrediction


@dataclass
class FramewiseOutputs:
    """What a network that answers by frames says after each of K layers; the last layer's is the prediction. T is T_s, the frames."""

    boxes: Tensor
    """`[K, B, T, 4]` cxcywh in [0, 1]."""
    start_logits: Tensor
    end_logits: Tensor
    """Logits `[K, B, T]` of each frame to be the event's first, and its last."""
    frame_positions: Tensor
    """`[B, T]` each frame's place in its segment."""
    box_attention: Tensor
    """Which cells carry the box, `[K, B, T, H·W]`; sums to 1 over cells. With `box_head=mlp` uniform."""
    cell_boxes: Tensor
    """The box each cell proposes (`box_head=attention`), `[B, T, H·W, 4]` cxcywh; empty with `box_head=mlp`."""
    cell_centers: Tensor
    """`[B, H·W, 2]` (x, y) of the cells in [0, 1]."""
    temporal_attention: Tensor
    """How much the temporal queries look at each cell, with CG-STVG at its motion, `[K, B, T, H·W]`."""

    def span_predictions(self) -> list[BoundaryPrediction]:
        """What it says of when, query by query."""
        logits = [both[-1].detach().double().cpu() for both in (self.start_logits, self.end_logits)]
        first, last = (own.softmax(-1).numpy() for own in logits)
        levels = sum(own.logsumexp(-1) for own in logits)
        assert isinstance(levels, Tensor)
        return [BoundaryPrediction(*own) for own in zip(first, last, levels.tolist(), strict=True)]


def most_likely_span(start_logits: Tensor, end_logits: Tensor) -> Tensor:
    """The frames `[B, T]` from i to j, both included, of the pair i ≤ j with the highest joint probability; logits `[B, T]`."""
    count = start_logits.shape[-1]
    joint = start_logits.log_softmax(-1)[:, :, None] + end_logits.log_softmax(-1)[:, None]
    valid = torch.ones(count, count, dtype=torch.bool, device=start_logits.device).triu()
    best = joint.masked_fill(~valid, float("-inf")).flatten(1).argmax(-1, keepdim=True)
    frames = torch.arange(count, device=start_logits.device)
    return (frames >= best // count) & (frames <= best % count)
