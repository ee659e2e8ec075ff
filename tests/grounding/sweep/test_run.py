"""Sweeps: what is there is not made again, what was stopped goes on, and derived variants ask the
runs they name.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from safetensors.torch import load_file

import grounding.sweep.run
from grounding.evaluation.config import EvaluateConfig
from grounding.evaluation.evaluate import predict_split
from grounding.metrics.scores import read_scores
from grounding.sweep.run import Sweep, SweepProgress, SweepScores, plan_sweep, run_sweep
from grounding.sweep.tables import SweepTable, load_table, load_tables
from grounding.systems.registry import get_preset, get_system
from grounding.training.run_directory import lock_run_dir
from pipeline.config import merge, validate
from pipeline.errors import InputError
from tests.grounding.conftest import build_query, build_store

Maker = Callable[..., Path]
TINY: dict[str, Any] = yaml.safe_load(
    Path(__file__).with_name("sweep_recipe.yaml").read_text(encoding="utf-8")
)
TABLE: dict[str, Any] = {
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
        "ensemble": {"label": "together", "derived_from": "full", "ensemble_seeds": True},
    },
    "sections": [
        {"title": "part", "reference": "full", "rows": ["full", "none", "more_frames", "ensemble"]}
    ],
    "claims": [{"higher": "full", "lower": "none", "metric": "m_vIoU", "source": "a paper"}],
}
RUNS = ["full/seed-0", "none/seed-0", "full/seed-1", "none/seed-1"]


class Killed(BaseException):
    """Ends a sweep at once."""


def build_sweep_store(folder: Path) -> Path:
    train_queries = [build_query(n, "train") for n in range(8)]
    test_queries = [build_query(n, "test", tags=("odd",) * (n % 2)) for n in range(4)]
    return build_store(folder, train_queries + test_queries)


@pytest.fixture
def sweep_store(tmp_path: Path) -> Path:
    return build_sweep_store(tmp_path)


class FinishedSweep(NamedTuple):
    """A sweep that ran to its end.

    Attributes:
        store: Its store; the sweep lies beside it.
        steps: Steps that it reported while it ran.
        results: Its scores.
    """

    store: Path
    steps: list[int]
    results: SweepScores


@pytest.fixture(scope="module")
def shared_sweep(tmp_path_factory: pytest.TempPathFactory) -> FinishedSweep:
    """Read only."""
    store = build_sweep_store(tmp_path_factory.mktemp("finished"))
    return FinishedSweep(store, *steps_taken(sweep_of(store)))


@pytest.fixture
def finished_sweep(shared_sweep: FinishedSweep, tmp_path: Path) -> FinishedSweep:
    """A copy of the finished sweep with its store, for this test alone."""
    folder = tmp_path / "finished"
    shutil.copytree(shared_sweep.store.parent, folder)
    return shared_sweep._replace(store=folder / shared_sweep.store.name)


def sweep_of(
    store: Path, seeds: int = 2, changes: dict[str, Any] | None = None, **values: Any
) -> Sweep:
    table = SweepTable.model_validate(merge(TABLE, changes or {}))
    return plan_sweep(
        table,
        store,
        store.parent / "sweep",
        lambda system: merge(TINY, values),
        EvaluateConfig(device="cpu"),
        seeds,
    )


def files_of(sweep: Sweep) -> dict[str, int]:
    """When every file of a sweep was last written, in ns."""
    return {
        path.relative_to(sweep.out).as_posix(): path.stat().st_mtime_ns
        for path in sweep.out.rglob("*")
        if path.is_file()
    }


def steps_taken(sweep: Sweep) -> tuple[list[int], SweepScores]:
    """The steps that a sweep says it is at while it runs, and its results."""
    places: list[SweepProgress] = []
    results = run_sweep(sweep, places.append)
    assert places[-1].finished_runs == places[-1].total_runs == len(list(sweep.iterate_runs()))
    return [place.finished_steps for place in places], results


def test_what_another_process_makes_is_left_to_it_and_waited_for(
    sweep_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first run is held by another until all others are made."""
    monkeypatch.setattr(grounding.sweep.run, "POLL_SECONDS", 0.0)
    sweep, order = sweep_of(sweep_store), list[str]()
    with ExitStack() as other:
        other.enter_context(lock_run_dir(sweep.get_run_dir("full", 0)))

        def watch(place: SweepProgress) -> None:
            if place.activity not in order[-1:] and not place.activity.startswith("evaluating"):
                order.append(place.activity)
            if place.activity.startswith("waiting"):
                other.close()

        results = run_sweep(sweep, watch)
    waiting = "waiting for other processes to make full"
    assert order[:5] == ["none, seed 0", "full, seed 1", "none, seed 1", waiting, "full, seed 0"]
    assert results == {
        name: [
            read_scores(sweep.get_run_dir(name, seed) / "scores" / "test.json")
            for seed in sweep.seeds_for_variant(name)
        ]
        for name in results
    }
    assert [len(results[name]) for name in TABLE["variants"]] == [2, 2, 2, 1]


