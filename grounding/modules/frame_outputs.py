"""Outputs of models that predict start and end probabilities of every frame."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from grounding.structures.span_scores import BoundaryPrediction


@dataclass
class FramewiseOutputs:
    """Outputs of a frame-wise model after each of K layers; the last layer is the prediction.

    T is T_s, the number of frames of a pass.
    """

    boxes: Tensor
    """`[K, B, T, 4]` cxcywh in [0, 1]."""
    start_logits: Tensor
    """`[K, B, T]`, logits of each frame to be the event's first frame."""
    end_logits: Tensor
    """`[K, B, T]`, logits of each frame to be the event's last frame."""
    frame_positions: Tensor
    """`[B, T]`, τ of each frame in its segment."""
    box_attention: Tensor
    """`[K, B, T, H·W]`, weights of the cells that make the box; sums to 1 over cells.
    Uniform with `box_head=mlp`."""
    cell_boxes: Tensor
    """`[B, T, H·W, 4]` cxcywh, the box proposal of each cell with `box_head=attention`.
    Empty with `box_head=mlp`."""
    cell_centers: Tensor
    """`[B, H·W, 2]`, cell centers (x, y) in [0, 1]."""
    temporal_attention: Tensor
    """`[K, B, T, H·W]`, attention of the temporal queries to each cell.
    CG-STVG attends to the cell's motion feature."""

    def span_predictions(self) -> list[BoundaryPrediction]:
        """Return the last layer's boundary probabilities, one prediction per query.

        Returns:
            B predictions on the CPU, in float64.
        """
        start_logits = self.start_logits[-1].detach().double().cpu()  # [B, T]
        end_logits = self.end_logits[-1].detach().double().cpu()  # [B, T]

        start = start_logits.softmax(-1).numpy()
        end = end_logits.softmax(-1).numpy()

        # Softmax divides by exp(logsumexp), so the log-normalizer of the product is a sum.
        log_normalizers = start_logits.logsumexp(-1) + end_logits.logsumexp(-1)  # [B]

        return [
            BoundaryPrediction(start[index], end[index], log_normalizer)
            for index, log_normalizer in enumerate(log_normalizers.tolist())
        ]


def most_likely_span(start_logits: Tensor, end_logits: Tensor) -> Tensor:
    """Return the frames of the span with the highest joint probability.

    Args:
        start_logits: [B, T], logits of each frame to be the first frame.
        end_logits: [B, T], logits of each frame to be the last frame.

    Returns:
        [B, T], True from frame i to frame j (inclusive) of the best pair i ≤ j.
    """
    count = start_logits.shape[-1]
    device = start_logits.device

    # Log-probability of every pair (i, j).
    start = start_logits.log_softmax(-1)  # [B, T]
    end = end_logits.log_softmax(-1)  # [B, T]
    joint = start[:, :, None] + end[:, None]  # [B, T, T]

    # Pairs with i > j are no spans.
    valid = torch.ones(count, count, dtype=torch.bool, device=device).triu()
    valid_joint = joint.masked_fill(~valid, float("-inf"))

    best = valid_joint.flatten(1).argmax(-1, keepdim=True)  # [B, 1], i · T + j
    first = best // count
    last = best % count

    frames = torch.arange(count, device=device)
    return (frames >= first) & (frames <= last)
