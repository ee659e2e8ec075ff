"""From predictions to a run's files: what is written where, and what a second call replaces."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from grounding.evaluation.evaluate import compute_group_metrics, evaluate
from grounding.evaluation.ground_truth import ground_truth_for_split, read_index, select_split
from grounding.evaluation.results import read_metrics, write_results
from grounding.metrics.scores import Score, read_scores
from grounding.structures.tubes import Tubes
from pipeline.errors import InputError
from pipeline.io.jsonl import write_jsonl
from pipeline.records import Prediction, Query, Truth
from pipeline.tracks import Tracks


def make_index(split: str, count: int, track: bool = True) -> tuple[list[Query], Tracks]:
    tracks = Tracks()
    queries = []
    for number in range(count):
        tracks.add(
            f"{split}{number}", np.arange(30, 60), np.tile([10.0, 10.0, 50.0, 50.0], (30, 1))
        )
        truth = Truth(span=(30, 60), track=f"{split}{number}" if track else None)
        values = {
            "id": f"{split}-{number}",
            "video": "v",
            "path": "v.mp4",
            "fps": 25.0,
            "frame_count": 100,
            "size": (100, 100),
        }
        queries.append(
            Query.model_validate(
                {**values, "segment": (0, 100), "text": "x", "split": split, "truth": truth}
            )
        )
    return queries, tracks


def answers(queries: list[Query]) -> list[Prediction]:
    return [
        Prediction(id=query.id, span=(30, 60), score=1.0, boxes=[(30, 10, 10, 50, 50)])
        for query in queries
    ]


def judged(
    queries: list[Query], tracks: Tracks, predictions: list[Prediction], train: bool = False
) -> tuple[list[Score], dict[str, float]]:
    """`train`: the same queries are the train split too."""
    more = [query.model_copy(update={"split": "train"}) for query in queries] if train else []
    return evaluate(
        ground_truth_for_split([*queries, *more], tracks, "test"),
        Tubes.from_predictions(predictions),
    )


def test_metrics_have_both_baselines_beside_them() -> None:
    queries, tracks = make_index("test", 3)
    scores, metrics = judged(queries, tracks, answers(queries), train=True)
    assert len(scores) == 3
    assert list(metrics)[:5] == ["m_vIoU", "m_tIoU", "m_sIoU", "vIoU@0.3", "vIoU@0.5"]
    assert metrics["m_vIoU"] == metrics["vIoU@0.5"] == 1.0
    assert 0 <= metrics["random_m_vIoU"] < metrics["baseline_m_vIoU"] <= 1


def test_without_a_train_split_there_is_no_constant() -> None:
    queries, tracks = make_index("test", 2)
    assert not [
        key for key in judged(queries, tracks, answers(queries))[1] if key.startswith("baseline_")
    ]


def test_results_go_to_their_files_test_first(tmp_path: Path) -> None:
    queries, tracks = make_index("test", 2)
    scores, metrics = judged(queries, tracks, answers(queries))
    write_results(tmp_path, "val", answers(queries), scores, {"m_vIoU": 0.5})
    write_results(tmp_path, "test", answers(queries), scores, {**metrics, "baseline_m_vIoU": 0.2})
    write_results(tmp_path, "test", answers(queries), scores, metrics)
    content = read_metrics(tmp_path / "metrics.json")
    assert next(iter(content)) == "m_vIoU"
    assert content["val_m_vIoU"] == 0.5
    assert "baseline_m_vIoU" not in content
    assert read_scores(tmp_path / "scores" / "test.json") == scores
    assert len((tmp_path / "predictions" / "val.jsonl").read_text().splitlines()) == 2


def test_means_by_form_and_tag_follow_the_plain_ones() -> None:
    queries, tracks = make_index("test", 3)
    tags, forms = (
        (("look-alike",), ("look-alike", "same-motion"), ()),
        ("declarative", "interrogative", None),
    )
    queries = [
        query.model_copy(update={"tags": t, "form": f})
        for query, t, f in zip(queries, tags, forms, strict=True)
    ]
    scores, metrics = judged(queries, tracks, answers(queries[:1]), train=True)
    assert list(metrics)[:5] == ["m_vIoU", "m_tIoU", "m_sIoU", "vIoU@0.3", "vIoU@0.5"]
    assert metrics["declarative_m_vIoU"] == 1.0
    assert (
        metrics["interrogative_m_vIoU"]
        == metrics["same-motion_m_vIoU"]
        == metrics["same-motion_vIoU@0.5"]
        == 0.0
    )
    assert metrics["look-alike_m_vIoU"] == metrics["look-alike_m_tIoU"] == 0.5
    groups = compute_group_metrics(scores, queries)
    assert list(metrics)[-len(groups) :] == list(groups)
    assert len(groups) == 4 * 5


def test_a_split_judged_again_forgets_its_old_groups_and_keeps_other_splits(tmp_path: Path) -> None:
    queries, tracks = make_index("test", 1)
    scores, metrics = judged(queries, tracks, answers(queries))
    write_results(tmp_path, "val", answers(queries), scores, {**metrics, "old_m_vIoU": 0.5})
    write_results(tmp_path, "test", answers(queries), scores, {**metrics, "old_m_vIoU": 0.5})
    for split in ("test", "val"):
        write_results(tmp_path, split, answers(queries), scores, metrics)
    content = read_metrics(tmp_path / "metrics.json")
    assert list(content) == [*metrics, *(f"val_{key}" for key in metrics)]


def test_the_index_is_read_with_the_boxes_beside_it(tmp_path: Path) -> None:
    queries, tracks = make_index("test", 2)
    write_jsonl(tmp_path / "index.jsonl", queries)
    with pytest.raises(InputError, match=r"tracks\.npz does not exist"):
        read_index(tmp_path / "index.jsonl")
    tracks.save(tmp_path / "tracks.npz")
    assert read_index(tmp_path / "index.jsonl")[0] == queries
    assert len(read_index(tmp_path / "index.jsonl")[1]) == 2


def test_an_index_without_boxes_needs_no_tracks(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "index.jsonl", make_index("test", 2, track=False)[0])
    assert len(read_index(tmp_path / "index.jsonl")[1]) == 0


def test_what_cannot_be_judged_is_said(tmp_path: Path) -> None:
    queries, tracks = make_index("test", 2)
    with pytest.raises(InputError, match=r"no query is of split 'val'; the index has test"):
        select_split(queries, "val")
    with pytest.raises(InputError, match="none of these queries has a ground truth"):
        judged([query.model_copy(update={"truth": None}) for query in queries], tracks, [])
    with pytest.raises(InputError, match=r"metrics\.json does not exist: run stvg-eval"):
        read_metrics(tmp_path / "metrics.json")
    (tmp_path / "metrics.json").write_text("[")
    with pytest.raises(InputError, match=r"metrics\.json is not JSON"):
        read_metrics(tmp_path / "metrics.json")
    (tmp_path / "metrics.json").write_text(json.dumps([1]))
    with pytest.raises(InputError, match="must be one mapping"):
        read_metrics(tmp_path / "metrics.json")
