"""What answers are judged by: the truth of an index or of the challenge's file, and the answers
from either kind of file.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from grounding.evaluation.ground_truth import (
    GroundTruth,
    ground_truth_for_split,
    load_ground_truth,
    read_dataset_name,
    read_tubes,
    select_split,
)
from pipeline.errors import InputError
from pipeline.io.jsonl import write_jsonl
from pipeline.records import Prediction, Query, Truth
from pipeline.tracks import Tracks

TUBE = {"st_frame": 4, "ed_frame": 6, "bbox": {"4": [0, 0, 5, 5], "6": [1, 1, 6, 6]}}


def query_of(
    name: str, split: str = "test", truth: Truth | None = None, **changes: object
) -> Query:
    values = {
        "id": name,
        "video": f"video of {name}",
        "path": "v.mp4",
        "fps": 25.0,
        "frame_count": 20,
        "size": (100, 100),
    }
    return Query.model_validate(
        {**values, "segment": (0, 20), "text": "x", "split": split, "truth": truth, **changes}
    )


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """Two queries of test (one without a truth), one of train, with their boxes."""
    tracks = Tracks()
    tracks.add("t", np.arange(10), np.tile([10.0, 10.0, 50.0, 50.0], (10, 1)))
    truth = Truth(span=(3, 6), track="t")
    write_jsonl(
        tmp_path / "index.jsonl",
        [query_of("a", truth=truth, fps=10.0), query_of("b"), query_of("c", "train", truth)],
    )
    tracks.save(tmp_path / "tracks.npz")
    return tmp_path / "index.jsonl"


def test_an_index_gives_one_split_and_all_that_is_known(index: Path) -> None:
    exam = load_ground_truth(index, "test")
    assert [query.id for query in exam.queries] == exam.query_ids == ["a", "b"]
    assert [query.id for query in exam.train_queries] == ["c"]
    assert exam.video_by_query == {"a": "video of a", "b": "video of b"}
    assert exam.true_tubes.tubes.ids == ("a",)
    assert exam.true_tubes.tubes.framewise
    assert (exam.true_tubes.tubes.spans.tolist(), exam.true_tubes.tubes.frames.tolist()) == (
        [[3, 6]],
        [3, 4, 5],
    )
    assert exam.true_tubes.fps is not None
    assert exam.true_tubes.segments is not None
    assert (exam.true_tubes.fps.tolist(), exam.true_tubes.segments.tolist()) == ([10.0], [[0, 20]])
    assert (exam.dataset_name, exam.true_tubes.end_is_last, len(exam.tracks)) == (None, False, 1)


def test_the_challenges_file_gives_tubes_only(tmp_path: Path) -> None:
    (tmp_path / "gt.json").write_text(json.dumps({"a": TUBE, "b": {**TUBE, "ed_frame": 4}}))
    exam = load_ground_truth(tmp_path / "gt.json", "any split")
    assert (exam.queries, exam.train_queries, exam.dataset_name, len(exam.tracks)) == (
        (),
        (),
        None,
        0,
    )
    assert (exam.true_tubes.segments, exam.true_tubes.fps) == (None, None)
    assert exam.query_ids == ["a", "b"]
    assert exam.video_by_query == {"a": "a", "b": "b"}
    assert exam.true_tubes.tubes.spans.tolist() == [[3, 6], [3, 4]]
    assert load_ground_truth(
        tmp_path / "gt.json", "test", first_frame=0
    ).true_tubes.tubes.spans.tolist() == [
        [4, 7],
        [4, 5],
    ]


@pytest.mark.parametrize("beside", ["manifest.json", "defects.json"])
@pytest.mark.parametrize("name", ["vidstg", "hcstvg-v2"])
def test_the_data_set_is_named_beside_its_index(index: Path, beside: str, name: str) -> None:
    index.with_name(beside).write_text(json.dumps({"dataset": name, "more": 1}))
    exam = load_ground_truth(index, "test")
    assert (exam.dataset_name, exam.true_tubes.end_is_last) == (name, name == "vidstg")


def test_a_stores_manifest_comes_first(index: Path) -> None:
    index.with_name("manifest.json").write_text('{"dataset": "vidstg"}')
    index.with_name("defects.json").write_text('{"dataset": "hcstvg-v1"}')
    assert read_dataset_name(index) == "vidstg"


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "7", "{}", '{"dataset": 7}', '{"dataset": null}', "\0", "\u00ff"]
)
def test_a_file_that_names_no_data_set_is_passed_over(index: Path, content: str) -> None:
    index.with_name("manifest.json").write_text(content, encoding="latin-1")
    assert read_dataset_name(index) is None
    index.with_name("defects.json").write_text('{"dataset": "hcstvg-v1"}')
    assert read_dataset_name(index) == "hcstvg-v1"


def test_answers_are_read_by_the_files_name(tmp_path: Path) -> None:
    write_jsonl(
        tmp_path / "p.jsonl", [Prediction(id="a", span=(3, 6), score=1.0, boxes=[(3, 0, 0, 5, 5)])]
    )
    (tmp_path / "p.json").write_text(json.dumps({"a": TUBE}))
    samples, frames = read_tubes(tmp_path / "p.jsonl"), read_tubes(tmp_path / "p.json")
    assert (samples.framewise, frames.framewise) == (False, True)
    assert samples.spans.tolist() == frames.spans.tolist() == [[3, 6]]
    assert (samples.frames.tolist(), frames.frames.tolist()) == ([3], [3, 5])
    assert read_tubes(tmp_path / "p.json", first_frame=0).frames.tolist() == [4, 6]


def test_lines_under_the_challenges_name_are_refused_by_name(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "p.json", [Prediction(id="a", span=(3, 6), score=1.0, boxes=[])] * 2)
    with pytest.raises(InputError, match=r"p\.json, line 2, column 1: not JSON"):
        read_tubes(tmp_path / "p.json")
    write_jsonl(tmp_path / "p.json", [Prediction(id="a", span=(3, 6), score=1.0, boxes=[])])
    with pytest.raises(
        InputError, match=r"p\.json, 'id': .*each id needs st_frame, ed_frame and bbox"
    ):
        read_tubes(tmp_path / "p.json")


def test_a_split_that_is_not_there_is_refused_with_those_that_are(index: Path) -> None:
    with pytest.raises(InputError, match="no query is of split 'val'; the index has test, train"):
        load_ground_truth(index, "val")
    with pytest.raises(InputError, match="no query is of split 'val'; the index has none"):
        select_split([], "val")


def test_an_exam_of_records_is_that_of_their_files(index: Path) -> None:
    read = load_ground_truth(index, "test")
    result: GroundTruth = ground_truth_for_split(
        [*read.queries, *read.train_queries], read.tracks, "test", "vidstg"
    )
    assert (result.queries, result.train_queries, result.dataset_name) == (
        read.queries,
        read.train_queries,
        "vidstg",
    )
    assert result.true_tubes.end_is_last
    np.testing.assert_array_equal(result.true_tubes.tubes.boxes, read.true_tubes.tubes.boxes)
