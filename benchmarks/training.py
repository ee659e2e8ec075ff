"""What getting its batch adds to a training step.

    .venv/bin/python -m benchmarks.training           # two minutes, more with a GPU; writes benchmarks/results/training.md

The same steps are trained in turns with batches from the store, through the loader, and with one batch that is on the
device already. The store is made here, of random features (for a GPU 20 GB in the temporary folder). Both batches are compared
before anything is timed.
"""

from __future__ import annotations

import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.machine import where
from cli.app import keep_memory
from grounding.data import FeatureSet, collate, join_targets, to_device
from grounding.loader import Batch, Loader
from grounding.processes import Processes
from grounding.recipe import TrainConfig
from grounding.state import State
from grounding.systems import preset, system_of
from grounding.train import learn
from pipeline.records import Query, Tracks, Truth, write_jsonl
from pipeline.store import Entry, Kind, StoreWriter, made_from, write_shard

RESULT = Path(__file__).parent / "results" / "training.md"
WARM, SEED, EVERY = 8, 0, {"appearance": 5, "motion": 10}
"""Steps that are not timed, so that what the loader had ready before the clock is used up; frames between two stored rows."""


@dataclass(frozen=True)
class Case:
    """`rounds` times `steps` steps; `shapes` of a row of each product, `rows` of them per video, and a video for each query.

    `again`: the features are in the process' memory, as in later epochs over a store that fits; else every round reads them anew.
    """

    name: str
    device: str
    config: TrainConfig
    shapes: dict[str, tuple[int, ...]]
    rows: dict[str, int]
    steps: int
    rounds: int
    again: bool = False

    @property
    def videos(self) -> int:
        return (WARM + self.steps) * self.config.batch


def cases() -> Iterator[Case]:
    """The CPU's, and the GPU's where there is one."""
    shapes: dict[str, tuple[int, ...]] = {"appearance": (6, 10, 128), "motion": (8, 8, 384), "text": (64,)}
    tiny = TrainConfig.model_validate(preset("shapes"))
    rows = {"appearance": 32, "motion": 16, "text": 8}
    for name, again in (("read anew", False), ("read before", True)):
        yield Case(f"`shapes`, tiny features, {name}", "cpu", tiny, shapes, rows, 20, 7, again)
    if not torch.cuda.is_available():
        return
    full = TrainConfig.model_validate({**preset("hcstvg-v2"), "batch": 8, "precision": "bfloat16"})
    rows = {"appearance": 64, "motion": 50, "text": 25}
    for name, maps, clips in (("raw features", 2048, 2304), ("reduced to 256 channels", 256, 256)):
        shapes = {"appearance": (10, 18, maps), "motion": (16, 16, clips), "text": (768,)}
        yield Case(f"`hcstvg-v2`, {name}", "cuda", full, shapes, rows, 16, 5)


def main() -> None:
    keep_memory()  # as `stvg-train` does; GOMP_SPINCOUNT is set by the import
    rows = [measure(case) for case in cases()]
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(result(rows), encoding="utf-8")
    print(RESULT.read_text(encoding="utf-8"))


def measure(case: Case) -> str:
    """One line of the result."""
    device, c = torch.device(case.device), case.config
    together = Processes()
    if case.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as place:
        made, queries = features_of(case), queries_of(case)
        fill(Path(place), made, queries)
        torch.manual_seed(SEED)
        dims = (case.shapes["appearance"][-1], case.shapes["motion"][-1], case.shapes["text"][-1])
        network = system_of(c.system).build(dims, c.model).to(device)
        state = State.start(network, c, 10**6)
        ready = at_hand(case, made, queries)
        features, times = of_store(case, place), defaultdict[str, list[float]](list)
        for _ in range(case.rounds + 1):  # the first is not counted
            features = features if case.again else of_store(case, place)
            with Loader(features, queries, c.batch, SEED, 0, device=device) as loader:
                batches = iter(loader)
                for number in range(WARM):
                    parts = next(batches)
                    if number == 0:
                        compare(parts, ready)
                    learn(network, state, parts, c, together)
                times["store"].append(seconds(lambda: learn(network, state, next(batches), c, together), case))  # noqa: B023
            times["memory"].append(seconds(lambda: learn(network, state, ready, c, together), case))
            times["batch"].append(seconds(making(features if case.again else of_store(case, place), queries, c.batch), case))
    return line(case, {name: np.array(values[1:]) for name, values in times.items()}, ready[0])


