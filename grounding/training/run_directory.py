"""Run directories: who may write one, what it was made from, whether it is taken up again or moved aside, what is written."""

from __future__ import annotations

import logging
import shutil
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from grounding.data.dataset import GroundingDataset
from grounding.data.feature_reduction import PROJECTIONS_FOLDER, read_projections, save_projections
from grounding.data.segment_lengths import summarize_segment_seconds
from grounding.systems.checkpoint import CONFIG_FILE, compute_code_digest, read_provenance
from grounding.systems.config import TrainConfig
from grounding.systems.registry import load_initial_encoders
from grounding.training.curve_logger import CurveLogger
from grounding.training.distributed import DistributedContext
from grounding.training.train_state import TrainState
from pipeline import config as configuration
from pipeline.errors import InputError
from pipeline.io.jsonl import write_json
from pipeline.store import Store
from pipeline.store.lock import ExclusiveLock

RESUMABLE_KEYS = {"max_steps", "log_every", "checkpoint_every", "device"}
"""What a resumed run may set anew."""
log = logging.getLogger(__name__)


class RunInUseError(InputError):
    """Another process holds a run directory."""


def lock_run_dir(run: Path) -> AbstractContextManager[object]:
    """Hold a run directory: a RunInUseError names the process that already trains it. The lock lies beside it, since a run
    may be moved aside.
    """
    return (
        ExclusiveLock(run.parent / f".{run.name}.lock", f"run {run}", RunInUseError)
        if DistributedContext().is_main
        else nullcontext()
    )


def prepare_run_dir(
    store: Path, run: Path, config: TrainConfig, resume: bool = False
) -> Path | None:
    """Make the run directory ready: empty, or holding the checkpoint to go on from.

    A run of the same configuration, store and code that was stopped is taken up again (being exact, that is the same as
    starting over, only sooner). With `resume` anything but `RESUMABLE_KEYS` that differs is an error; without it the old
    run is moved to `RUN.old-N`, whose path is returned: nothing is ever deleted. Of several processes the first does it.
    """
    processes = DistributedContext()
    moved = _prepare_run_dir(store, run, config, resume) if processes.is_main else None
    processes.barrier()
    return moved


def _prepare_run_dir(store: Path, run: Path, config: TrainConfig, resume: bool) -> Path | None:
    now, settings = _run_provenance(store, config), config.model_dump(mode="json")
    projections = read_projections(store, now["products"])
    known, moved = run / "provenance.json", None
    there = known.is_file() and any(
        (run / "checkpoints" / name).exists() for name in ("last", ".last.old")
    )
    if there:
        old, old_config = (
            read_provenance(run),
            configuration.read_section(run / CONFIG_FILE, "train"),
        )
        unlike = {
            key
            for key in settings
            if key not in {*RESUMABLE_KEYS, "encoders"} and settings[key] != old_config.get(key)
        }
        differs = sorted(
            unlike | {key for key in ("store", "dims", "encoders") if now[key] != old.get(key)}
        )
        if resume and differs:
            raise InputError(
                f"{run} cannot be resumed: {', '.join(differs)} differ from what it was started with; name another --run"
            )
        anew = (
            old.get("code") != now["code"]
            or "finished" in old
            or settings["max_steps"] != old_config.get("max_steps")
        )
        if differs or (anew and not resume):
            moved, there = _move_aside(run), False
    elif resume:
        raise InputError(
            f"{run} holds no checkpoint to resume: leave out --resume to start a run there"
        )
    run.mkdir(parents=True, exist_ok=True)
    if not there:
        for leftover in ("curves", "checkpoints", PROJECTIONS_FOLDER):
            shutil.rmtree(run / leftover, ignore_errors=True)
    configuration.save(run / CONFIG_FILE, "train", config)
    save_projections(run, projections)
    if there:
        now |= {key: old[key] for key in ("lr_schedule_steps", "initialised") if key in old}
    write_json(known, now)
    return moved


def _run_provenance(store: Path, config: TrainConfig) -> dict[str, Any]:
    """A run's provenance: the store and the products it reads, the weights that encoders which train begin with, the code."""
    opened = Store(store)
    image, text = load_initial_encoders(config.encoders) if config.encoders else (None, None)
    motion, pictures = config.model.motion_product, config.model.uses_images or text is not None
    read = [
        "frames" if pictures else "appearance",
        *([motion] if motion else []),
        *([] if text else ["text"]),
    ]
    tokenize: Any = text.encoder.tokenize if text else None
    features = GroundingDataset.from_store(store, "train", 1, 1, tokenize, motion, pictures)
    return {
        "format": 1,
        "model": config.system,
        "dims": list(features.dims),
        "encoders": {"image": image.digest, "text": text.digest if text else None}
        if image
        else None,
        "store": opened.manifest_digest,
        "dataset": opened.manifest.dataset,
        "segment_seconds": summarize_segment_seconds(features.queries),
        "products": {name: opened.products[name].provenance for name in read},
        "code": compute_code_digest(config.encoders is not None),
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

    def __init__(self, run: Path, provenance: dict[str, Any], state: TrainState) -> None:
        self._run_dir, self._provenance, self._dist = run, provenance, DistributedContext()
        self._curve_logger = (
            CurveLogger(run / "curves", state.step, state.validated_step)
            if self._dist.is_main
            else None
        )
        if self._dist.is_main:
            write_json(run / "provenance.json", provenance)

    def save_checkpoint(self, state: TrainState, name: str) -> None:
        """Write the checkpoint `name`; no process goes on before it is there."""
        if self._dist.is_main:
            state.save(self._run_dir / "checkpoints" / name)
        self._dist.barrier()

    def log_values(self, step: int, split: str, values: dict[str, float]) -> None:
        """Add points to the curves `<kind>/<name>`."""
        if self._curve_logger is not None:
            self._curve_logger.write(
                step, {f"{split}/{name}": value for name, value in values.items()}
            )

    def finish(self, steps: int) -> None:
        if self._curve_logger is not None:
            self._curve_logger.close()
            write_json(self._run_dir / "provenance.json", self._provenance | {"finished": steps})
