"""`stvg-eval` and `stvg-report`: what they write, and what they refuse. Asserted on files, not on
what is printed.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

import cli.evaluate
import cli.report
import grounding.inference.refine
import grounding.metrics.bootstrap
from pipeline.io.jsonl import read_jsonl, write_jsonl
from pipeline.records import Prediction, Query, Truth
from pipeline.store import Store, StoreWriter
from pipeline.tracks import Tracks


@pytest.fixture(autouse=True)
def _few_videos_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grounding.metrics.bootstrap, "MIN_VIDEOS", 1)


@pytest.fixture
def prediction_files(tmp_path: Path) -> Path:
    """A folder with `index.jsonl` (train and test), its tracks, and `predictions.jsonl`."""
    tracks = Tracks()
    tracks.add("t", np.arange(10, 30), np.tile([10.0, 10.0, 50.0, 50.0], (20, 1)))
    values = {
        "video": "v",
        "path": "v.mp4",
        "fps": 25.0,
        "frame_count": 50,
        "size": (100, 100),
        "segment": (0, 50),
        "text": "x",
    }
    truth = Truth(span=(10, 30), track="t")
    queries = [
        Query.model_validate({**values, "id": split, "split": split, "truth": truth})
        for split in ("train", "test")
    ]
    write_jsonl(tmp_path / "index.jsonl", queries)
    tracks.save(tmp_path / "tracks.npz")
    write_jsonl(
        tmp_path / "predictions.jsonl",
        [Prediction(id="test", span=(10, 25), score=1.0, boxes=[(10, 10, 10, 50, 50)])],
    )
    return tmp_path


@pytest.fixture
def workspace(tiny_run: Any, tmp_path: Path) -> Path:
    """A folder with a `store` and a `run` of one's own."""
    shutil.copytree(tiny_run.store, tmp_path / "store")
    shutil.copytree(tiny_run.run, tmp_path / "run")
    return tmp_path


def call(command: object, *arguments: object) -> Result:
    return CliRunner().invoke(command.app, [str(argument) for argument in arguments])  # type: ignore[attr-defined]


def evaluate(workspace: Path, *arguments: object) -> Result:
    return call(
        cli.evaluate, "--run", workspace / "run", "--features", workspace / "store", *arguments
    )


def remove_ground_truth(store: Path) -> int:
    """Remove the ground truth of split `test` from a store, and return its number of queries."""
    queries = list(read_jsonl(store / "index.jsonl", Query))
    index = store.parent / "unlabeled.jsonl"
    write_jsonl(
        index,
        [
            query.model_copy(update={"truth": None}) if query.split == "test" else query
            for query in queries
        ],
    )
    manifest = Store(store).manifest
    with StoreWriter(store, manifest.dataset, manifest.root) as writer:
        writer.set_index(index, store / "tracks.npz")
    return sum(query.split == "test" for query in queries)


def test_queries_without_ground_truth_are_answered_and_not_scored(workspace: Path) -> None:
    """A submission to a challenge, whose test split has no public labels."""
    num_queries = remove_ground_truth(workspace / "store")
    metrics = workspace / "run" / "metrics.json"
    metrics_before = metrics.read_text() if metrics.exists() else None
    challenge, saved = workspace / "submission.json", workspace / "saved.jsonl"

    result = evaluate(workspace, "--challenge", challenge, "--save", saved)
    assert result.exit_code == 0, result.stderr
    message = f"nothing was scored: none of the {num_queries} queries of split 'test' has a ground"
    assert message in " ".join(result.stderr.split())
    assert len(json.loads(challenge.read_text())) == num_queries

    predictions = list(read_jsonl(saved, Prediction))
    assert len(predictions) == num_queries
    assert list(read_jsonl(workspace / "run/predictions/test.jsonl", Prediction)) == predictions
    assert (metrics.read_text() if metrics.exists() else None) == metrics_before


def test_queries_without_ground_truth_cannot_be_compared(workspace: Path) -> None:
    remove_ground_truth(workspace / "store")
    result = evaluate(workspace, "--compare", workspace / "run")
    assert result.exit_code == 2
    assert "so nothing can be compared; leave out --compare" in " ".join(result.stderr.split())


