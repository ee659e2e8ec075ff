"""A sweep: every variant of a table, trained over several seeds and judged. Stopped anywhere, it goes on where it was; started
several times, on one machine or on several that share a folder, the processes divide the work among them.

Each trained variant and seed is an ordinary run directory, `<out>/<variant>/seed-<n>`; what is derived without training
has predictions, scores and metrics alone. Beside them `judged.json` says what they were made from: results that are
there, made from the same and unchanged since, are not made again.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from grounding.evaluation.config import EvaluateConfig
from grounding.evaluation.evaluate import evaluate, predict_split
from grounding.evaluation.ground_truth import GroundTruth, load_ground_truth
from grounding.evaluation.results import write_results
from grounding.metrics.scores import Score, read_scores
from grounding.structures.tubes import Tubes
from grounding.sweep.tables import SweepTable, Variant
from grounding.sweep.time_budget import equalize_training_time
from grounding.systems.checkpoint import CONFIG_FILE, compute_code_digest, read_provenance
from grounding.systems.config import TrainConfig
from grounding.systems.registry import get_system
from grounding.training.run_directory import (
    RESUMABLE_KEYS,
    RunInUseError,
    lock_run_dir,
    prepare_run_dir,
)
from grounding.training.train import train
from pipeline import config as configuration
from pipeline.config import merge, validate
from pipeline.errors import InputError
from pipeline.io.jsonl import write_json
from pipeline.store import Store
from pipeline.store.manifest import compute_files_digest

EVALUATION_RECORD_FILE = "judged.json"
MIN_SEEDS = 2
POLL_SECONDS = 2.0
"""Between two looks at what other processes are making."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SweepProgress:
    """How far a sweep is: `run` of `runs` are made, and `step` of `steps` of training are done over all of them (0 of 0 until known)."""

    activity: str
    finished_runs: int
    total_runs: int
    finished_steps: int = 0
    total_steps: int = 0


SweepProgressCallback = Callable[[SweepProgress], None]
SweepScores = dict[str, list[list[Score]]]
"""Variant → the scores of each seed's run, or of the one ensemble."""


@dataclass(frozen=True)
class Sweep:
    """A table over a store: where its runs lie, and their configurations."""

    table: SweepTable
    store: Path
    out: Path
    train_configs: Mapping[str, TrainConfig]
    """Of the trained variants; `seed` is the first seed's."""
    evaluate_configs: Mapping[str, EvaluateConfig]
    seeds: Sequence[int]
    ground_truth: GroundTruth
    split: str
    store_digest: str = field(repr=False)
    """The store's digest."""

    def get_train_config(self, variant: str, seed: int) -> TrainConfig:
        return self.train_configs[variant].model_copy(update={"seed": seed})

    def get_run_dir(self, variant: str, seed: int | None) -> Path:
        """The directory of a variant's run; `seed` is None for the answer of all seeds together."""
        return self.out / variant / ("all-seeds" if seed is None else f"seed-{seed}")

    def seeds_for_variant(self, variant: str) -> Sequence[int | None]:
        return [None] if self.table.variants[variant].ensemble_seeds else self.seeds

    def iterate_runs(self) -> Iterator[tuple[str, int | None]]:
        """All there is to make, in order: every variant with the first seed, then with the next; then what is derived."""
        yield from ((name, seed) for seed in self.seeds for name in self.table.trained_variants)
        yield from (
            (name, seed)
            for name in self.table.derived_variants
            for seed in self.seeds_for_variant(name)
        )


def plan_sweep(
    table: SweepTable,
    store: Path,
    out: Path,
    load_train_section: Callable[[str], Mapping[str, Any]],
    evaluate_config: EvaluateConfig,
    num_seeds: int,
) -> Sweep:
    """Check all that can be checked before hours of training. `values`: a system's section `train`, whose `seed` is the first one."""
    if num_seeds < MIN_SEEDS:
        raise InputError(f"--seeds {num_seeds}: a table over seeds needs at least {MIN_SEEDS}")
    configs = equalize_training_time(
        table,
        {
            name: _build_train_config(table, name, load_train_section)
            for name in table.trained_variants
        },
    )
    asked = {
        name: _build_evaluate_config(
            name, variant, configs[variant.derived_from or name], evaluate_config
        )
        for name, variant in table.variants.items()
    }
    exam = load_ground_truth(store / "index.jsonl", evaluate_config.split)
    if not len(exam.true_tubes.tubes):
        raise InputError(
            f"store {store}: no query of split {evaluate_config.split!r} has a truth to judge by"
        )
    first = next(iter(configs.values())).seed
    numbers = range(first, first + num_seeds)
    return Sweep(
        table,
        store,
        out,
        configs,
        asked,
        numbers,
        exam,
        evaluate_config.split,
        Store(store).manifest_digest,
    )


