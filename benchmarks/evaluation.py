"""How long judging takes at the size of VidSTG's test split: 10,303 queries of 600 frames.

    .venv/bin/python -m benchmarks.evaluation   # two minutes; writes benchmarks/results/evaluation.md

Everything is drawn from a seed. The arrays' time is that of `judge_tubes` alone; the files' that of a whole `stvg-eval`, which
also draws intervals, judges the baselines and prints the published table under every protocol.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.machine import where

QUERIES, FRAMES, VIDEOS, SIZE = 10303, 600, 732, (640, 360)
SEED = 0
ROUNDS = 3
RESULT = Path(__file__).parent / "results" / "evaluation.md"
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def main() -> None:
    if any(os.environ.get(name) != value for name, value in ONE_THREAD.items()):  # they must be set before NumPy is imported
        raise SystemExit(subprocess.run([sys.executable, "-m", "benchmarks.evaluation"], env=os.environ | ONE_THREAD).returncode)
    boxes = drawn(np.random.default_rng(SEED))
    arrays = dict(from_arrays(*boxes))
    with tempfile.TemporaryDirectory() as place:
        files, peak, size = from_files(Path(place), *boxes)
    text = result(arrays, files, peak, size)
    RESULT.write_text(text, encoding="utf-8")
    print(text)


def drawn(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """True and predicted boxes `[queries, frames, 4]` xyxy, the predicted ones near the true."""
    corner = rng.integers(0, 200, (QUERIES, 1, 2)) + rng.integers(0, 100, (QUERIES, FRAMES, 2))
    true = np.concatenate([corner, corner + np.array([180, 120])], -1).astype(np.float64)
    return true, np.round(true + rng.normal(0, 15, true.shape), 2)


def from_arrays(true: np.ndarray, predicted: np.ndarray) -> list[tuple[str, float]]:
    """Each protocol's best of a few rounds, after checking what it says of the first queries against a plain loop."""
    from grounding.protocols import PROTOCOLS, Truths, judge_tubes
    from grounding.tubes import Tubes

    names, offsets = tuple(map(str, range(QUERIES))), np.arange(QUERIES + 1) * FRAMES
    frames, whole = np.tile(np.arange(FRAMES), QUERIES), np.tile([[0, FRAMES]], (QUERIES, 1))
    truths = Truths(Tubes(names, whole, offsets, frames, true.reshape(-1, 4), framewise=True), np.full(QUERIES, 30.0), whole)
    tubes = Tubes(names, np.tile([[100, FRAMES]], (QUERIES, 1)), offsets, frames, predicted.reshape(-1, 4))
    judged = judge_tubes(truths, tubes)
    for query in range(20):
        overlaps = [overlap(a, b) for a, b in zip(true[query], predicted[query], strict=True)]
        assert abs(judged.vIoU[query] - sum(overlaps[100:]) / FRAMES) < 1e-9
        assert abs(judged.sIoU[query] - sum(overlaps) / FRAMES) < 1e-9
    return [(protocol, min(timed(lambda p=protocol: judge_tubes(truths, tubes, p)) for _ in range(ROUNDS))) for protocol in PROTOCOLS]  # type: ignore[misc]


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    both = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = (a[2] - a[0]) * (a[3] - a[1]) + max(0.0, b[2] - b[0]) * max(0.0, b[3] - b[1])
    return float(both / (areas - both))


def timed(work: object) -> float:
    began = time.perf_counter()
    work()  # type: ignore[operator]
    return time.perf_counter() - began


def from_files(place: Path, true: np.ndarray, predicted: np.ndarray) -> tuple[float, int, int]:
    """Seconds and peak bytes of `stvg-eval` on an index and a file of predictions, and the latter's bytes."""
    import resource

    from pipeline.records import Query, Tracks, Truth, write_json, write_jsonl

    tracks, queries = Tracks(), []
    with (place / "predictions.jsonl").open("w") as file:
        for number in range(QUERIES):
            video, own = f"{number % VIDEOS}", number % (4 * VIDEOS)  # sentences share the boxes of four objects a video
            if f"{own}" not in tracks:
                tracks.add(f"{own}", np.arange(FRAMES), true[own])
            fields = {"id": f"q{number}", "video": video, "path": f"{video}.mp4", "fps": 30.0, "frame_count": FRAMES, "size": SIZE}
            form = "declarative" if number % 2 else "interrogative"
            truth = Truth(span=(0, FRAMES), track=f"{own}")
            queries.append(
                Query.model_validate({**fields, "segment": (0, FRAMES), "text": "x", "form": form, "split": "test", "truth": truth})
            )
            rows = [[frame, *box] for frame, box in enumerate(predicted[number].tolist())]
            file.write(json.dumps({"id": f"q{number}", "span": [100, FRAMES], "score": 0.5, "boxes": rows}) + "\n")
    write_jsonl(place / "index.jsonl", queries)
    tracks.save(place / "tracks.npz")
    write_json(place / "defects.json", {"dataset": "vidstg"})
    files = ["--truth", place / "index.jsonl", "--predictions", place / "predictions.jsonl", "--json", place / "out.json"]
    command = [sys.executable, "-c", "from cli.evaluate import main; main()", *map(str, files)]
    seconds = timed(lambda: subprocess.run(command, check=True, capture_output=True))
    assert json.loads((place / "out.json").read_text())["queries"] == QUERIES
    return seconds, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024, (place / "predictions.jsonl").stat().st_size


def result(arrays: dict[str, float], files: float, peak: int, size: int) -> str:
    rows = "\n".join(f"| {protocol} | about {seconds:.2f} s |" for protocol, seconds in arrays.items())
    return f"""# Judging {QUERIES:,} queries of {FRAMES} frames

One core. Boxes are drawn from a seed; twenty queries were checked against a plain loop over frames to 1e-9 first.

| protocol, from arrays | best of {ROUNDS} |
| --- | --- |
{rows}

From files ({size / 2**20:,.0f} MiB of predictions): a whole `stvg-eval`, with intervals, baselines and the published table under three
protocols, takes about {files:.0f} s and {peak / 2**20:,.0f} MiB at most. Times are rough, the machine does other things too.

**Where.** {where("numpy", "pydantic")}.

**Command**

```
.venv/bin/python -m benchmarks.evaluation
```
"""


if __name__ == "__main__":
    main()
