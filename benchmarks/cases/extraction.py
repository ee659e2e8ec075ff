"""How near extraction comes to what its parts need, and to the usual way of doing it."""

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
FULL_RUN, PER_PRODUCT_RUN = "stvg-extract", "a decode pass and a file per video and product"
DECODE_ONLY, ENCODE_ONLY, CPU_TIME = (
    "decoding alone",
    "the networks alone",
    "all processor time, over all cores",
)


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
        for clips in self.workloads:
            folder = self.work_dir / clips.title
            names = [f"{number:04d}" for number in range(clips.num_videos)]
            self.video_paths[clips.title] = [
                make_video(folder / "videos" / f"{name}.mp4", clips.size, FPS * clips.seconds, seed)
                for seed, name in enumerate(names)
            ]
            write_index(folder, make_queries(names, FPS * clips.seconds, clips.size))
        return self

    def check_agreement(self) -> None:
        """What the first round gives is compared, all of it."""
        from pipeline.store import Store

        for clips, (folder, paths) in self._iterate_workloads():
            self.seconds[clips.title] = self._run_rounds(clips, folder, paths)
            for product in PRODUCTS:
                reader = Store(folder / "store-0").open(product)
                for path in paths:
                    usual = np.load(folder / "npy-0" / product / f"{path.stem}.npy")
                    tolerance = (
                        {"rtol": 1e-2, "atol": 1e-2}
                        if clips.device == "cuda"
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
                clips.title, self._build_measurements(clips, place[1], self.seconds[clips.title])
            )
            for clips, place in self._iterate_workloads()
        ]

    def _iterate_workloads(self) -> Iterator[tuple[ExtractionWorkload, tuple[Path, list[Path]]]]:
        for clips in self.workloads:
            yield clips, (self.work_dir / clips.title, self.video_paths[clips.title])

    def _run_rounds(
        self, clips: ExtractionWorkload, folder: Path, paths: list[Path]
    ) -> dict[str, list[float]]:
        seconds: dict[str, list[float]] = {
            name: [] for name in (FULL_RUN, DECODE_ONLY, ENCODE_ONLY, CPU_TIME, PER_PRODUCT_RUN)
        }
        with warm_pools(clips, self.workers) as pools:
            for turn in range(clips.rounds):
                with measure_cpu_time() as spent:
                    seconds[FULL_RUN].append(
                        time_call(
                            partial(run_extraction, folder, f"store-{turn}", clips, self.workers)
                        )
                    )
                seconds[CPU_TIME].append(spent[0] / CORES)
                seconds[PER_PRODUCT_RUN].append(
                    time_call(
                        partial(
                            run_in_new_pools,
                            paths,
                            clips,
                            self.workers,
                            str(folder / f"npy-{turn}"),
                        )
                    )
                )
                for name, work in ((DECODE_ONLY, run_decoding), (ENCODE_ONLY, run_encoders)):
                    seconds[name].append(
                        time_call(partial(run_in_pools, pools, work, paths, clips))
                    )
        return seconds

    def _build_measurements(
        self, clips: ExtractionWorkload, paths: list[Path], seconds: dict[str, list[float]]
    ) -> dict[str, Measurement]:
        floors = {FULL_RUN: compute_lower_bound(clips, paths, self.workers)}
        facts = {FULL_RUN: {"videos_per_second": clips.num_videos / min(seconds[FULL_RUN])}}
        top = {FULL_RUN: profile_torch(partial(run_encoders, paths[:1], clips), clips.device)}
        return {
            name: Measurement(
                own, floors.get(name), hotspots=top.get(name, []), extra=facts.get(name, {})
            )
            for name, own in seconds.items()
        }


def compute_lower_bound(
    workload: ExtractionWorkload, paths: list[Path], workers: int
) -> LowerBound:
    """The networks' operations on all pictures and clips, and writing the pictures that are
    decoded.
    """
    pixels = FPS * workload.seconds * workload.size[0] * workload.size[1] * 3 * len(paths)
    return LowerBound(
        count_video_flops(paths[0], workload) * len(paths),
        pixels,
        1 if workload.device == "cuda" else workers,
    )


def run_extraction(folder: Path, store: str, workload: ExtractionWorkload, workers: int) -> None:
    from pipeline.extraction.run import run_extraction

    report = run_extraction(
        folder / "index.jsonl", folder, "benchmark", folder / store, build_config(workload, workers)
    )
    assert not report.failures, report.failures


def run_in_new_pools(
    paths: list[Path], workload: ExtractionWorkload, workers: int, folder: str
) -> None:
    """The usual way, on processes that begin now."""
    with start_pools(workers, {}) as pools:
        run_in_pools(pools, extract_per_product, paths, workload, folder)


def run_in_pools(
    pools: list[ProcessPoolExecutor],
    function: Callable[..., None],
    paths: list[Path],
    workload: ExtractionWorkload,
    *extra_args: str,
) -> None:
    """The work on all of these processes, with as many of the videos each."""
    for done in [
        pool.submit(function, paths[number :: len(pools)], workload, *extra_args)
        for number, pool in enumerate(pools)
    ]:
        done.result()


@contextmanager
def warm_pools(workload: ExtractionWorkload, workers: int) -> Iterator[list[ProcessPoolExecutor]]:
    """As many processes as the run has workers, which have imported what they need and made their
    networks.
    """
    with start_pools(workers, MALLOC_ENVIRONMENT) as pools:
        run_in_pools(pools, run_encoders, [], workload)
        yield pools


@contextmanager
def start_pools(workers: int, memory: dict[str, str]) -> Iterator[list[ProcessPoolExecutor]]:
    """Fresh ones, each on its own; `memory` are their settings of the allocator, which Dask leaves
    behind.
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
    """Seconds of processor time of this process and all below it, also of those that end meanwhile."""
    import psutil

    me, spent, over = psutil.Process(), [0.0], threading.Event()
    seen: dict[int, float] = {}

    def look() -> None:
        for process in [me, *me.children(recursive=True)]:
            try:
                times = process.cpu_times()
                seen[process.pid] = times.user + times.system
            except psutil.Error:
                continue

    def watch() -> None:
        while not over.wait(0.1):
            look()

    look()
    before = sum(seen.values())  # some are there already
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield spent
    finally:
        over.set()
        watcher.join()
        look()
        spent[0] = sum(seen.values()) - before