def test_every_run_is_made_in_order_and_judged(shared_sweep: FinishedSweep) -> None:
    sweep = sweep_of(shared_sweep.store)
    steps, results = shared_sweep.steps, shared_sweep.results
    assert sorted(set(steps)) == list(range(17))  # two variants, two seeds, four steps each
    assert {name: len(runs) for name, runs in results.items()} == {
        "full": 2,
        "none": 2,
        "more_frames": 2,
        "ensemble": 1,
    }
    for name, seed in sweep.iterate_runs():
        folder = sweep.get_run_dir(name, seed)
        assert (
            read_scores(folder / "scores" / "test.json")
            == results[name][0 if seed is None else seed]
        )
        assert (folder / "predictions" / "test.jsonl").exists()
        assert "m_vIoU" in json.loads((folder / "metrics.json").read_text())
    assert [
        sweep.get_run_dir(*run).relative_to(sweep.out).as_posix() for run in sweep.iterate_runs()
    ][:4] == RUNS
    train_sections = [
        yaml.safe_load((sweep.out / run / "config.yaml").read_text())["train"] for run in RUNS
    ]
    assert [(kind["model"]["collaboration"], kind["seed"]) for kind in train_sections] == [
        ("full", 0),
        ("none", 0),
        ("full", 1),
        ("none", 1),
    ]


def test_what_is_there_is_not_made_again(finished_sweep: FinishedSweep) -> None:
    sweep = sweep_of(finished_sweep.store)
    old_files = files_of(sweep)
    assert steps_taken(sweep) == ([0] * 8, finished_sweep.results)
    assert files_of(sweep) == old_files


def test_more_seeds_make_only_the_new_runs(finished_sweep: FinishedSweep) -> None:
    old_files = files_of(sweep_of(finished_sweep.store))
    more = sweep_of(finished_sweep.store, seeds=3)
    results = run_sweep(more)
    assert [len(results[name]) for name in TABLE["variants"]] == [3, 3, 3, 1]
    new_files = files_of(more)
    changed = {
        Path(name).parent.as_posix()
        for name, time in new_files.items()
        if old_files.get(name) != time
    }
    assert {
        name.split("/curves")[0].split("/checkpoints")[0]
        for name in changed
        if "seed-2" not in name
    } <= {
        "ensemble/all-seeds",
        "ensemble/all-seeds/scores",
        "ensemble/all-seeds/predictions",
        *("full", "none", "more_frames"),  # the locks beside the runs
    }


