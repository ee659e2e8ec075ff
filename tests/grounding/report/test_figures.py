"""A report's figures for papers: which files there are, and what is said where something cannot be
drawn.
"""

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
def exam(query_of: QueryMaker, tracks: Tracks) -> GroundTruth:
    return ground_truth_for_split([query_of(0, "test"), query_of(1, "test")], tracks, "test")


def judged(exam: GroundTruth, name: str, span: tuple[int, int]) -> RunResults:
    """A run that says this span, and boxes that are nearly right, for every query."""
    rows = [
        (frame, 5 + frame / 10, 5 + frame / 10, 15 + frame / 10, 25 + frame / 10)
        for frame in range(0, 100, 10)
    ]
    said = {
        query.id: Prediction(id=query.id, span=span, score=1.0, boxes=rows)
        for query in exam.queries
    }
    scores = score_predictions(exam, Tubes.from_predictions(said.values()))
    return RunResults(Path(name), name, said, {score.id: score for score in scores}, {})


def footage(path: str) -> VideoSource:
    """Grey videos of 100 frames; that of `v1` is gone."""
    if path == "v1.mp4":
        raise VideoError("open", "missing", "v1.mp4 is not there")

    def read(numbers: Sequence[int]) -> Iterator[np.ndarray]:
        yield from (np.full((36, 64, 3), 128, np.uint8) for _ in numbers)

    return VideoSource(path, np.arange(101) / 25, "stamp", read)


def witness(exam: GroundTruth, *attention: AttentionMap) -> Any:
    def asked(query: Query) -> QueryAttention:
        return QueryAttention(query, np.arange(0, 100, 5), attention, None)  # type: ignore[arg-type]

    return SimpleNamespace(dataset=SimpleNamespace(queries=exam.queries), record=asked)


def files(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "figures").iterdir())


def test_a_query_has_its_tubes_and_its_attention_as_png_and_pdf(
    exam: GroundTruth, tmp_path: Path
) -> None:
    runs = [judged(exam, "full", (30, 60)), judged(exam, "none", (50, 90))]
    guide = AttentionMap("guide", np.ones((1, 20, 2, 4), np.float32))
    heard = AttentionMap("heard", np.arange(8, dtype=np.float32).reshape(1, 1, 2, 4).repeat(20, 1))
    troubles = write_figures(
        tmp_path, exam, runs, footage, [witness(exam, guide), witness(exam, heard)]
    )
    stems = {Path(name).stem for name in files(tmp_path)}
    (number,) = {
        stem[6:] for stem in stems if stem.startswith("tubes-")
    }  # one of two queries: the other's video is gone
    assert stems == {f"tubes-{number}", f"attention-{number}", f"attention-{number}-compared"}
    assert files(tmp_path) == sorted(f"{stem}.{kind}" for stem in stems for kind in ("png", "pdf"))
    first, compared = (
        tmp_path / "figures" / f"attention-{number}{ending}.png" for ending in ("", "-compared")
    )
    assert first.read_bytes() != compared.read_bytes()
    assert troubles == ["test-1: missing (open): v1.mp4 is not there"]


def test_a_network_without_maps_is_named_and_its_tubes_are_drawn(
    exam: GroundTruth, tmp_path: Path
) -> None:
    troubles = write_figures(
        tmp_path, exam, [judged(exam, "dynamic", (30, 60))], footage, [witness(exam)]
    )
    assert "test-0: the model of dynamic has no attention map to draw" in troubles
    assert all(name.startswith("tubes") for name in files(tmp_path))


def test_without_a_network_there_are_tubes_alone(exam: GroundTruth, tmp_path: Path) -> None:
    write_figures(tmp_path, exam, [judged(exam, "full", (30, 60))], footage)
    assert all(name.startswith("tubes") for name in files(tmp_path))
