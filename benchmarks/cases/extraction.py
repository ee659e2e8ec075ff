"""How near extraction comes to what its parts need, and to the usual way of doing it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.case import ONE_THREAD, Case, Floor, Group, Way
from benchmarks.machine import CORES, timed
from benchmarks.made import FPS, make_queries, make_video, write_index
from benchmarks.measuring import profile_torch
from benchmarks.operations import operations_of
from pipeline.cluster import MEMORY

GPU = torch.cuda.is_available()
PRODUCTS = ("appearance", "motion")
RUN, USUAL = "stvg-extract", "a decode pass and a file per video and product"
DECODE, NETWORKS, BUSY = "decoding alone", "the networks alone", "all processor time, over all cores"


@dataclass(frozen=True)
class Clips:
    """`videos` clips of `seconds`, `size` (width, height) pixels, through backbones of one size; `short` is N_short."""

    backbones: str
    videos: int
    seconds: int
    size: tuple[int, int]
    short: int
    device: str = "cpu"

    @property
    def title(self) -> str:
        return f"{self.backbones} backbones, {self.videos} videos of {self.seconds} s, {self.size[0]}×{self.size[1]}"


ON_CPU = (Clips("tiny", 40, 8, (320, 240), 96), Clips("full", 2, 2, (320, 240), 320))
ON_GPU = (Clips("full", 96, 20, (640, 360), 320, "cuda"),)


@dataclass
class Extraction(Case):
    """Appearance and motion of made videos through a whole extraction (random weights, as many workers of one thread as there are
    cores, each with a decoder in a child process; starting Dask, checks and the manifest counted), against its parts: every frame
    decoded and dropped, and the networks on pictures at hand, on as many processes; all processor time spread over the cores; and
    the usual way on as many processes, one decode pass and one `.npy` file per video and product. The longest of the parts is what
    no schedule can beat. Both ways give the same features, to the bit (to 1 % on a GPU).
    """

    packages = ("torch", "torchvision", "decord", "av", "dask")
    environment = ONE_THREAD
    device: str = "cuda" if GPU else "cpu"
    precision: str = "float16" if GPU else "float32"
    clips: tuple[Clips, ...] = ON_GPU if GPU else ON_CPU
    rounds: int = 2
    workers: int = CORES
    found: dict[str, list[Path]] = field(default_factory=dict)

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
        from pipeline.store import Store

        for clips, (folder, paths) in self._each():
            extract(folder, "first-store", clips, self.workers)
            spread(usual_way, paths, clips, {}, self.workers, str(folder / "first-npy"))
            for product in PRODUCTS:
                reader = Store(folder / "first-store").open(product)
                for path in paths:
                    usual = np.load(folder / "first-npy" / product / f"{path.stem}.npy")
                    tolerance = {"rtol": 1e-2, "atol": 1e-2} if clips.device == "cuda" else {"rtol": 0, "atol": 0}
                    np.testing.assert_allclose(reader.read(path.stem).astype(np.float32), usual.astype(np.float32), **tolerance)  # type: ignore[arg-type]

    def measure(self) -> list[Group]:
        return [Group(clips.title, self._ways(clips, *place)) for clips, place in self._each()]

    def _each(self) -> Iterator[tuple[Clips, tuple[Path, list[Path]]]]:
        for clips in self.clips:
            yield clips, (self.place / clips.title, self.found[clips.title])

    def _ways(self, clips: Clips, folder: Path, paths: list[Path]) -> dict[str, Way]:
        seconds: dict[str, list[float]] = {name: [] for name in (RUN, DECODE, NETWORKS, BUSY, USUAL)}
        for turn in range(self.rounds):
            with processor_time() as spent:
                seconds[RUN].append(timed(partial(extract, folder, f"store-{turn}", clips, self.workers)))
            seconds[BUSY].append(spent[0] / CORES)
            seconds[USUAL].append(timed(partial(spread, usual_way, paths, clips, {}, self.workers, str(folder / f"npy-{turn}"))))
            for name, work in ((DECODE, decode_alone), (NETWORKS, networks_alone)):
                seconds[name].append(timed(partial(spread, work, paths, clips, MEMORY, self.workers)))
        floors = {RUN: floor_of(clips, paths, self.workers)}
        facts = {RUN: {"videos_per_second": clips.videos / min(seconds[RUN])}}
        top = {RUN: profile_torch(partial(networks_alone, paths[:1], clips), clips.device)}
        return {name: Way(own, floors.get(name), top=top.get(name, []), facts=facts.get(name, {})) for name, own in seconds.items()}


def floor_of(clips: Clips, paths: list[Path], workers: int) -> Floor:
    """The networks' operations on all pictures and clips, and writing the pictures that are decoded."""
    operations = operations_of(partial(networks_alone, paths[:1], clips)) * len(paths)
    pixels = FPS * clips.seconds * clips.size[0] * clips.size[1] * 3 * len(paths)
    return Floor(operations, pixels, 1 if clips.device == "cuda" else workers)


