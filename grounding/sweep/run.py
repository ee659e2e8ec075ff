"""Sweeps: all variants of a table, trained over several seeds and evaluated.

A sweep can be stopped at any moment; the same call goes on. It can be started several times, on one
machine or on several that share a folder: the processes divide the runs among them.

Each trained variant and seed is an ordinary run directory, `<out>/<variant>/seed-<n>`. A derived
variant has predictions, scores and metrics alone. Beside these files, `judged.json` records their
origin: results of the same origin, unchanged since, are not computed again.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from grounding.systems.checkpoint import CONFIG_FILE, compute_code_digest
from grounding.systems.config import TrainConfig
from grounding.systems.provenance import PROVENANCE_FILE, read_provenance
from grounding.systems.registry import get_system
from grounding.training.run_directory import (
    RESUMABLE_KEYS,
    RunInUseError,
    lock_run_dir,
    prepare_run_dir,
)
from grounding.training.train import train
from pipeline.callbacks import ProgressCallback
from pipeline.config import merge, read_section, validate
from pipeline.errors import InputError
from pipeline.io.jsonl import write_json
from pipeline.store import Store
from pipeline.store.manifest import compute_files_digest

EVALUATION_RECORD_FILE = "judged.json"
MIN_SEEDS = 2

POLL_SECONDS = 2.0
"""Time between two checks of the runs that other processes work on."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SweepProgress:
    """Progress of a sweep.

    Attributes:
        activity: Variant and seed that is worked on.
        finished_runs: Runs that are trained and evaluated.
        total_runs: Runs in all.
        finished_steps: Training steps that are done, over all runs.
        total_steps: Training steps in all; 0 until known.
    """

    activity: str
    finished_runs: int
    total_runs: int
    finished_steps: int = 0
    total_steps: int = 0


SweepProgressCallback = Callable[[SweepProgress], None]
SweepScores = dict[str, list[list[Score]]]
"""Variant → the scores of each seed's run, or of the one ensemble."""
RunKey = tuple[str, int | None]
"""Variant and seed; the seed is None for an ensemble of all seeds."""


@dataclass(frozen=True)
class Sweep:
    """Plan of a sweep: a table over a store, with the configs and folders of its runs.

    Attributes:
        table: The ablation table.
        store: Store with features and ground truth.
        out: Folder of all runs.
        train_configs: Training config of each trained variant, with the first seed.
        evaluate_configs: Config of inference for each variant.
        seeds: Seeds of each trained variant.
        ground_truth: Ground truth of the split.
        split: Split that is evaluated.
        store_digest: Digest of the store's manifest.
    """

    table: SweepTable
    store: Path
    out: Path
    train_configs: Mapping[str, TrainConfig]
    evaluate_configs: Mapping[str, EvaluateConfig]
    seeds: Sequence[int]
    ground_truth: GroundTruth
    split: str
    store_digest: str = field(repr=False)

    def get_train_config(self, variant: str, seed: int) -> TrainConfig:
        """Return the training config of a run.

        Args:
            variant: A trained variant.
            seed: Seed of the run.

        Returns:
            The config with this seed.
        """
        return self.train_configs[variant].model_copy(update={"seed": seed})

    def get_run_dir(self, variant: str, seed: int | None) -> Path:
        """Return the directory of a run.

        Args:
            variant: Name of the variant.
            seed: Seed of the run; None for the ensemble of all seeds.

        Returns:
            The directory.
        """
        return self.out / variant / ("all-seeds" if seed is None else f"seed-{seed}")

    def seeds_for_variant(self, variant: str) -> Sequence[int | None]:
        """Return the seeds of a variant.

        Args:
            variant: Name of the variant.

        Returns:
            The seeds; `[None]` for an ensemble of all seeds.
        """
        if self.table.variants[variant].ensemble_seeds:
            return [None]
        return self.seeds

    def iterate_trained_runs(self) -> Iterator[RunKey]:
        """Yield the runs to train: every variant with the first seed, then with the next seed."""
        for seed in self.seeds:
            for variant in self.table.trained_variants:
                yield variant, seed

    def iterate_derived_runs(self) -> Iterator[RunKey]:
        """Yield the runs of derived variants."""
        for variant in self.table.derived_variants:
            for seed in self.seeds_for_variant(variant):
                yield variant, seed

    def iterate_runs(self) -> Iterator[RunKey]:
        """Yield all runs in order: trained ones, then derived ones."""
        yield from self.iterate_trained_runs()
        yield from self.iterate_derived_runs()


