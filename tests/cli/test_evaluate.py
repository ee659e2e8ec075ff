"""`stvg-eval` and `stvg-report`: what they write, and what they refuse. Asserted on files, not on what is printed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

import cli.evaluate
import cli.report
from pipeline.records import Prediction, Query, Tracks, Truth, read_jsonl, write_jsonl


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with `index.jsonl` (train and test), its tracks, and `predictions.jsonl`."""
    tracks = Tracks()
    tracks.add("t", np.arange(10, 30), np.tile([10.0, 10.0, 50.0, 50.0], (20, 1)))
    values = {"video": "v", "path": "v.mp4", "fps": 25.0, "frame_count": 50, "size": (100, 100), "segment": (0, 50), "text": "x"}
    truth = Truth(span=(10, 30), track="t")
    queries = [Query.model_validate({**values, "id": split, "split": split, "truth": truth}) for split in ("train", "test")]
    write_jsonl(tmp_path / "index.jsonl", queries)
    tracks.save(tmp_path / "tracks.npz")
    write_jsonl(tmp_path / "predictions.jsonl", [Prediction(id="test", span=(10, 25), score=1.0, boxes=[(10, 10, 10, 50, 50)])])
    return tmp_path


@pytest.fixture
def place(tiny_run: Any, tmp_path: Path) -> Path:
    """A folder with a `store` and a `run` of one's own."""
    shutil.copytree(tiny_run.store, tmp_path / "store")
    shutil.copytree(tiny_run.run, tmp_path / "run")
    return tmp_path


def call(command: object, *arguments: object) -> Result:
    return CliRunner().invoke(command.app, [str(argument) for argument in arguments])  # type: ignore[attr-defined]


def evaluate(place: Path, *arguments: object) -> Result:
    return call(cli.evaluate, "--run", place / "run", "--features", place / "store", *arguments)


def test_a_run_answers_and_is_judged(place: Path) -> None:
    result = evaluate(place, "--json", place / "out.json")
    assert result.exit_code == 0, result.stderr
    metrics = json.loads((place / "run" / "metrics.json").read_text())
    assert list(metrics)[:5] == ["m_vIoU", "m_tIoU", "m_sIoU", "vIoU@0.3", "vIoU@0.5"]
    assert {"baseline_m_vIoU", "random_m_vIoU", "declarative_m_vIoU", "look-alike_m_vIoU"} <= set(metrics)
    assert metrics == json.loads((place / "out.json").read_text())
    queries = [query for query in read_jsonl(place / "store" / "index.jsonl", Query) if query.split == "test"]
    answers = list(read_jsonl(place / "run" / "predictions" / "test.jsonl", Prediction))
    assert [answer.id for answer in answers] == [query.id for query in queries]
    scores = json.loads((place / "run" / "scores" / "test.json").read_text())
    assert [score["id"] for score in scores] == [query.id for query in queries]
    assert metrics["m_tIoU"] == pytest.approx(np.mean([score["tIoU"] for score in scores]))
    assert "answering: " in result.stderr
    assert "exit code 0" in (place / "run" / "log.txt").read_text()
    assert "warning" not in result.stderr


def test_the_table_has_the_baselines_and_the_groups(place: Path) -> None:
    shown = evaluate(place).stdout
    for name in ("this", "best constant", "random", "declarative", "interrogative"):
        assert name in shown


def test_another_split_and_more_frames(place: Path) -> None:
    assert evaluate(place).exit_code == 0
    assert evaluate(place, "--set", "split=val", "--set", "frames=12", "--set", "batch=2").exit_code == 0
    metrics = json.loads((place / "run" / "metrics.json").read_text())
    assert {"m_vIoU", "val_m_vIoU", "val_baseline_m_vIoU"} <= set(metrics)
    many = list(read_jsonl(place / "run" / "predictions" / "val.jsonl", Prediction))
    assert evaluate(place, "--set", "split=val").exit_code == 0
    few = list(read_jsonl(place / "run" / "predictions" / "val.jsonl", Prediction))
    assert [[row[0] for row in answer.boxes] for answer in many] == [[row[0] for row in answer.boxes] for answer in few]
    assert many != few


