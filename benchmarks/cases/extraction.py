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

from benchmarks.case import ONE_THREAD, Case, Floor, Group, Way
from benchmarks.extraction_stages import PRODUCTS, Clips, config, decode_alone, networks_alone, operations_each, usual_way
from benchmarks.machine import CORES, timed
from benchmarks.synthetic_data import FPS, make_queries, make_video, write_index
from benchmarks.timing import profile_torch
from pipeline.extraction.cluster import MEMORY

GPU = torch.cuda.is_available()
RUN, USUAL = "stvg-extract", "a decode pass and a file per video and product"
DECODE, NETWORKS, BUSY = "decoding alone", "the networks alone", "all processor time, over all cores"


ON_CPU = (Clips("tiny", 64, 8, (320, 240), 96), Clips("full", 2, 2, (320, 240), 320, rounds=1))
ON_GPU = (Clips("full", 96, 20, (640, 360), 320, "cuda"),)


@dataclass
class Extraction(Case):
    """Appearance and motion of made videos through a whole extraction (random weights, as many workers of one thread as there are
    cores, each with a decoder in a child process; starting Dask, checks and the manifest counted), against its parts: every frame
    decoded and dropped, and the networks on pictures at hand, on as many processes that have begun and hold the networks; all
    processor time spread over the cores; and the usual way on as many processes, which begin too, one decode pass and one `.npy` file
    per video and product. The longest of the parts is what no schedule can beat. Both ways of the first round give the same features,
    to the bit (to 1 % on a GPU). The floor is the networks' operations, and writing the pictures that are decoded.
    """

    packages = ("torch", "torchvision", "decord", "av", "dask")
    environment = ONE_THREAD
    device: str = "cuda" if GPU else "cpu"
    precision: str = "float16" if GPU else "float32"
    clips: tuple[Clips, ...] = ON_GPU if GPU else ON_CPU
    workers: int = CORES
    found: dict[str, list[Path]] = field(default_factory=dict)
    seconds: dict[str, dict[str, list[float]]] = field(default_factory=dict)

    def __enter__(self) -> Extraction:
        super().__enter__()
        for clips in self.clips:
            folder = self.place / clips.title
            names = [f"{number:04d}" for number in range(clips.videos)]
            self.found[clips.title] = [
                make_video(folder / "videos" / f"{name}.mp4", clips.size, FPS * clips.seconds, seed) for seed, name in enumerate(names)
            ]
            write_index(folder, make_queries(names, FPS * clips.seconds, clips.size))
        return self

    def agree(self) -> None:
        """What the first round gives is compared, all of it."""
        from pipeline.store import Store

        for clips, (folder, paths) in self._each():
            self.seconds[clips.title] = self._rounds(clips, folder, paths)
            for product in PRODUCTS:
                reader = Store(folder / "store-0").open(product)
                for path in paths:
                    usual = np.load(folder / "npy-0" / product / f"{path.stem}.npy")
                    tolerance = {"rtol": 1e-2, "atol": 1e-2} if clips.device == "cuda" else {"rtol": 0, "atol": 0}
                    np.testing.assert_allclose(reader.read(path.stem).astype(np.float32), usual.astype(np.float32), **tolerance)  # type: ignore[arg-type]

    def measure(self) -> list[Group]:
        return [Group(clips.title, self._ways(clips, place[1], self.seconds[clips.title])) for clips, place in self._each()]

    def _each(self) -> Iterator[tuple[Clips, tuple[Path, list[Path]]]]:
        for clips in self.clips:
            yield clips, (self.place / clips.title, self.found[clips.title])

    def _rounds(self, clips: Clips, folder: Path, paths: list[Path]) -> dict[str, list[float]]:
        seconds: dict[str, list[float]] = {name: [] for name in (RUN, DECODE, NETWORKS, BUSY, USUAL)}
        with ready(clips, self.workers) as pools:
            for turn in range(clips.rounds):
                with processor_time() as spent:
                    seconds[RUN].append(timed(partial(extract, folder, f"store-{turn}", clips, self.workers)))
                seconds[BUSY].append(spent[0] / CORES)
                seconds[USUAL].append(timed(partial(begin_and_spread, paths, clips, self.workers, str(folder / f"npy-{turn}"))))
                for name, work in ((DECODE, decode_alone), (NETWORKS, networks_alone)):
                    seconds[name].append(timed(partial(spread, pools, work, paths, clips)))
        return seconds

    def _ways(self, clips: Clips, paths: list[Path], seconds: dict[str, list[float]]) -> dict[str, Way]:
        floors = {RUN: floor_of(clips, paths, self.workers)}
        facts = {RUN: {"videos_per_second": clips.videos / min(seconds[RUN])}}
        top = {RUN: profile_torch(partial(networks_alone, paths[:1], clips), clips.device)}
        return {name: Way(own, floors.get(name), top=top.get(name, []), facts=facts.get(name, {})) for name, own in seconds.items()}


def floor_of(clips: Clips, paths: list[Path], workers: int) -> Floor:
    """The networks' operations on all pictures and clips, and writing the pictures that are decoded."""
    pixels = FPS * clips.seconds * clips.size[0] * clips.size[1] * 3 * len(paths)
    return Floor(operations_each(paths[0], clips) * len(paths), pixels, 1 if clips.device == "cuda" else workers)


def extract(folder: Path, store: str, clips: Clips, workers: int) -> None:
    from pipeline.extraction.run import run

    report = run(folder / "index.jsonl", folder, "benchmark", folder / store, config(clips, workers))
    assert not report.failures, report.failures


def begin_and_spread(paths: list[Path], clips: Clips, workers: int, folder: str) -> None:
    """The usual way, on processes that begin now."""
    with processes(workers, {}) as pools:
        spread(pools, usual_way, paths, clips, folder)


def spread(pools: list[ProcessPoolExecutor], work: Callable[..., None], paths: list[Path], clips: Clips, *more: str) -> None:
    """The work on all of these processes, with as many of the videos each."""
    for done in [pool.submit(work, paths[number :: len(pools)], clips, *more) for number, pool in enumerate(pools)]:
        done.result()


@contextmanager
def ready(clips: Clips, workers: int) -> Iterator[list[ProcessPoolExecutor]]:
    """As many processes as the run has workers, which have imported what they need and made their networks."""
    with processes(workers, MEMORY) as pools:
        spread(pools, networks_alone, [], clips)
        yield pools


@contextmanager
def processes(workers: int, memory: dict[str, str]) -> Iterator[list[ProcessPoolExecutor]]:
    """Fresh ones, each on its own; `memory` are their settings of the allocator, which Dask leaves behind."""
    with ExitStack() as stack:
        for name in [name for name in os.environ if name.startswith("MALLOC_")]:
            del os.environ[name]
        os.environ.update(memory)
        yield [stack.enter_context(ProcessPoolExecutor(1, mp_context=get_context("spawn"))) for _ in range(workers)]


@contextmanager
def processor_time() -> Iterator[list[float]]:
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
