"""A sweep's numbers, recomputed by hand from the scores; its text and its pictures."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

import grounding.metrics.bootstrap
import grounding.sweep.statistics
from grounding.evaluation.config import EvaluateConfig
from grounding.evaluation.published import load_published
from grounding.metrics.bootstrap import confidence_intervals
from grounding.metrics.scores import MEAN_METRICS, Score
from grounding.sweep.figures import plot_learning_curves, plot_table
from grounding.sweep.markdown import (
    format_claims_table,
    format_cost_cells,
    format_difference,
    format_markdown_table,
    format_mean,
    format_published,
    list_warnings,
    render_markdown,
)
from grounding.sweep.outputs import write_table
from grounding.sweep.run import Sweep, plan_sweep, run_sweep
from grounding.sweep.statistics import build_query_groups, compute_estimates, compute_statistics
from grounding.sweep.tables import SweepTable
from pipeline.records import Query

Maker = Callable[..., Path]
QueryMaker = Callable[..., Query]
TINY: dict[str, Any] = yaml.safe_load(
    Path(__file__).with_name("sweep_recipe.yaml").read_text(encoding="utf-8")
) | {"validate_every": 2}
SOURCE = {
    "dataset": "hcstvg-v2",
    "split": "val",
    "method": "CSDVL",
    "names": {"full": "CSDVL", "none": "no collaboration"},
}
TABLE = SweepTable.model_validate(
    {
        "title": "a table",
        "system": "csdvl",
        "variants": {
            "full": {"label": "all of it"},
            "none": {"label": "less", "changes": {"model": {"collaboration": "none"}}},
            "alone": {
                "label": "time only",
                "changes": {"model": {"streams": "dynamic"}},
                "metrics": ["m_tIoU"],
            },
            "ensemble": {"label": "together", "derived_from": "full", "ensemble_seeds": True},
        },
        "sections": [
            {
                "title": "part",
                "reference": "full",
                "rows": ["full", "none", "alone", "ensemble"],
                "published": SOURCE,
            }
        ],
        "claims": [
            {"higher": "full", "lower": "none", "metric": "m_vIoU", "source": "a paper"},
            {"higher": "full", "lower": "alone", "metric": "m_vIoU", "source": "a paper"},
        ],
    }
)


@pytest.fixture(autouse=True)
def _few_videos_will_do(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """And where a whole table is made, few draws."""
    monkeypatch.setattr(grounding.metrics.bootstrap, "MIN_VIDEOS", 1)
    if "sweep" in request.fixturenames:
        monkeypatch.setattr(grounding.metrics.bootstrap, "NUM_RESAMPLES", 400)


@pytest.fixture
def sweep(make_store: Maker, make_query: QueryMaker) -> Sweep:
    queries = [make_query(n, "train") for n in range(8)] + [make_query(0, "val")]
    queries += [
        make_query(n, "test", tags=("odd",) * (n % 2), form="declarative") for n in range(6)
    ]
    store = make_store(queries)
    return plan_sweep(
        TABLE, store, store.parent / "sweep", lambda system: TINY, EvaluateConfig(device="cpu"), 2
    )


def scores_in(folder: Path, odd_only: bool = False) -> dict[str, np.ndarray]:
    """A run's scores, mean by mean, `[queries]`."""
    rows = json.loads((folder / "scores" / "test.json").read_text())
    rows = [row for row in rows if not odd_only or int(row["id"].split("-")[1]) % 2]
    volume = np.array([row["vIoU"] for row in rows])
    means = {
        "m_vIoU": volume,
        "m_tIoU": np.array([row["tIoU"] for row in rows]),
        "m_sIoU": np.array([row["sIoU"] for row in rows]),
    }
    return means | {"vIoU@0.3": volume > 0.3, "vIoU@0.5": volume > 0.5}


