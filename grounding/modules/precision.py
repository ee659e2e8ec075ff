"""Stored features are float16; networks compute in float32, or in what autocast says."""

from __future__ import annotations

import torch
from torch import Tensor


def as_computed(features: Tensor) -> Tensor:
    """Features as a network's first layer takes them: autocast casts by itself, without a float32 copy in between."""
    return features if torch.is_autocast_enabled(features.device.type) else features.float()
