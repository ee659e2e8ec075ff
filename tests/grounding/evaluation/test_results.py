"""Result files of a run: `summary.json` has the dozen numbers that matter of `metrics.json`."""

from __future__ import annotations

import json
from pathlib import Path

from grounding.evaluation.results import SUMMARY_KEYS, select_summary, write_results
from grounding.metrics.scores import Score

METRICS: dict[str, float] = {
    "m_vIoU": 0.5,
    "m_tIoU": 0.6,
    "m_sIoU": 0.7,
    "vIoU@0.3": 0.8,
    "vIoU@0.5": 0.4,
    "queries": 2,
    "boxed_queries": 2,
    "unanswered": 1,
    "m_vIoU_low": 0.4,
    "m_vIoU_high": 0.6,
    "m_tIoU_low": 0.5,
    "baseline_m_vIoU": 0.1,
    "random_m_vIoU": 0.0,
    "declarative_m_vIoU": 0.5,
    "look-alike_m_vIoU": 0.3,
    "same-motion_m_vIoU": 0.2,
}
SUMMARY = {
    "m_vIoU": 0.5,
    "m_tIoU": 0.6,
    "m_sIoU": 0.7,
    "vIoU@0.3": 0.8,
    "vIoU@0.5": 0.4,
    "m_vIoU_low": 0.4,
    "m_vIoU_high": 0.6,
    "baseline_m_vIoU": 0.1,
    "look-alike_m_vIoU": 0.3,
    "same-motion_m_vIoU": 0.2,
    "queries": 2,
    "missing_predictions": 1,
}
SCORES = [Score(id="a", vIoU=1.0, tIoU=1.0, sIoU=1.0)]


def read(path: Path) -> dict[str, float]:
    return json.loads(path.read_text(encoding="utf-8"))


def test_the_summary_is_a_dozen_of_the_metrics() -> None:
    summary = select_summary(METRICS, [""])
    assert summary == SUMMARY
    assert len(summary) == len(SUMMARY_KEYS) == 12


def test_metrics_that_do_not_exist_are_left_out() -> None:
    assert select_summary({"m_tIoU": 0.5, "random_m_tIoU": 0.1}, [""]) == {"m_tIoU": 0.5}


def test_both_files_are_written(tmp_path: Path) -> None:
    write_results(tmp_path, "test", [], SCORES, METRICS)
    assert read(tmp_path / "metrics.json") == METRICS
    assert read(tmp_path / "summary.json") == SUMMARY


def test_each_split_has_its_summary(tmp_path: Path) -> None:
    write_results(tmp_path, "val", [], SCORES, METRICS)
    val_summary = {f"val_{key}": value for key, value in SUMMARY.items()}
    assert read(tmp_path / "summary.json") == val_summary

    write_results(tmp_path, "test", [], SCORES, METRICS)
    summary = read(tmp_path / "summary.json")
    assert summary == SUMMARY | val_summary
    assert next(iter(summary)) == "m_vIoU"
