"""How near extraction comes to what its parts need, and to the usual way of doing it.

    .venv/bin/python -m benchmarks.extract            # some minutes; writes benchmarks/results/extract.md

The floor of a run is what no schedule can beat: the longer of its slowest stage alone (decoding, or the networks, on as
many processes) and all its processor time spread over all cores. The usual way is a decode pass per product and one
`.npy` file per video and product. Features are compared before anything is timed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import where
from pipeline.cluster import MEMORY

CORES = os.cpu_count() or 1
TURNS = 2
"""The run and the usual way take turns; the shorter time of each counts."""
RESULT = Path(__file__).parent / "results" / "extract.md"
THREADS = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


@dataclass(frozen=True)
class Case:
    """`videos` clips of `seconds`, `size` (width, height) pixels, at 25 fps, through backbones of one size; `short` is N_short."""

    backbones: str
    videos: int
    seconds: int
    size: tuple[int, int]
    short: int


CASES = (Case("tiny", 120, 8, (320, 240), 96), Case("full", 10, 2, (320, 240), 320))


def main() -> None:
    if any(os.environ.get(name) != value for name, value in THREADS.items()):  # one thread a process, set before torch is imported
        raise SystemExit(subprocess.run([sys.executable, "-m", "benchmarks.extract"], env=os.environ | THREADS).returncode)
    rows = [row for case in CASES for row in measure(case)]
    RESULT.write_text(result(rows), encoding="utf-8")
    print(RESULT.read_text(encoding="utf-8"))


def measure(case: Case) -> Iterator[str]:
    """One line of the result: the run against its floor, and against the usual way."""
    with tempfile.TemporaryDirectory() as place:
        paths = make_videos(Path(place) / "videos", case)
        index = write_index(Path(place), paths, case)
        walls, busies, usuals = [], [], []
        for turn in range(TURNS):
            with processor_time() as spent:
                walls.append(timed(lambda turn=turn: extract(index, Path(place) / f"store-{turn}", case)))  # type: ignore[misc]
            busies.append(spent[0] / CORES)
            usuals.append(timed(lambda turn=turn: spread(usual_way, paths, case, {}, str(Path(place) / f"npy-{turn}"))))  # type: ignore[misc]
        decode, networks = (timed(lambda w=work: spread(w, paths, case, MEMORY)) for work in (decode_alone, networks_alone))  # type: ignore[misc]
        compare(Path(place) / "store-0", Path(place) / "npy-0", paths)
    wall, busy, usual = min(walls), min(busies), min(usuals)
    floor = max(decode, networks, busy)
    yield (
        f"| {case.backbones} | {case.videos} × {case.seconds} s, {case.size[0]}x{case.size[1]} | {wall / floor:.2f} "
        f"| {decode / wall:.2f} | {networks / wall:.2f} | {busy / wall:.2f} | {usual / wall:.2f} |"
    )


def make_videos(folder: Path, case: Case) -> list[Path]:
    """Clips of drifting noise, each another."""
    import av

    folder.mkdir(parents=True)
    paths = []
    for number in range(case.videos):
        rng = np.random.default_rng(number)
        width, height = case.size
        ground = rng.integers(0, 255, (height // 8, 2 * width // 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
        paths.append(folder / f"{number:04d}.mp4")
        with av.open(str(paths[-1]), "w") as container:
            stream = container.add_stream("libx264", rate=25, options={"preset": "veryfast"})
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            for step in range(25 * case.seconds):
                shown = ground[:, step % width : step % width + width]
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(shown), format="rgb24")))
            container.mux(stream.encode(None))
    return paths


def write_index(place: Path, paths: list[Path], case: Case) -> Path:
    from pipeline.records import Query, Tracks, write_jsonl

    count = 25 * case.seconds
    common = {"fps": 25.0, "frame_count": count, "size": case.size, "segment": (0, count), "text": "a thing moves", "split": "test"}
    queries = [Query.model_validate({"id": path.stem, "video": path.stem, "path": f"videos/{path.name}", **common}) for path in paths]
    write_jsonl(place / "index.jsonl", queries)
    Tracks().save(place / "tracks.npz")
    return place / "index.jsonl"


def config(case: Case) -> Any:
    from pipeline.jobs import ExtractConfig

    weights = dict.fromkeys(("appearance", "motion"), "random:0")
    given: dict[str, Any] = {
        "backbones": case.backbones,
        "weights": weights,
        "products": ["appearance", "motion"],
        "shard_mb": 4,
        "device": "cpu",
    }
    given["sampling"] = {"short": case.short}
    return ExtractConfig.model_validate({**given, "workers": CORES})


def extract(index: Path, store: Path, case: Case) -> None:
    from pipeline.run import run

    report = run(index, index.parent, "benchmark", store, config(case))
    assert not report.failures, report.failures


def spread(work: Callable[..., None], paths: list[Path], case: Case, memory: dict[str, str], *more: str) -> None:
    """The work on as many processes as the run has workers; `memory` are their settings of the allocator, which Dask leaves behind."""
    for name in [name for name in os.environ if name.startswith("MALLOC_")]:
        del os.environ[name]
    os.environ.update(memory)
    with ProcessPoolExecutor(CORES, mp_context=get_context("spawn")) as pool:
        for done in [pool.submit(work, paths[number::CORES], case, *more) for number in range(CORES)]:
            done.result()


def decode_alone(paths: list[Path], case: Case) -> None:
    """Every frame that the products need, decoded and dropped."""
    from pipeline.decode.child import DecodeChild
    from pipeline.extract import FeatureStream
    from pipeline.shards import encoder_of

    settings = config(case)
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


def networks_alone(paths: list[Path], case: Case) -> None:
    """Resizing and both networks, with pictures at hand."""
    from pipeline.extract import FeatureStream
    from pipeline.shards import encoder_of

    settings = config(case)
    for path in paths:
        encoders = {name: encoder_of(name, settings) for name in settings.products}
        for _ in FeatureStream(path, settings.sampling, encoders, settings.batch, Still()):  # type: ignore[arg-type]
            pass


def usual_way(paths: list[Path], case: Case, folder: str) -> None:
    """One decode pass per product, in the same process as the network, one file per video and product."""
    from pipeline.extract import extract_video
    from pipeline.shards import encoder_of

    settings = config(case)
    for product in settings.products:
        (Path(folder) / product).mkdir(parents=True, exist_ok=True)
        for path in paths:
            rows, _ = extract_video(path, settings.sampling, {product: encoder_of(product, settings)}, settings.batch).products[product]
            np.save(Path(folder) / product / f"{path.stem}.npy", rows)


def compare(store: Path, folder: Path, paths: list[Path]) -> None:
    """Both ways gave the same features, to the bit."""
    from pipeline.store import Store

    for product in ("appearance", "motion"):
        reader = Store(store).open(product)
        for path in paths:
            np.testing.assert_array_equal(reader.read(path.stem), np.load(folder / product / f"{path.stem}.npy"))


def timed(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


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


def result(rows: list[str]) -> str:
    table = "\n".join(rows)
    return f"""# Extraction against its floor

Appearance and motion of made videos, {CORES} workers of one thread, each with a decoder in a child process; random
weights. The floor is the longest of decoding alone and the networks alone (on as many processes), and all processor time
spread over {CORES} cores. The usual way decodes once per product and writes one `.npy` per video and product, on as many
processes; the two took turns, {TURNS} each, and the shorter time counts. Both gave the same features, to the bit.

| backbones | videos | run ÷ floor | decoding alone ÷ run | networks alone ÷ run | processor time ÷ cores ÷ run | usual way ÷ run |
| --- | --- | --- | --- | --- | --- | --- |
{table}

The run's time includes starting Dask and its workers, the checks before and the manifest after; the stages' times include starting
their processes.

**Where.** {where("torch", "torchvision", "decord", "av", "dask")}.

**Command**

```
.venv/bin/python -m benchmarks.extract
```
"""


if __name__ == "__main__":
    main()
