"""`stvg-eval` on files alone: the challenge's, and predictions that are not what they should be."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

import cli.evaluate
from pipeline.io.jsonl import write_jsonl
from pipeline.records import Query, Truth
from pipeline.tracks import Tracks

GOOD = {"st_frame": 1, "ed_frame": 2, "bbox": {"1": [0, 0, 5, 5], "2": [1, 1, 6, 6]}}


def write(path: Path, content: object) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli.evaluate.app, [str(argument) for argument in arguments])


def test_two_challenge_files_are_judged_without_an_index(tmp_path: Path) -> None:
    truth = write(tmp_path / "truth.json", {"a": GOOD, "b": {**GOOD, "ed_frame": 4}})
    predictions = write(tmp_path / "said.json", {"a": GOOD, "b": GOOD})
    result = call(
        "--truth",
        truth,
        "--predictions",
        predictions,
        "--protocol",
        "official",
        "--json",
        tmp_path / "out.json",
    )
    assert result.exit_code == 0, result.stderr
    metrics = json.loads((tmp_path / "out.json").read_text())
    assert (metrics["m_vIoU"], metrics["m_tIoU"], metrics["queries"]) == (0.75, 0.75, 2)
    assert "m_tIoU_low" not in metrics  # of two videos there is no interval
    assert not [key for key in metrics if key.startswith(("random_", "baseline_"))]
    assert "this" in result.stdout
    assert "0.7500" in result.stdout
    for absent in ("random", "best constant", "by form and by tag", "split"):
        assert absent not in result.stdout
    result = call(
        "--truth",
        truth,
        "--predictions",
        predictions,
        "--compare",
        truth,
        "--json",
        tmp_path / "out.json",
    )
    assert result.exit_code == 0, result.stderr
    assert json.loads((tmp_path / "out.json").read_text())["m_tIoU_difference"]["worse"] == 1


def test_numbers_whose_areas_overflow_do_not_end_in_a_traceback(tmp_path: Path) -> None:
    path = write(
        tmp_path / "huge.json", {"q": {**GOOD, "bbox": {"1": [-1e308, -1e308, 1e308, 1e308]}}}
    )
    result = call("--truth", path, "--predictions", path)
    assert result.exit_code in (0, 2), result.stderr
    assert "Warning" not in result.stderr


@pytest.fixture
def index(tmp_path: Path) -> Path:
    tracks = Tracks()
    tracks.add("t", np.arange(10, 30), np.tile([10.0, 10.0, 50.0, 50.0], (20, 1)))
    values = {
        "id": "a",
        "video": "v",
        "path": "v.mp4",
        "fps": 25.0,
        "frame_count": 50,
        "size": (100, 100),
        "segment": (0, 50),
    }
    write_jsonl(
        tmp_path / "index.jsonl",
        [
            Query.model_validate(
                {**values, "text": "x", "split": "test", "truth": Truth(span=(10, 30), track="t")}
            )
        ],
    )
    tracks.save(tmp_path / "tracks.npz")
    return tmp_path / "index.jsonl"


@pytest.mark.parametrize(
    "changes",
    [
        {"span": [0, 10**30]},
        {"boxes": [[10**30, 0, 0, 1, 1]]},
        {"boxes": [[10**400, 0, 0, 1, 1]]},
        {"boxes": [[2**41, 0, 0, 1, 1]]},
    ],
    ids=["span 1e30", "frame 1e30", "frame 1e400", "frame beyond STRIDE"],
)
def test_predicted_frames_beyond_all_bounds_are_refused(
    index: Path, changes: dict, tmp_path: Path
) -> None:
    predictions = write(
        tmp_path / "p.jsonl",
        {"id": "a", "span": [0, 10], "score": 1.0, "boxes": [[0, 0, 0, 1, 1]], **changes},
    )
    result = call("--truth", index, "--predictions", predictions)
    assert result.exit_code == 2
    assert "p.jsonl" in result.stderr


def test_a_repeated_box_names_its_file(index: Path, tmp_path: Path) -> None:
    predictions = write(
        tmp_path / "p.jsonl",
        {"id": "a", "span": [0, 10], "score": 1.0, "boxes": [[0, 0, 0, 1, 1]] * 2},
    )
    assert "p.jsonl" in call("--truth", index, "--predictions", predictions).stderr


def test_inverted_boxes_do_not_raise_the_score_above_one(index: Path, tmp_path: Path) -> None:
    predictions = write(
        tmp_path / "p.jsonl",
        {"id": "a", "span": [10, 30], "score": 1.0, "boxes": [[10, 50, 50, 10, 10]]},
    )
    result = call("--truth", index, "--predictions", predictions, "--json", tmp_path / "o.json")
    assert json.loads((tmp_path / "o.json").read_text())["m_vIoU"] == 0, result.stderr


def test_queries_without_a_prediction_are_counted_and_said(tmp_path: Path) -> None:
    truth = write(tmp_path / "truth.json", {"a": GOOD, "b": GOOD, "c": GOOD})
    predictions = write(tmp_path / "said.json", {"b": GOOD})
    result = call("--truth", truth, "--predictions", predictions, "--json", tmp_path / "out.json")
    assert result.exit_code == 0
    assert "2 of 3 queries have no prediction, for example 'a': they score 0" in result.stderr
    assert json.loads((tmp_path / "out.json").read_text())["unanswered"] == 2
    assert "no prediction" not in call("--truth", truth, "--predictions", truth).stderr


@pytest.mark.parametrize("option", ["--json", "--challenge"])
@pytest.mark.parametrize("name", ["truth.json", "said.json", "other.json"])
def test_nothing_that_is_read_is_written_over(option: str, name: str, tmp_path: Path) -> None:
    for each in ("truth", "said", "other"):
        write(tmp_path / f"{each}.json", {"a": GOOD})
    files = (
        "--truth",
        tmp_path / "truth.json",
        "--predictions",
        tmp_path / "said.json",
        "--compare",
        tmp_path / "other.json",
    )
    before = (tmp_path / name).read_text()
    result = call(*files, option, tmp_path / "." / name)
    assert (result.exit_code, (tmp_path / name).read_text()) == (2, before)
    assert f"{name} is an input and would be overwritten" in result.stderr


@pytest.mark.parametrize("place", [".", "/dev/full", "/proc/x.json"])
def test_where_nothing_can_be_written_is_said(place: str, tmp_path: Path) -> None:
    truth = write(tmp_path / "truth.json", {"a": GOOD})
    result = call("--truth", truth, "--predictions", truth, "--json", place)
    assert result.exit_code == 2
    assert place in result.stderr
    assert "unexpected" not in result.stderr


def test_what_to_judge_by_must_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "give the ground truth: --truth FILE" in call("--predictions", "p.jsonl").stderr


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("lines.json", '{"id": "a"}\n{"id": "b"}\n', "a file of JSON lines must end in .jsonl"),
        ("challenge.jsonl", json.dumps({"a": GOOD}), "the challenge's file must end in .json"),
    ],
)
def test_a_name_that_says_another_kind_of_file_is_explained(
    name: str, content: str, message: str, index: Path, tmp_path: Path
) -> None:
    result = call("--truth", index, "--predictions", write(tmp_path / name, content))
    assert result.exit_code == 2
    assert message in result.stderr
    assert name in result.stderr


def test_tubes_are_written_for_cvat_and_for_fiftyone(index: Path, tmp_path: Path) -> None:
    predictions = write(
        tmp_path / "p.jsonl", {"id": "a", "span": [10, 30], "score": 0.5, "boxes": []}
    )
    files = (
        "--truth",
        index,
        "--predictions",
        predictions,
        "--cvat",
        tmp_path / "cvat",
        "--fiftyone",
        tmp_path / "fiftyone",
    )
    result = call(*files)
    assert result.exit_code == 0, result.stderr
    assert sorted(path.name for path in (tmp_path / "cvat").iterdir()) == ["labels.json", "v.xml"]
    assert sorted(path.name for path in (tmp_path / "fiftyone").iterdir()) == [
        "frames.json",
        "metadata.json",
        "samples.json",
    ]
    assert (
        json.loads((tmp_path / "fiftyone" / "samples.json").read_text())["samples"][0][
            "prediction"
        ]["detections"][0]["confidence"]
        == 0.5
    )
    assert "1 tubes have no box in their video" in result.stderr
    again = call(*files)
    assert again.exit_code == 2
    assert "is not empty, and corrections may lie in it" in again.stderr


@pytest.mark.parametrize("option", ["--cvat", "--fiftyone"])
def test_other_tools_need_an_index(option: str, tmp_path: Path) -> None:
    truth = write(tmp_path / "truth.json", {"a": GOOD})
    result = call("--truth", truth, "--predictions", truth, option, tmp_path / "out")
    assert result.exit_code == 2
    assert f"{option} needs an index as --truth" in result.stderr
    assert not (tmp_path / "out").exists()
