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

from benchmarks.case import ONE_THREAD, Case, Comparison, LowerBound, Measurement
from benchmarks.timing import profile_python, time_interleaved

VIDEO_SIZE = (640, 360)
NUM_CHECKED = 20


@dataclass
class Evaluation(Case):
    """Evaluation at the size of VidSTG's test split.

    `score_tubes` on arrays under each protocol, against a plain loop over the frames of the same
    boxes (timed on twenty queries and multiplied), with which it agrees to 1e-9; and a whole
    `stvg-eval` on files, which also draws intervals, judges baselines and prints the published
    table, against reading both files with `json.loads`. One thread. The floor is reading the boxes.
    """

    packages = ("numpy", "pydantic")
    environment = ONE_THREAD
    num_queries: int = 10303
    num_frames: int = 600
    num_videos: int = 732
    rounds: int = 2

    def __enter__(self) -> Evaluation:
        from grounding.metrics.protocols import GroundTruthTubes
        from grounding.structures.tubes import Tubes

        super().__enter__()
        self.true_boxes, self.predicted_boxes = sample_boxes(
            np.random.default_rng(0), self.num_queries, self.num_frames
        )
        names, offsets = (
            tuple(map(str, range(self.num_queries))),
            np.arange(self.num_queries + 1) * self.num_frames,
        )
        frames, whole = (
            np.tile(np.arange(self.num_frames), self.num_queries),
            np.tile([[0, self.num_frames]], (self.num_queries, 1)),
        )
        true, predicted = (
            boxes.reshape(-1, 4) for boxes in (self.true_boxes, self.predicted_boxes)
        )
        self.truth_tubes = GroundTruthTubes(
            Tubes(names, whole, offsets, frames, true, framewise=True),
            np.full(self.num_queries, 30.0),
            whole,
        )
        self.predicted_tubes = Tubes(
            names,
            np.tile([[self.num_frames // 6, self.num_frames]], (self.num_queries, 1)),
            offsets,
            frames,
            predicted,
        )
        self._write_files()
        return self

    def check_agreement(self) -> None:
        """Check that all variants agree."""
        from grounding.metrics.protocols import score_tubes

        judged = score_tubes(self.truth_tubes, self.predicted_tubes)
        for query, (vIoU, sIoU) in enumerate(self._evaluate_by_loop()):
            assert abs(judged.vIoU[query] - vIoU) < 1e-9
            assert abs(judged.sIoU[query] - sIoU) < 1e-9
        self._run_stvg_eval()
        assert json.loads((self.work_dir / "out.json").read_text())["queries"] == self.num_queries

    def measure(self) -> list[Comparison]:
        """Measure all variants."""
        from grounding.metrics.protocols import PROTOCOLS, score_tubes

        size = self.true_boxes.nbytes + self.predicted_boxes.nbytes
        ways: dict[str, Callable[[], object]] = {"a plain loop": self._evaluate_by_loop}
        ways |= {
            protocol: partial(score_tubes, self.truth_tubes, self.predicted_tubes, protocol)
            for protocol in PROTOCOLS
        }
        arrays = time_interleaved(ways, self.rounds)
        arrays["a plain loop"] = [
            seconds * self.num_queries / min(NUM_CHECKED, self.num_queries)
            for seconds in arrays["a plain loop"]
        ]
        top = {"every-frame": profile_python(ways["every-frame"])}
        files = time_interleaved(
            {"json.loads": self._read_plain, "stvg-eval": self._run_stvg_eval}, 1, warmup_rounds=0
        )
        read = sum(
            (self.work_dir / name).stat().st_size
            for name in ("predictions.jsonl", "index.jsonl", "tracks.npz")
        )
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
        whole = Measurement(
            files["stvg-eval"], LowerBound(bytes=read), peak, extra={"bytes_of_files": read}
        )
        return [
            Comparison(
                f"{self.num_queries:,} queries of {self.num_frames} frames, arrays",
                {
                    n: Measurement(own, LowerBound(bytes=size), hotspots=top.get(n, []))
                    for n, own in arrays.items()
                },
            ),
            Comparison(
                f"{self.num_queries:,} queries of {self.num_frames} frames, files",
                {"json.loads": Measurement(files["json.loads"]), "stvg-eval": whole},
            ),
        ]

    def _evaluate_by_loop(self) -> list[tuple[float, float]]:
        """VIoU and sIoU of the first queries, frame by frame."""
        found = []
        for a, b in zip(
            self.true_boxes[:NUM_CHECKED], self.predicted_boxes[:NUM_CHECKED], strict=True
        ):
            overlaps = [compute_iou(*pair) for pair in zip(a.tolist(), b.tolist(), strict=True)]
            found.append(
                (
                    sum(overlaps[self.num_frames // 6 :]) / self.num_frames,
                    sum(overlaps) / self.num_frames,
                )
            )
        return found

    def _run_stvg_eval(self) -> None:
        files = [
            "--truth",
            self.work_dir / "index.jsonl",
            "--predictions",
            self.work_dir / "predictions.jsonl",
            "--json",
            self.work_dir / "out.json",
        ]
        command = [sys.executable, "-c", "from cli.evaluate import main; main()", *map(str, files)]
        subprocess.run(command, check=True, capture_output=True)

    def _read_plain(self) -> None:
        for name in ("index.jsonl", "predictions.jsonl"):
            with (self.work_dir / name).open(encoding="utf-8") as lines:
                for line in lines:
                    json.loads(line)

    def _write_files(self) -> None:
        """The index, its tracks and the predictions as files; sentences share the boxes of four
        objects a video.
        """
        from pipeline.io.jsonl import write_json, write_jsonl
        from pipeline.records import Query, Truth
        from pipeline.tracks import Tracks

        tracks, queries, frames = Tracks(), [], self.num_frames
        with (self.work_dir / "predictions.jsonl").open("w") as file:
            for number in range(self.num_queries):
                video, own = f"{number % self.num_videos}", number % (4 * self.num_videos)
                if f"{own}" not in tracks:
                    tracks.add(f"{own}", np.arange(frames), self.true_boxes[own])
                about = {
                    "id": f"q{number}",
                    "video": video,
                    "path": f"{video}.mp4",
                    "fps": 30.0,
                    "frame_count": frames,
                    "size": VIDEO_SIZE,
                }
                said = {
                    "text": "x",
                    "form": "declarative" if number % 2 else "interrogative",
                    "split": "test",
                }
                truth = Truth(span=(0, frames), track=f"{own}")
                queries.append(
                    Query.model_validate({**about, **said, "segment": (0, frames), "truth": truth})
                )
                rows = [
                    [frame, *box] for frame, box in enumerate(self.predicted_boxes[number].tolist())
                ]
                file.write(
                    json.dumps(
                        {
                            "id": f"q{number}",
                            "span": [frames // 6, frames],
                            "score": 0.5,
                            "boxes": rows,
                        }
                    )
                    + "\n"
                )
        write_jsonl(self.work_dir / "index.jsonl", queries)
        tracks.save(self.work_dir / "tracks.npz")
        write_json(self.work_dir / "defects.json", {"dataset": "vidstg"})


def sample_boxes(
    rng: np.random.Generator, queries: int, frames: int
) -> tuple[np.ndarray, np.ndarray]:
    """True and predicted boxes `[queries, frames, 4]` xyxy, the predicted ones near the true."""
    corner = rng.integers(0, 200, (queries, 1, 2)) + rng.integers(0, 100, (queries, frames, 2))
    true = np.concatenate([corner, corner + np.array([180, 120])], -1).astype(np.float64)
    return true, np.round(true + rng.normal(0, 15, true.shape), 2)


def compute_iou(a: list[float], b: list[float]) -> float:
    both = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = (a[2] - a[0]) * (a[3] - a[1]) + max(0.0, b[2] - b[0]) * max(0.0, b[3] - b[1])
    return both / (areas - both)
