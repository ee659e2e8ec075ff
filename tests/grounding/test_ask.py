"""Asking about a video: the same answer as from the store, one row per frame, and every refusal."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grounding.ask import Answers, Grounder, answer_of, checked_sentences
from grounding.data import FeatureSet
from grounding.predict import predict
from pipeline.errors import InputError, VideoError
from pipeline.records import Prediction, Query, read_jsonl


@pytest.fixture(scope="module")
def grounder(tiny_run: Any) -> Grounder:
    return Grounder(tiny_run.run, device="cpu")


@pytest.fixture(scope="module")
def queries(tiny_run: Any) -> list[Query]:
    return [query for query in read_jsonl(tiny_run.index, Query) if query.split == "test"]


def test_a_video_gives_the_tube_that_its_store_gives(tiny_run: Any, grounder: Grounder, queries: list[Query]) -> None:
    features = FeatureSet.of_store(tiny_run.store, "test", grounder.frames, grounder.clips)
    stored = predict(grounder.model, features, features.queries)
    asked = grounder.ask(tiny_run.root / queries[0].path, [query.text for query in queries])
    edges = np.arange(queries[0].frame_count + 1) / queries[0].fps
    expected = [answer_of(query.text, prediction, edges) for query, prediction in zip(queries, stored, strict=True)]
    assert [answer.span_frames for answer in asked.queries] == [answer.span_frames for answer in expected]
    for own, other in zip(asked.queries, expected, strict=True):
        assert own.text == other.text
        assert own.score == pytest.approx(other.score, abs=1e-5)
        assert own.span_seconds == pytest.approx(other.span_seconds, abs=1e-3)
        np.testing.assert_allclose(own.boxes, other.boxes, atol=0.02)


def test_the_features_are_the_stores_own(tiny_run: Any, grounder: Grounder, queries: list[Query]) -> None:
    stored = FeatureSet.of_store(tiny_run.store, "test", 4, 8)
    seen = grounder.look(tiny_run.root / queries[0].path)
    for name in ("appearance", "motion"):
        own, other = seen.features[name], getattr(stored, name)
        np.testing.assert_array_equal(own.read(seen.video.path), other.read(queries[0].video))
        np.testing.assert_array_equal(own.columns(seen.video.path)["frame"], other.columns(queries[0].video)["frame"])
        assert own.shape(seen.video.path) == other.shape(queries[0].video)


def test_a_video_is_looked_at_once_for_all_sentences(tiny_run: Any, grounder: Grounder, queries: list[Query]) -> None:
    counted: list[tuple[int, int]] = []
    seen = grounder.look(tiny_run.root / queries[0].path, lambda done, total: counted.append((done, total)))
    assert counted[0] == (0, counted[0][1])
    assert counted[-1] == (counted[0][1], counted[0][1])
    np.testing.assert_allclose(seen.frame_edges, np.arange(seen.video.frame_count + 1) / 10)
    together = grounder.answer(seen, ["the red circle spins.", "what falls?"])
    alone = grounder.answer(seen, ["the red circle spins."])
    assert together.queries[0].score == pytest.approx(alone.queries[0].score, abs=1e-3)
    assert [answer.text for answer in together.queries] == ["the red circle spins.", "what falls?"]


def test_every_frame_of_the_span_has_a_box(tiny_run: Any, grounder: Grounder, queries: list[Query]) -> None:
    answers = grounder.ask(tiny_run.root / queries[0].path, ["  the red circle spins. "])
    (answer,) = answers.queries
    begin, end = answer.span_frames
    assert answer.text == "the red circle spins."
    assert [row[0] for row in answer.boxes] == list(range(begin, end))
    assert answer.span_seconds == pytest.approx((begin / 10, end / 10))
    assert (answers.video.fps, answers.video.frame_count, answers.video.size) == (10.0, queries[0].frame_count, (160, 96))
    assert Answers.model_validate_json(json.dumps(answers.model_dump(mode="json"))) == answers


def test_seconds_are_those_of_the_frames_and_boxes_interpolate() -> None:
    edges = np.array([0, 0.1, 0.2, 1.2, 1.3, 1.4])
    rows = [(1, 0.0, 0.0, 10.0, 10.0), (3, 20.0, 0.0, 30.0, 10.0)]
    answer = answer_of("x", Prediction(id="0", span=(2, 5), score=0.5, boxes=rows), edges)
    assert answer.span_seconds == (0.2, 1.4)
    assert answer.boxes == [(2, 10.0, 0.0, 20.0, 10.0), (3, 20.0, 0.0, 30.0, 10.0), (4, 20.0, 0.0, 30.0, 10.0)]


def test_more_frames_may_be_seen_at_once(tiny_run: Any, queries: list[Query]) -> None:
    grounder = Grounder(tiny_run.run, device="cpu", frames=12, batch=1)
    assert grounder.frames == 12
    assert grounder.ask(tiny_run.root / queries[0].path, ["what falls?"]).queries[0].boxes


def test_other_videos_than_shapes_are_doubted(tiny_run: Any, grounder: Grounder, queries: list[Query], tmp_path: Path) -> None:
    assert grounder.doubt(tiny_run.root / queries[0].path) == ""
    assert "was trained on `shapes`" in grounder.doubt(tmp_path / "holiday.mp4")


def test_sentences_must_say_something(grounder: Grounder) -> None:
    with pytest.raises(InputError, match="no sentence: say what to look for"):
        checked_sentences([])
    with pytest.raises(InputError, match="sentence 2 of 2 is empty"):
        grounder.ask(Path("not even opened.mp4"), ["a dog jumps.", " \t"])


def test_a_missing_video_is_named(grounder: Grounder, tmp_path: Path) -> None:
    with pytest.raises(VideoError, match=r"gone\.mp4 does not exist"):
        grounder.ask(tmp_path / "gone.mp4", ["a dog jumps."])


def test_other_weights_than_the_runs_are_refused(tiny_run: Any, tmp_path: Path) -> None:
    run = shutil.copytree(tiny_run.run, tmp_path / "run")
    provenance = json.loads((run / "provenance.json").read_text())
    provenance["products"]["motion"]["weights_digest"] = "0123456789abcdef"
    (run / "provenance.json").write_text(json.dumps(provenance))
    with pytest.raises(InputError, match=r"was trained on motion features of weights 'tiny' with digest 0123456789ab…"):
        Grounder(run)


def test_a_run_without_a_checkpoint_is_refused(tiny_run: Any, tmp_path: Path) -> None:
    run = shutil.copytree(tiny_run.run, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    with pytest.raises(InputError, match="has no checkpoint yet"):
        Grounder(run)
    with pytest.raises(InputError, match="is not a run directory"):
        Grounder(tmp_path)
