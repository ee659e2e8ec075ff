"""The four systems, the extraction and the demo give the results that were recorded in
`answers.json`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.frozen import answers

RECORDED: dict[str, Any] = json.loads(answers.FILE.read_text(encoding="utf-8"))


def check(found: dict[str, Any], name: str) -> None:
    """Compare to the last digit on the machine of the record; elsewhere kernels round differently,
    so losses to 0.1 %.
    """
    recorded = dict(RECORDED[name])
    if recorded.pop("machine") == answers.machine():
        assert found == recorded
        return
    for system, losses in recorded["losses"].items():
        assert found["losses"][system] == pytest.approx(losses, rel=1e-3), system


def test_a_small_store_and_ten_steps_of_each_system_are_as_recorded(tmp_path: Path) -> None:
    check(answers.small_answers(tmp_path), "small")


@pytest.mark.soak
def test_the_demo_is_as_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo's first four stages, by their commands."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OMP_NUM_THREADS")
    params = str(Path(__file__).parents[2] / "params.yaml")
    answers.command("prepare", "--config", params)
    answers.command("extract", "--config", params, "--store", "store")
    answers.command("train", "--config", params, "--features", "store", "--run", "runs/shapes")
    answers.command("evaluate", "--config", params, "--run", "runs/shapes", "--features", "store")
    check(answers.demo_answers(tmp_path), "demo")
