"""Logits of each frame to be the event's first, and its last, and the spans they speak for."""

from __future__ import annotations

import torch
from torch import Tensor

from grounding.spans import Boundaries


def boundaries_of(first: Tensor, last: Tensor) -> list[Boundaries]:
    """What logits `[B, T]` say of when, query by query."""
    probabilities = (logits.detach().double().softmax(-1).cpu().numpy() for logits in (first, last))
    return [Boundaries(*both) for both in zip(*probabilities, strict=True)]


def likeliest_frames(first: Tensor, last: Tensor) -> Tensor:
    """The frames `[B, T]` from i to j, both included, of the pair i ≤ j with the highest joint probability; logits `[B, T]`."""
    count = first.shape[-1]
    joint = first.log_softmax(-1)[:, :, None] + last.log_softmax(-1)[:, None]
    valid = torch.ones(count, count, dtype=torch.bool, device=first.device).triu()
    best = joint.masked_fill(~valid, float("-inf")).flatten(1).argmax(-1, keepdim=True)
    frames = torch.arange(count, device=first.device)
    return (frames >= best // count) & (frames <= best % count)