def plan_sweep(
    table: SweepTable,
    store: Path,
    out: Path,
    load_train_section: Callable[[str], Mapping[str, Any]],
    evaluate_config: EvaluateConfig,
    num_seeds: int,
) -> Sweep:
    """Plan a sweep, and check all settings before hours of training.

    Args:
        table: The ablation table.
        store: Store with features and ground truth.
        out: Folder for all runs.
        load_train_section: Function from a system to its section `train`. The section's `seed` is
            the first seed.
        evaluate_config: Section `evaluate`.
        num_seeds: Number of seeds.

    Returns:
        The plan.

    Raises:
        InputError: A setting is invalid, there are too few seeds, or the split has no ground
            truth.
    """
    if num_seeds < MIN_SEEDS:
        raise InputError(f"--seeds {num_seeds}: a table over seeds needs at least {MIN_SEEDS}")

    # Training configs, with the number of steps that the costs allow.
    train_configs = {
        name: _build_train_config(table, name, load_train_section)
        for name in table.trained_variants
    }
    train_configs = equalize_training_time(table, train_configs)

    # Inference settings. A derived variant uses the runs of a trained one.
    evaluate_configs = {}
    for name, variant in table.variants.items():
        train_config = train_configs[variant.derived_from or name]
        evaluate_configs[name] = _build_evaluate_config(
            name, variant, train_config, evaluate_config
        )

    split = evaluate_config.split
    ground_truth = load_ground_truth(store / "index.jsonl", split)
    if not len(ground_truth.true_tubes.tubes):
        raise InputError(f"store {store}: no query of split {split!r} has a ground truth")

    first_seed = next(iter(train_configs.values())).seed
    return Sweep(
        table=table,
        store=store,
        out=out,
        train_configs=train_configs,
        evaluate_configs=evaluate_configs,
        seeds=range(first_seed, first_seed + num_seeds),
        ground_truth=ground_truth,
        split=split,
        store_digest=Store(store).manifest_digest,
    )


def _build_train_config(
    table: SweepTable, name: str, load_train_section: Callable[[str], Mapping[str, Any]]
) -> TrainConfig:
    """Build the training config of a variant."""
    system = table.system_for_variant(name)
    values = merge(load_train_section(system), table.variants[name].changes)
    return validate(get_system(system).config_class, values, f"section 'train', variant {name!r}")


def _build_evaluate_config(
    name: str, variant: Variant, train_config: TrainConfig, evaluate_config: EvaluateConfig
) -> EvaluateConfig:
    """Build the inference settings of a variant."""
    changes = dict(variant.evaluate)
    if variant.test_frames_multiplier > 1:
        num_frames = evaluate_config.frames or train_config.model.num_frames
        changes["frames"] = variant.test_frames_multiplier * num_frames
    values = merge(evaluate_config.model_dump(), changes)
    return validate(EvaluateConfig, values, f"section 'evaluate', variant {name!r}")


def _ignore_progress(progress: SweepProgress) -> None:
    """Show no progress."""


def run_sweep(sweep: Sweep, progress: SweepProgressCallback = _ignore_progress) -> SweepScores:
    """Train and evaluate all runs that are missing, and read the scores of all runs.

    Several processes may work at one sweep: each takes runs that no other process has locked.

    Args:
        sweep: The plan.
        progress: Callback for each step of progress.

    Returns:
        Scores of all runs, by variant.

    Raises:
        InputError: A run was stopped before its end, or has other settings.
    """
    scores: dict[RunKey, list[Score]] = {}
    worker = _SweepWorker(sweep, progress, scores)

    # Derived variants use the trained runs, so they come after all of these.
    for runs in (list(sweep.iterate_trained_runs()), list(sweep.iterate_derived_runs())):
        while True:
            pending_runs = [run for run in runs if run not in scores]
            if not pending_runs:
                break

            num_finished = len(scores)
            for run in pending_runs:
                worker.process_run(run)
            if len(scores) == num_finished:
                worker.wait_for_others(pending_runs)
    worker.report_end()

    sweep_scores: SweepScores = {}
    for name in sweep.table.variants:
        sweep_scores[name] = [scores[name, seed] for seed in sweep.seeds_for_variant(name)]
    return sweep_scores


