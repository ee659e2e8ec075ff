"""`stvg-sweep`: a whole table by one command, stopped and gone on with; what it refuses."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

import cli.evaluate
import cli.report
import cli.sweep
import grounding.metrics.bootstrap
import grounding.sweep.tables
from grounding.sweep.figures import plot_learning_curves
from grounding.sweep.run import SweepProgress
from grounding.sweep.tables import SweepTable, load_table
from pipeline.extraction.run import ExtractConfig
from pipeline.extraction.run import run_extraction as extract

TABLE = {
    "title": "a table",
    "system": "csdvl",
    "variants": {
        "full": {"label": "all of it"},
        "none": {"label": "less", "changes": {"model": {"collaboration": "none"}}},
        "more_frames": {
            "label": "more frames",
            "derived_from": "full",
            "test_frames_multiplier": 2,
        },
    },
    "sections": [{"title": "part", "reference": "full", "rows": ["full", "none", "more_frames"]}],
    "claims": [{"higher": "full", "lower": "none", "metric": "m_vIoU", "source": "a paper"}],
}


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small table, and few videos and draws will do for intervals."""
    monkeypatch.setattr(grounding.metrics.bootstrap, "MIN_VIDEOS", 1)
    monkeypatch.setattr(grounding.metrics.bootstrap, "NUM_RESAMPLES", 400)
    shipped = grounding.sweep.tables.load_tables()
    monkeypatch.setattr(
        grounding.sweep.tables,
        "load_tables",
        lambda path: {**shipped, "small": SweepTable.model_validate(TABLE)},
    )


@pytest.fixture
def arguments(tiny_run: Any, tmp_path: Path) -> list[str]:
    recipe = yaml.safe_load((tiny_run.run / "config.yaml").read_text())["train"]
    config = {
        "train": {
            "model": recipe["model"],
            "batch": 2,
            "max_steps": 3,
            "validate_every": 3,
            "device": "cpu",
            "schedule": "constant",
        }
    }
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(config | {"evaluate": {"device": "cpu"}}))
    return [
        *("--features", str(tiny_run.store), "--out", str(tmp_path / "out"), "--table", "small"),
        *(
            "--seeds",
            "2",
            "--preset",
            "shapes",
            "--config",
            str(tmp_path / "params.yaml"),
            "--set",
            "checkpoint_every=1",
        ),
    ]


def call(*arguments: str) -> Result:
    return CliRunner().invoke(cli.sweep.app, arguments)


def test_a_table_is_made_and_made_again_from_what_is_there(
    arguments: list[str], tmp_path: Path, tiny_run: Any
) -> None:
    result = call(*arguments)
    assert result.exit_code == 0, result.stderr
    out = tmp_path / "out"
    assert f"wrote {out / 'table.md'}" in result.stdout
    assert "full, seed 0 (run 1 of 6): 0/12 steps" in result.stderr
    assert "none, seed 1 (run 4 of 6): 12/12 steps" in result.stderr
    assert "full > none by m_vIoU" in result.stdout
    table = json.loads((out / "table.json").read_text())
    assert (table["steps"], table["seeds"]) == ([3], [0, 1])
    log = (out / "log.txt").read_text()
    assert log.count("training ") == 4
    assert log.count("evaluating ") == 6
    weights = out / "none" / "seed-1" / "checkpoints" / "last" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    assert call(*arguments).exit_code == 0
    assert weights.stat().st_mtime_ns == before
    assert json.loads((out / "table.json").read_text()) == table
    # a run of the sweep is an ordinary one
    shutil.copytree(out / "none" / "seed-1", tmp_path / "run")
    evaluated = CliRunner().invoke(
        cli.evaluate.app,
        ["--run", str(tmp_path / "run"), "--features", str(tiny_run.store), "--set", "device=cpu"],
    )
    assert evaluated.exit_code == 0, evaluated.stderr
    assert (tmp_path / "run" / "scores" / "test.json").read_text() == (
        out / "none" / "seed-1" / "scores" / "test.json"
    ).read_text()