def _build_train_config(
    table: SweepTable, name: str, load_train_section: Callable[[str], Mapping[str, Any]]
) -> TrainConfig:
    """How a variant is trained."""
    system, changes = table.system_for_variant(name), table.variants[name].changes
    return validate(
        get_system(system).config_class,
        merge(load_train_section(system), changes),
        f"section 'train', variant {name!r}",
    )


def _build_evaluate_config(
    name: str, variant: Variant, train_config: TrainConfig, evaluate_config: EvaluateConfig
) -> EvaluateConfig:
    """How a variant's runs are asked."""
    changes = dict(variant.evaluate)
    if variant.test_frames_multiplier > 1:
        changes["frames"] = variant.test_frames_multiplier * (
            evaluate_config.frames or train_config.model.num_frames
        )
    return validate(
        EvaluateConfig,
        merge(evaluate_config.model_dump(), changes),
        f"section 'evaluate', variant {name!r}",
    )


def run_sweep(sweep: Sweep, progress: SweepProgressCallback = lambda place: None) -> SweepScores:
    """Make what is missing, and read the scores of all. Several processes may work at one sweep: each takes what no other has."""
    runs = list(sweep.iterate_runs())
    trained = len(sweep.table.trained_variants) * len(sweep.seeds)
    made: dict[tuple[str, int | None], list[Score]] = {}
    place = SweepProgress("", 0, len(runs))

    def at(step: int, steps: int) -> None:
        nonlocal place
        own = {name: config.max_steps or steps for name, config in sweep.train_configs.items()}
        done = sum(own[name] for name, _ in made)
        place = replace(
            place, finished_steps=done + step, total_steps=len(sweep.seeds) * sum(own.values())
        )
        progress(place)

    def judging() -> None:
        progress(replace(place, activity=f"judging {place.activity}"))

    for part in (runs[:trained], runs[trained:]):  # what is derived asks all that is trained
        while left := [one for one in part if one not in made]:
            before = len(made)
            for name, seed in left:
                with suppress(RunInUseError), lock_run_dir(sweep.get_run_dir(name, seed)):
                    place = replace(
                        place,
                        activity=f"{name}, {'all seeds' if seed is None else f'seed {seed}'}",
                        finished_runs=len(made),
                    )
                    progress(place)
                    if seed is not None and sweep.table.variants[name].derived_from is None:
                        _train_run(sweep, name, seed, at, judging)
                    else:
                        _evaluate_derived(sweep, name, seed, judging)
                    made[name, seed] = read_scores(
                        _get_scores_path(sweep, sweep.get_run_dir(name, seed))
                    )
            if len(made) == before:
                progress(
                    replace(
                        place,
                        activity=f"waiting for other processes to make {', '.join(name for name, _ in left)}",
                        finished_runs=len(made),
                    )
                )
                time.sleep(POLL_SECONDS)
    progress(replace(place, activity="all made", finished_runs=len(runs)))
    return {
        name: [made[name, seed] for seed in sweep.seeds_for_variant(name)]
        for name in sweep.table.variants
    }


def _train_run(
    sweep: Sweep,
    name: str,
    seed: int,
    report_step: Callable[[int, int], None],
    report_evaluation: Callable[[], None],
) -> None:
    """Train a run to its end and judge it, unless that has been done."""
    run, config = sweep.get_run_dir(name, seed), sweep.get_train_config(name, seed)
    made = {
        "store": sweep.store_digest,
        "train": {
            key: value
            for key, value in config.model_dump(mode="json").items()
            if key not in _get_ignored_train_keys()
        },
        "evaluate": _dump_prediction_settings(sweep.evaluate_configs[name]),
        "code": compute_code_digest(),
    }
    if _is_finished(run) and _is_evaluated(sweep, run, made):
        return
    log.info("training %s", run)
    _prepare_run(sweep, run, config)
    train(sweep.store, run, config, report_step)
    if not _is_finished(run):
        raise InputError(f"{run} was stopped before its last step: run the same command again")
    report_evaluation()
    _evaluate_runs(sweep, [run], run, sweep.evaluate_configs[name], made)


