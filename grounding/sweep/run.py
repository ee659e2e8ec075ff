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
from grounding.evaluation.evaluate import judge, predict_split
from grounding.evaluation.ground_truth import Exam, read_exam
from grounding.evaluation.results import write_results
from grounding.metrics.scores import Score, read_scores
from grounding.structures.tubes import Tubes
from grounding.sweep.tables import SweepTable, Variant
from grounding.sweep.time_budget import for_the_same_time
from grounding.systems.checkpoint import CONFIG, code_digest, read_provenance
from grounding.systems.config import Recipe
from grounding.systems.registry import system_of
from grounding.training.run_directory import MAY_CHANGE, RunInUseError, open_run, sole_writer
from grounding.training.train import train
from pipeline import config as configuration
from pipeline.config import merge, validate
from pipeline.errors import InputError
from pipeline.io.jsonl import write_json
from pipeline.store import Store
from pipeline.store.manifest import compute_files_digest

JUDGED = "judged.json"
FEWEST_SEEDS = 2
OTHERS_SECONDS = 2.0
"""Between two looks at what other processes are making."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Place:
    """How far a sweep is: `run` of `runs` are made, and `step` of `steps` of training are done over all of them (0 of 0 until known)."""

    what: str
    run: int
    runs: int
    step: int = 0
    steps: int = 0


Watch = Callable[[Place], None]
Results = dict[str, list[list[Score]]]
"""Variant → the scores of each seed's run, or of the one ensemble."""


@dataclass(frozen=True)
class Sweep:
    """A table over a store: where its runs lie, and their configurations."""

    table: SweepTable
    store: Path
    out: Path
    configs: Mapping[str, Recipe]
    """Of the trained variants; `seed` is the first seed's."""
    evaluate: Mapping[str, EvaluateConfig]
    seeds: Sequence[int]
    exam: Exam
    split: str
    made_from: str = field(repr=False)
    """The store's digest."""

    def config(self, variant: str, seed: int) -> Recipe:
        return self.configs[variant].model_copy(update={"seed": seed})

    def folder(self, variant: str, seed: int | None) -> Path:
        """The directory of a variant's run; `seed` is None for the answer of all seeds together."""
        return self.out / variant / ("all-seeds" if seed is None else f"seed-{seed}")

    def seeds_of(self, variant: str) -> Sequence[int | None]:
        return [None] if self.table.variants[variant].together else self.seeds

    def runs(self) -> Iterator[tuple[str, int | None]]:
        """All there is to make, in order: every variant with the first seed, then with the next; then what is derived."""
        yield from ((name, seed) for seed in self.seeds for name in self.table.trained)
        yield from ((name, seed) for name in self.table.derived for seed in self.seeds_of(name))


def plan(
    table: SweepTable, store: Path, out: Path, values: Callable[[str], Mapping[str, Any]], evaluate: EvaluateConfig, seeds: int
) -> Sweep:
    """Check all that can be checked before hours of training. `values`: a system's section `train`, whose `seed` is the first one."""
    if seeds < FEWEST_SEEDS:
        raise InputError(f"--seeds {seeds}: a table over seeds needs at least {FEWEST_SEEDS}")
    configs = for_the_same_time(table, {name: _recipe(table, name, values) for name in table.trained})
    asked = {name: _asked(name, variant, configs[variant.of or name], evaluate) for name, variant in table.variants.items()}
    exam = read_exam(store / "index.jsonl", evaluate.split)
    if not len(exam.truths.tubes):
        raise InputError(f"store {store}: no query of split {evaluate.split!r} has a truth to judge by")
    first = next(iter(configs.values())).seed
    numbers = range(first, first + seeds)
    return Sweep(table, store, out, configs, asked, numbers, exam, evaluate.split, Store(store).manifest_digest)


def _recipe(table: SweepTable, name: str, values: Callable[[str], Mapping[str, Any]]) -> Recipe:
    """How a variant is trained."""
    system, changes = table.system_of(name), table.variants[name].changes
    return validate(system_of(system).config, merge(values(system), changes), f"section 'train', variant {name!r}")


def _asked(name: str, variant: Variant, config: Recipe, evaluate: EvaluateConfig) -> EvaluateConfig:
    """How a variant's runs are asked."""
    changes = dict(variant.evaluate)
    if variant.times > 1:
        changes["frames"] = variant.times * (evaluate.frames or config.model.frames)
    return validate(EvaluateConfig, merge(evaluate.model_dump(), changes), f"section 'evaluate', variant {name!r}")