def test_four_systems_train_for_the_same_time(tiny_run: Any, tmp_path: Path) -> None:
    store, out, products = (
        tmp_path / "store",
        tmp_path / "out",
        ["appearance", "motion", "text", "frames"],
    )
    settings = {
        "backbones": "tiny",
        "products": products,
        "sampling": {"fps": 5.0, "short_side": 48},
        "workers": 0,
        "device": "cpu",
    }
    extract(tiny_run.index, tiny_run.root, "shapes", store, ExtractConfig.model_validate(settings))
    small_settings = [
        "max_steps=6",
        "batch=2",
        "device=cpu",
        "model.hidden_dim=8",
        "model.num_heads=2",
        "model.ffn_dim=8",
        "model.num_frames=3",
    ]
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"evaluate": {"device": "cpu"}}))
    options = [part for item in small_settings for part in ("--set", item)]
    result = call(
        *(
            "--table",
            "systems",
            "--features",
            str(store),
            "--out",
            str(out),
            "--seeds",
            "2",
            "--config",
            str(tmp_path / "params.yaml"),
        ),
        *options,
    )
    assert result.exit_code == 0, result.stderr
    assert not any(
        wrong in result.stderr for wrong in ("differ in their steps", "versions of the code")
    ), "all is as planned"
    variants = load_table("systems").variants
    steps = {
        name: max(1, round(6 / variant.cost.step_time))
        for name, variant in variants.items()
        if variant.cost
    }
    assert list(steps) == ["csdvl", "cgstvg", "costa"]
    assert (
        f"costa, seed 1 (run 6 of 8): {2 * sum(steps.values())}/{2 * sum(steps.values())} steps"
        in result.stderr
    )
    table = json.loads((out / "table.json").read_text())
    parameters = {}
    shared_keys = ("system", "parameters", "steps", "cost", "groups")
    csdvl, stvgformer = (table["variants"][name] for name in ("csdvl", "stvgformer"))
    assert all(csdvl[key] == stvgformer[key] for key in shared_keys), "they are the same runs"
    for name in steps:
        run, system = out / name / "seed-1", table["variants"][name]
        assert (
            json.loads((run / "provenance.json").read_text())["finished"]
            == system["steps"]
            == steps[name]
        )
        assert (
            yaml.safe_load((run / "config.yaml").read_text())["train"]["system"]
            == system["system"]
            == name
        )
        parameters[name] = system["parameters"]
    assert len(set(parameters.values())) == 3
    figure = plot_learning_curves(table, out)
    assert figure is not None
    assert "train/loss" not in [axes.get_title() for axes in figure.axes], (
        "losses of different systems are not of one kind"
    )
    last_times = {line.get_label(): line.get_xdata()[-1] for line in figure.axes[0].lines}
    assert last_times == pytest.approx(
        {name: steps[name] * variants[name].cost.step_time for name in steps}
    )
    report_dir = tmp_path / "page"
    reported = CliRunner().invoke(
        cli.report.app,
        [
            "--run",
            str(out / "csdvl" / "seed-0"),
            "--features",
            str(store),
            "--sweep",
            str(out),
            "--out",
            str(report_dir),
            "--set",
            "gallery_size=0",
        ],
    )
    assert reported.exit_code == 0, reported.stderr
    text = (report_dir / "index.html").read_text()
    assert "<th>parameters</th><th>steps</th>" in text
    assert f"<td>{parameters['costa'] / 1e6:.2f} M</td>" in text
    assert "what the paper says" not in text


def test_stopped_by_sigterm_it_goes_on(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete = tmp_path / "whole"
    assert call(*arguments, "--out", str(complete)).exit_code == 0
    steps: list[int] = []

    @contextmanager
    def stop_at(step: int) -> Iterator[Any]:
        def watch(place: SweepProgress) -> None:
            steps.append(place.finished_steps)
            if place.finished_steps == step:
                os.kill(os.getpid(), signal.SIGTERM)

        yield watch

    with monkeypatch.context() as patch:
        patch.setattr(cli.sweep, "show_sweep_progress", lambda: stop_at(5))
        stopped = call(*arguments)
    assert stopped.exit_code == 143
    assert "run the same command again" in stopped.stderr
    assert not (tmp_path / "out" / "table.json").exists()
    steps.clear()
    with monkeypatch.context() as patch:
        patch.setattr(cli.sweep, "show_sweep_progress", lambda: stop_at(-1))
        assert call(*arguments).exit_code == 0
    assert min(step for step in steps if step) >= 4, (
        "the first run, of three steps, and one or two of the second are done"
    )
    current, other = (
        json.loads((folder / "table.json").read_text()) for folder in (tmp_path / "out", complete)
    )
    assert current == other


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--table", "other"],
            "there is no table 'other'; the tables are csdvl, cgstvg, cgstvg_context,"
            " cgstvg_thresholds, costa, systems, small:"
            " give one with",
        ),
        (["--seeds", "1"], "--seeds 1: a table over seeds needs at least 2"),
        (["--preset", "other"], "there is no preset 'other'"),
        (["--set", "nothing=1"], "unknown key 'nothing'"),
    ],
)
def test_what_cannot_work_is_said(arguments: list[str], options: list[str], message: str) -> None:
    result = call(*arguments, *options)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())


def test_a_terminal_shows_runs_and_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    with cli.sweep.show_sweep_progress() as watch:
        watch(SweepProgress("full, seed 0", 0, 3))
        watch(SweepProgress("none, seed 1", 2, 3, 25, 30))
    last = terminal.getvalue().replace("\r", "\n")
    assert "none, seed 1" in last
    assert "2/3" in last
    assert "25/30" in last
