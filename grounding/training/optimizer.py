"""AdamW or Adam in groups of parameters, each with its own rate and schedule."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable

from torch import nn
from torch.optim import Adam, AdamW
from torch.optim.lr_scheduler import LambdaLR

from grounding.systems.config import TrainConfig

LrFactor = Callable[[int], float]
"""From the number of steps taken to what the rate is multiplied by."""


def build_optimizer(model: nn.Module, config: TrainConfig, steps: int) -> tuple[Adam, LambdaLR]:
    """The optimiser and its schedules over `steps`; heads and transformers are the first group (norms and biases decay too:
    the paper asks for no exception), encoders that train follow.
    """
    encoders = {
        "image_encoder.": (config.lr_image, constant),
        "text_encoder.": (config.lr_text, linear_warmup_decay(steps)),
    }
    rates = {
        "": (config.lr, constant if config.schedule == "constant" else warmup_cosine(steps)),
        **encoders,
    }
    groups: defaultdict[str, list[nn.Parameter]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[next((prefix for prefix in encoders if name.startswith(prefix)), "")].append(
                parameter
            )
    used = [prefix for prefix in rates if groups[prefix]]
    kind = AdamW if config.optimizer == "adamw" else Adam
    optimiser = kind(
        [{"params": groups[prefix], "lr": rates[prefix][0]} for prefix in used],
        weight_decay=config.weight_decay,
        fused=True,
    )
    return optimiser, LambdaLR(optimiser, [rates[prefix][1] for prefix in used])


def constant(step: int) -> float:
    return 1.0


def warmup_cosine(steps: int) -> LrFactor:
    """5 % of the steps linear warm-up, then cosine to 0."""
    warm = max(1, round(0.05 * steps))

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm) / max(1, steps - warm))))

    return factor


def linear_warmup_decay(steps: int) -> LrFactor:
    """1 % of the steps linear warm-up, then linear to 0 (TubeDETR's practice for the text encoder)."""
    warm = max(1, round(0.01 * steps))

    def factor(step: int) -> float:
        return (step + 1) / warm if step < warm else max(0.0, (steps - step) / max(1, steps - warm))

    return factor
