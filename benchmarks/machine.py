"""What a measurement was made on, and how fast that machine multiplies and copies: what floors are reckoned with."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version

CORES = os.cpu_count() or 1
TRIES = 5
SIDE = {"cpu": 2048, "cuda": 8192}
BYTES = {"cpu": 256 << 20, "cuda": 2 << 30}


@dataclass(frozen=True)
class Rates:
    """Of one process, with its threads: floating point operations per second in matrix products, and bytes read plus bytes written
    per second in copying."""

    operations: float
    bytes: float


def rates(device: str = "cpu", precision: str = "float32") -> Rates:
    """The best of a few tries of one large product and one large copy, on torch's threads."""
    import torch

    side, size = SIDE[device], BYTES[device]
    left, right = torch.randn(2, side, side, device=device, dtype=getattr(torch, precision))
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    product = best_of(lambda: torch.mm(left, right), TRIES)
    return Rates(2 * side**3 / product, 2 * size / best_of(lambda: target.copy_(source), TRIES))


def best_of(work: Callable[[], object], tries: int) -> float:
    """Seconds of the shortest try; one before them is not counted."""
    return min([timed(work) for _ in range(tries + 1)][1:])


def timed(work: Callable[[], object]) -> float:
    """Seconds the work takes, the GPU's part with it."""
    began = time.perf_counter()
    work()
    synchronise()
    return time.perf_counter() - began


def synchronise() -> None:
    """Wait for what the GPU was given to do, where there is one in use."""
    import torch

    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def where(*packages: str) -> str:
    """System, cores, memory, GPU, and the versions of Python and the packages named, as one sentence."""
    import torch

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return (
        f"{platform.system()}, {platform.machine()}, {CORES} cores, {memory:.0f} GiB, {gpu}, Python {platform.python_version()}, {versions}"
    )
