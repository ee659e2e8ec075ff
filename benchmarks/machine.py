"""What a measurement was made on, and how fast that machine multiplies and copies: what floors are
reckoned with.
"""

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
"""Of the matrices that are multiplied."""
CONV_INPUT_SHAPES = {"cpu": (4, 256, 36, 64), "cuda": (64, 256, 72, 128)}
"""What a convolution of 3×3 sees, without padding: on a CPU its kernels are of another library than
those of products, and faster.
"""
COPY_BYTES = {"cpu": 256 << 20, "cuda": 2 << 30}


@dataclass(frozen=True)
class Rates:
    """Of one process, with its threads: floating point operations per second in matrix products or
    convolutions, whichever is faster, and bytes read plus bytes written per second in copying.
    """

    operations: float
    bytes: float


def measure_rates(device: str = "cpu", precision: str = "float32") -> Rates:
    """The best of a few tries of each large product, and of one large copy, on torch's threads."""
    import torch

    size = COPY_BYTES[device]
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copied = 2 * size / time_best(lambda: target.copy_(source), TRIES)
    with torch.inference_mode():
        return Rates(
            max(
                operations / time_best(work, TRIES)
                for operations, work in _build_products(device, precision)
            ),
            copied,
        )


def _build_products(device: str, precision: str) -> Iterator[tuple[int, Callable[[], object]]]:
    """Products as large as a machine likes them: how many operations each takes, and what makes it."""
    import torch

    about: Any = {"device": device, "dtype": getattr(torch, precision)}
    for side in MATRIX_SIDES[device]:
        left, right = torch.randn(2, side, side, **about)
        yield 2 * side**3, partial(torch.mm, left, right)
    batch, channels, rows, columns = CONV_INPUT_SHAPES[device]
    seen, weight = (
        torch.randn(CONV_INPUT_SHAPES[device], **about),
        torch.randn(channels, channels, 3, 3, **about),
    )
    yield (
        2 * batch * channels**2 * 9 * (rows - 2) * (columns - 2),
        partial(torch.conv2d, seen, weight),
    )


def has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def time_best(function: Callable[[], object], tries: int) -> float:
    """Seconds of the shortest try; one before them is not counted."""
    return min([time_call(function) for _ in range(tries + 1)][1:])


def time_call(function: Callable[[], object]) -> float:
    """Seconds the work takes, the GPU's part with it."""
    began = time.perf_counter()
    function()
    synchronize()
    return time.perf_counter() - began


def synchronize() -> None:
    """Wait for what the GPU was given to do, where there is one in use."""
    import torch

    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def describe_machine(*packages: str) -> str:
    """System, cores, memory, GPU, and the versions of Python and the packages named, as one
    sentence.
    """
    import torch

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{platform.system()}, {platform.machine()}, {CORES} cores, {memory:.0f} GiB, {gpu}, Python {platform.python_version()}, {versions}"
