"""Whole extraction, against its stages and against one decode pass per product."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from benchmarks.case import ONE_THREAD, Case, Comparison, LowerBound, Measurement
from benchmarks.extraction_stages import (
    PRODUCTS,
    ExtractionWorkload,
    build_config,
    count_video_flops,
    extract_per_product,
    run_decoding,
    run_encoders,
)
from benchmarks.machine import CORES, time_call
from benchmarks.synthetic_data import FPS, make_queries, make_video, write_index
from benchmarks.timing import profile_torch
from pipeline.extraction.cluster import MALLOC_ENVIRONMENT

HAS_GPU = torch.cuda.is_available()
FULL_RUN = "stvg-extract"
PER_PRODUCT_RUN = "a decode pass and a file per video and product"
DECODE_ONLY = "decoding alone"
ENCODE_ONLY = "the networks alone"
CPU_TIME = "all processor time, over all cores"


CPU_WORKLOADS = (
    ExtractionWorkload("tiny", 64, 8, (320, 240), 96),
    ExtractionWorkload("full", 2, 2, (320, 240), 320, rounds=1),
)
GPU_WORKLOADS = (ExtractionWorkload("full", 96, 20, (640, 360), 320, "cuda"),)


@dataclass
class Extraction(Case):
    """Whole extraction, against its stages and against one pass per product.

    Appearance and motion of made videos through a whole extraction (random weights, as many workers
    of one thread as there are cores, each with a decoder in a child process; starting Dask, checks
    and the manifest counted), against its parts: every frame decoded and dropped, and the networks
    on pictures at hand, on as many processes that have begun and hold the networks; all processor
    time spread over the cores; and the usual way on as many processes, which begin too, one decode
    pass and one `.npy` file per video and product. The longest of the parts is what no schedule can
    beat. Both ways of the first round give the same features, to the bit (to 1 % on a GPU). The
    floor is the networks' operations, and writing the pictures that are decoded.
    """

    packages = ("torch", "torchvision", "decord", "av", "dask")
    environment = ONE_THREAD
    device: str = "cuda" if HAS_GPU else "cpu"
    precision: str = "float16" if HAS_GPU else "float32"
    workloads: tuple[ExtractionWorkload, ...] = GPU_WORKLOADS if HAS_GPU else CPU_WORKLOADS
    workers: int = CORES
    video_paths: dict[str, list[Path]] = field(default_factory=dict)
    seconds: dict[str, dict[str, list[float]]] = field(default_factory=dict)

    def __enter__(self) -> Extraction:
        super().__enter__()
        for workload in self.workloads:
            folder = self.work_dir / workload.title
            names = [f"{number:04d}" for number in range(workload.num_videos)]
            self.video_paths[workload.title] = [
                make_video(
                    folder / "videos" / f"{name}.mp4", workload.size, FPS * workload.seconds, seed
                )
                for seed, name in enumerate(names)
            ]
            write_index(folder, make_queries(names, FPS * workload.seconds, workload.size))
        return self

    def check_agreement(self) -> None:
        """Check that both extractions of the first round give the same features."""
        from pipeline.store import Store

        for workload, (folder, paths) in self._iterate_workloads():
            self.seconds[workload.title] = self._run_rounds(workload, folder, paths)
            for product in PRODUCTS:
                reader = Store(folder / "store-0").open(product)
                for path in paths:
                    usual = np.load(folder / "npy-0" / product / f"{path.stem}.npy")
                    tolerance = (
                        {"rtol": 1e-2, "atol": 1e-2}
                        if workload.device == "cuda"
                        else {"rtol": 0, "atol": 0}
                    )
                    np.testing.assert_allclose(
                        reader.read(path.stem).astype(np.float32),
                        usual.astype(np.float32),
                        **tolerance,
                    )  # type: ignore[arg-type]

    def measure(self) -> list[Comparison]:
        """Measure all variants."""
        return [
            Comparison(
                workload.title,
                self._build_measurements(workload, place[1], self.seconds[workload.title]),
            )
            for workload, place in self._iterate_workloads()
        ]

    def _iterate_workloads(self) -> Iterator[tuple[ExtractionWorkload, tuple[Path, list[Path]]]]:
        """Yield each workload with its folder and the paths of its videos."""
        for workload in self.workloads:
            yield workload, (self.work_dir / workload.title, self.video_paths[workload.title])

    def _run_rounds(
        self, workload: ExtractionWorkload, folder: Path, paths: list[Path]
    ) -> dict[str, list[float]]:
        """Return the seconds of all variants by round."""
        seconds: dict[str, list[float]] = {
            name: [] for name in (FULL_RUN, DECODE_ONLY, ENCODE_ONLY, CPU_TIME, PER_PRODUCT_RUN)
        }
        with warm_pools(workload, self.workers) as pools:
            for round_index in range(workload.rounds):
                with measure_cpu_time() as spent:
                    seconds[FULL_RUN].append(
                        time_call(
                            partial(
                                run_extraction,
                                folder,
                                f"store-{round_index}",
                                workload,
                                self.workers,
                            )
                        )
                    )
                seconds[CPU_TIME].append(spent[0] / CORES)
                seconds[PER_PRODUCT_RUN].append(
                    time_call(
                        partial(
                            run_in_new_pools,
                            paths,
                            workload,
                            self.workers,
                            str(folder / f"npy-{round_index}"),
                        )
                    )
                )
                for name, work in ((DECODE_ONLY, run_decoding), (ENCODE_ONLY, run_encoders)):
                    seconds[name].append(
                        time_call(partial(run_in_pools, pools, work, paths, workload))
                    )
        return seconds

    def _build_measurements(
        self, workload: ExtractionWorkload, paths: list[Path], seconds: dict[str, list[float]]
    ) -> dict[str, Measurement]:
        """Add the lower bound, facts and hotspots of the whole extraction to the seconds."""
        floors = {FULL_RUN: compute_lower_bound(workload, paths, self.workers)}
        facts = {FULL_RUN: {"videos_per_second": workload.num_videos / min(seconds[FULL_RUN])}}
        top = {FULL_RUN: profile_torch(partial(run_encoders, paths[:1], workload), workload.device)}
        return {
            name: Measurement(
                rounds, floors.get(name), hotspots=top.get(name, []), extra=facts.get(name, {})
            )
            for name, rounds in seconds.items()
        }


def compute_lower_bound(
    workload: ExtractionWorkload, paths: list[Path], workers: int
) -> LowerBound:
    """Compute the lower bound of a whole extraction.

    Args:
        workload: The workload.
        paths: Paths of the videos.
        workers: Number of worker processes.

    Returns:
        Operations of the encoders, and bytes of the decoded frames.
    """
    pixels = FPS * workload.seconds * workload.size[0] * workload.size[1] * 3 * len(paths)
    return LowerBound(
        count_video_flops(paths[0], workload) * len(paths),
        pixels,
        1 if workload.device == "cuda" else workers,
    )


def run_extraction(folder: Path, store: str, workload: ExtractionWorkload, workers: int) -> None:
    """Run a whole extraction.

    Args:
        folder: Folder of the index and the videos.
        store: Name of the store in the folder.
        workload: The workload.
        workers: Number of worker processes.
    """
    from pipeline.extraction.run import run_extraction

    report = run_extraction(
        folder / "index.jsonl", folder, "benchmark", folder / store, build_config(workload, workers)
    )
    assert not report.failures, report.failures


def run_in_new_pools(
    paths: list[Path], workload: ExtractionWorkload, workers: int, folder: str
) -> None:
    """Extract features per product, in fresh processes.

    Args:
        paths: Paths of the videos.
        workload: The workload.
        workers: Number of processes.
        folder: Folder of the results.
    """
    with start_pools(workers, {}) as pools:
        run_in_pools(pools, extract_per_product, paths, workload, folder)


def run_in_pools(
    pools: list[ProcessPoolExecutor],
    function: Callable[..., None],
    paths: list[Path],
    workload: ExtractionWorkload,
    *extra_args: str,
) -> None:
    """Run a function in all processes, and share the videos among them.

    Args:
        pools: One pool per process.
        function: Function of paths, the workload and the extra arguments.
        paths: Paths of the videos.
        workload: The workload.
        *extra_args: Further arguments.
    """
    futures = []
    for index, pool in enumerate(pools):
        pool_paths = paths[index :: len(pools)]
        futures.append(pool.submit(function, pool_paths, workload, *extra_args))

    for future in futures:
        future.result()


@contextmanager
def warm_pools(workload: ExtractionWorkload, workers: int) -> Iterator[list[ProcessPoolExecutor]]:
    """Start processes that have finished their imports and built their encoders.

    Args:
        workload: The workload.
        workers: Number of processes.

    Yields:
        One pool per process.
    """
    with start_pools(workers, MALLOC_ENVIRONMENT) as pools:
        run_in_pools(pools, run_encoders, [], workload)
        yield pools


@contextmanager
def start_pools(workers: int, memory: dict[str, str]) -> Iterator[list[ProcessPoolExecutor]]:
    """Start pools of one fresh process each.

    Args:
        workers: Number of pools.
        memory: Environment of the allocator. It replaces the variables that Dask leaves behind.

    Yields:
        The pools.
    """
    with ExitStack() as stack:
        for name in [name for name in os.environ if name.startswith("MALLOC_")]:
            del os.environ[name]
        os.environ.update(memory)
        yield [
            stack.enter_context(ProcessPoolExecutor(1, mp_context=get_context("spawn")))
            for _ in range(workers)
        ]


@contextmanager
def measure_cpu_time() -> Iterator[list[float]]:
    """Measure the CPU time of this process and its descendants, including those that end.

    Yields:
        A list whose only value is set to the CPU seconds when the block ends.
    """
    import psutil

    this_process = psutil.Process()
    cpu_seconds = [0.0]
    finished = threading.Event()
    seconds_by_pid: dict[int, float] = {}

    def sample() -> None:
        for process in [this_process, *this_process.children(recursive=True)]:
            try:
                times = process.cpu_times()
                seconds_by_pid[process.pid] = times.user + times.system
            except psutil.Error:
                continue

    def watch() -> None:
        while not finished.wait(0.1):
            sample()

    sample()
    before = sum(seconds_by_pid.values())  # processes that run already
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield cpu_seconds
    finally:
        finished.set()
        watcher.join()
        sample()
        cpu_seconds[0] = sum(seconds_by_pid.values()) - before