def test_queries_without_features_score_0_and_are_named(place: Path) -> None:
    index = place / "store" / "index.jsonl"
    queries = list(read_jsonl(index, Query))
    lost = next(query for query in queries if query.split == "test").model_copy(update={"id": "lost", "video": "broken"})
    write_jsonl(index, [*queries, lost])
    result = evaluate(place)
    assert result.exit_code == 0, result.stderr
    assert "queries score 0" in result.stderr
    assert "has no features of video broken" in result.stderr.replace("\n", " ")
    scores = json.loads((place / "run" / "scores" / "test.json").read_text())
    assert scores[-1] == {"id": "lost", "vIoU": 0.0, "tIoU": 0.0, "sIoU": 0.0}
    assert "queries without features: lost" in (place / "run" / "log.txt").read_text()


def set_provenance(store: Path, product: str, **values: Any) -> None:
    manifest = json.loads((store / "manifest.json").read_text())
    manifest["products"][product]["provenance"] |= values
    (store / "manifest.json").write_text(json.dumps(manifest))


def test_a_store_made_otherwise_is_refused(place: Path) -> None:
    set_provenance(place / "store", "motion", weights="random:1", sampling={"clip_every": 1.0, "clip_span": 0.8})
    result = evaluate(place)
    assert result.exit_code == 2
    assert (
        "motion sampling is {'clip_every': 1.0, 'clip_span': 0.8}, not {'clip_every': 0.4, 'clip_span': 0.8, 'pool_motion': False}"
        in result.stderr
    )
    assert "motion weights is 'random:1', not 'tiny'" in result.stderr
    assert "appearance" not in result.stderr


def test_a_store_without_a_product_is_refused(place: Path) -> None:
    manifest = json.loads((place / "store" / "manifest.json").read_text())
    del manifest["products"]["text"]
    (place / "store" / "manifest.json").write_text(json.dumps(manifest))
    result = evaluate(place)
    assert (result.exit_code, "text is absent" in result.stderr) == (2, True)


def test_a_store_of_other_widths_is_refused(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from grounding.data import FeatureSet

    monkeypatch.setattr(FeatureSet, "dims", (128, 384, 65))
    result = evaluate(place)
    assert result.exit_code == 2
    assert "has features of (128, 384, 65) channels" in result.stderr
    assert "was trained on (128, 384, 64)" in result.stderr


def test_other_library_versions_are_no_obstacle(place: Path) -> None:
    set_provenance(place / "store", "motion", versions={"torch": "9.9.9"})
    assert evaluate(place).exit_code == 0


def test_a_run_without_a_checkpoint_is_refused(place: Path) -> None:
    shutil.rmtree(place / "run" / "checkpoints")
    result = evaluate(place)
    assert (result.exit_code, "has no checkpoint yet" in result.stderr) == (2, True)


def test_files_are_judged_without_a_run(files: Path) -> None:
    answers, index = files / "predictions.jsonl", files / "index.jsonl"
    result = call(cli.evaluate, "--truth", index, "--predictions", answers, "--json", files / "out.json")
    assert result.exit_code == 0, result.stderr
    metrics = json.loads((files / "out.json").read_text())
    assert metrics["m_vIoU"] == metrics["m_tIoU"] == 0.75
    assert {path.name for path in files.iterdir()} == {"index.jsonl", "tracks.npz", "predictions.jsonl", "out.json"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name either a run"),
        (["--run", "r", "--predictions", "p"], "name either a run"),
        (["--run", "r", "--protocol", "best"], "'best' is not known"),
        (["--run", "r"], "r is not a run directory (no provenance.json)"),
        (["--predictions", "nothing.jsonl", "--truth", "none.jsonl"], "none.jsonl does not exist"),
        (["--predictions", "p", "--set", "speed=1"], "unknown key 'speed'; the keys are batch, device, frames, seed, split"),
        (["--predictions", "p", "--set", "frames=0"], "frames: Input should be greater than or equal to 1 (got 0)"),
        (["--predictions", "p", "--config", "none.yaml"], "config none.yaml does not exist"),
    ],
)
def test_wrong_usage_is_explained(arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = call(cli.evaluate, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_report_of_a_run_without_videos_still_opens(place: Path) -> None:
    assert call(cli.report, "--run", place / "run", "--features", place / "store", "--out", place / "out").exit_code == 2
    assert evaluate(place).exit_code == 0
    result = call(cli.report, "--run", place / "run", "--features", place / "store", "--out", place / "out", "--root", place)
    assert result.exit_code == 0, result.stderr
    assert "No picture" in (place / "out" / "index.html").read_text(encoding="utf-8")