def line(case: Case, times: dict[str, np.ndarray], ready: Batch) -> str:
    """A row of the table from seconds per step of each round."""
    step, memory, batch = (float(np.median(times[name])) for name in ("store", "memory", "batch"))
    spread = times["store"] / times["memory"]
    peak = f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB" if case.device == "cuda" else "–"
    megabytes = sum(getattr(ready.inputs, name).nbytes for name in ("appearance", "motion", "text")) / 1e6
    return (
        f"| {case.name} | {case.device} | {megabytes:,.1f} MB | {memory * 1e3:.1f} ms | {step * 1e3:.1f} ms "
        f"| **{step / memory:.3f}** ({spread.min():.3f} … {spread.max():.3f}) | {batch / memory:.3f} | {peak} |"
    )


def seconds(step: Callable[[], object], case: Case) -> float:
    """Seconds per step of a round."""
    began = time.perf_counter()
    for _ in range(case.steps):
        step()
    if case.device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - began) / case.steps


def making(features: FeatureSet, queries: Sequence[Query], batch: int) -> Callable[[], object]:
    """A function that makes another batch at each call, on the calling thread."""
    numbers = iter(np.arange(len(queries)).reshape(-1, batch))
    return lambda: batch_of(features, [queries[number] for number in next(numbers)])


def batch_of(features: FeatureSet, queries: Sequence[Query]) -> Batch:
    samples = [features.sample(query) for query in queries]
    return Batch(collate(samples), join_targets([features.truth(sample) for sample in samples]), [query.id for query in queries])


def at_hand(case: Case, made: dict[str, Made], queries: Sequence[Query]) -> list[Batch]:
    """The loader's first batch, from features that were never stored."""
    model, device = case.config.model, torch.device(case.device)
    appearance, motion, text = (made[name] for name in ("appearance", "motion", "text"))
    features = FeatureSet(queries, tracks_of(queries), appearance, motion, text, model.frames, model.clips)
    order = np.random.default_rng([SEED, 0]).permutation(len(queries))[: case.config.batch]
    batch = batch_of(features, [queries[number] for number in order])
    return [Batch(to_device(batch.inputs, device), to_device(batch.targets, device), batch.ids)]


def compare(read: list[Batch], ready: list[Batch]) -> None:
    """Both ways give the same batch, to the bit."""
    assert [part.ids for part in read] == [part.ids for part in ready]
    for one, other in zip(read, ready, strict=True):
        for name in ("inputs", "targets"):
            for field in fields(getattr(one, name)):
                given = [getattr(getattr(part, name), field.name) for part in (one, other)]
                torch.testing.assert_close(*given, rtol=0, atol=0, msg=f"{name}.{field.name}")


def of_store(case: Case, store: str) -> FeatureSet:
    return FeatureSet.of_store(Path(store), "train", case.config.model.frames, case.config.model.clips)


