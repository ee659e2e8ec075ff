"""Description of the machine and its rates of computing and copying, for lower bounds."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import Any

CORES = os.cpu_count() or 1
TRIES = 5
MATRIX_SIDES = {"cpu": (512, 2048), "cuda": (8192,)}
"""Sides of the square matrices to multiply."""
CONV_INPUT_SHAPES = {"cpu": (4, 256, 36, 64), "cuda": (64, 256, 72, 128)}
"""Input shapes of a 3×3 convolution without padding.

On a CPU convolutions and matrix products use different libraries, and convolutions are faster.
"""
COPY_BYTES = {"cpu": 256 << 20, "cuda": 2 << 30}


@dataclass(frozen=True)
class Rates:
    """Rates of one process with all its threads.

    Attributes:
        operations: Floating point operations per second, in matrix products or convolutions,
            whichever are faster.
        bytes: Bytes read plus bytes written per second of copying.
    """

    operations: float
    bytes: float


def measure_rates(device: str = "cpu", precision: str = "float32") -> Rates:
    """Measure the rates of a device with torch's threads.

    Args:
        device: `cpu` or `cuda`.
        precision: Name of a torch dtype.

    Returns:
        The best of a few tries of each large product and of one large copy.
    """
    import torch

    # Copying
    num_bytes = COPY_BYTES[device]
    source = torch.ones(num_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy_rate = 2 * num_bytes / time_best(lambda: target.copy_(source), TRIES)

    # Computing
    operation_rates = []
    with torch.inference_mode():
        for operations, product in _build_products(device, precision):
            operation_rates.append(operations / time_best(product, TRIES))

    return Rates(max(operation_rates), copy_rate)


def _build_products(device: str, precision: str) -> Iterator[tuple[int, Callable[[], object]]]:
    """Yield large products, each as its number of operations and a function that computes it."""
    import torch

    options: Any = {"device": device, "dtype": getattr(torch, precision)}

    for side in MATRIX_SIDES[device]:
        left, right = torch.randn(2, side, side, **options)
        yield 2 * side**3, partial(torch.mm, left, right)

    batch, channels, height, width = CONV_INPUT_SHAPES[device]
    inputs = torch.randn(CONV_INPUT_SHAPES[device], **options)
    weight = torch.randn(channels, channels, 3, 3, **options)
    operations = 2 * batch * channels**2 * 9 * (height - 2) * (width - 2)
    yield operations, partial(torch.conv2d, inputs, weight)


def has_gpu() -> bool:
    """Return True if a CUDA device is available."""
    import torch

    return torch.cuda.is_available()


def time_best(function: Callable[[], object], tries: int) -> float:
    """Time the fastest of several calls, after one untimed call.

    Args:
        function: Function to time.
        tries: Number of timed calls.

    Returns:
        Seconds of the fastest call.
    """
    seconds = [time_call(function) for _ in range(tries + 1)]
    return min(seconds[1:])


def time_call(function: Callable[[], object]) -> float:
    """Time one call, including its work on the GPU.

    Args:
        function: Function to time.

    Returns:
        Seconds of the call.
    """
    start = time.perf_counter()
    function()
    synchronize()
    return time.perf_counter() - start


def synchronize() -> None:
    """Wait for the GPU to finish, if the process uses one."""
    import torch

    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def describe_machine(*packages: str) -> str:
    """Describe the machine and its software in one sentence.

    Args:
        *packages: Names of the packages whose versions are listed.

    Returns:
        System, cores, memory, GPU, and versions of Python and of the packages.
    """
    import torch

    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"

    facts = [platform.system(), platform.machine(), f"{CORES} cores", f"{memory_gib:.0f} GiB"]
    facts += [gpu, f"Python {platform.python_version()}"]
    facts += [f"{name} {version(name)}" for name in packages]
    return ", ".join(facts)
