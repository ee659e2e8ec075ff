"""The device of a command's computations."""

from __future__ import annotations

import torch

from pipeline.errors import InputError


def resolve_device(name: str) -> torch.device:
    """Return the torch device of a name.

    Args:
        name: A torch device (`cpu`, `cuda`, `cuda:1`), or `auto`: a CUDA GPU if one is
            available, else the CPU.

    Returns:
        The device. A tensor has been allocated on it as a check.

    Raises:
        InputError: The device is unknown or not available.
    """
    try:
        if name == "auto":
            device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        else:
            device = torch.device(name)

        # A name can be valid without hardware behind it: allocate to find out.
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError):
        raise InputError(
            f"device {name!r} is not available: allowed are auto, cpu, and cuda on a machine "
            "with a CUDA GPU. Use --set device=cpu or --set device=auto"
        ) from None
    return device