def _prepare_run(sweep: Sweep, run: Path, config: TrainConfig) -> None:
    """Take up a run, or start it. One that is finished must be of this configuration and of this many steps."""
    finished = _is_finished(run)
    try:
        if (
            finished
            and (was := configuration.read_section(run / CONFIG_FILE, "train").get("max_steps"))
            != config.max_steps
        ):
            raise InputError(
                f"{run} was trained with max_steps {was}, not {config.max_steps}: its schedule was another"
            )
        prepare_run_dir(sweep.store, run, config, resume=finished)
    except InputError as error:
        raise InputError(
            f"{error}; for a sweep with other settings name another --out than {sweep.out}"
        ) from None


def _evaluate_derived(
    sweep: Sweep, name: str, seed: int | None, report_evaluation: Callable[[], None]
) -> None:
    """Let trained runs answer in another way, and judge that, unless it has been done."""
    variant = sweep.table.variants[name]
    assert variant.derived_from is not None
    sources = [
        sweep.get_run_dir(variant.derived_from, number)
        for number in (sweep.seeds if seed is None else [seed])
    ]
    made = {
        "store": sweep.store_digest,
        "of": [
            _read_evaluation_record(source)["made"]["train"]
            | {"code": read_provenance(source)["code"]}
            for source in sources
        ],
        "evaluate": _dump_prediction_settings(sweep.evaluate_configs[name]),
        "code": compute_code_digest(),
    }
    folder = sweep.get_run_dir(name, seed)
    if not _is_evaluated(sweep, folder, made):
        report_evaluation()
        _evaluate_runs(sweep, sources, folder, sweep.evaluate_configs[name], made)


def _evaluate_runs(
    sweep: Sweep,
    runs: Sequence[Path],
    run_dir: Path,
    evaluate_config: EvaluateConfig,
    origin: Mapping[str, Any],
) -> None:
    """Let runs answer, write what `stvg-eval` writes into `folder`, and what it was made from."""
    log.info("judging %s", run_dir)
    (run_dir / EVALUATION_RECORD_FILE).unlink(missing_ok=True)
    answers, missing = predict_split(runs, sweep.store, evaluate_config)
    if missing:
        log.warning(
            "%s: %d queries score 0, the store has no features of them", run_dir, len(missing)
        )
    write_results(
        run_dir,
        sweep.split,
        answers,
        *evaluate(sweep.ground_truth, Tubes.from_predictions(answers), seed=evaluate_config.seed),
    )
    write_json(
        run_dir / EVALUATION_RECORD_FILE,
        {
            "format": 1,
            "made": origin,
            "scores": compute_files_digest([_get_scores_path(sweep, run_dir)]),
        },
    )


def _is_evaluated(sweep: Sweep, run_dir: Path, origin: Mapping[str, Any]) -> bool:
    """Whether a folder's scores were made from the same and are unchanged: `stvg-eval` may have written others there."""
    known, scores = _read_evaluation_record(run_dir), _get_scores_path(sweep, run_dir)
    return (
        known.get("made") == origin
        and scores.exists()
        and known["scores"] == compute_files_digest([scores])
    )


def _is_finished(run: Path) -> bool:
    return (run / "provenance.json").exists() and "finished" in read_provenance(run)


def _read_evaluation_record(run_dir: Path) -> dict[str, Any]:
    try:
        return json.loads((run_dir / EVALUATION_RECORD_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _get_scores_path(sweep: Sweep, run_dir: Path) -> Path:
    return run_dir / "scores" / f"{sweep.split}.json"


def _get_ignored_train_keys() -> set[str]:
    """Settings of training that do not change what is learned."""
    return RESUMABLE_KEYS - {"max_steps"}


def _dump_prediction_settings(evaluate_config: EvaluateConfig) -> dict[str, Any]:
    """The settings that an answer depends on."""
    return evaluate_config.model_dump(mode="json", exclude={"device", "batch"})
