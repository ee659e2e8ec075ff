"""Losses of the event's start and end frames, and of the frames inside the event."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def boundary_distributions(
    span: Tensor, frame_positions: Tensor, sigma: float
) -> tuple[Tensor, Tensor]:
    """Return Gaussian target distributions of the start frame and of the end frame.

    The T samples show n distinct frames; n < T if the segment stores fewer than T frames. Each
    distinct frame stands for 1/n of the segment. The center of the event's first frame therefore
    lies half of 1/n after the span's start, and the center of its last frame half of 1/n before
    the span's end.

    Args:
        span: [B, 2], start and end in τ.
        frame_positions: [B, T], τ of the sampled frames.
        sigma: Width of the Gaussians, in samples.

    Returns:
        Distributions [B, T] of the start frame and of the end frame. They sum to 1 over frames; all
        are 0 for an empty span.
    """
    num_samples = frame_positions.shape[-1]
    num_distinct = 1 + (frame_positions.diff(dim=-1) > 0).sum(-1)  # [B]

    # Centers of the first and last frame, in samples.
    first_center = span[:, 0] + 0.5 / num_distinct
    last_center = span[:, 1] - 0.5 / num_distinct
    centers = num_samples * torch.stack([first_center, last_center], -1)  # [B, 2]

    # Gaussians over the samples. A softmax normalizes them without underflow.
    distances = (frame_positions[:, None] * num_samples - centers[..., None]) / sigma  # [B, 2, T]
    gaussians = (-(distances**2) / 2).softmax(-1)

    has_event = span[:, 0] < span[:, 1]  # [B]
    start, end = (gaussians * has_event[:, None, None]).unbind(1)
    return start, end


def boundary_divergence(logits: Tensor, target: Tensor) -> Tensor:
    """Return KL(target ‖ softmax(logits)) over frames.

    Args:
        logits: [K, B, T], logits after each of K layers.
        target: [B, T], distribution over frames.

    Returns:
        The divergence, summed over layers and averaged over queries.
    """
    entropy = torch.special.entr(target).sum(-1)  # [B]
    cross_entropy = -(target * logits.log_softmax(-1)).sum(-1)  # [K, B]

    return (cross_entropy - entropy).mean(1).sum()


def inside_loss(logits: Tensor, inside: Tensor, outside_weight: float) -> Tensor:
    """Return the binary cross-entropy of the frames inside the event.

    Args:
        logits: [K, B, T], logits after each of K layers.
        inside: [B, T], 1 inside the event, 0 outside.
        outside_weight: Weight of the frames outside the event.

    Returns:
        The loss, summed over layers and averaged over queries and frames.
    """
    frame_weights = torch.where(inside > 0, 1.0, outside_weight)  # [B, T]
    loss = functional.binary_cross_entropy_with_logits(
        logits, inside.expand_as(logits), frame_weights.expand_as(logits), reduction="none"
    )

    return loss.mean((1, 2)).sum()