class _SweepWorker:
    """State of one process that works at a sweep: finished runs and progress."""

    def __init__(
        self, sweep: Sweep, callback: SweepProgressCallback, scores: dict[RunKey, list[Score]]
    ) -> None:
        self.sweep = sweep
        self.callback = callback
        self.scores = scores
        self.progress = SweepProgress("", 0, len(list(sweep.iterate_runs())))

    def process_run(self, run: RunKey) -> None:
        """Train and evaluate a run as far as necessary, unless another process works on it."""
        name, seed = run
        run_dir = self.sweep.get_run_dir(name, seed)
        try:
            with lock_run_dir(run_dir):
                self._process_locked_run(name, seed)
        except RunInUseError:
            return

    def _process_locked_run(self, name: str, seed: int | None) -> None:
        """Train and evaluate a run that this process has locked, and read its scores."""
        sweep = self.sweep
        seed_label = "all seeds" if seed is None else f"seed {seed}"
        self._report(activity=f"{name}, {seed_label}", finished_runs=len(self.scores))

        is_trained = sweep.table.variants[name].derived_from is None
        if is_trained and seed is not None:
            _train_run(sweep, name, seed, self._report_step, self._report_evaluation)
        else:
            _evaluate_derived(sweep, name, seed, self._report_evaluation)
        self.scores[name, seed] = read_scores(
            _get_scores_path(sweep, sweep.get_run_dir(name, seed))
        )

    def wait_for_others(self, pending_runs: Sequence[RunKey]) -> None:
        """Wait a while for the other processes, which have locked all pending runs."""
        names = ", ".join(name for name, _ in pending_runs)
        self.callback(
            replace(
                self.progress,
                activity=f"waiting for other processes to make {names}",
                finished_runs=len(self.scores),
            )
        )
        time.sleep(POLL_SECONDS)

    def report_end(self) -> None:
        """Report that all runs are finished."""
        total_runs = self.progress.total_runs
        self.callback(replace(self.progress, activity="all made", finished_runs=total_runs))

    def _report(self, **changes: Any) -> None:
        """Change the progress, and report it."""
        self.progress = replace(self.progress, **changes)
        self.callback(self.progress)

    def _report_step(self, step: int, steps: int) -> None:
        """Report a training step of the current run."""
        steps_by_variant = {
            name: config.max_steps or steps for name, config in self.sweep.train_configs.items()
        }
        finished_steps = sum(steps_by_variant[name] for name, _ in self.scores)
        total_steps = len(self.sweep.seeds) * sum(steps_by_variant.values())
        self._report(finished_steps=finished_steps + step, total_steps=total_steps)

    def _report_evaluation(self) -> None:
        """Report that the current run is being evaluated."""
        activity = f"evaluating {self.progress.activity}"
        self.callback(replace(self.progress, activity=activity))


def _train_run(
    sweep: Sweep,
    name: str,
    seed: int,
    report_step: ProgressCallback,
    report_evaluation: Callable[[], None],
) -> None:
    """Train a run to its end and evaluate it, unless that has been done."""
    run_dir = sweep.get_run_dir(name, seed)
    config = sweep.get_train_config(name, seed)
    evaluate_config = sweep.evaluate_configs[name]

    ignored_keys = _get_ignored_train_keys()
    train_values = {
        key: value
        for key, value in config.model_dump(mode="json").items()
        if key not in ignored_keys
    }
    origin = {
        "store": sweep.store_digest,
        "train": train_values,
        "evaluate": _dump_prediction_settings(evaluate_config),
        "code": compute_code_digest(),
    }
    if _is_finished(run_dir) and _is_evaluated(sweep, run_dir, origin):
        return

    log.info("training %s", run_dir)
    _prepare_run(sweep, run_dir, config)
    train(sweep.store, run_dir, config, report_step)
    if not _is_finished(run_dir):
        raise InputError(f"{run_dir} was stopped before its last step: run the same command again")

    report_evaluation()
    _evaluate_runs(sweep, [run_dir], run_dir, evaluate_config, origin)


