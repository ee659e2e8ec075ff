"""How a case measures: ways in turns, memory in a process of its own, time by function."""

from __future__ import annotations

import cProfile
import ctypes
import gc
import pstats
from collections import defaultdict
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from benchmarks.machine import has_gpu, synchronise, timed

T = TypeVar("T")
TOP = 8
"""Entries of a profile that are kept."""


def in_turns(
    ways: Mapping[str, Callable[[], object]], rounds: int, warm: int = 1, begin: int = 0, settle: int = 0
) -> dict[str, list[float]]:
    """Seconds of each way by round. Every round another way begins, from number `begin` on; the `warm` first rounds are not counted.
    Before it is timed a way is called `settle` times, in every round: memory is then as it left it itself, and not as another did."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(warm + rounds):
        for name in np.roll(np.array([*ways], object), begin + turn).tolist():
            for _ in range(settle):
                ways[name]()
            seconds = timed(ways[name])
            if turn >= warm:
                found[name].append(seconds)
    return found


def apart(work: Callable[..., T], *given: Any) -> T:
    """The work in a fresh process that may start others, with memory kept as in every command."""
    return _in(get_context("spawn"), work, *given)


def branched(work: Callable[..., T], *given: Any) -> T:
    """As `apart`, but from a process that has imported the work's module and done nothing else: importing takes longer than many steps.
    A step's own memory is the same there; a whole process's is not. Where there is a GPU it is `apart`: its driver is not forked."""
    if has_gpu():
        return apart(work, *given)
    context = get_context("forkserver")
    context.set_forkserver_preload([work.__module__])
    return _in(context, work, *given)


def _in(context: Any, work: Callable[..., T], *given: Any) -> T:
    from cli.console.app import keep_memory

    with ProcessPoolExecutor(1, mp_context=context, initializer=keep_memory) as pool:
        return pool.submit(work, *given).result()


def peak_of(step: Callable[[], object], device: str) -> int:
    """Bytes at the peak of a step beyond those before it. Call it `apart`, when a step of the same size has been made."""
    gc.collect()
    if device == "cuda":
        import torch

        synchronise()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        synchronise()
        return torch.cuda.max_memory_allocated() - before
    give_back()
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak counts from here
    step()
    return resident("VmHWM") - before


def give_back() -> None:
    """Return to the system what is freed and kept (`keep_memory`), so that a step's own memory is seen whole."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def resident(field: str, process: int | str = "self") -> int:
    """Bytes of a process' memory, from /proc: `VmRSS` now, `VmHWM` at most so far."""
    lines = Path(f"/proc/{process}/status").read_text(encoding="ascii").splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(field)))


def size_of(folder: Path) -> int:
    """Bytes of all files in it."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def profile_torch(work: Callable[[], object], device: str) -> list[tuple[str, float]]:
    """The operators that take most of the device's time, with their shares of it."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    kinds = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device == "cuda" else [])
    with profile(activities=kinds) as found:
        work()
        synchronise()
    field = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    operators = (event for event in found.key_averages() if event.device_type == DeviceType.CPU)  # their kernels are counted with them
    return shares({event.key: getattr(event, field) for event in operators})


def profile_python(work: Callable[[], object]) -> list[tuple[str, float]]:
    """The functions that take most of the calling thread's time, without those they call, with their shares of it."""
    profiler = cProfile.Profile()
    profiler.runcall(work)
    stats: dict[tuple[str, int, str], tuple[Any, ...]] = pstats.Stats(profiler).stats  # type: ignore[attr-defined]
    times: defaultdict[str, float] = defaultdict(float)
    for place, values in stats.items():
        times[_named(*place)] += values[2]
    return shares(times)


def _named(file: str, line: int, function: str) -> str:
    """`grounding/data/dataset.py: collate`; built-in functions as cProfile names them."""
    return function if file == "~" else f"{'/'.join(Path(file).parts[-2:])}: {function}"


def shares(times: Mapping[str, float]) -> list[tuple[str, float]]:
    """The names that take most of the time, with their shares of it."""
    whole = sum(times.values()) or 1.0
    return sorted(((name, time / whole) for name, time in times.items() if time), key=lambda entry: -entry[1])[:TOP]