def config(clips: Clips, workers: int = 0) -> Any:
    from pipeline.jobs import ExtractConfig

    given = {"backbones": clips.backbones, "products": PRODUCTS, "shard_mb": 4 if clips.device == "cpu" else 256, "device": clips.device}
    weights = dict.fromkeys(PRODUCTS, "random:0")
    return ExtractConfig.model_validate({**given, "weights": weights, "workers": workers, "sampling": {"short": clips.short}})


def extract(folder: Path, store: str, clips: Clips, workers: int) -> None:
    from pipeline.run import run

    report = run(folder / "index.jsonl", folder, "benchmark", folder / store, config(clips, workers))
    assert not report.failures, report.failures


def spread(work: Callable[..., None], paths: list[Path], clips: Clips, memory: dict[str, str], workers: int, *more: str) -> None:
    """The work on as many processes as the run has workers; `memory` are their settings of the allocator, which Dask leaves behind."""
    for name in [name for name in os.environ if name.startswith("MALLOC_")]:
        del os.environ[name]
    os.environ.update(memory)
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for done in [pool.submit(work, paths[number::workers], clips, *more) for number in range(workers)]:
            done.result()


def decode_alone(paths: list[Path], clips: Clips) -> None:
    """Every frame that the products need, decoded and dropped."""
    from pipeline.decode.child import DecodeChild
    from pipeline.extract import FeatureStream
    from pipeline.shards import encoder_of

    settings = config(clips)
    with DecodeChild() as child:
        for path in paths:
            stream = FeatureStream(path, settings.sampling, {name: encoder_of(name, settings) for name in settings.products}, decoder=child)
            wanted = np.unique(np.concatenate([maker.wanted for maker in stream.makers.values()]))
            with child.frames(path, stream.video, wanted) as frames:
                for _ in frames:
                    pass


class Still:
    """Stands in for a decoder: the first picture again and again."""

    decoder, reason = "none", "benchmark"

    def __init__(self) -> None:
        from pipeline.decode import probe

        self.probe = probe

    @contextmanager
    def frames(self, path: Path, facts: Any, wanted: np.ndarray) -> Iterator[Still]:
        from pipeline.decode import open_frames

        with open_frames(path, facts, [0]) as frames:
            self._picture = next(iter(frames))[1]
        self._wanted = wanted
        yield self

    def __iter__(self) -> Iterator[tuple[int, np.ndarray]]:
        return ((int(number), self._picture) for number in self._wanted)


def networks_alone(paths: list[Path], clips: Clips) -> None:
    """Resizing and both networks, with pictures at hand."""
    from pipeline.extract import FeatureStream
    from pipeline.shards import encoder_of

    settings = config(clips)
    for path in paths:
        encoders = {name: encoder_of(name, settings) for name in settings.products}
        for _ in FeatureStream(path, settings.sampling, encoders, settings.batch, Still()):  # type: ignore[arg-type]
            pass


def usual_way(paths: list[Path], clips: Clips, folder: str) -> None:
    """One decode pass per product, in the same process as the network, one file per video and product."""
    from pipeline.extract import extract_video
    from pipeline.shards import encoder_of

    settings = config(clips)
    for product in settings.products:
        (Path(folder) / product).mkdir(parents=True, exist_ok=True)
        for path in paths:
            rows, _ = extract_video(path, settings.sampling, {product: encoder_of(product, settings)}, settings.batch).products[product]
            np.save(Path(folder) / product / f"{path.stem}.npy", rows)


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
    before = seen[me.pid]
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield spent
    finally:
        over.set()
        watcher.join()
        look()
        spent[0] = sum(seen.values()) - before
