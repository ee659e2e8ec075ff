"""`stvg-train`: what it is asked for reaches the run, and a stopped command can be run again."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner, Result

import cli.evaluate
import cli.report
from cli.train import app
from grounding.systems.checkpoint import load_model
from grounding.systems.provenance import read_provenance
from tests.forked_commands import ForkedCommand, wait_until

MODEL = {
    "hidden_dim": 16,
    "num_heads": 2,
    "ffn_dim": 32,
    "num_layers": 1,
    "num_frames": 4,
    "num_clips": 8,
    "proposal_map_channels": 8,
    "proposal_map_kernel": 3,
    "proposal_map_layers": 1,
}
SETTINGS = {"model": MODEL, "max_steps": 2, "batch": 2, "device": "cpu"}


def words(store: Path, run: Path, *more: str, **changes: Any) -> list[str]:
    """The command's arguments; its config lies beside the run."""
    config = run.with_suffix(".yaml")
    config.write_text(yaml.safe_dump({"train": {**SETTINGS, **changes}}))
    return ["--features", str(store), "--run", str(run), "--config", str(config), *more]


def call(*arguments: Any, **changes: Any) -> Result:
    return CliRunner().invoke(app, words(*arguments, **changes))


def saved(run: Path) -> dict[str, Any]:
    return yaml.safe_load((run / "config.yaml").read_text())["train"]


def test_the_preset_is_the_data_set_s_under_the_file_under_set(
    tiny_run: Any, tmp_path: Path
) -> None:
    result = call(
        tiny_run.store, tmp_path / "run", "--set", "seed=3", "--set", "max_steps=1", lr=0.5
    )
    assert (result.exit_code, result.stdout) == (0, f"trained {tmp_path / 'run'}\n"), result.stderr
    config = saved(tmp_path / "run")
    assert (config["seed"], config["max_steps"], config["lr"], config["schedule"]) == (
        3,
        1,
        0.5,
        "one-cycle",
    )


def test_another_system_is_named_in_the_run(tiny_run: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert (
        call(tiny_run.store, run, "--model", "stvgformer", "--preset", "hcstvg-v2").exit_code == 0
    )
    assert (read_provenance(run)["model"], saved(run)["system"]) == ("stvgformer", "stvgformer")
    assert load_model(run)[1].model.hidden_dim == 16


def test_cg_stvg_is_trained_judged_and_reported_alike(
    tiny_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its run is named after it where no --run is given."""
    monkeypatch.chdir(tmp_path)
    model = {
        "hidden_dim": 8,
        "num_heads": 2,
        "ffn_dim": 8,
        "num_layers": 1,
        "num_stages": 2,
        "num_frames": 4,
    }
    Path("params.yaml").write_text(yaml.safe_dump({"train": {**SETTINGS, "model": model}}))
    store, run = ("--features", str(tiny_run.store)), Path("runs/cgstvg")
    result = CliRunner().invoke(app, [*store, "--model", "cgstvg", "--config", "params.yaml"])
    assert (result.exit_code, result.stdout) == (0, f"trained {run}\n"), result.stderr
    judged = CliRunner().invoke(
        cli.evaluate.app,
        [*store, "--run", str(run), "--set", "device=cpu", "--set", "refine_boundaries=true"],
    )
    assert judged.exit_code == 0, judged.stderr
    reported = CliRunner().invoke(
        cli.report.app, [*store, "--run", str(run), "--out", "report", "--set", "gallery_size=0"]
    )
    assert reported.exit_code == 0, reported.stderr
    assert "train/box_confidence" in Path("report/index.html").read_text()


def test_a_run_that_is_replaced_is_moved_aside_and_named(tiny_run: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_run.run, run)
    result = call(tiny_run.store, run)
    assert (
        f"the run that was in {run} is now in {run}.old-1; delete it when it is not needed"
        in result.stdout
    )
    assert read_provenance(tmp_path / "run.old-1") == read_provenance(tiny_run.run)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--model", "detr"),
            "there is no system 'detr'; the systems are csdvl, stvgformer, cgstvg, costa:"
            " give one with --model",
        ),
        (("--preset", "x"), "there is no preset 'x' of csdvl; its presets are"),
        (("--set", "speed=1"), "section 'train': unknown key 'speed'; the keys are"),
        (
            ("--set", "precision=float16"),
            "section 'train': precision: Input should be 'float32' or 'bfloat16'",
        ),
        (("--resume",), "holds no checkpoint to resume"),
    ],
)
def test_what_is_refused(
    tiny_run: Any, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    result = call(tiny_run.store, tmp_path / "run", *arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_command_saves_and_goes_on(
    tiny_run: Any, tmp_path: Path, number: int, code: int
) -> None:
    """A second training of the run is refused meanwhile; afterwards the same command takes up the
    step that was saved.
    """
    run = tmp_path / "run"
    arguments = words(
        tiny_run.store,
        run,
        max_steps=10**6,
        checkpoint_every=10**6,
        validate_every=10**6,
        log_every=1,
    )
    process = ForkedCommand("cli.train", arguments, tmp_path / "output.txt")
    loss_curve = run / "curves" / "plots" / "metrics" / "train" / "loss.tsv"
    wait_until(loss_curve.exists, 120, [process])
    refused = CliRunner().invoke(app, arguments)
    process.send_signal(number)
    assert process.wait(60) == code, process.output
    assert "stopped; run the same command again to go on" in process.output
    assert refused.exit_code == 2
    assert f"run {run} is in use by pid {process.pid} on" in " ".join(refused.stderr.split())
    step = torch.load(run / "checkpoints" / "last" / "state.pt", weights_only=True)["step"]
    rows = loss_curve.read_text().splitlines()[1:]
    assert [int(row.split("\t")[0]) for row in rows] == list(range(1, step + 1))
    again = CliRunner().invoke(
        app,
        [
            *arguments,
            "--resume",
            "--set",
            f"max_steps={step + 1}",
            "--set",
            "lr_schedule_steps=null",
        ],
    )
    assert again.exit_code == 0, again.stderr
    assert read_provenance(run)["finished"] == step + 1
