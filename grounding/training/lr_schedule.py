"""Learning rate schedules: factors of the learning rate by the number of steps taken."""

from __future__ import annotations

import math
from collections.abc import Callable

LrFactor = Callable[[int], float]
"""From the number of steps taken to the factor of the learning rate."""


def constant(step: int) -> float:
    """Return 1 at every step.

    Args:
        step: The number of steps taken.

    Returns:
        The factor of the learning rate.
    """
    return 1.0


def warmup_cosine(steps: int) -> LrFactor:
    """Build a schedule of linear warm-up over 5 % of the steps, then a cosine to 0.

    Args:
        steps: The number of steps of the schedule.

    Returns:
        The schedule.
    """
    warmup_steps = max(1, round(0.05 * steps))

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        progress = min(1.0, (step - warmup_steps) / max(1, steps - warmup_steps))
        return 0.5 * (1 + math.cos(math.pi * progress))

    return factor


def linear_warmup_decay(steps: int) -> LrFactor:
    """Build a schedule of linear warm-up over 1 % of the steps, then a line to 0.

    TubeDETR's code trains its text encoder this way.

    Args:
        steps: The number of steps of the schedule.

    Returns:
        The schedule.
    """
    warmup_steps = max(1, round(0.01 * steps))

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        return max(0.0, (steps - step) / max(1, steps - warmup_steps))

    return factor
