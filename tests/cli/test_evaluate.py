"""`stvg-eval` and `stvg-report`: what they write, and what they refuse. Asserted on files, not on what is printed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

import cli.evaluate
import cli.report
from pipeline.records import Prediction, Query, Tracks, Truth, write_jsonl


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with `store/index.jsonl` (train and test), its tracks, and `run/predictions/test.jsonl`."""
    tracks = Tracks()
    tracks.add("t", np.arange(10, 30), np.tile([10.0, 10.0, 50.0, 50.0], (20, 1)))
    values = {"video": "v", "path": "v.mp4", "fps": 25.0, "frame_count": 50, "size": (100, 100), "segment": (0, 50), "text": "x"}
    truth = Truth(span=(10, 30), track="t")
    queries = [Query.model_validate({**values, "id": split, "split": split, "truth": truth}) for split in ("train", "test")]
    write_jsonl(tmp_path / "store" / "index.jsonl", queries)
    tracks.save(tmp_path / "store" / "tracks.npz")
    prediction = Prediction(id="test", span=(10, 25), score=1.0, boxes=[(10, 10, 10, 50, 50)])
    write_jsonl(tmp_path / "run" / "predictions" / "test.jsonl", [prediction])
    return tmp_path


def call(command: object, *arguments: object) -> Result:
    return CliRunner().invoke(command.app, [str(argument) for argument in arguments])  # type: ignore[attr-defined]


def test_a_run_gets_its_metrics_and_scores(place: Path) -> None:
    result = call(cli.evaluate, "--run", place / "run", "--features", place / "store", "--json", place / "out.json")
    assert result.exit_code == 0, result.stderr
    metrics = json.loads((place / "run" / "metrics.json").read_text())
    assert metrics["m_vIoU"] == metrics["m_tIoU"] == 0.75
    assert {"baseline_m_vIoU", "random_m_vIoU"} <= set(metrics)
    assert metrics == json.loads((place / "out.json").read_text())
    assert json.loads((place / "run" / "scores" / "test.json").read_text()) == [{"id": "test", "vIoU": 0.75, "tIoU": 0.75, "sIoU": 1.0}]
    assert "exit code 0" in (place / "run" / "log.txt").read_text()


def test_files_are_judged_without_a_run(place: Path) -> None:
    answers, index = place / "run" / "predictions" / "test.jsonl", place / "store" / "index.jsonl"
    result = call(cli.evaluate, "--truth", index, "--predictions", answers, "--json", place / "out.json")
    assert result.exit_code == 0, result.stderr
    assert json.loads((place / "out.json").read_text())["m_vIoU"] == 0.75
    assert not (place / "run" / "metrics.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name either a run"),
        (["--run", "r", "--predictions", "p"], "name either a run"),
        (["--run", "r", "--protocol", "best"], "'best' is not known"),
        (["--predictions", "nothing.jsonl", "--truth", "none.jsonl"], "none.jsonl does not exist"),
        (["--predictions", "p", "--set", "speed=1"], "unknown key 'speed'; the keys are seed, split"),
        (["--predictions", "p", "--config", "none.yaml"], "config none.yaml does not exist"),
    ],
)
def test_wrong_usage_is_explained(arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = call(cli.evaluate, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_the_report_of_a_run_without_videos_still_opens(place: Path) -> None:
    assert call(cli.report, "--run", place / "run", "--features", place / "store", "--out", place / "out").exit_code == 2
    assert call(cli.evaluate, "--run", place / "run", "--features", place / "store").exit_code == 0
    result = call(cli.report, "--run", place / "run", "--features", place / "store", "--out", place / "out", "--root", place)
    assert result.exit_code == 0, result.stderr
    assert "No picture" in (place / "out" / "index.html").read_text(encoding="utf-8")
