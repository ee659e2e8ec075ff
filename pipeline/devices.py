"""The device a command computes on."""

from __future__ import annotations

import torch

from pipeline.errors import InputError


def resolve_device(name: str) -> torch.device:
    """The device `auto` (the GPU where there is one), or the one named; an InputError where it is not there."""
    try:
        device = torch.device(
            ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
        )
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError):
        raise InputError(
            f"device {name!r} is not here: allowed are auto, cpu, and cuda where there is a GPU"
        ) from None
    return device