def test_files_alone_are_judged_without_torch(prediction_files: Path) -> None:
    options = [
        "--truth",
        str(prediction_files / "index.jsonl"),
        "--predictions",
        str(prediction_files / "predictions.jsonl"),
        "--json",
        str(prediction_files / "out.json"),
    ]
    code = (
        "import sys; from cli.evaluate import app; app(standalone_mode=False);"
        " sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, *options], check=True, cwd=prediction_files)
    assert json.loads((prediction_files / "out.json").read_text())["m_vIoU"] == pytest.approx(0.75)


def test_a_run_answers_and_is_judged(workspace: Path) -> None:
    result = evaluate(workspace, "--json", workspace / "out.json")
    assert result.exit_code == 0, result.stderr
    metrics = json.loads((workspace / "run" / "metrics.json").read_text())
    assert list(metrics)[:5] == ["m_vIoU", "m_tIoU", "m_sIoU", "vIoU@0.3", "vIoU@0.5"]
    assert {"baseline_m_vIoU", "random_m_vIoU", "declarative_m_vIoU", "look-alike_m_vIoU"} <= set(
        metrics
    )
    assert json.loads((workspace / "out.json").read_text()) == {
        **metrics,
        "protocol": "every-frame",
    }
    summary = json.loads((workspace / "run" / "summary.json").read_text())
    assert summary.pop("missing_predictions") == metrics["unanswered"] == 0
    assert summary.items() <= metrics.items()
    assert {"m_vIoU", "m_tIoU", "baseline_m_vIoU", "look-alike_m_vIoU"} <= set(summary)
    queries = [
        query
        for query in read_jsonl(workspace / "store" / "index.jsonl", Query)
        if query.split == "test"
    ]
    predictions = list(read_jsonl(workspace / "run" / "predictions" / "test.jsonl", Prediction))
    assert [prediction.id for prediction in predictions] == [query.id for query in queries]
    scores = json.loads((workspace / "run" / "scores" / "test.json").read_text())
    assert [score["id"] for score in scores] == [query.id for query in queries]
    assert metrics["m_tIoU"] == pytest.approx(np.mean([score["tIoU"] for score in scores]))
    assert "predicting: " in result.stderr
    assert "exit code 0" in (workspace / "run" / "log.txt").read_text()
    assert "warning" not in result.stderr


def test_the_table_has_the_baselines_and_the_groups(workspace: Path) -> None:
    printed = evaluate(workspace).stdout
    for name in ("this", "best constant", "random", "declarative", "interrogative"):
        assert name in printed


def test_another_split_and_more_frames(workspace: Path) -> None:
    assert evaluate(workspace).exit_code == 0
    assert (
        evaluate(
            workspace, "--set", "split=val", "--set", "frames=12", "--set", "batch=2"
        ).exit_code
        == 0
    )
    metrics = json.loads((workspace / "run" / "metrics.json").read_text())
    assert {"m_vIoU", "val_m_vIoU", "val_baseline_m_vIoU"} <= set(metrics)
    many_frames = list(read_jsonl(workspace / "run" / "predictions" / "val.jsonl", Prediction))
    assert evaluate(workspace, "--set", "split=val").exit_code == 0
    few_frames = list(read_jsonl(workspace / "run" / "predictions" / "val.jsonl", Prediction))
    assert [[row[0] for row in prediction.boxes] for prediction in many_frames] == [
        [row[0] for row in prediction.boxes] for prediction in few_frames
    ]
    assert many_frames != few_frames


def test_a_second_look_and_spans_at_clips_edges_are_options(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight clips of 50 frames; thirteen are stored, so that a second look can be taken, here at
    all but the last frame.
    """
    monkeypatch.setattr(
        grounding.inference.refine,
        "expand_span",
        lambda span, segment, least: (segment[0], segment[1] - 1),
    )
    spans, scores = {}, set()
    for setting in (
        "refine_boundaries=false",
        "refine_boundaries=true",
        "subframe_boundaries=false",
    ):
        assert evaluate(workspace, "--set", setting).exit_code == 0
        predictions = list(read_jsonl(workspace / "run" / "predictions" / "test.jsonl", Prediction))
        spans[setting] = {edge for prediction in predictions for edge in prediction.span}
        scores.add(tuple(prediction.score for prediction in predictions))
    assert len(scores) == 2  # the second look's; where the span lies between clips changes no score
    assert spans["subframe_boundaries=false"] <= {round(k / 8 * 50) for k in range(9)}


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_several_runs_answer_together_and_are_left_alone(workspace: Path) -> None:
    """Two of the same are the one. What they answer is written where it is asked for, and can be
    judged again.
    """
    shutil.copytree(workspace / "run", workspace / "twin")
    before = contents(workspace / "run"), contents(workspace / "twin")
    written = ("--save", workspace / "tubes.jsonl", "--json", workspace / "out.json")
    result = evaluate(workspace, "--run", workspace / "twin", *written)
    assert result.exit_code == 0, result.stderr
    assert (contents(workspace / "run"), contents(workspace / "twin")) == before
    ensemble_metrics, tubes = (
        json.loads((workspace / "out.json").read_text()),
        (workspace / "tubes.jsonl").read_bytes(),
    )
    assert evaluate(workspace, *written).exit_code == 0
    assert json.loads((workspace / "out.json").read_text()) == ensemble_metrics
    assert (
        (workspace / "tubes.jsonl").read_bytes()
        == tubes
        == (workspace / "run" / "predictions" / "test.jsonl").read_bytes()
    )
    options = (
        "--predictions",
        workspace / "tubes.jsonl",
        "--features",
        workspace / "store",
        "--compare",
        workspace / "run",
    )
    assert call(cli.evaluate, *options, "--json", workspace / "again.json").exit_code == 0
    result_json = json.loads((workspace / "again.json").read_text())
    assert result_json["m_tIoU"] == ensemble_metrics["m_tIoU"]
    assert result_json["m_tIoU_difference"]["mean"] == 0


def test_runs_that_do_not_fit_together_are_refused(workspace: Path) -> None:
    shutil.copytree(workspace / "run", workspace / "twin")
    provenance = json.loads((workspace / "twin" / "provenance.json").read_text())
    provenance["products"]["motion"]["weights"] = "random:1"
    (workspace / "twin" / "provenance.json").write_text(json.dumps(provenance))
    result = evaluate(workspace, "--run", workspace / "twin")
    assert result.exit_code == 2
    assert "motion weights is 'random:1', not 'tiny'" in result.stderr
    assert "the runs of an ensemble must fit one store" in result.stderr


def test_queries_without_features_score_0_and_are_named(workspace: Path) -> None:
    queries = list(read_jsonl(workspace / "store" / "index.jsonl", Query))
    lost_query = next(query for query in queries if query.split == "test").model_copy(
        update={"id": "lost", "video": "broken"}
    )
    write_jsonl(workspace / "index.jsonl", [*queries, lost_query])
    with StoreWriter(workspace / "store", "shapes", "data") as writer:
        writer.set_index(workspace / "index.jsonl", workspace / "store" / "tracks.npz")
    result = evaluate(workspace)
    assert result.exit_code == 0, result.stderr
    assert "queries score 0" in result.stderr
    assert "has no features of video broken" in result.stderr.replace("\n", " ")
    scores = json.loads((workspace / "run" / "scores" / "test.json").read_text())
    assert scores[-1] == {"id": "lost", "vIoU": 0.0, "tIoU": 0.0, "sIoU": 0.0}
    assert "queries without features: lost" in (workspace / "run" / "log.txt").read_text()


def set_provenance(store: Path, product: str, **values: Any) -> None:
    manifest = json.loads((store / "manifest.json").read_text())
    manifest["products"][product]["provenance"] |= values
    (store / "manifest.json").write_text(json.dumps(manifest))


def test_a_store_made_otherwise_is_refused(workspace: Path) -> None:
    set_provenance(
        workspace / "store",
        "motion",
        weights="random:1",
        sampling={"clip_stride_seconds": 1.0, "clip_seconds": 0.8},
    )
    result = evaluate(workspace)
    assert result.exit_code == 2
    assert (
        "motion sampling is {'clip_stride_seconds': 1.0, 'clip_seconds': 0.8}, not"
        " {'clip_seconds': 0.8, 'clip_stride_seconds': 0.4, 'pool_motion_2x2': False}"
        in result.stderr
    )
    assert "motion weights is 'random:1', not 'tiny'" in result.stderr
    assert "appearance" not in result.stderr


def test_a_store_without_a_product_is_refused(workspace: Path) -> None:
    manifest = json.loads((workspace / "store" / "manifest.json").read_text())
    del manifest["products"]["text"]
    (workspace / "store" / "manifest.json").write_text(json.dumps(manifest))
    result = evaluate(workspace)
    assert (result.exit_code, "text is absent" in result.stderr) == (2, True)


def test_a_store_of_other_widths_is_refused(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from grounding.data.dataset import GroundingDataset

    monkeypatch.setattr(GroundingDataset, "dims", (128, 384, 65))
    result = evaluate(workspace)
    assert result.exit_code == 2
    assert "has features of (128, 384, 65) channels" in result.stderr
    assert "was trained on (128, 384, 64)" in result.stderr


def test_other_library_versions_are_no_obstacle(workspace: Path) -> None:
    provenance = json.loads((workspace / "run" / "provenance.json").read_text())
    provenance["products"]["motion"]["versions"] = {"torch": "9.9.9"}
    (workspace / "run" / "provenance.json").write_text(json.dumps(provenance))
    assert evaluate(workspace).exit_code == 0


def test_a_run_without_a_checkpoint_is_refused(workspace: Path) -> None:
    shutil.rmtree(workspace / "run" / "checkpoints")
    result = evaluate(workspace)
    assert (result.exit_code, "has no checkpoint yet" in result.stderr) == (2, True)


def test_files_are_judged_without_a_run(prediction_files: Path) -> None:
    predictions, index = prediction_files / "predictions.jsonl", prediction_files / "index.jsonl"
    result = call(
        cli.evaluate,
        "--truth",
        index,
        "--predictions",
        predictions,
        "--json",
        prediction_files / "out.json",
    )
    assert result.exit_code == 0, result.stderr
    metrics = json.loads((prediction_files / "out.json").read_text())
    assert metrics["m_vIoU"] == metrics["m_tIoU"] == 0.75
    assert {path.name for path in prediction_files.iterdir()} == {
        "index.jsonl",
        "tracks.npz",
        "predictions.jsonl",
        "out.json",
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either a run"),
        (["--run", "r", "--predictions", "p"], "give either a run"),
        (
            ["--run", "r", "--protocol", "best"],
            "'best' is not known; the protocols are every-frame, official, tubedetr, stcat",
        ),
        (["--run", "r"], "r is not a run directory (no provenance.json)"),
        (["--predictions", "nothing.jsonl", "--truth", "none.jsonl"], "none.jsonl does not exist"),
        (
            ["--predictions", "p", "--save", "out"],
            "--save out writes the predictions of runs: give a run (--run DIR), or leave"
            " out --save",
        ),
        (["--run", "r", "--run", "s"], "r is not a run directory (no provenance.json)"),
        (
            ["--predictions", "p", "--set", "speed=1"],
            "unknown key 'speed'; the keys are batch, device, first_frame, frames,"
            " refine_boundaries, seed, split, subframe_boundaries",
        ),
        (
            ["--predictions", "p", "--set", "frames=0"],
            "frames: Input should be greater than or equal to 1 (got 0)",
        ),
        (
            ["--predictions", "p", "--set", "first_frame=2"],
            "first_frame: Input should be less than or equal to 1 (got 2)",
        ),
        (["--predictions", "p", "--config", "none.yaml"], "config none.yaml does not exist"),
    ],
)
def test_wrong_usage_is_explained(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = call(cli.evaluate, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


FOUR_BOXES = {
    "a": (10, 10, 50, 50),
    "b": (12, 10, 50, 48),
    "c": (10, 20, 40, 50),
    "d": (0, 0, 9, 9),
}
TRUE_SPANS = {"a": (10, 30), "b": (0, 12), "c": (25, 50), "d": (5, 6)}


@pytest.fixture
def four_queries(tmp_path: Path) -> Path:
    """A folder with four queries of split `val`, two of each video, `index.jsonl`, and
    `ours.jsonl`, `other.jsonl`: ours are better.
    """
    tracks, queries = Tracks(), []
    for index, (name, span) in enumerate(TRUE_SPANS.items()):
        tracks.add(
            name, np.arange(*span), np.tile([10.0, 10.0, 50.0, 50.0], (span[1] - span[0], 1))
        )
        values = {
            "id": name,
            "video": f"v{index // 2}",
            "path": "v.mp4",
            "fps": 25.0,
            "frame_count": 50,
            "size": (100, 100),
        }
        query_values = {
            "segment": (0, 50),
            "text": "x",
            "split": "val",
            "truth": Truth(span=span, track=name),
        }
        queries.append(Query.model_validate({**values, **query_values}))
    write_jsonl(tmp_path / "index.jsonl", queries)
    tracks.save(tmp_path / "tracks.npz")
    for file, delay in (("ours", 0), ("other", 3)):
        predictions = [
            Prediction(
                id=name,
                span=(begin + delay, end + delay),
                score=1.0,
                boxes=[
                    (begin + delay, *FOUR_BOXES[name]),
                    (end + delay - 1, 10 + delay, 10, 49, 50),
                ][: end - begin],
            )
            for name, (begin, end) in TRUE_SPANS.items()
        ]
        write_jsonl(tmp_path / f"{file}.jsonl", predictions)
    return tmp_path


def judge_files(
    folder: Path, predictions: str, *arguments: object, truth: str = "index.jsonl"
) -> tuple[dict[str, Any], Result]:
    """What `--json` holds (nothing where the command failed), and the result."""
    out = folder / "out.json"
    out.unlink(missing_ok=True)
    prediction_files = (
        "--truth",
        folder / truth,
        "--predictions",
        folder / predictions,
        "--json",
        out,
    )
    result = call(cli.evaluate, *prediction_files, "--set", "split=val", *arguments)
    return (json.loads(out.read_text()) if out.exists() else {}), result


def test_intervals_stand_beside_the_means(four_queries: Path) -> None:
    metrics, result = judge_files(four_queries, "ours.jsonl")
    assert result.exit_code == 0, result.stderr
    for name in ("m_vIoU", "m_tIoU", "m_sIoU", "vIoU@0.3", "vIoU@0.5"):
        assert metrics[f"{name}_low"] <= metrics[name] <= metrics[f"{name}_high"]
    assert "95 % interval" in result.stdout
    assert f"{metrics['m_vIoU_low']:.3f}–{metrics['m_vIoU_high']:.3f}" in result.stdout
    assert metrics == judge_files(four_queries, "ours.jsonl")[0]


def test_a_run_is_compared_with_a_file(four_queries: Path) -> None:
    metrics, result = judge_files(
        four_queries, "ours.jsonl", "--compare", four_queries / "other.jsonl"
    )
    assert result.exit_code == 0, result.stderr
    other, _ = judge_files(four_queries, "other.jsonl")
    for name in ("m_vIoU", "m_tIoU", "m_sIoU", "vIoU@0.3", "vIoU@0.5"):
        result_json = metrics[f"{name}_difference"]
        assert set(result_json) == {
            "current",
            "other",
            "mean",
            "low",
            "high",
            "p",
            "better",
            "worse",
        }
        assert (result_json["current"], result_json["other"]) == (
            pytest.approx(metrics[name]),
            pytest.approx(other[name]),
        )
        assert result_json["mean"] == pytest.approx(metrics[name] - other[name])
        assert result_json["low"] <= result_json["mean"] <= result_json["high"]
    assert (metrics["m_tIoU_difference"]["better"], metrics["m_tIoU_difference"]["worse"]) == (4, 0)
    assert "compared with" in result.stdout
    assert not [key for key in other if key.endswith("_difference")]


def test_a_run_is_compared_with_a_runs_folder(four_queries: Path) -> None:
    (four_queries / "run" / "predictions").mkdir(parents=True)
    shutil.copy(four_queries / "other.jsonl", four_queries / "run" / "predictions" / "val.jsonl")
    by_folder, _ = judge_files(four_queries, "ours.jsonl", "--compare", four_queries / "run")
    assert (
        by_folder
        == judge_files(four_queries, "ours.jsonl", "--compare", four_queries / "other.jsonl")[0]
    )
    nothing, result = judge_files(
        four_queries, "ours.jsonl", "--compare", four_queries / "run", "--set", "split=test"
    )
    assert (nothing, result.exit_code) == ({}, 2)


def test_a_run_is_compared_with_itself(workspace: Path) -> None:
    assert evaluate(workspace).exit_code == 0
    assert (
        evaluate(
            workspace, "--compare", workspace / "run", "--json", workspace / "out.json"
        ).exit_code
        == 0
    )
    result_json = json.loads((workspace / "out.json").read_text())["m_tIoU_difference"]
    assert (result_json["mean"], result_json["p"], result_json["better"], result_json["worse"]) == (
        0,
        1,
        0,
        0,
    )
    assert "m_tIoU_difference" not in json.loads((workspace / "run" / "metrics.json").read_text())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            '{"id": "x", "span": [0, 1], "score": 1, "boxes": []}',
            "1 predictions name no query of these, for example 'x'",
        ),
        (None, "none.jsonl does not exist"),
        ("{", "none.jsonl, line 1"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    four_queries: Path, content: str | None, message: str
) -> None:
    if content is not None:
        (four_queries / "none.jsonl").write_text(content)
    metrics, result = judge_files(
        four_queries, "ours.jsonl", "--compare", four_queries / "none.jsonl"
    )
    assert (metrics, result.exit_code) == ({}, 2)
    assert message in result.stderr


def test_runs_that_left_out_other_queries_are_not_compared(four_queries: Path) -> None:
    lines = (four_queries / "other.jsonl").read_text().splitlines(keepends=True)
    (four_queries / "part.jsonl").write_text("".join(lines[1:]))
    assert (
        judge_files(four_queries, "ours.jsonl", "--compare", four_queries / "part.jsonl")[
            1
        ].exit_code
        == 0
    )
    _, result = judge_files(
        four_queries, "ours.jsonl", "--compare", four_queries / "part.jsonl", "--protocol", "stcat"
    )
    assert result.exit_code == 2
    assert (
        "the two runs do not score the same queries: 1 are in one only, for example 'a'"
        in result.stderr
    )


@pytest.mark.parametrize("first_frame", [0, 1])
@pytest.mark.parametrize("predictions", ["ours.jsonl", "other.jsonl"])
def test_the_challenges_file_of_a_run_is_judged_the_same(
    four_queries: Path, predictions: str, first_frame: int
) -> None:
    counted = ("--protocol", "official", "--set", f"first_frame={first_frame}")
    sample_metrics, result = judge_files(
        four_queries, predictions, "--challenge", four_queries / "sent.json", *counted
    )
    assert f"wrote 4 tubes to {four_queries / 'sent.json'}" in result.stdout.replace("\n", "")
    assert (
        json.loads((four_queries / "sent.json").read_text())["a"]["st_frame"]
        == (10 if predictions == "ours.jsonl" else 13) + first_frame
    )
    challenge_metrics, _ = judge_files(four_queries, "sent.json", *counted)
    assert challenge_metrics.pop("protocol") == sample_metrics.pop("protocol") == "official"
    assert challenge_metrics == pytest.approx(sample_metrics, rel=0, abs=1e-12)


def test_boxes_beyond_the_span_leave_the_official_scores_alone(four_queries: Path) -> None:
    """The challenge's file has the span's boxes only: vIoU and tIoU, all that the script computes,
    need no others.
    """
    wide = [
        Prediction(
            id=name, span=span, score=1.0, boxes=[(0, 0, 0, 40, 40), (60, *FOUR_BOXES[name])]
        )
        for name, span in TRUE_SPANS.items()
    ]
    write_jsonl(four_queries / "wide.jsonl", wide)
    sample_metrics, _ = judge_files(
        four_queries,
        "wide.jsonl",
        "--challenge",
        four_queries / "sent.json",
        "--protocol",
        "official",
    )
    challenge_metrics, _ = judge_files(four_queries, "sent.json", "--protocol", "official")
    for name in ("m_vIoU", "m_tIoU", "vIoU@0.3", "vIoU@0.5"):
        assert challenge_metrics[name] == pytest.approx(sample_metrics[name], rel=0, abs=1e-12)


@pytest.mark.parametrize("protocol", ["tubedetr", "stcat"])
def test_the_challenges_file_as_truth_lacks_what_some_protocols_need(
    four_queries: Path, protocol: str
) -> None:
    judge_files(four_queries, "ours.jsonl", "--challenge", four_queries / "sent.json")
    _, result = judge_files(four_queries, "sent.json", "--protocol", protocol, truth="sent.json")
    assert result.exit_code == 2
    assert (
        f"protocol {protocol} needs an index as truth (what stvg-prepare writes), not the"
        f" challenge's file" in result.stderr
    )


def test_published_results_stand_beside_those_of_their_data_set(four_queries: Path) -> None:
    (four_queries / "defects.json").write_text('{"dataset": "hcstvg-v2"}')
    metrics, result = judge_files(four_queries, "ours.jsonl")
    assert result.exit_code == 0, result.stderr
    for word in ("hcstvg-v2, val", "CSDVL", "TubeDETR", "not stated", "this run"):
        assert word in result.stdout
    current = [
        line.split() for line in result.stdout.splitlines() if line.strip().startswith("this run")
    ]
    assert current[0][-1] == "every-frame"
    assert {"tubedetr", "stcat"} <= {words[-1] for words in current}
    assert f"{100 * metrics['m_tIoU']:.1f}" == current[0][2]


@pytest.mark.parametrize(
    ("dataset_name", "split"),
    [(None, "val"), ("shapes", "val"), ("hcstvg-v1", "val"), ("vidstg", "val")],
)
def test_nothing_is_shown_of_other_data_sets_and_splits(
    four_queries: Path, dataset_name: str | None, split: str
) -> None:
    if dataset_name:
        (four_queries / "defects.json").write_text(json.dumps({"dataset": dataset_name}))
    _, result = judge_files(four_queries, "ours.jsonl")
    assert result.exit_code == 0, result.stderr
    assert "CSDVL" not in result.stdout
    assert "this run" not in result.stdout


def test_a_protocol_that_needs_all_predictions_is_left_out_of_the_published_table(
    four_queries: Path,
) -> None:
    (four_queries / "defects.json").write_text('{"dataset": "hcstvg-v2"}')
    (four_queries / "part.jsonl").write_text(
        (four_queries / "ours.jsonl").read_text().splitlines()[0]
    )
    _, result = judge_files(four_queries, "part.jsonl")
    assert result.exit_code == 0, result.stderr
    printed = " ".join(result.stdout.split())
    assert (
        "not evaluated under tubedetr: 3 of 4 queries have no prediction, for example 'b':"
        " protocol tubedetr needs all" in printed
    )
    assert "tubedetr" not in [
        line.split()[-1]
        for line in result.stdout.splitlines()
        if line.strip().startswith("this run")
    ]
    _, result = judge_files(four_queries, "part.jsonl", "--protocol", "tubedetr")
    assert (result.exit_code, "3 of 4 queries have no prediction" in result.stderr) == (2, True)


def test_stcat_without_any_prediction_has_no_mean(four_queries: Path) -> None:
    (four_queries / "nothing.jsonl").write_text("")
    assert judge_files(four_queries, "nothing.jsonl")[0]["m_tIoU"] == 0
    _, result = judge_files(four_queries, "nothing.jsonl", "--protocol", "stcat")
    assert result.exit_code == 2
    assert (
        "none of the 4 queries has a prediction, and protocol stcat leaves such queries out"
        in result.stderr
    )


def test_a_runs_own_files_are_judged_by_every_frame(workspace: Path) -> None:
    assert evaluate(workspace).exit_code == 0
    run_metrics = json.loads((workspace / "run" / "metrics.json").read_text())
    scores = (workspace / "run" / "scores" / "test.json").read_text()
    result = evaluate(
        workspace,
        "--protocol",
        "stcat",
        "--json",
        workspace / "out.json",
        "--challenge",
        workspace / "sent.json",
    )
    assert result.exit_code == 0, result.stderr
    assert json.loads((workspace / "run" / "metrics.json").read_text()) == run_metrics
    assert (workspace / "run" / "scores" / "test.json").read_text() == scores
    stcat_metrics = json.loads((workspace / "out.json").read_text())
    assert stcat_metrics.pop("protocol") == "stcat"
    assert stcat_metrics.keys() == run_metrics.keys()
    assert stcat_metrics["m_tIoU"] != run_metrics["m_tIoU"]
    assert list(json.loads((workspace / "sent.json").read_text())) == [
        score["id"] for score in json.loads(scores)
    ]


def test_the_report_of_a_run_without_videos_still_opens(workspace: Path) -> None:
    assert (
        call(
            cli.report,
            "--run",
            workspace / "run",
            "--features",
            workspace / "store",
            "--out",
            workspace / "out",
        ).exit_code
        == 2
    )
    assert evaluate(workspace).exit_code == 0
    result = call(
        cli.report,
        "--run",
        workspace / "run",
        "--features",
        workspace / "store",
        "--out",
        workspace / "out",
        "--root",
        workspace,
    )
    assert result.exit_code == 0, result.stderr
    assert "No picture" in (workspace / "out" / "index.html").read_text(encoding="utf-8")
