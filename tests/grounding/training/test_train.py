"""Training: a resumed run is the uninterrupted one bit for bit, and nothing outside the run
directory is touched.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import yaml
from torch import Tensor

from grounding.models.csdvl import CollaborationKind
from grounding.systems.checkpoint import compute_code_digest, load_model
from grounding.systems.csdvl import CsdvlTrainConfig
from grounding.systems.provenance import read_provenance
from grounding.training import train as training
from grounding.training.curve_logger import CurveLogger
from grounding.training.run_directory import lock_run_dir, prepare_run_dir
from grounding.training.train import NonFiniteLossError, train
from grounding.training.train_state import TrainState
from pipeline.config import load, validate
from pipeline.errors import InputError, StoreError
from pipeline.records import Query, Truth

Maker = Callable[..., Path]
QueryMaker = Callable[..., Query]
TINY: dict[str, Any] = {
    "model": {
        "hidden_dim": 8,
        "num_heads": 2,
        "ffn_dim": 8,
        "num_layers": 1,
        "num_frames": 4,
        "num_clips": 4,
        "proposal_map_channels": 4,
        "proposal_map_kernel": 3,
        "proposal_map_layers": 1,
    },
    "device": "cpu",
    "batch": 3,
    "lr": 1e-2,
    "ema_decay": 0.9,
    "schedule": "one-cycle",
    "lr_schedule_steps": 6,
    "max_steps": 6,
    "validate_every": 3,
    "checkpoint_every": 3,
    "log_every": 1,
}
"""Eight queries in batches of three: an epoch is two steps, so step 3 lies in the middle of one.
Dropout is on.
"""


def make_config(**changes: Any) -> CsdvlTrainConfig:
    return validate(CsdvlTrainConfig, {**TINY, **changes}, "test")


class Killed(BaseException):
    """Ends a run at once, as a signal would."""


def run_training(
    store: Path, run: Path, resume: bool = False, kill_at: int | None = None, **changes: Any
) -> Path:
    """Open and train, as `stvg-train` does; with `kill_at` it ends after that step."""

    def progress(done: int, total: int) -> None:
        if done == kill_at:
            raise Killed

    config = make_config(**changes)
    prepare_run_dir(store, run, config, resume)
    train(store, run, config, progress)
    return run


def state_of(run: Path, which: str = "last") -> dict[str, Any]:
    return torch.load(run / "checkpoints" / which / "state.pt", weights_only=True)


def assert_same(a: Any, b: Any, where: str = "state") -> None:
    """Equal to the last bit, all the way down."""
    assert type(a) is type(b), where
    if isinstance(a, Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for number, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}[{number}]")
    else:
        assert a == b, where


def files_under(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def assert_same_run(a: Path, b: Path) -> None:
    for which in ("last", "best"):
        assert_same(state_of(a, which), state_of(b, which), which)
        for name in ("model.safetensors",):
            assert (a / "checkpoints" / which / name).read_bytes() == (
                b / "checkpoints" / which / name
            ).read_bytes()
    assert files_under(a / "curves") == files_under(b / "curves")
    assert read_provenance(a) == read_provenance(b)


@pytest.fixture(scope="module")
def full_run(shapes_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six steps without a stop: made once, not to be changed."""
    return run_training(shapes_store, tmp_path_factory.mktemp("whole") / "whole")


@pytest.fixture
def run_copy(full_run: Path, tmp_path: Path) -> Path:
    """A copy of it that may be changed."""
    return Path(shutil.copytree(full_run, tmp_path / "run"))


# Exactness


def test_two_identical_runs_are_identical(
    shapes_store: Path, tmp_path: Path, full_run: Path
) -> None:
    torch.rand(7)  # whatever was drawn before
    assert_same_run(run_training(shapes_store, tmp_path / "again"), full_run)


def test_another_seed_is_another_run(shapes_store: Path, tmp_path: Path, full_run: Path) -> None:
    other = run_training(shapes_store, tmp_path / "other", seed=1)
    assert not torch.equal(
        state_of(other)["model"]["object_query"], state_of(full_run)["model"]["object_query"]
    )


def test_resumed_is_uninterrupted(shapes_store: Path, tmp_path: Path, full_run: Path) -> None:
    """Three steps, stop in the middle of an epoch, three more: model, EMA, optimiser, schedule,
    generators and curves.
    """
    run = run_training(shapes_store, tmp_path / "run", max_steps=3)
    assert state_of(run)["step"] == 3
    run_training(shapes_store, run, resume=True)
    assert_same_run(run, full_run)