class Made:
    """A product that lies in memory: each entry is the same random rows, rolled by its number."""

    def __init__(self, keys: Sequence[str], rows: np.ndarray, every: int | None, facts: dict[str, Any]) -> None:
        self._number = {key: number for number, key in enumerate(keys)}
        self._rows, self._every, self._facts = rows, every, facts

    def __contains__(self, key: object) -> bool:
        return key in self._number

    def shape(self, key: str) -> tuple[int, ...]:
        return self._rows.shape

    def facts(self, key: str) -> dict[str, Any]:
        return self._facts

    def columns(self, key: str) -> dict[str, np.ndarray]:
        count = np.arange(len(self._rows))
        return {"token": count} if self._every is None else {"frame": count * self._every + self._every // 2}

    def read(self, key: str, indices: np.ndarray | None = None) -> np.ndarray:
        rows = np.roll(self._rows, self._number[key], 0)
        return rows if indices is None else rows[indices]

    def entries(self) -> Iterator[Entry]:
        for key in self._number:
            yield Entry(key, key, self.read(key), self.columns(key), self._facts)


def features_of(case: Case) -> dict[str, Made]:
    """Random features of every product; sentences have the name of their video."""
    random, keys = np.random.default_rng(SEED), [f"v{number:03}" for number in range(case.videos)]
    facts = {"size": [160, 90], "fps": 25.0, "frame_count": length(case)}
    return {
        name: Made(keys, random.standard_normal((case.rows[name], *shape), np.float32).astype(np.float16), EVERY.get(name), facts)
        for name, shape in case.shapes.items()
    }


def length(case: Case) -> int:
    """Frames of a video."""
    return case.rows["appearance"] * EVERY["appearance"]


def queries_of(case: Case) -> list[Query]:
    """One query for each video, whose event takes its middle half."""
    count = length(case)
    common = {"fps": 25.0, "frame_count": count, "size": (160, 90), "segment": (0, count), "text": "a thing moves", "split": "train"}
    names = [f"v{number:03}" for number in range(case.videos)]
    truths = (Truth(span=(count // 4, count * 3 // 4), track=name) for name in names)
    given = zip(names, truths, strict=True)
    return [Query.model_validate({"id": name, "video": name, "path": f"{name}.mp4", "truth": truth, **common}) for name, truth in given]


def tracks_of(queries: Sequence[Query]) -> Tracks:
    """A box that moves, in every video."""
    tracks = Tracks()
    for query in queries:
        left = np.linspace(0, 80, query.frame_count)
        tracks.add(query.video, np.arange(query.frame_count), np.stack([left, left / 2, left + 40, left / 2 + 30], -1))
    return tracks


def fill(store: Path, made: dict[str, Made], queries: Sequence[Query]) -> None:
    """Write the store as extraction would."""
    index, tracks = store / "made" / "index.jsonl", store / "made" / "tracks.npz"
    index.parent.mkdir()
    write_jsonl(index, queries)
    tracks_of(queries).save(tracks)
    with StoreWriter(store, "benchmark", ".") as writer:
        writer.set_index(index, tracks)
        for name, product in made.items():
            kind: Kind = "hdf5" if name == "text" else "zarr"
            writer.open_product(name, kind, {})
            info = write_shard(store, name, "s", kind, product.entries(), [query.video for query in queries], made_from(kind, {}))
            writer.publish(name, "s", info)


def result(rows: list[str]) -> str:
    table = "\n".join(rows)
    gpu = f"{torch.cuda.get_device_name()}, " if torch.cuda.is_available() else "no GPU, "
    return f"""# A training step's batch, from the store and at hand

Whole steps of `stvg-train` (forward, loss, backward, clipping, AdamW, moving average), with batches from the store through the loader
and with one batch that lies on the device. The two take turns; medians, and in brackets the ratios of single rounds. Features are
random, of real shapes, every query about a video of its own. "Read anew": every round begins with nothing of the store in the process'
memory (the system's cache is warm), as the GPU's cases do too; "read before": with all of it, as in later epochs over a store
that fits. The two ways gave the same batch, to the bit, before they were timed. The last ratio is what making the batches in the
loop, on one thread, would add.

| preset and features | on | features of a batch | step, at hand | step, from the store | ratio | making a batch ÷ step | peak GPU memory |
| --- | --- | --- | --- | --- | --- | --- | --- |
{table}

**Where.** {gpu}{where("torch", "numpy")}, {torch.get_num_threads()} threads. {time.strftime("%Y-%m-%d")}.

**Command**

```
.venv/bin/python -m benchmarks.training
```
"""


if __name__ == "__main__":
    main()
