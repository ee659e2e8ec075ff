"""The optimizer, AdamW or Adam: parameter groups with learning rates and schedules of their own."""

from __future__ import annotations

from collections import defaultdict

from torch import nn
from torch.optim import Adam, AdamW
from torch.optim.lr_scheduler import LambdaLR

from grounding.systems.config import TrainConfig
from grounding.training.lr_schedule import (
    LrFactor,
    constant,
    linear_warmup_decay,
    warmup_cosine,
)


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