def test_a_longer_resume_keeps_the_schedule(shapes_store: Path, tmp_path: Path) -> None:
    """Where `lr_schedule_steps` is left to `max_steps`, it stays what the run was started with."""
    run = run_training(shapes_store, tmp_path / "run", lr_schedule_steps=None)
    run_training(shapes_store, run, resume=True, lr_schedule_steps=None, max_steps=9)
    assert read_provenance(run)["lr_schedule_steps"] == 6
    assert state_of(run)["schedule"]["_last_lr"] == [0.0]


@pytest.mark.parametrize("kill_at", [3, 4, 5])
@pytest.mark.parametrize("resume", [True, False])
def test_killed_is_uninterrupted(
    shapes_store: Path, tmp_path: Path, full_run: Path, kill_at: int, resume: bool
) -> None:
    """What was logged after the last checkpoint is forgotten; the same command goes on by itself,
    with or without --resume.
    """
    run = tmp_path / "run"
    with pytest.raises(Killed):
        run_training(shapes_store, run, kill_at=kill_at)
    assert state_of(run)["step"] == 3
    run_training(shapes_store, run, resume=resume)
    assert_same_run(run, full_run)
    assert not list(tmp_path.glob("run.old*"))


def test_killed_before_the_first_checkpoint_starts_over(
    shapes_store: Path, tmp_path: Path, full_run: Path
) -> None:
    run = tmp_path / "run"
    with pytest.raises(Killed):
        run_training(shapes_store, run, kill_at=2)
    assert_same_run(run_training(shapes_store, run), full_run)


def test_killed_twice_is_uninterrupted(shapes_store: Path, tmp_path: Path) -> None:
    """A checkpoint after every step, batches of the second epoch's middle."""
    often = {"checkpoint_every": 1}
    expected = run_training(shapes_store, tmp_path / "whole", **often)
    for kill_at in (1, 5):
        with pytest.raises(Killed):
            run_training(shapes_store, tmp_path / "run", kill_at=kill_at, **often)
    assert_same_run(run_training(shapes_store, tmp_path / "run", **often), expected)


def test_a_finished_run_resumed_trains_no_step(
    shapes_store: Path, run_copy: Path, full_run: Path
) -> None:
    run_training(shapes_store, run_copy, resume=True)
    assert_same_run(run_copy, full_run)


def test_logging_changes_nothing_that_is_learned(
    shapes_store: Path, tmp_path: Path, full_run: Path
) -> None:
    quiet = run_training(shapes_store, tmp_path / "quiet", log_every=4, checkpoint_every=5)
    assert_same(state_of(quiet), state_of(full_run))


def test_a_checkpoint_killed_between_its_two_renames_is_found(
    shapes_store: Path, tmp_path: Path, full_run: Path
) -> None:
    run = tmp_path / "run"
    with pytest.raises(Killed):
        run_training(shapes_store, run, kill_at=4)
    (run / "checkpoints" / "last").rename(run / "checkpoints" / ".last.old")
    shutil.copytree(run / "checkpoints" / ".last.old", run / "checkpoints" / ".last.part")
    assert load_model(run, "last")[0] is not None
    run_training(shapes_store, run, resume=True)
    assert_same_run(run, full_run)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["best", "last"]