@pytest.mark.parametrize("kill_step", [3, 4, 14])
def test_a_killed_sweep_ends_as_if_it_had_not_been(
    sweep_store: Path, shared_sweep: FinishedSweep, kill_step: int
) -> None:
    """Step 4 is the end of the first run, before it is judged; 14 lies between two checkpoints of
    the last.
    """

    def kill(place: SweepProgress) -> None:
        if place.finished_steps == kill_step:
            raise Killed

    sweep = sweep_of(sweep_store)
    with pytest.raises(Killed):
        run_sweep(sweep, kill)
    steps, results = steps_taken(sweep)
    assert min(step for step in steps if step) >= kill_step - 1, "what was trained is trained again"
    assert results == shared_sweep.results
    for run in RUNS:
        resumed, uninterrupted = (
            load_file(folder / run / "checkpoints" / "last" / "model.safetensors")
            for folder in (sweep.out, sweep_of(shared_sweep.store).out)
        )
        assert all(bool((resumed[key] == uninterrupted[key]).all()) for key in uninterrupted)


def test_scores_that_somebody_else_wrote_are_made_again(finished_sweep: FinishedSweep) -> None:
    sweep, results = sweep_of(finished_sweep.store), finished_sweep.results
    path = sweep.get_run_dir("none", 1) / "scores" / "test.json"
    path.write_text("[]")
    assert steps_taken(sweep)[1] == results
    assert read_scores(path) == results["none"][1]


def test_derived_variants_ask_the_runs_they_name(
    sweep_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predicted_runs = []

    def note(runs: Any, store: Path, settings: EvaluateConfig, *rest: Any) -> Any:
        predicted_runs.append(
            ([run.relative_to(sweep.out).as_posix() for run in runs], settings.frames)
        )
        return predict_split(runs, store, settings, *rest)

    monkeypatch.setattr(grounding.sweep.run, "predict_split", note)
    sweep = sweep_of(sweep_store)
    run_sweep(sweep)
    assert predicted_runs[:4] == [([run], None) for run in RUNS]
    assert predicted_runs[4:] == [
        (["full/seed-0"], 8),
        (["full/seed-1"], 8),
        (["full/seed-0", "full/seed-1"], None),
    ]


def test_other_settings_need_another_folder(finished_sweep: FinishedSweep) -> None:
    sweep_store = finished_sweep.store
    with pytest.raises(
        InputError, match=r"full/seed-0 cannot be resumed: lr differ.*another --out than .*sweep"
    ):
        run_sweep(sweep_of(sweep_store, lr=1e-3))
    with pytest.raises(
        InputError, match=r"full/seed-0 was trained with max_steps 4, not 5.*another --out"
    ):
        run_sweep(sweep_of(sweep_store, max_steps=5))
    with pytest.raises(InputError, match=r"none/seed-0 cannot be resumed: model differ"):
        run_sweep(
            sweep_of(
                sweep_store,
                changes={"variants": {"none": {"changes": {"model": {"collaboration": "s2d"}}}}},
            )
        )
    old_files = (
        (sweep_of(sweep_store).out / "full/seed-0/checkpoints/last/model.safetensors")
        .stat()
        .st_mtime_ns
    )
    run_sweep(sweep_of(sweep_store, log_every=3))  # changes nothing that is learned
    assert (
        sweep_of(sweep_store).out / "full/seed-0/checkpoints/last/model.safetensors"
    ).stat().st_mtime_ns == old_files


def test_what_cannot_work_is_said_before_training(
    sweep_store: Path, shapes_store: Path, make_store: Maker
) -> None:
    with pytest.raises(InputError, match="--seeds 1: a table over seeds needs at least 2"):
        sweep_of(sweep_store, seeds=1)
    with pytest.raises(InputError, match=r"variant 'none': unknown key 'model\.nothing'"):
        sweep_of(
            sweep_store, changes={"variants": {"none": {"changes": {"model": {"nothing": 1}}}}}
        )
    with pytest.raises(InputError, match="variant 'more_frames': unknown key 'nothing'"):
        sweep_of(sweep_store, changes={"variants": {"more_frames": {"evaluate": {"nothing": 1}}}})
    with pytest.raises(InputError, match="no query is of split 'test'; the index has train, val"):
        sweep_of(shapes_store)
    store_without_truth = make_store(
        [build_query(0, "train"), build_query(1, "test", truth=None)], "blind"
    )
    with pytest.raises(InputError, match="no query of split 'test' has a ground truth"):
        sweep_of(store_without_truth)


def test_tables_are_named() -> None:
    with pytest.raises(
        InputError,
        match=r"there is no table 'other'; the tables are csdvl, cgstvg, .*: give one with --table",
    ):
        load_table("other")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variants": {"a/b": {"label": "x"}}}, "variant 'a/b': a name is letters, digits and _"),
        (
            {"claims": [{"higher": "fall", "lower": "none", "metric": "m_vIoU", "source": "x"}]},
            "no variant 'fall'; the variants are full, none",
        ),
        (
            {"variants": {"x": {"label": "x", "derived_from": "ensemble"}}},
            "variant 'x' is derived from 'ensemble', which is not trained itself",
        ),
        (
            {"variants": {"x": {"label": "x", "test_frames_multiplier": 2}}},
            "need `derived_from`, the variant whose runs predict",
        ),
        (
            {"variants": {"x": {"label": "x", "derived_from": "full", "changes": {"model": {}}}}},
            "with `changes` or derived with `derived_from`, not both",
        ),
        (
            {"variants": {"x": {"label": "x", "changes": {"max_steps": {}}}}},
            "changes are of model and loss, not of max_steps",
        ),
        ({"variants": {"x": {}}}, "label"),
        ({"system": None}, "variant 'full' needs a `system`, for the table has none"),
        (
            {"variants": {"full": {"cost": {"step_time": 1, "memory": 1}}}},
            "variant 'none' needs a `cost`: all that are trained have one",
        ),
        (
            {
                "variants": {
                    name: {"cost": {"step_time": 2, "memory": 1}} for name in ("full", "none")
                }
            },
            "variant 'full': costs are multiples of its own, which are 1",
        ),
        (
            {"variants": {"ensemble": {"system": "costa"}}},
            "derived with `derived_from`, not both; `system` and `cost` are of training",
        ),
        ({"sections": []}, "sections"),
    ],
)
def test_a_table_that_cannot_be_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    (tmp_path / "sweeps.yaml").write_text(
        yaml.safe_dump({"mine": merge(TABLE, changes)}, sort_keys=False)
    )
    with pytest.raises(InputError, match=f"table 'mine'.*{message}"):
        load_tables(tmp_path / "sweeps.yaml")


