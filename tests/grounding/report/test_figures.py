"""A report's figures for papers: the files, and the messages on figures that cannot be drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from grounding.evaluation.evaluate import score_predictions
from grounding.evaluation.ground_truth import GroundTruth, ground_truth_for_split
from grounding.evaluation.results import RunResults
from grounding.report.figures import write_figures
from grounding.structures.tubes import Tubes
from grounding.visualization.attention_maps import AttentionMap, QueryAttention
from grounding.visualization.video_source import VideoSource
from pipeline.errors import VideoError
from pipeline.records import Prediction, Query
from pipeline.tracks import Tracks

QueryMaker = Callable[..., Query]


@pytest.fixture
def ground_truth(make_query: QueryMaker, tracks: Tracks) -> GroundTruth:
    return ground_truth_for_split([make_query(0, "test"), make_query(1, "test")], tracks, "test")


def make_run_results(ground_truth: GroundTruth, name: str, span: tuple[int, int]) -> RunResults:
    """Return a run that predicts this span, with nearly correct boxes, for every query."""
    rows = [
        (frame, 5 + frame / 10, 5 + frame / 10, 15 + frame / 10, 25 + frame / 10)
        for frame in range(0, 100, 10)
    ]
    predictions = {
        query.id: Prediction(id=query.id, span=span, score=1.0, boxes=rows)
        for query in ground_truth.queries
    }
    scores = score_predictions(ground_truth, Tubes.from_predictions(predictions.values()))
    return RunResults(Path(name), name, predictions, {score.id: score for score in scores}, {})


def open_video(path: str) -> VideoSource:
    """Return a gray video of 100 frames; the video of `v1` is missing."""
    if path == "v1.mp4":
        raise VideoError("open", "missing", "v1.mp4 is not there")

    def read(frame_indices: Sequence[int]) -> Iterator[np.ndarray]:
        yield from (np.full((36, 64, 3), 128, np.uint8) for _ in frame_indices)

    return VideoSource(path, np.arange(101) / 25, "stamp", read)


def make_recorder(ground_truth: GroundTruth, *maps: AttentionMap) -> Any:
    def record(query: Query) -> QueryAttention:
        return QueryAttention(query, np.arange(0, 100, 5), maps, None)  # type: ignore[arg-type]

    return SimpleNamespace(dataset=SimpleNamespace(queries=ground_truth.queries), record=record)


def list_figures(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "figures").iterdir())


def test_a_query_has_its_tubes_and_its_attention_as_png_and_pdf(
    ground_truth: GroundTruth, tmp_path: Path
) -> None:
    runs = [
        make_run_results(ground_truth, "full", (30, 60)),
        make_run_results(ground_truth, "none", (50, 90)),
    ]
    guide = AttentionMap("guidance", np.ones((1, 20, 2, 4), np.float32))
    attention = AttentionMap(
        "temporal_attention", np.arange(8, dtype=np.float32).reshape(1, 1, 2, 4).repeat(20, 1)
    )
    problems = write_figures(
        tmp_path,
        ground_truth,
        runs,
        open_video,
        [make_recorder(ground_truth, guide), make_recorder(ground_truth, attention)],
    )
    stems = {Path(name).stem for name in list_figures(tmp_path)}
    (number,) = {
        stem[6:] for stem in stems if stem.startswith("tubes-")
    }  # one of two queries: the other's video is gone
    assert stems == {f"tubes-{number}", f"attention-{number}", f"attention-{number}-compared"}
    assert list_figures(tmp_path) == sorted(
        f"{stem}.{suffix}" for stem in stems for suffix in ("png", "pdf")
    )
    first, compared = (
        tmp_path / "figures" / f"attention-{number}{suffix}.png" for suffix in ("", "-compared")
    )
    assert first.read_bytes() != compared.read_bytes()
    assert problems == ["test-1: missing (open): v1.mp4 is not there"]


def test_a_network_without_maps_is_named_and_its_tubes_are_drawn(
    ground_truth: GroundTruth, tmp_path: Path
) -> None:
    problems = write_figures(
        tmp_path,
        ground_truth,
        [make_run_results(ground_truth, "dynamic", (30, 60))],
        open_video,
        [make_recorder(ground_truth)],
    )
    assert "test-0: the model of dynamic has no attention map to draw" in problems
    assert all(name.startswith("tubes") for name in list_figures(tmp_path))


def test_without_a_network_there_are_tubes_alone(ground_truth: GroundTruth, tmp_path: Path) -> None:
    write_figures(
        tmp_path, ground_truth, [make_run_results(ground_truth, "full", (30, 60))], open_video
    )
    assert all(name.startswith("tubes") for name in list_figures(tmp_path))