def test_the_numbers_are_those_of_the_scores(sweep: Sweep) -> None:
    table = compute_statistics(sweep, run_sweep(sweep))
    assert table["groups"] == {
        "all": {"queries": 6, "videos": 3},
        "declarative": {"queries": 6, "videos": 3},
        "odd": {"queries": 3, "videos": 3},
    }
    assert (
        table["dataset"],
        table["split"],
        table["seeds"],
        table["steps"],
        len(table["codes"]),
    ) == ("shapes", "test", [0, 1], [4], 1)
    for group in ("all", "odd"):
        for name in ("full", "none"):
            runs = [scores_in(sweep.out / name / f"seed-{seed}", group == "odd") for seed in (0, 1)]
            result = table["variants"][name]["groups"][group]
            assert list(result) == list(MEAN_METRICS)
            for mean, item in result.items():
                seeds = [run[mean].mean() for run in runs]
                assert item["seeds"] == pytest.approx(seeds)
                assert item["mean"] == pytest.approx(np.mean(seeds))
                assert item["spread"] == pytest.approx(abs(seeds[0] - seeds[1]) / np.sqrt(2))
                assert item["low"] <= item["mean"] <= item["high"]
    rows = {row["variant"]: row for row in table["sections"][0]["rows"]}
    assert "differences" not in rows["full"]
    variants = table["variants"]
    for name in ("none", "ensemble"):
        for mean, item in rows[name]["differences"]["odd"].items():
            current, other = (
                variants[name]["groups"]["odd"][mean],
                variants["full"]["groups"]["odd"][mean],
            )
            assert item["mean"] == pytest.approx(current["mean"] - other["mean"])
            assert item["seeds"] == pytest.approx(np.subtract(current["seeds"], other["seeds"]))
    together = scores_in(sweep.out / "ensemble" / "all-seeds")
    assert variants["ensemble"]["groups"]["all"]["m_vIoU"]["seeds"] == pytest.approx(
        [together["m_vIoU"].mean()]
    )
    assert variants["ensemble"]["groups"]["all"]["m_vIoU"]["spread"] is None
    assert (
        list(variants["alone"]["groups"]["all"])
        == list(rows["alone"]["differences"]["all"])
        == ["m_tIoU"]
    )
    assert table["claims"][0]["difference"] == pytest.approx(
        -rows["none"]["differences"]["all"]["m_vIoU"]["mean"]
    )
    assert (table["claims"][1]["difference"], table["claims"][1]["seen"]) == (None, "unclear")
    papers = next(
        item
        for item in load_published().tables
        if (item.dataset, item.split) == ("hcstvg-v2", "val")
    )
    assert rows["full"]["published"] == next(
        row.scores for row in papers.rows if row.method == "CSDVL"
    )
    assert rows["none"]["published"] == next(
        row.scores for row in papers.ablations if row.variant == "no collaboration"
    )
    assert rows["alone"]["published"] == rows["ensemble"]["published"] == {}


def test_files(sweep: Sweep) -> None:
    table = compute_statistics(sweep, run_sweep(sweep))
    names = [
        "table.json",
        "table.md",
        "table.png",
        "table-declarative.png",
        "table-odd.png",
        "curves.png",
    ]
    assert [path.name for path in write_table(table, sweep.out)] == names
    assert json.loads((sweep.out / "table.json").read_text()) == json.loads(json.dumps(table))
    text = (sweep.out / "table.md").read_text()
    assert all(f"![{name}]({name})" in text for name in names[2:])
    for name in names[2:]:
        with Image.open(sweep.out / name) as picture:
            assert picture.format == "PNG"
            assert picture.width > 800
    figure = plot_learning_curves(table, sweep.out)
    assert figure is not None
    assert [axes.get_title() for axes in figure.axes] == [
        "train/loss",
        "val/m_vIoU",
        "val/m_tIoU",
        "val/m_sIoU",
    ]
    assert [line.get_label() for line in figure.axes[2].lines] == ["full", "none", "alone"]
    assert [line.get_label() for line in figure.axes[1].lines] == [
        "full",
        "none",
    ]  # `alone` has no boxes
    assert figure.axes[1].lines[0].get_xdata().tolist() == [2, 4]
    dots = [line for line in plot_table(table).axes[1].lines if line.get_marker() == "o"]
    means = [100 * item["groups"]["all"]["m_tIoU"]["mean"] for item in table["variants"].values()]
    assert [float(dot.get_xdata()[0]) for dot in dots] == pytest.approx(means)


def stack_of(values: np.ndarray) -> np.ndarray:
    """Scores `[seeds, queries]` as `[seeds, queries, means]`: all means alike."""
    return np.repeat(values[:, :, None], len(MEAN_METRICS), 2)