def test_a_file_that_is_no_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "sweeps.yaml").write_text("{")
    with pytest.raises(InputError, match="cannot be read as YAML"):
        load_tables(tmp_path / "sweeps.yaml")


@pytest.mark.parametrize("name", load_tables())
def test_shipped_tables_fit_their_system_and_the_published_results(name: str) -> None:
    table = load_table(name)
    for trained, variant in table.trained_variants.items():
        system = get_system(table.system_for_variant(trained))
        for values in system.presets:
            validate(
                system.config_class,
                merge(get_preset(values, table.system_for_variant(trained)), variant.changes),
                "a preset",
            )
    for variant in table.derived_variants.values():
        validate(EvaluateConfig, variant.evaluate, "evaluate")
    for section in table.sections:
        assert section.reference in section.rows
        if section.published is not None:
            assert all(section.published.scores(variant) for variant in section.published.names)
    shown_variants = {row for section in table.sections for row in section.rows}
    assert shown_variants == set(table.variants)


def test_published_figures_are_the_papers() -> None:
    collaboration = load_table("csdvl").sections[0].published
    assert collaboration is not None
    assert [
        collaboration.scores(name).get("m_vIoU")
        for name in ("full", "s2d", "d2s", "none", "no_mixing")
    ] == [
        38.7,
        37.5,
        37.1,
        36.4,
        None,
    ]
