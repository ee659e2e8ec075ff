"""Losses of what is said of the event's first and last frame, and of which frames lie in it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def boundary_distributions(
    span: Tensor, frame_positions: Tensor, sigma: float
) -> tuple[Tensor, Tensor]:
    """Targets `[B, T]` of the first and of the last frame: Gaussians over the samples, of `sigma` samples, that sum to 1.

    Each of a segment's n frames among the T samples at τ `[B, T]` (fewer where it stores fewer) stands for 1/n of it; the event's
    first one is half of that after its begin, its last one half before its end. `span` `[B, 2]` in τ; all 0 where it has no length.
    """
    count = frame_positions.shape[-1]
    distinct = 1 + (frame_positions.diff(dim=-1) > 0).sum(-1)
    middles = count * torch.stack([span[:, 0] + 0.5 / distinct, span[:, 1] - 0.5 / distinct], -1)
    apart = (frame_positions[:, None] * count - middles[..., None]) / sigma
    first, last = ((-(apart**2) / 2).softmax(-1) * (span[:, 0] < span[:, 1])[:, None, None]).unbind(
        1
    )
    return first, last


def boundary_divergence(logits: Tensor, target: Tensor) -> Tensor:
    """KL(target ‖ softmax) over frames, summed over stages, mean over queries; `[K, B, T]` × `[B, T]`."""
    entropy = torch.special.entr(target).sum(-1)
    return (-(target * logits.log_softmax(-1)).sum(-1) - entropy).mean(1).sum()


def inside_loss(logits: Tensor, inside: Tensor, outside_weight: float) -> Tensor:
    """BCE of the labels `[B, T]`, frames outside weighed with `background`, summed over stages, mean over frames; logits `[K, B, T]`."""
    weight = torch.where(inside > 0, 1.0, outside_weight)
    loss = functional.binary_cross_entropy_with_logits(
        logits, inside.expand_as(logits), weight.expand_as(logits), reduction="none"
    )
    return loss.mean((1, 2)).sum()