def test_there_is_a_whole_checkpoint_at_every_moment(
    shapes_store: Path, tmp_path: Path, full_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before each rename and removal while a checkpoint is replaced, one can be loaded; so too
    after an earlier kill.
    """
    state = TrainState.create(load_model(full_run)[0], make_config(), 6)
    folder = tmp_path / "checkpoints" / "last"
    state.save(folder)
    names: list[str] = []

    def check_before(act: Callable[..., Any]) -> Callable[..., Any]:
        def checked(*args: Any, **kwargs: Any) -> Any:
            folder_now = folder if folder.exists() else folder.with_name(".last.old")
            torch.load(folder_now / "state.pt", weights_only=True)
            names.append(folder_now.name)
            return act(*args, **kwargs)

        return checked

    monkeypatch.setattr(Path, "rename", check_before(Path.rename))
    monkeypatch.setattr(shutil, "rmtree", check_before(shutil.rmtree))
    state.save(folder)
    folder.rename(folder.with_name(".last.old"))
    state.save(folder)
    assert {"last", ".last.old"} == set(names)
    assert [path.name for path in folder.parent.iterdir()] == ["last"]


# Curves


def test_curves_hold_every_logged_step_once(full_run: Path) -> None:
    rows = (
        (full_run / "curves" / "plots" / "metrics" / "train" / "loss.tsv").read_text().splitlines()
    )
    assert rows[0] == "step\tloss"
    assert [int(row.split("\t")[0]) for row in rows[1:]] == [1, 2, 3, 4, 5, 6]
    held = (
        (full_run / "curves" / "plots" / "metrics" / "val" / "m_vIoU.tsv").read_text().splitlines()
    )
    assert [int(row.split("\t")[0]) for row in held[1:]] == [3, 6]


def test_the_schedule_warms_up_and_ends_at_nothing(shapes_store: Path, tmp_path: Path) -> None:
    """Twenty steps: 5 % is one step of warm-up, then half a cosine."""
    run = run_training(
        shapes_store, tmp_path / "run", max_steps=20, lr_schedule_steps=20, validate_every=20
    )
    rows = (run / "curves" / "plots" / "metrics" / "train" / "lr.tsv").read_text().splitlines()[1:]
    rates = [float(row.split("\t")[1]) for row in rows]
    assert rates[0] == pytest.approx(1e-2)
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == pytest.approx(0, abs=1e-9)


def test_curves_half_written_by_a_killed_run_are_mended(tmp_path: Path) -> None:
    for folder, stop in ((tmp_path / "whole", False), (tmp_path / "killed", True)):
        curves = CurveLogger(folder, 0)
        curves.write(1, {"train/loss": 1.0})
        if stop:
            (folder / "plots" / "metrics" / "train" / "lr.tsv").touch()
            (folder / "metrics.json").write_text('{"train": ')
            curves = CurveLogger(folder, 1)
        curves.write(2, {"train/loss": 2.0, "train/lr": 0.5})
        curves.close()
    assert files_under(tmp_path / "killed") == files_under(tmp_path / "whole")


def git(*arguments: str, folder: Path) -> str:
    settings = ["-c", "user.name=a", "-c", "user.email=a@b"]
    return subprocess.run(
        ["git", *settings, *arguments], cwd=folder, check=True, capture_output=True, text=True
    ).stdout


@pytest.mark.parametrize("dvc", [False, True])
def test_training_touches_nothing_of_the_repository(
    shapes_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dvc: bool
) -> None:
    """DVCLive would `dvc init` a git repository without DVC, and rewrite dvc.yaml."""
    repository = tmp_path / "repository"
    repository.mkdir()
    git("init", folder=repository)
    (repository / ".gitignore").write_text("/runs/\n")
    (repository / "dvc.yaml").write_text("stages: {}\n")
    if dvc:
        (repository / ".dvc").mkdir()
        (repository / ".dvc" / "config").write_text("")
    git("add", "-A", folder=repository)
    git("commit", "-m", "start", folder=repository)
    before = sorted(path for path in repository.rglob("*") if ".git" not in path.parts)
    monkeypatch.chdir(repository)
    for name in [name for name in os.environ if name.startswith(("DVC", "GIT_"))]:
        monkeypatch.delenv(name)
    run_training(shapes_store, Path("runs/r"), max_steps=1)
    after = sorted(
        path
        for path in repository.rglob("*")
        if ".git" not in path.parts and "runs" not in path.parts
    )
    assert after == before
    assert git("status", "--porcelain", folder=repository) == ""
    assert git("log", "--all", "--oneline", folder=repository).count("\n") == 1
    assert (repository / "dvc.yaml").read_text() == "stages: {}\n"


# The run directory


def test_a_run_says_what_it_was_made_from(shapes_store: Path, full_run: Path) -> None:
    about = read_provenance(full_run)
    assert about["dims"] == [6, 5, 7]
    assert about["finished"] == 6
    assert about["code"] == compute_code_digest()
    assert about["products"]["motion"] == {"made": "by a test"}
    assert load(CsdvlTrainConfig, "train", full_run / "config.yaml", []) == make_config()


@pytest.mark.parametrize("which", ["best", "last"])
def test_checkpoints_hold_the_moving_average(full_run: Path, which: str) -> None:
    model, config, about = load_model(full_run, which)
    assert not model.training
    assert config == make_config()
    state = state_of(full_run, which)
    for name, value in model.state_dict().items():
        assert torch.equal(value, state["ema"][f"module.{name}"])
    assert not torch.equal(model.object_query, state["model"]["object_query"])
    assert about == read_provenance(full_run)


def test_the_moving_average_follows_the_weights(shapes_store: Path, tmp_path: Path) -> None:
    """EMA .9: after one step it is the first weights; after two .9 of the first and .1 of the
    second.
    """
    first, second = (
        state_of(run_training(shapes_store, tmp_path / str(steps), max_steps=steps))
        for steps in (1, 2)
    )
    for name, value in second["model"].items():
        expected = 0.9 * first["model"][name] + 0.1 * value
        torch.testing.assert_close(second["ema"][f"module.{name}"], expected, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize(("streams", "best"), [("both", 3), ("dynamic", 6)])
def test_the_best_is_chosen_by_what_the_streams_can_do(
    shapes_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, streams: str, best: int
) -> None:
    """Boxes get worse and times better; the dynamic stream alone has no boxes."""
    metrics = iter([{"m_vIoU": 0.9, "m_tIoU": 0.1}, {"m_vIoU": 0.1, "m_tIoU": 0.9}])
    monkeypatch.setattr(training, "validate", lambda *_: next(metrics))
    run = run_training(shapes_store, tmp_path / "run", model={**TINY["model"], "streams": streams})
    assert torch.load(run / "checkpoints" / "best" / "state.pt", weights_only=True)["step"] == best


def test_without_a_val_split_there_is_no_best(
    make_store: Maker, make_query: QueryMaker, tmp_path: Path
) -> None:
    run = run_training(
        make_store([make_query(n, "train") for n in range(4)]), tmp_path / "run", max_steps=2
    )
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["last"]
    assert (
        load_model(run, "best")[0].state_dict().keys()
        == load_model(run, "last")[0].state_dict().keys()
    )


def test_val_queries_without_truth_are_not_judged(
    make_store: Maker, make_query: QueryMaker, tmp_path: Path
) -> None:
    queries = [make_query(n, "train") for n in range(4)] + [make_query(9, "val", truth=None)]
    assert not (
        run_training(make_store(queries), tmp_path / "run", max_steps=2) / "checkpoints" / "best"
    ).exists()


def test_truth_without_boxes_is_judged_by_time(
    make_store: Maker, make_query: QueryMaker, tmp_path: Path
) -> None:
    timed = Truth(span=(30, 60))
    queries = [make_query(n, "train", truth=timed) for n in range(4)] + [
        make_query(9, "val", truth=timed)
    ]
    run = run_training(make_store(queries), tmp_path / "run", max_steps=3)
    assert state_of(run, "best")["best"] >= 0


def test_epochs_say_how_many_steps_unless_max_steps_does(
    shapes_store: Path, tmp_path: Path
) -> None:
    """Eight queries in batches of three are two steps an epoch."""
    run = run_training(
        shapes_store,
        tmp_path / "run",
        max_steps=None,
        epochs=2,
        lr_schedule_steps=None,
        validate_every=None,
    )
    assert state_of(run)["step"] == 4
    held = (run / "curves" / "plots" / "metrics" / "val" / "m_tIoU.tsv").read_text().splitlines()
    assert [int(row.split("\t")[0]) for row in held[1:]] == [2, 4]


def test_the_loss_goes_down(shapes_store: Path, tmp_path: Path) -> None:
    run = run_training(
        shapes_store,
        tmp_path / "run",
        max_steps=40,
        schedule="constant",
        validate_every=40,
        checkpoint_every=40,
    )
    rows = (
        (run / "curves" / "plots" / "metrics" / "train" / "loss.tsv").read_text().splitlines()[1:]
    )
    values = [float(row.split("\t")[1]) for row in rows]
    assert sum(values[-10:]) < 0.8 * sum(values[:10])


# What is refused, what is moved aside


def test_resuming_with_other_settings_is_refused(shapes_store: Path, run_copy: Path) -> None:
    run, before = run_copy, files_under(run_copy)
    with pytest.raises(
        InputError,
        match="cannot be resumed: batch, lr differ from what it was started with; give another --run",
    ):
        prepare_run_dir(shapes_store, run, make_config(lr=1.0, batch=2), resume=True)
    with pytest.raises(InputError, match="cannot be resumed: model differ"):
        prepare_run_dir(
            shapes_store, run, make_config(model={**TINY["model"], "alpha": 1.0}), resume=True
        )
    assert files_under(run) == before


def test_resuming_on_another_store_is_refused(make_store: Maker, run_copy: Path) -> None:
    other = make_store(name="other", without=("train-0",))
    with pytest.raises(
        InputError, match="cannot be resumed: store differ from what it was started with"
    ):
        prepare_run_dir(other, run_copy, make_config(), resume=True)


def test_resuming_nothing_is_refused(shapes_store: Path, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match="holds no checkpoint to resume: leave out --resume to start a run there"
    ):
        prepare_run_dir(shapes_store, tmp_path / "run", make_config(), resume=True)


def test_steps_logging_and_device_may_change(shapes_store: Path, run_copy: Path) -> None:
    run = run_copy
    prepare_run_dir(
        shapes_store,
        run,
        make_config(max_steps=9, log_every=5, checkpoint_every=1, device="auto"),
        resume=True,
    )
    assert (run / "checkpoints" / "last").exists()
    assert yaml.safe_load((run / "config.yaml").read_text())["train"]["max_steps"] == 9


def test_a_run_of_other_settings_is_moved_aside_not_lost(
    shapes_store: Path, tmp_path: Path, run_copy: Path
) -> None:
    run, before = run_copy, files_under(run_copy)
    for number in (1, 2):
        run_training(shapes_store, run, max_steps=3, seed=number)
    assert files_under(tmp_path / "run.old-1") == before
    assert (
        yaml.safe_load((tmp_path / "run.old-2" / "config.yaml").read_text())["train"]["seed"] == 1
    )
    assert yaml.safe_load((run / "config.yaml").read_text())["train"]["seed"] == 2


def test_a_finished_run_is_moved_aside_without_resume(
    shapes_store: Path, tmp_path: Path, run_copy: Path
) -> None:
    before = files_under(run_copy)
    prepare_run_dir(shapes_store, run_copy, make_config())
    assert files_under(tmp_path / "run.old-1") == before
    assert not (run_copy / "checkpoints").exists()


def test_a_run_of_other_code_is_moved_aside(shapes_store: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(Killed):
        run_training(shapes_store, run, kill_at=4)
    (run / "provenance.json").write_text(json.dumps({**read_provenance(run), "code": "other"}))
    prepare_run_dir(shapes_store, run, make_config())
    assert (tmp_path / "run.old-1" / "checkpoints" / "last").exists()
    assert not (run / "checkpoints").exists()


def test_a_stopped_run_of_other_length_is_moved_aside(shapes_store: Path, tmp_path: Path) -> None:
    """Taken up, it would keep the schedule of the old length, and not be what starting over gives."""
    run = tmp_path / "run"
    with pytest.raises(Killed):
        run_training(shapes_store, run, kill_at=4, lr_schedule_steps=None)
    prepare_run_dir(shapes_store, run, make_config(lr_schedule_steps=None, max_steps=12))
    assert (tmp_path / "run.old-1" / "checkpoints" / "last").exists()
    assert not (run / "checkpoints").exists()


def test_a_resume_to_fewer_steps_is_refused(shapes_store: Path, run_copy: Path) -> None:
    with pytest.raises(
        InputError,
        match="has been trained for 6 steps already: max_steps must be at least that, not 4",
    ):
        run_training(shapes_store, run_copy, resume=True, max_steps=4)


def test_a_second_training_of_a_run_is_refused(tmp_path: Path) -> None:
    with (
        lock_run_dir(tmp_path / "run"),
        pytest.raises(
            InputError,
            match=rf"run .*run is in use by pid {os.getpid()} on .* since .*: wait until it ends, or stop it",
        ),
        lock_run_dir(tmp_path / "run"),
    ):
        pass
    with lock_run_dir(tmp_path / "run"):
        pass


@pytest.mark.parametrize(
    "setting",
    [
        {"max_steps": 0},
        {"batch": 0},
        {"validate_every": 0},
        {"log_every": 0},
        {"checkpoint_every": 0},
        {"seed": -1},
        {"ema_decay": 2},
        {"lr": 0},
        {"model": {"num_frames": 0}},
        {"model": {"num_clips": 0}},
        {"model": {"num_layers": 0}},
        {"model": {"proposal_map_kernel": 4}},
        {"model": {"num_heads": 7}},
        {"model": {"hidden_dim": 10}},
    ],
)
def test_settings_out_of_range_are_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="test: "):
        validate(CsdvlTrainConfig, setting, "test")


@pytest.mark.parametrize(
    "changes",
    [{"streams": "dynamic"}, *({"collaboration": kind} for kind in get_args(CollaborationKind))],
)
def test_every_ablation_trains_with_the_recipe_of_shapes(
    shapes_store: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    recipe = {
        "box_head": "attention",
        "clip_pooling": "attention",
        "guidance_scale": "num_cells",
        **changes,
    }
    run = run_training(
        shapes_store,
        tmp_path / "run",
        max_steps=1,
        model={**TINY["model"], **recipe},
        loss={"box_attention": 1.0, "cell_boxes": 1.0},
    )
    assert load_model(run)[1].model.model_dump().items() >= changes.items()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("provenance.json", r"provenance\.json is damaged: train the run again"),
        (
            "checkpoints/best/model.safetensors",
            r"model\.safetensors is damaged: train the run again",
        ),
    ],
)
def test_a_damaged_run_is_named(run_copy: Path, damage: str, message: str) -> None:
    (run_copy / damage).write_bytes((run_copy / damage).read_bytes()[:40])
    with pytest.raises(InputError, match=message):
        load_model(run_copy)


def test_a_damaged_state_cannot_be_resumed(shapes_store: Path, run_copy: Path) -> None:
    (run_copy / "checkpoints" / "last" / "state.pt").write_bytes(b"not a state")
    with pytest.raises(InputError, match=r"state\.pt is damaged: delete .* and train again"):
        run_training(shapes_store, run_copy, resume=True, max_steps=9)


def test_a_best_checkpoint_that_was_being_replaced_is_found(run_copy: Path) -> None:
    best = run_copy / "checkpoints" / "best"
    expected = load_model(run_copy)[0].state_dict()
    best.rename(best.with_name(".best.old"))
    assert_same(load_model(run_copy)[0].state_dict(), expected)


@pytest.mark.parametrize("entry", ["appearance/v0", "motion/v0", "text/train-3"])
def test_a_loss_that_is_not_a_number_names_the_batch(
    make_store: Maker, tmp_path: Path, entry: str
) -> None:
    store = make_store(fill={entry: float("nan")})
    with pytest.raises(
        NonFiniteLossError,
        match=r"the loss is nan at step \d, in the batch of .*train-[0369].*: lower lr or look at them",
    ):
        run_training(store, tmp_path / "run")
    assert NonFiniteLossError.exit_code == 1


def test_a_split_without_truth_cannot_be_trained_on(
    make_store: Maker, make_query: QueryMaker, tmp_path: Path
) -> None:
    store = make_store([make_query(0, "train", truth=None)])
    with pytest.raises(InputError, match="no query of split 'train' has a truth to learn from"):
        run_training(store, tmp_path / "run")


def test_a_store_without_a_train_split_is_refused(
    make_store: Maker, make_query: QueryMaker, tmp_path: Path
) -> None:
    store = make_store([make_query(0, "test")])
    with pytest.raises(StoreError, match="has no features for any query of split 'train'"):
        run_training(store, tmp_path / "run")


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        InputError,
        match=r"is not a run directory \(no provenance\.json\): train one with stvg-train --run",
    ):
        load_model(tmp_path)


def test_a_run_without_a_checkpoint_is_refused(shapes_store: Path, tmp_path: Path) -> None:
    prepare_run_dir(shapes_store, tmp_path / "run", make_config())
    with pytest.raises(InputError, match="has no checkpoint yet: let stvg-train write one"):
        load_model(tmp_path / "run")


def test_weights_that_do_not_fit_their_config_are_refused(run_copy: Path) -> None:
    (run_copy / "config.yaml").write_text(
        (run_copy / "config.yaml")
        .read_text()
        .replace("proposal_map_layers: 1", "proposal_map_layers: 2")
    )
    with pytest.raises(InputError, match=r"weights in .*best.*proposal_head\.convs\.1"):
        load_model(run_copy)
