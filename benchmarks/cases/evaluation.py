"""Evaluation at the size of VidSTG's test split: 10,303 queries of 600 frames."""

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

        names = tuple(map(str, range(self.num_queries)))
        offsets = np.arange(self.num_queries + 1) * self.num_frames
        frames = np.tile(np.arange(self.num_frames), self.num_queries)
        true_spans = np.tile([[0, self.num_frames]], (self.num_queries, 1))
        predicted_spans = np.tile([[self.num_frames // 6, self.num_frames]], (self.num_queries, 1))
        true_boxes = self.true_boxes.reshape(-1, 4)
        predicted_boxes = self.predicted_boxes.reshape(-1, 4)

        self.truth_tubes = GroundTruthTubes(
            Tubes(names, true_spans, offsets, frames, true_boxes, framewise=True),
            np.full(self.num_queries, 30.0),
            true_spans,
        )
        self.predicted_tubes = Tubes(names, predicted_spans, offsets, frames, predicted_boxes)
        self._write_files()
        return self

    def check_agreement(self) -> None:
        """Check that all variants agree."""
        from grounding.metrics.protocols import score_tubes

        scores = score_tubes(self.truth_tubes, self.predicted_tubes)
        for query, (vIoU, sIoU) in enumerate(self._evaluate_by_loop()):
            assert abs(scores.vIoU[query] - vIoU) < 1e-9
            assert abs(scores.sIoU[query] - sIoU) < 1e-9
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
                    name: Measurement(seconds, LowerBound(bytes=size), hotspots=top.get(name, []))
                    for name, seconds in arrays.items()
                },
            ),
            Comparison(
                f"{self.num_queries:,} queries of {self.num_frames} frames, files",
                {"json.loads": Measurement(files["json.loads"]), "stvg-eval": whole},
            ),
        ]

    def _evaluate_by_loop(self) -> list[tuple[float, float]]:
        """Return vIoU and sIoU of the first queries, computed frame by frame."""
        scores = []
        pairs = zip(self.true_boxes[:NUM_CHECKED], self.predicted_boxes[:NUM_CHECKED], strict=True)

        for true, predicted in pairs:
            frame_pairs = zip(true.tolist(), predicted.tolist(), strict=True)
            ious = [compute_iou(*frame_pair) for frame_pair in frame_pairs]
            vIoU = sum(ious[self.num_frames // 6 :]) / self.num_frames
            sIoU = sum(ious) / self.num_frames
            scores.append((vIoU, sIoU))

        return scores

    def _run_stvg_eval(self) -> None:
        """Run the command in a fresh process."""
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
        """Parse both files without validation."""
        for name in ("index.jsonl", "predictions.jsonl"):
            with (self.work_dir / name).open(encoding="utf-8") as lines:
                for line in lines:
                    json.loads(line)

    def _write_files(self) -> None:
        """Write the index, its tracks and the predictions.

        The queries of a video share the boxes of four objects.
        """
        from pipeline.io.jsonl import write_json, write_jsonl
        from pipeline.records import Query, Truth
        from pipeline.tracks import Tracks

        tracks = Tracks()
        queries = []
        frames = self.num_frames

        with (self.work_dir / "predictions.jsonl").open("w") as file:
            for index in range(self.num_queries):
                video = f"{index % self.num_videos}"
                track_index = index % (4 * self.num_videos)
                track = f"{track_index}"
                if track not in tracks:
                    tracks.add(track, np.arange(frames), self.true_boxes[track_index])

                video_fields = {
                    "id": f"q{index}",
                    "video": video,
                    "path": f"{video}.mp4",
                    "fps": 30.0,
                    "frame_count": frames,
                    "size": VIDEO_SIZE,
                }
                text_fields = {
                    "text": "x",
                    "form": "declarative" if index % 2 else "interrogative",
                    "split": "test",
                }
                truth = Truth(span=(0, frames), track=track)
                queries.append(
                    Query.model_validate(
                        {**video_fields, **text_fields, "segment": (0, frames), "truth": truth}
                    )
                )
                rows = [
                    [frame, *box] for frame, box in enumerate(self.predicted_boxes[index].tolist())
                ]
                file.write(
                    json.dumps(
                        {
                            "id": f"q{index}",
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
    """Sample true boxes, and predicted boxes near them.

    Args:
        rng: Random generator.
        queries: Number of queries.
        frames: Frames of each query.

    Returns:
        True boxes and predicted boxes `[queries, frames, 4]`, xyxy in pixels.
    """
    corner = rng.integers(0, 200, (queries, 1, 2)) + rng.integers(0, 100, (queries, frames, 2))
    true = np.concatenate([corner, corner + np.array([180, 120])], -1).astype(np.float64)
    return true, np.round(true + rng.normal(0, 15, true.shape), 2)


def compute_iou(a: list[float], b: list[float]) -> float:
    """Compute the IoU of two boxes.

    Args:
        a: Box, xyxy.
        b: Box, xyxy; an inverted box has no area.

    Returns:
        IoU in [0, 1].
    """
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    intersection = width * height
    areas = (a[2] - a[0]) * (a[3] - a[1]) + max(0.0, b[2] - b[0]) * max(0.0, b[3] - b[1])
    return intersection / (areas - intersection)
