"""Run directories: who may write one, what it was made from, whether it is taken up again or moved aside, what is written."""

from __future__ import annotations

import logging
import shutil
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from grounding.data.dataset import FeatureSet
from grounding.data.feature_reduction import FOLDER, keep_projections, projections_of
from grounding.data.segment_lengths import segment_seconds
from grounding.systems.checkpoint import CONFIG, code_digest, read_provenance
from grounding.systems.config import Recipe
from grounding.systems.registry import first_encoders
from grounding.training.curve_logger import Curves
from grounding.training.distributed import Processes
from grounding.training.train_state import State
from pipeline import config as configuration
from pipeline.errors import InputError
from pipeline.io.jsonl import write_json
from pipeline.store import Store
from pipeline.store.lock import ExclusiveLock

MAY_CHANGE = {"max_steps", "log_every", "checkpoint_every", "device"}
"""What a resumed run may set anew."""
log = logging.getLogger(__name__)


class RunInUseError(InputError):
    """Another process holds a run directory."""


def sole_writer(run: Path) -> AbstractContextManager[object]:
    """Hold a run directory: a RunInUseError names the process that already trains it. The lock lies beside it, since a run
    may be moved aside."""
    return ExclusiveLock(run.parent / f".{run.name}.lock", f"run {run}", RunInUseError) if Processes().first else nullcontext()


def open_run(store: Path, run: Path, config: Recipe, resume: bool = False) -> Path | None:
    """Make the run directory ready: empty, or holding the checkpoint to go on from.

    A run of the same configuration, store and code that was stopped is taken up again (being exact, that is the same as
    starting over, only sooner). With `resume` anything but `MAY_CHANGE` that differs is an error; without it the old
    run is moved to `RUN.old-N`, whose path is returned: nothing is ever deleted. Of several processes the first does it.
    """
    processes = Processes()
    moved = _open(store, run, config, resume) if processes.first else None
    processes.wait()
    return moved


def _open(store: Path, run: Path, config: Recipe, resume: bool) -> Path | None:
    now, settings = _made_from(store, config), config.model_dump(mode="json")
    projections = projections_of(store, now["products"])
    known, moved = run / "provenance.json", None
    there = known.is_file() and any((run / "checkpoints" / name).exists() for name in ("last", ".last.old"))
    if there:
        old, old_config = read_provenance(run), configuration.read_section(run / CONFIG, "train")
        unlike = {key for key in settings if key not in {*MAY_CHANGE, "encoders"} and settings[key] != old_config.get(key)}
        differs = sorted(unlike | {key for key in ("store", "dims", "encoders") if now[key] != old.get(key)})
        if resume and differs:
            raise InputError(f"{run} cannot be resumed: {', '.join(differs)} differ from what it was started with; name another --run")
        anew = old.get("code") != now["code"] or "finished" in old or settings["max_steps"] != old_config.get("max_steps")
        if differs or (anew and not resume):
            moved, there = _move_aside(run), False
    elif resume:
        raise InputError(f"{run} holds no checkpoint to resume: leave out --resume to start a run there")
    run.mkdir(parents=True, exist_ok=True)
    if not there:
        for leftover in ("curves", "checkpoints", FOLDER):
            shutil.rmtree(run / leftover, ignore_errors=True)
    configuration.save(run / CONFIG, "train", config)
    keep_projections(run, projections)
    if there:
        now |= {key: old[key] for key in ("schedule_steps", "initialised") if key in old}
    write_json(known, now)
    return moved


def _made_from(store: Path, config: Recipe) -> dict[str, Any]:
    """A run's provenance: the store and the products it reads, the weights that encoders which train begin with, the code."""
    opened = Store(store)
    image, text = first_encoders(config.encoders) if config.encoders else (None, None)
    motion, pictures = config.model.motion, config.model.pictures or text is not None
    read = ["frames" if pictures else "appearance", *([motion] if motion else []), *([] if text else ["text"])]
    tokenise: Any = text.encoder.tokenise if text else None
    features = FeatureSet.of_store(store, "train", 1, 1, tokenise, motion, pictures)
    return {
        "format": 1,
        "model": config.system,
        "dims": list(features.dims),
        "encoders": {"image": image.digest, "text": text.digest if text else None} if image else None,
        "store": opened.manifest_digest,
        "dataset": opened.manifest.dataset,
        "segment_seconds": segment_seconds(features.queries),
        "products": {name: opened.products[name].provenance for name in read},
        "code": code_digest(config.encoders is not None),
        "torch": torch.__version__,
    }


def _move_aside(run: Path) -> Path:
    """Rename a run that is about to be replaced."""
    number = 1
    while (aside := run.with_name(f"{run.name}.old-{number}")).exists():
        number += 1
    run.rename(aside)
    log.info("the run that was in %s is now in %s", run, aside)
    return aside


class RunWriter:
    """What training writes into a run: checkpoints, curves and that it is finished. Of several processes the first does it."""

    def __init__(self, run: Path, about: dict[str, Any], state: State) -> None:
        self._run, self._about, self._processes = run, about, Processes()
        self._curves = Curves(run / "curves", state.step, state.judged) if self._processes.first else None
        if self._processes.first:
            write_json(run / "provenance.json", about)

    def save(self, state: State, name: str) -> None:
        """Write the checkpoint `name`; no process goes on before it is there."""
        if self._processes.first:
            state.save(self._run / "checkpoints" / name)
        self._processes.wait()

    def draw(self, step: int, kind: str, values: dict[str, float]) -> None:
        """Add points to the curves `<kind>/<name>`."""
        if self._curves is not None:
            self._curves.write(step, {f"{kind}/{name}": value for name, value in values.items()})

    def finish(self, steps: int) -> None:
        if self._curves is not None:
            self._curves.close()
            write_json(self._run / "provenance.json", self._about | {"finished": steps})