def run_sweep(sweep: Sweep, watch: Watch = lambda place: None) -> Results:
    """Make what is missing, and read the scores of all. Several processes may work at one sweep: each takes what no other has."""
    runs = list(sweep.runs())
    trained = len(sweep.table.trained) * len(sweep.seeds)
    made: dict[tuple[str, int | None], list[Score]] = {}
    place = Place("", 0, len(runs))

    def at(step: int, steps: int) -> None:
        nonlocal place
        own = {name: config.max_steps or steps for name, config in sweep.configs.items()}
        done = sum(own[name] for name, _ in made)
        place = replace(place, step=done + step, steps=len(sweep.seeds) * sum(own.values()))
        watch(place)

    def judging() -> None:
        watch(replace(place, what=f"judging {place.what}"))

    for part in (runs[:trained], runs[trained:]):  # what is derived asks all that is trained
        while left := [one for one in part if one not in made]:
            before = len(made)
            for name, seed in left:
                with suppress(RunInUseError), sole_writer(sweep.folder(name, seed)):
                    place = replace(place, what=f"{name}, {'all seeds' if seed is None else f'seed {seed}'}", run=len(made))
                    watch(place)
                    if seed is not None and sweep.table.variants[name].of is None:
                        _train(sweep, name, seed, at, judging)
                    else:
                        _derive(sweep, name, seed, judging)
                    made[name, seed] = read_scores(_scores_file(sweep, sweep.folder(name, seed)))
            if len(made) == before:
                watch(replace(place, what=f"waiting for other processes to make {', '.join(name for name, _ in left)}", run=len(made)))
                time.sleep(OTHERS_SECONDS)
    watch(replace(place, what="all made", run=len(runs)))
    return {name: [made[name, seed] for seed in sweep.seeds_of(name)] for name in sweep.table.variants}


def _train(sweep: Sweep, name: str, seed: int, at: Callable[[int, int], None], judging: Callable[[], None]) -> None:
    """Train a run to its end and judge it, unless that has been done."""
    run, config = sweep.folder(name, seed), sweep.config(name, seed)
    made = {
        "store": sweep.made_from,
        "train": {key: value for key, value in config.model_dump(mode="json").items() if key not in _free()},
        "evaluate": _answering(sweep.evaluate[name]),
        "code": code_digest(),
    }
    if _is_finished(run) and _is_judged(sweep, run, made):
        return
    log.info("training %s", run)
    _open(sweep, run, config)
    train(sweep.store, run, config, at)
    if not _is_finished(run):
        raise InputError(f"{run} was stopped before its last step: run the same command again")
    judging()
    _judge(sweep, [run], run, sweep.evaluate[name], made)


def _open(sweep: Sweep, run: Path, config: Recipe) -> None:
    """Take up a run, or start it. One that is finished must be of this configuration and of this many steps."""
    finished = _is_finished(run)
    try:
        if finished and (was := configuration.read_section(run / CONFIG, "train").get("max_steps")) != config.max_steps:
            raise InputError(f"{run} was trained with max_steps {was}, not {config.max_steps}: its schedule was another")
        open_run(sweep.store, run, config, resume=finished)
    except InputError as error:
        raise InputError(f"{error}; for a sweep with other settings name another --out than {sweep.out}") from None


def _derive(sweep: Sweep, name: str, seed: int | None, judging: Callable[[], None]) -> None:
    """Let trained runs answer in another way, and judge that, unless it has been done."""
    variant = sweep.table.variants[name]
    assert variant.of is not None
    sources = [sweep.folder(variant.of, number) for number in (sweep.seeds if seed is None else [seed])]
    made = {
        "store": sweep.made_from,
        "of": [_read_judged(source)["made"]["train"] | {"code": read_provenance(source)["code"]} for source in sources],
        "evaluate": _answering(sweep.evaluate[name]),
        "code": code_digest(),
    }
    folder = sweep.folder(name, seed)
    if not _is_judged(sweep, folder, made):
        judging()
        _judge(sweep, sources, folder, sweep.evaluate[name], made)


def _judge(sweep: Sweep, runs: Sequence[Path], folder: Path, settings: EvaluateConfig, made: Mapping[str, Any]) -> None:
    """Let runs answer, write what `stvg-eval` writes into `folder`, and what it was made from."""
    log.info("judging %s", folder)
    (folder / JUDGED).unlink(missing_ok=True)
    answers, missing = predict_split(runs, sweep.store, settings)
    if missing:
        log.warning("%s: %d queries score 0, the store has no features of them", folder, len(missing))
    write_results(folder, sweep.split, answers, *judge(sweep.exam, Tubes.of_predictions(answers), seed=settings.seed))
    write_json(folder / JUDGED, {"format": 1, "made": made, "scores": compute_files_digest([_scores_file(sweep, folder)])})


def _is_judged(sweep: Sweep, folder: Path, made: Mapping[str, Any]) -> bool:
    """Whether a folder's scores were made from the same and are unchanged: `stvg-eval` may have written others there."""
    known, scores = _read_judged(folder), _scores_file(sweep, folder)
    return known.get("made") == made and scores.exists() and known["scores"] == compute_files_digest([scores])


def _is_finished(run: Path) -> bool:
    return (run / "provenance.json").exists() and "finished" in read_provenance(run)


def _read_judged(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / JUDGED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _scores_file(sweep: Sweep, folder: Path) -> Path:
    return folder / "scores" / f"{sweep.split}.json"


def _free() -> set[str]:
    """Settings of training that do not change what is learned."""
    return MAY_CHANGE - {"max_steps"}


def _answering(settings: EvaluateConfig) -> dict[str, Any]:
    """The settings that an answer depends on."""
    return settings.model_dump(mode="json", exclude={"device", "batch"})
