"""How long judging takes at the size of VidSTG's test split: 10,303 queries of 600 frames."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from benchmarks.case import ONE_THREAD, Case, Floor, Group, Way
from benchmarks.timing import in_turns, profile_python

SIZE = (640, 360)
CHECKED = 20


@dataclass
class Evaluation(Case):
    """`judge_tubes` on arrays under each protocol, against a plain loop over the frames of the same boxes (timed on twenty queries
    and multiplied), with which it agrees to 1e-9; and a whole `stvg-eval` on files, which also draws intervals, judges baselines
    and prints the published table, against reading both files with `json.loads`. One thread. The floor is reading the boxes.
    """

    packages = ("numpy", "pydantic")
    environment = ONE_THREAD
    queries: int = 10303
    frames: int = 600
    videos: int = 732
    rounds: int = 2

    def __enter__(self) -> Evaluation:
        from grounding.metrics.protocols import Truths
        from grounding.structures.tubes import Tubes

        super().__enter__()
        self.true, self.predicted = drawn(np.random.default_rng(0), self.queries, self.frames)
        names, offsets = tuple(map(str, range(self.queries))), np.arange(self.queries + 1) * self.frames
        frames, whole = np.tile(np.arange(self.frames), self.queries), np.tile([[0, self.frames]], (self.queries, 1))
        true, predicted = (boxes.reshape(-1, 4) for boxes in (self.true, self.predicted))
        self.truths = Truths(Tubes(names, whole, offsets, frames, true, framewise=True), np.full(self.queries, 30.0), whole)
        self.tubes = Tubes(names, np.tile([[self.frames // 6, self.frames]], (self.queries, 1)), offsets, frames, predicted)
        self._write()
        return self

    def agree(self) -> None:
        from grounding.metrics.protocols import judge_tubes

        judged = judge_tubes(self.truths, self.tubes)
        for query, (vIoU, sIoU) in enumerate(self._looped()):
            assert abs(judged.vIoU[query] - vIoU) < 1e-9
            assert abs(judged.sIoU[query] - sIoU) < 1e-9
        self._stvg_eval()
        assert json.loads((self.place / "out.json").read_text())["queries"] == self.queries

    def measure(self) -> list[Group]:
        from grounding.metrics.protocols import PROTOCOLS, judge_tubes

        size = self.true.nbytes + self.predicted.nbytes
        ways: dict[str, Callable[[], object]] = {"a plain loop": self._looped}
        ways |= {protocol: partial(judge_tubes, self.truths, self.tubes, protocol) for protocol in PROTOCOLS}
        arrays = in_turns(ways, self.rounds)
        arrays["a plain loop"] = [seconds * self.queries / min(CHECKED, self.queries) for seconds in arrays["a plain loop"]]
        top = {"every-frame": profile_python(ways["every-frame"])}
        files = in_turns({"json.loads": self._read_plain, "stvg-eval": self._stvg_eval}, 1, warm=0)
        read = sum((self.place / name).stat().st_size for name in ("predictions.jsonl", "index.jsonl", "tracks.npz"))
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
        whole = Way(files["stvg-eval"], Floor(bytes=read), peak, facts={"bytes_of_files": read})
        return [
            Group(
                f"{self.queries:,} queries of {self.frames} frames, arrays",
                {n: Way(own, Floor(bytes=size), top=top.get(n, [])) for n, own in arrays.items()},
            ),
            Group(f"{self.queries:,} queries of {self.frames} frames, files", {"json.loads": Way(files["json.loads"]), "stvg-eval": whole}),
        ]

    def _looped(self) -> list[tuple[float, float]]:
        """vIoU and sIoU of the first queries, frame by frame."""
        found = []
        for a, b in zip(self.true[:CHECKED], self.predicted[:CHECKED], strict=True):
            overlaps = [overlap(*pair) for pair in zip(a.tolist(), b.tolist(), strict=True)]
            found.append((sum(overlaps[self.frames // 6 :]) / self.frames, sum(overlaps) / self.frames))
        return found

    def _stvg_eval(self) -> None:
        files = [
            "--truth",
            self.place / "index.jsonl",
            "--predictions",
            self.place / "predictions.jsonl",
            "--json",
            self.place / "out.json",
        ]
        command = [sys.executable, "-c", "from cli.evaluate import main; main()", *map(str, files)]
        subprocess.run(command, check=True, capture_output=True)

    def _read_plain(self) -> None:
        for name in ("index.jsonl", "predictions.jsonl"):
            with (self.place / name).open(encoding="utf-8") as lines:
                for line in lines:
                    json.loads(line)

    def _write(self) -> None:
        """The index, its tracks and the predictions as files; sentences share the boxes of four objects a video."""
        from pipeline.io.jsonl import write_json, write_jsonl
        from pipeline.records import Query, Truth
        from pipeline.tracks import Tracks

        tracks, queries, frames = Tracks(), [], self.frames
        with (self.place / "predictions.jsonl").open("w") as file:
            for number in range(self.queries):
                video, own = f"{number % self.videos}", number % (4 * self.videos)
                if f"{own}" not in tracks:
                    tracks.add(f"{own}", np.arange(frames), self.true[own])
                about = {"id": f"q{number}", "video": video, "path": f"{video}.mp4", "fps": 30.0, "frame_count": frames, "size": SIZE}
                said = {"text": "x", "form": "declarative" if number % 2 else "interrogative", "split": "test"}
                truth = Truth(span=(0, frames), track=f"{own}")
                queries.append(Query.model_validate({**about, **said, "segment": (0, frames), "truth": truth}))
                rows = [[frame, *box] for frame, box in enumerate(self.predicted[number].tolist())]
                file.write(json.dumps({"id": f"q{number}", "span": [frames // 6, frames], "score": 0.5, "boxes": rows}) + "\n")
        write_jsonl(self.place / "index.jsonl", queries)
        tracks.save(self.place / "tracks.npz")
        write_json(self.place / "defects.json", {"dataset": "vidstg"})


def drawn(rng: np.random.Generator, queries: int, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """True and predicted boxes `[queries, frames, 4]` xyxy, the predicted ones near the true."""
    corner = rng.integers(0, 200, (queries, 1, 2)) + rng.integers(0, 100, (queries, frames, 2))
    true = np.concatenate([corner, corner + np.array([180, 120])], -1).astype(np.float64)
    return true, np.round(true + rng.normal(0, 15, true.shape), 2)


def overlap(a: list[float], b: list[float]) -> float:
    both = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = (a[2] - a[0]) * (a[3] - a[1]) + max(0.0, b[2] - b[0]) * max(0.0, b[3] - b[1])
    return both / (areas - both)