def test_seeds_that_agree_leave_the_interval_of_videos() -> None:
    random = np.random.default_rng(0)
    values, videos = random.uniform(0, 1, 40), [f"v{n // 2}" for n in range(40)]
    scores = [
        Score(id=str(n), vIoU=value, tIoU=value, sIoU=value)
        for n, value in enumerate(values.tolist())
    ]
    known = confidence_intervals(
        scores, {item.id: video for item, video in zip(scores, videos, strict=True)}
    )
    result = compute_estimates(stack_of(np.stack([values] * 3)), videos, 0.0)["m_tIoU"]
    assert (result["low"], result["high"], result["spread"]) == pytest.approx(
        (known["m_tIoU_low"], known["m_tIoU_high"], 0.0)
    )


def test_videos_that_agree_leave_student_s_t_of_the_seeds() -> None:
    seeds = np.array([0.4, 0.5, 0.6])
    result = compute_estimates(
        stack_of(np.repeat(seeds[:, None], 40, 1)), [f"v{n}" for n in range(40)], 0.0
    )["m_vIoU"]
    half = 4.303 * 0.1 / np.sqrt(3)  # t of 2 degrees of freedom at 97.5 %
    assert (result["mean"], result["spread"]) == pytest.approx((0.5, 0.1))
    assert (result["low"], result["high"]) == pytest.approx((0.5 - half, 0.5 + half), abs=0.03)


def test_what_is_hard_for_both_cancels() -> None:
    random = np.random.default_rng(0)
    hard = random.uniform(0, 0.8, (1, 60)).repeat(2, 0)
    current, other = stack_of(hard + 0.1), stack_of(hard)
    difference = compute_estimates(current - other, [f"v{n}" for n in range(60)], -1.0)["m_vIoU"]
    assert (difference["mean"], difference["low"], difference["high"]) == pytest.approx(
        (0.1, 0.1, 0.1)
    )


def test_few_videos_and_unknown_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grounding.metrics.bootstrap, "MIN_VIDEOS", 10)
    stack = stack_of(np.array([[0.1, 0.3], [0.3, 0.5]]))
    stack[:, 1, 0] = np.nan  # one query's truth has no boxes
    stack[:, :, 2] = np.nan  # no query's has
    result = compute_estimates(stack, ["a", "b"], 0.0)
    assert result["m_vIoU"]["seeds"] == pytest.approx([0.1, 0.3])
    assert result["m_tIoU"]["mean"] == pytest.approx(0.3)
    assert (result["m_tIoU"]["low"], result["m_tIoU"]["high"]) == (None, None)
    assert "m_sIoU" not in result


def test_groups_are_forms_and_tags(make_query: QueryMaker) -> None:
    queries = [
        make_query(0, "test", tags=("b", "a")),
        make_query(1, "test", tags=("a",), form="interrogative"),
    ]
    result = build_query_groups(queries, ["test-1", "test-0"])
    assert {name: rows.tolist() for name, rows in result.items()} == {
        "all": [True, True],
        "a": [True, True],
        "b": [False, True],
        "interrogative": [True, False],
    }


def made_up(low: float, high: float) -> dict[str, Any]:
    """A table of one section with one difference, in the form of `table.json`."""
    item = {"mean": (low + high) / 2, "low": low, "high": high, "seeds": [0.1, 0.2], "spread": 0.1}
    rows = [
        {"variant": "full", "published": {"m_vIoU": 38.7}},
        {
            "variant": "none",
            "published": {"m_vIoU": 36.4},
            "differences": {"all": {"m_vIoU": item}},
        },
    ]
    return {
        "title": "made up",
        "dataset": "shapes",
        "split": "test",
        "protocol": "every-frame",
        "seeds": [0, 1],
        "steps": [1200],
        "codes": ["a"],
        "groups": {"all": {"queries": 480, "videos": 60}},
        "variants": {
            name: {"shows": name, "of": None, "runs": [], "groups": {"all": {"m_vIoU": item}}}
            for name in ("full", "none")
        },
        "sections": [
            {
                "title": "part",
                "reference": "full",
                "rows": rows,
                "published": {"method": "CSDVL", "dataset": "hcstvg-v2", "split": "val"},
            }
        ],
        "claims": [
            {
                "higher": "full",
                "lower": "none",
                "metric": "m_vIoU",
                "source": "x",
                "difference": None,
                "low": None,
                "high": None,
                "seen": "no",
            }
        ],
    }


