"""SIGTERM and Ctrl-C: the step is finished and saved, the signal handed on, and who resumes ends
where nobody stopped.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch

from grounding.systems.csdvl import CsdvlTrainConfig
from grounding.systems.provenance import read_provenance
from grounding.training import train as training
from grounding.training.run_directory import prepare_run_dir
from grounding.training.signals import SIGNALS, GracefulShutdown
from grounding.training.train import train
from grounding.training.train_state import TrainState
from pipeline.config import validate

Recorder = list[str]
MODEL = {
    "hidden_dim": 8,
    "num_heads": 2,
    "ffn_dim": 8,
    "num_layers": 1,
    "num_frames": 4,
    "num_clips": 4,
    "proposal_map_channels": 4,
    "proposal_map_kernel": 3,
    "proposal_map_layers": 1,
}
RECIPE: dict[str, Any] = {
    "model": MODEL,
    "device": "cpu",
    "batch": 3,
    "lr": 1e-2,
    "ema_decay": 0.9,
    "max_steps": 6,
    "validate_every": 4,
    "checkpoint_every": 100,
    "log_every": 1,
}
"""An epoch is two steps; checkpoints only where something asks for one."""


class Terminated(BaseException):
    """What the commands' handler raises."""


def train_run(store: Path, run: Path) -> Path:
    config = validate(CsdvlTrainConfig, RECIPE, "test")
    prepare_run_dir(store, run, config)
    train(store, run, config)
    return run


def load_state(run: Path) -> dict[str, Any]:
    return torch.load(run / "checkpoints" / "last" / "state.pt", weights_only=True)


def read_files(run: Path) -> dict[str, bytes]:
    """All files but the checkpoints' states, which are compared as tensors."""
    files = (path for path in run.rglob("*") if path.is_file() and path.name != "state.pt")
    return {str(path.relative_to(run)): path.read_bytes() for path in files}


def assert_same_runs(a: Path, b: Path) -> None:
    assert read_files(a) == read_files(b)
    torch.testing.assert_close(load_state(a), load_state(b), atol=0, rtol=0)


@pytest.fixture(scope="module")
def full_run(shapes_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_run(shapes_store, tmp_path_factory.mktemp("whole") / "run")


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """SIGTERM raises, as in the commands; afterwards all is as it was."""

    def terminate(number: int, frame: FrameType | None) -> None:
        raise Terminated

    before = {number: signal.getsignal(number) for number in SIGNALS}
    signal.signal(signal.SIGTERM, terminate)
    yield
    assert signal.getsignal(signal.SIGTERM) is terminate
    for number, handler in before.items():
        signal.signal(number, handler)


def train_interrupted(
    store: Path, run: Path, owner: Any, name: str, call: int, act: Callable[[], None]
) -> None:
    """Train, and do something at the start of call number `call` (from 1) of a function of the
    training.
    """
    real, calls = getattr(owner, name), []

    def acting(*arguments: Any, **named: Any) -> Any:
        calls.append(name)
        if len(calls) == call:
            act()
        return real(*arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, acting)
        train_run(store, run)


def send(number: int, times: int = 1) -> Callable[[], None]:
    def act() -> None:
        for _ in range(times):
            os.kill(os.getpid(), number)

    return act


@pytest.mark.parametrize(
    ("number", "raised"), [(signal.SIGTERM, Terminated), (signal.SIGINT, KeyboardInterrupt)]
)
def test_a_signal_lets_the_step_end_and_saves_it(
    shapes_store: Path, tmp_path: Path, full_run: Path, number: int, raised: type[BaseException]
) -> None:
    """It comes while the third step begins, in the middle of an epoch."""
    run = tmp_path / "run"
    with pytest.raises(raised):
        train_interrupted(shapes_store, run, training, "train_step", 3, send(number))
    assert load_state(run)["step"] == 3
    assert "finished" not in read_provenance(run)
    assert_same_runs(train_run(shapes_store, run), full_run)


def test_a_second_signal_ends_it_at_once(
    shapes_store: Path, tmp_path: Path, full_run: Path
) -> None:
    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train_interrupted(
            shapes_store, run, training, "train_step", 3, send(signal.SIGINT, times=2)
        )
    assert not (run / "checkpoints").exists()
    assert_same_runs(train_run(shapes_store, run), full_run)


@pytest.mark.parametrize("validation", [1, 2])
def test_a_signal_ends_validation_at_once_and_loses_no_step(
    shapes_store: Path, tmp_path: Path, full_run: Path, validation: int
) -> None:
    """The resumed run validates first, once, and draws one point, after the fourth step and after
    the last.
    """
    run = tmp_path / "run"
    with pytest.raises(Terminated):
        train_interrupted(shapes_store, run, training, "validate", validation, send(signal.SIGTERM))
    assert load_state(run)["step"] == (4, 6)[validation - 1]
    assert load_state(run)["judged"] == (0, 4)[validation - 1]
    assert_same_runs(train_run(shapes_store, run), full_run)


def test_killed_after_validation_draws_its_point_once(
    shapes_store: Path, tmp_path: Path, full_run: Path
) -> None:
    """Between the curve's point and the checkpoint that knows of it."""

    def die() -> None:
        raise Terminated

    run = tmp_path / "run"
    with pytest.raises(Terminated):
        train_interrupted(shapes_store, run, TrainState, "save", 2, die)
    assert (run / "curves" / "plots" / "metrics" / "val" / "m_vIoU.tsv").read_text().count(
        "\n"
    ) == 2
    assert_same_runs(train_run(shapes_store, run), full_run)


def test_training_works_outside_the_main_thread(
    shapes_store: Path, tmp_path: Path, full_run: Path
) -> None:
    """There signals are somebody else's."""
    thread = threading.Thread(target=train_run, args=(shapes_store, tmp_path / "run"))
    thread.start()
    thread.join()
    assert_same_runs(tmp_path / "run", full_run)


def test_one_of_several_waits_whatever_is_repeated() -> None:
    """torchrun repeats a Ctrl-C that the terminal has sent to all; a process alone takes the second
    at its word.
    """
    stop = GracefulShutdown(is_distributed=True)
    stop.__enter__()
    send(signal.SIGINT, times=3)()
    assert stop.received_signal == signal.SIGINT
    with pytest.raises(KeyboardInterrupt):
        stop.__exit__(None, None, None)


def test_an_error_is_not_hidden_by_a_signal() -> None:
    stop = GracefulShutdown()
    stop.__enter__()
    send(signal.SIGTERM)()
    stop.__exit__(ValueError, ValueError("own"), None)
