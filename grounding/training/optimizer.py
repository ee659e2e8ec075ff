"""The optimizer, AdamW or Adam: parameter groups with learning rates and schedules of their own."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable

from torch import nn
from torch.optim import Adam, AdamW
from torch.optim.lr_scheduler import LambdaLR

from grounding.systems.config import TrainConfig

LrFactor = Callable[[int], float]
"""From the number of steps taken to the factor of the learning rate."""


def build_optimizer(model: nn.Module, config: TrainConfig, steps: int) -> tuple[Adam, LambdaLR]:
    """Build the optimizer and its learning rate schedules.

    The heads and transformers are the first parameter group; the trained image and text encoders
    follow. Weight decay applies to norms and biases too: the paper asks for no exception.

    Args:
        model: The model; parameters without `requires_grad` are left out.
        config: The training configuration.
        steps: The number of steps that the schedules run over.

    Returns:
        The optimizer and the scheduler of all groups.
    """
    # Learning rate and schedule of each group, by the prefix of its parameters' names.
    encoders: dict[str, tuple[float, LrFactor]] = {
        "image_encoder.": (config.lr_image, constant),
        "text_encoder.": (config.lr_text, linear_warmup_decay(steps)),
    }
    main_schedule = constant if config.schedule == "constant" else warmup_cosine(steps)
    rates: dict[str, tuple[float, LrFactor]] = {"": (config.lr, main_schedule), **encoders}

    # Assign each parameter to its group.
    groups: defaultdict[str, list[nn.Parameter]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        prefix = next((prefix for prefix in encoders if name.startswith(prefix)), "")
        groups[prefix].append(parameter)

    # Build the optimizer of the groups that have parameters.
    parameter_groups = []
    schedules = []
    for prefix, (rate, schedule) in rates.items():
        if groups[prefix]:
            parameter_groups.append({"params": groups[prefix], "lr": rate})
            schedules.append(schedule)
    optimizer_class = AdamW if config.optimizer == "adamw" else Adam
    optimizer = optimizer_class(parameter_groups, weight_decay=config.weight_decay, fused=True)
    return optimizer, LambdaLR(optimizer, schedules)


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
