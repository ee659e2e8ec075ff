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

from benchmarks.machine import has_gpu, synchronize, time_call

T = TypeVar("T")
MAX_PROFILE_ENTRIES = 8
"""Entries of a profile that are kept."""


def time_interleaved(
    functions: Mapping[str, Callable[[], object]],
    rounds: int,
    warmup_rounds: int = 1,
    first_index: int = 0,
    untimed_calls: int = 0,
) -> dict[str, list[float]]:
    """Seconds of each way by round. Every round another way begins, from number `begin` on; the
    `warm` first rounds are not counted. Before it is timed a way is called `settle` times, in every
    round: memory is then as it left it itself, and not as another did.
    """
    found: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(warmup_rounds + rounds):
        for name in np.roll(np.array([*functions], object), first_index + turn).tolist():
            for _ in range(untimed_calls):
                functions[name]()
            seconds = time_call(functions[name])
            if turn >= warmup_rounds:
                found[name].append(seconds)
    return found


def run_in_spawned_process(function: Callable[..., T], *args: Any) -> T:
    """The work in a fresh process that may start others, with memory kept as in every command."""
    return _run_in_context(get_context("spawn"), function, *args)


def run_in_forked_process(function: Callable[..., T], *args: Any) -> T:
    """As `apart`, but from a process that has imported the work's module and done nothing else:
    importing takes longer than many steps. A step's own memory is the same there; a whole process's
    is not. Where there is a GPU it is `apart`: its driver is not forked.
    """
    if has_gpu():
        return run_in_spawned_process(function, *args)
    context = get_context("forkserver")
    context.set_forkserver_preload([function.__module__])
    return _run_in_context(context, function, *args)


def _run_in_context(context: Any, work: Callable[..., T], *given: Any) -> T:
    from cli.console.app import tune_malloc

    with ProcessPoolExecutor(1, mp_context=context, initializer=tune_malloc) as pool:
        return pool.submit(work, *given).result()


def measure_peak_bytes(step: Callable[[], object], device: str) -> int:
    """Bytes at the peak of a step beyond those before it. Call it `apart`, when a step of the same
    size has been made.
    """
    gc.collect()
    if device == "cuda":
        import torch

        synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        synchronize()
        return torch.cuda.max_memory_allocated() - before
    trim_heap()
    before = read_process_memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak counts from here
    step()
    return read_process_memory("VmHWM") - before


def trim_heap() -> None:
    """Return to the system what is freed and kept (`tune_malloc`), so that a step's own memory is
    seen whole.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def read_process_memory(field: str, process: int | str = "self") -> int:
    """Bytes of a process' memory, from /proc: `VmRSS` now, `VmHWM` at most so far."""
    lines = Path(f"/proc/{process}/status").read_text(encoding="ascii").splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(field)))


def count_folder_bytes(folder: Path) -> int:
    """Bytes of all files in it."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def profile_torch(function: Callable[[], object], device: str) -> list[tuple[str, float]]:
    """The operators that take most of the device's time, with their shares of it."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    kinds = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device == "cuda" else [])
    with profile(activities=kinds) as found:
        function()
        synchronize()
    field = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    operators = (
        event for event in found.key_averages() if event.device_type == DeviceType.CPU
    )  # their kernels are counted with them
    return compute_top_shares({event.key: getattr(event, field) for event in operators})


def profile_python(function: Callable[[], object]) -> list[tuple[str, float]]:
    """The functions that take most of the calling thread's time, without those they call, with
    their shares of it.
    """
    profiler = cProfile.Profile()
    profiler.runcall(function)
    stats: dict[tuple[str, int, str], tuple[Any, ...]] = pstats.Stats(profiler).stats  # type: ignore[attr-defined]
    times: defaultdict[str, float] = defaultdict(float)
    for place, values in stats.items():
        times[_function_label(*place)] += values[2]
    return compute_top_shares(times)


def _function_label(file: str, line: int, function: str) -> str:
    """`grounding/data/dataset.py: collate`; built-in functions as cProfile names them."""
    return function if file == "~" else f"{'/'.join(Path(file).parts[-2:])}: {function}"


def compute_top_shares(times: Mapping[str, float]) -> list[tuple[str, float]]:
    """The names that take most of the time, with their shares of it."""
    whole = sum(times.values()) or 1.0
    return sorted(
        ((name, time / whole) for name, time in times.items() if time), key=lambda entry: -entry[1]
    )[:MAX_PROFILE_ENTRIES]