def _prepare_run(sweep: Sweep, run_dir: Path, config: TrainConfig) -> None:
    """Resume or start a run. A finished run must have this config and this number of steps."""
    is_finished = _is_finished(run_dir)
    try:
        if is_finished:
            max_steps = read_section(run_dir / CONFIG_FILE, "train").get("max_steps")
            if max_steps != config.max_steps:
                raise InputError(
                    f"{run_dir} was trained with max_steps {max_steps}, not {config.max_steps}:"
                    " its learning rate schedule was another"
                )
        prepare_run_dir(sweep.store, run_dir, config, resume=is_finished)
    except InputError as error:
        raise InputError(
            f"{error}; for a sweep with other settings name another --out than {sweep.out}"
        ) from None


def _evaluate_derived(
    sweep: Sweep, name: str, seed: int | None, report_evaluation: Callable[[], None]
) -> None:
    """Evaluate trained runs with the settings of a derived variant, unless that has been done."""
    variant = sweep.table.variants[name]
    assert variant.derived_from is not None
    evaluate_config = sweep.evaluate_configs[name]

    # The trained runs that predict: one, or an ensemble of all seeds.
    source_seeds = sweep.seeds if seed is None else [seed]
    source_dirs = [
        sweep.get_run_dir(variant.derived_from, source_seed) for source_seed in source_seeds
    ]
    source_origins = []
    for source_dir in source_dirs:
        train_values = _read_evaluation_record(source_dir)["made"]["train"]
        source_origins.append(train_values | {"code": read_provenance(source_dir)["code"]})

    origin = {
        "store": sweep.store_digest,
        "of": source_origins,
        "evaluate": _dump_prediction_settings(evaluate_config),
        "code": compute_code_digest(),
    }
    run_dir = sweep.get_run_dir(name, seed)
    if not _is_evaluated(sweep, run_dir, origin):
        report_evaluation()
        _evaluate_runs(sweep, source_dirs, run_dir, evaluate_config, origin)


def _evaluate_runs(
    sweep: Sweep,
    runs: Sequence[Path],
    run_dir: Path,
    evaluate_config: EvaluateConfig,
    origin: Mapping[str, Any],
) -> None:
    """Predict with runs, and write the result files and their origin into `run_dir`."""
    log.info("evaluating %s", run_dir)

    # Without the record, results of an interrupted evaluation count as missing.
    record_path = run_dir / EVALUATION_RECORD_FILE
    record_path.unlink(missing_ok=True)

    predictions, missing = predict_split(runs, sweep.store, evaluate_config)
    if missing:
        log.warning(
            "%s: %d queries score 0, the store has no features of them", run_dir, len(missing)
        )

    tubes = Tubes.from_predictions(predictions)
    scores, metrics = evaluate(sweep.ground_truth, tubes, seed=evaluate_config.seed)
    write_results(run_dir, sweep.split, predictions, scores, metrics)

    scores_digest = compute_files_digest([_get_scores_path(sweep, run_dir)])
    write_json(record_path, {"format": 1, "made": origin, "scores": scores_digest})


def _is_evaluated(sweep: Sweep, run_dir: Path, origin: Mapping[str, Any]) -> bool:
    """Return True if the scores of a run have this origin and are unchanged.

    `stvg-eval` may have written other scores there.
    """
    record = _read_evaluation_record(run_dir)
    if record.get("made") != origin:
        return False
    scores_path = _get_scores_path(sweep, run_dir)
    return scores_path.exists() and record["scores"] == compute_files_digest([scores_path])


def _is_finished(run_dir: Path) -> bool:
    """Return True if a run was trained to its end."""
    return (run_dir / PROVENANCE_FILE).exists() and "finished" in read_provenance(run_dir)


def _read_evaluation_record(run_dir: Path) -> dict[str, Any]:
    """Read the record of a run's results; empty if there is none."""
    try:
        return json.loads((run_dir / EVALUATION_RECORD_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _get_scores_path(sweep: Sweep, run_dir: Path) -> Path:
    """Return the file of a run's scores."""
    return run_dir / "scores" / f"{sweep.split}.json"


def _get_ignored_train_keys() -> set[str]:
    """Return the training settings that do not change the trained weights."""
    return RESUMABLE_KEYS - {"max_steps"}


def _dump_prediction_settings(evaluate_config: EvaluateConfig) -> dict[str, Any]:
    """Return the settings that change predictions."""
    return evaluate_config.model_dump(mode="json", exclude={"device", "batch"})
