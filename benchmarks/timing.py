"""Measurement of time in interleaved rounds, of peak memory, and of hotspots."""

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
"""Largest number of hotspots to record."""


def time_interleaved(
    functions: Mapping[str, Callable[[], object]],
    rounds: int,
    warmup_rounds: int = 1,
    first_index: int = 0,
    untimed_calls: int = 0,
) -> dict[str, list[float]]:
    """Time functions in turns, each round beginning with another function.

    Args:
        functions: Functions by name.
        rounds: Number of recorded rounds.
        warmup_rounds: Number of unrecorded rounds before them.
        first_index: Rotation of the order in the first round.
        untimed_calls: Calls of a function before each timed call. They bring memory into the
            state that the function itself leaves, instead of the previous function.

    Returns:
        Seconds of each function by round.
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    names = np.array([*functions], object)

    for round_index in range(warmup_rounds + rounds):
        order = np.roll(names, first_index + round_index).tolist()

        for name in order:
            for _ in range(untimed_calls):
                functions[name]()

            call_seconds = time_call(functions[name])
            if round_index >= warmup_rounds:
                seconds[name].append(call_seconds)

    return seconds


def run_in_spawned_process(function: Callable[..., T], *args: Any) -> T:
    """Run a function in a fresh process that may start other processes.

    The allocator is tuned as in every command.

    Args:
        function: Function to run, picklable.
        *args: Arguments of the function.

    Returns:
        The function's result.
    """
    return _run_in_context(get_context("spawn"), function, *args)


def run_in_forked_process(function: Callable[..., T], *args: Any) -> T:
    """Run a function in a process forked from a server that has only imported its module.

    Imports take longer than many steps. The memory of a step is the same as in a spawned process;
    the memory of the whole process differs. With a GPU the process is spawned, because CUDA does
    not survive a fork.

    Args:
        function: Function to run, picklable.
        *args: Arguments of the function.

    Returns:
        The function's result.
    """
    if has_gpu():
        return run_in_spawned_process(function, *args)

    context = get_context("forkserver")
    context.set_forkserver_preload([function.__module__])
    return _run_in_context(context, function, *args)


def _run_in_context(context: Any, function: Callable[..., T], *args: Any) -> T:
    """Run a function in one process of a multiprocessing context."""
    from cli.console.app import tune_malloc

    with ProcessPoolExecutor(1, mp_context=context, initializer=tune_malloc) as pool:
        return pool.submit(function, *args).result()


def measure_peak_bytes(step: Callable[[], object], device: str) -> int:
    """Measure the peak memory of a step beyond the memory in use before it.

    Call it in a separate process, after a first step of the same size.

    Args:
        step: Step to run.
        device: `cpu` or `cuda`.

    Returns:
        Bytes of process memory, or of GPU memory.
    """
    gc.collect()

    if device == "cuda":
        import torch

        synchronize()
        torch.cuda.reset_peak_memory_stats()
        bytes_before = torch.cuda.memory_allocated()
        step()
        synchronize()
        return torch.cuda.max_memory_allocated() - bytes_before

    trim_heap()
    bytes_before = read_process_memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets VmHWM
    step()
    return read_process_memory("VmHWM") - bytes_before


def trim_heap() -> None:
    """Return freed memory to the system.

    `tune_malloc` makes the allocator retain freed memory, which would hide a part of a step's
    memory.
    """
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)


def read_process_memory(field: str, process: int | str = "self") -> int:
    """Read the memory of a process from /proc.

    Args:
        field: `VmRSS` for the current memory, `VmHWM` for the peak.
        process: Process id, by default of this process.

    Returns:
        Bytes of memory.
    """
    status = Path(f"/proc/{process}/status").read_text(encoding="ascii")
    kibibytes = next(line.split()[1] for line in status.splitlines() if line.startswith(field))
    return 1024 * int(kibibytes)


def count_folder_bytes(folder: Path) -> int:
    """Sum the sizes of all files of a folder and its sub-folders.

    Args:
        folder: Path of the folder.

    Returns:
        Number of bytes.
    """
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def profile_torch(function: Callable[[], object], device: str) -> list[tuple[str, float]]:
    """Profile the torch operators of a function.

    Args:
        function: Function to run under the profiler.
        device: `cpu` or `cuda`, whose time counts.

    Returns:
        Pairs (operator, share of the device's time), the largest share first.
    """
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU]
    time_field = "self_cpu_time_total"
    if device == "cuda":
        activities.append(ProfilerActivity.CUDA)
        time_field = "self_device_time_total"

    with profile(activities=activities) as profiler:
        function()
        synchronize()

    # Operators are CPU events; the time of their kernels is added to theirs.
    times = {}
    for event in profiler.key_averages():
        if event.device_type == DeviceType.CPU:
            times[event.key] = getattr(event, time_field)

    return compute_top_shares(times)


def profile_python(function: Callable[[], object]) -> list[tuple[str, float]]:
    """Profile the Python functions that run on the calling thread.

    Args:
        function: Function to run under the profiler.

    Returns:
        Pairs (function, share of the time without its callees), the largest share first.
    """
    profiler = cProfile.Profile()
    profiler.runcall(function)
    stats: dict[tuple[str, int, str], tuple[Any, ...]] = pstats.Stats(profiler).stats  # type: ignore[attr-defined]

    times: defaultdict[str, float] = defaultdict(float)
    for location, values in stats.items():
        times[_function_label(*location)] += values[2]  # seconds without callees

    return compute_top_shares(times)


def _function_label(file: str, line: int, function: str) -> str:
    """Return `grounding/data/dataset.py: collate`; built-in functions as cProfile names them."""
    if file == "~":
        return function

    short_path = "/".join(Path(file).parts[-2:])
    return f"{short_path}: {function}"


def compute_top_shares(times: Mapping[str, float]) -> list[tuple[str, float]]:
    """Select the names with the largest shares of the total time.

    Args:
        times: Time by name, in any unit.

    Returns:
        At most `MAX_PROFILE_ENTRIES` pairs (name, share), the largest share first.
    """
    total = sum(times.values()) or 1.0
    shares = [(name, time / total) for name, time in times.items() if time]
    shares.sort(key=lambda entry: -entry[1])
    return shares[:MAX_PROFILE_ENTRIES]
