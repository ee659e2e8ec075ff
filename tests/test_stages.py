"""dvc.yaml: what a stage depends on is what its command imports."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PIPELINE = yaml.safe_load((ROOT / "dvc.yaml").read_text())
STAGES = PIPELINE["stages"]


def file_of(module: str) -> Path | None:
    complete = ROOT.joinpath(*module.split("."))
    return next(
        (
            file
            for file in (complete.with_suffix(".py"), complete / "__init__.py")
            if file.is_file()
        ),
        None,
    )


def imported(file: Path) -> set[Path]:
    """The project's files that one file imports, inside functions too, but not for types alone."""
    tree = ast.parse(file.read_text())
    types = {
        part
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for part in ast.walk(node)
    }
    names: set[str] = set()
    for node in set(ast.walk(tree)) - types:
        if isinstance(node, ast.Import):
            names |= {item.name for item in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{item.name}" for item in node.names)}
    return {
        result
        for name in names
        if name.split(".")[0] in ("pipeline", "grounding", "cli") and (result := file_of(name))
    }


def all_imported(start: Path) -> set[str]:
    """All that a file leads to, by path."""
    result, waiting = set(), [start]
    while waiting:
        if (file := waiting.pop()) not in result:
            result.add(file)
            waiting += imported(file)
    return {file.relative_to(ROOT).as_posix() for file in result}


def code_of(stage: str) -> tuple[list[str], set[str]]:
    """The files and folders of code that a stage depends on, and the files that its command
    imports.
    """
    command = STAGES[stage]["cmd"].split()[0].removeprefix("stvg-")
    deps = [dep for dep in STAGES[stage]["deps"] if dep.startswith(("pipeline/", "grounding/"))]
    return deps, all_imported(ROOT / "cli" / f"{'evaluate' if command == 'eval' else command}.py")


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_no_code_that_its_command_does_not_use(stage: str) -> None:
    deps, used = code_of(stage)
    assert [dep for dep in deps if not (ROOT / dep).exists()] == []
    data = [dep for dep in deps if dep.endswith((".yaml", "/templates"))]
    assert [
        dep
        for dep in deps
        if dep not in data and not any(file == dep or file.startswith(f"{dep}/") for file in used)
    ] == []


def test_training_is_done_again_when_any_code_of_grounding_changes_that_it_uses() -> None:
    deps, used = code_of("train")
    current = {
        file for file in used if file.startswith("grounding/") and not file.endswith("__init__.py")
    }
    assert (
        sorted(
            file
            for file in current
            if not any(file == dep or file.startswith(f"{dep}/") for dep in deps)
        )
        == []
    )


def paths_of(entries: list[dict[str, object]]) -> list[str]:
    return [path for entry in entries for path in entry]


def test_dvc_shows_the_summary_and_keeps_all_metrics() -> None:
    stage = STAGES["evaluate"]
    assert paths_of(stage["metrics"]) == ["runs/${dataset.name}/summary.json"]
    assert "runs/${dataset.name}/metrics.json" in paths_of(stage["outs"])
    assert all(options == {"cache": False} for out in stage["outs"] for options in out.values())


def test_dvc_draws_curves_that_training_writes() -> None:
    curves = "runs/${dataset.name}/curves/plots/metrics"
    drawing = {}
    for plot in PIPELINE["plots"]:
        for options in plot.values():
            assert options["x"] == "step"
            drawing |= options["y"]
    assert drawing == {
        f"{curves}/train/loss.tsv": "loss",
        f"{curves}/val/m_vIoU.tsv": "m_vIoU",
    }