def test_text_is_in_percent() -> None:
    item = {"mean": -0.03141, "low": -0.05, "high": 0.0004}
    assert format_difference(item) == "-3.1 [-5.0, +0.0]"
    assert format_mean({"mean": 0.62, "low": None, "high": None}) == "62.0"
    assert (format_mean(None), format_difference(None)) == ("–", "–")
    section = made_up(-0.1, 0.1)["sections"][0]
    texts = [format_published(section, row, "m_vIoU") for row in section["rows"]]
    assert texts == ["38.7", "36.4 (-2.3)"]
    assert format_published(section, section["rows"][0], "m_sIoU") == "–"
    assert (
        format_markdown_table(["a", "b"], [["1", "2|3"]])
        == "| a | b |\n| --- | --- |\n| 1 | 2\\|3 |"
    )


def test_only_sure_differences_are_bold() -> None:
    sure, unsure = (
        render_markdown(made_up(-0.3, -0.1), ["table.png"]),
        render_markdown(made_up(-0.3, 0.1), []),
    )
    assert "| none | **-20.0 [-30.0, -10.0]** |" in sure
    assert "| none | -10.0 [-30.0, +10.0] |" in unsure
    assert "480 queries about 60 videos. 2 seeds (0, 1), 1,200 steps each" in sure
    assert "full > none by m_vIoU | x | – | no" in format_claims_table(made_up(0, 0))


def test_runs_that_were_not_trained_alike_are_named() -> None:
    assert list_warnings(made_up(0, 0)) == []
    other = made_up(0, 0) | {"steps": [600, 1200], "codes": ["a", "b"]}
    steps, codes = list_warnings(other)
    assert "differ in their steps (600, 1200)" in steps
    assert "2 versions of the code" in codes


def test_what_systems_cost_stands_beside_their_means() -> None:
    table = made_up(0.1, 0.3) | {"unit": "full", "steps": [200, 1200], "claims": []}
    table["variants"]["full"] |= {
        "system": "csdvl",
        "parameters": 314159,
        "steps": 1200,
        "cost": {"step_time": 1.0, "memory": 1.0},
    }
    table["variants"]["none"] |= {
        "system": "costa",
        "parameters": 235_000_000,
        "steps": 200,
        "cost": {"step_time": 6.0, "memory": 4.25},
    }
    table["variants"]["ensemble"] = {"shows": "together", "of": "full"}
    text = render_markdown(table, [])
    assert (
        "| full | 20.0 [10.0, 30.0] | – | – | – | – | 0.31 M | 1,200 | 1.00 | 1.00 |"
        " m_vIoU: 10.0, 20.0 |" in text
    )
    assert "| 235.00 M | 200 | 6.00 | 4.25 |" in text
    assert "| parameters | steps | step ÷ full's | memory ÷ full's |" in text
    assert format_cost_cells(table, "ensemble") == ["–"] * 4
    assert "2 seeds (0, 1), all trained for the time of 1,200 steps of full." in text
    assert "differ in their steps" not in text, "it is planned so"
    assert "What the paper says" not in text, "no paper says anything"


def test_a_table_without_costs_reads_as_ever() -> None:
    folder = Path(__file__).parents[3] / "benchmarks" / "results" / "shapes-ablations"
    text = (folder / "table.md").read_text(encoding="utf-8")
    assert (
        render_markdown(
            json.loads((folder / "table.json").read_text(encoding="utf-8")),
            re.findall(r"!\[(.*?)\]", text),
        )
        == text
    )


def test_claims_are_seen_unclear_or_contradicted(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of scores set by hand the verdicts follow."""
    monkeypatch.setattr(
        grounding.sweep.statistics, "read_provenance", lambda run: {"finished": 4, "code": "a"}
    )

    def runs_of(name: str, levels: list[float]) -> list[list[Score]]:
        run = [
            Score(id=f"test-{n}", vIoU=level, tIoU=level, sIoU=level)
            for n, level in enumerate(levels)
        ]
        return [run] * len(sweep.seeds_for_variant(name))

    def verdict(level: float) -> str:
        results = {name: runs_of(name, [0.4, 0.5, 0.6] * 2) for name in TABLE.variants}
        return compute_statistics(sweep, {**results, "full": runs_of("full", [level] * 6)})[
            "claims"
        ][0]["seen"]

    assert [verdict(level) for level in (0.9, 0.1, 0.5)] == ["yes", "no", "unclear"]
