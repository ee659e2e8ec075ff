"""Run directories: the lock, the provenance, resume or move aside, and the files written."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from grounding.data.dataset import GroundingDataset
from grounding.data.feature_reduction import PROJECTIONS_FOLDER, read_projections, save_projections
from grounding.data.segment_lengths import summarize_segment_seconds
from grounding.systems.checkpoint import CONFIG_FILE, compute_code_digest
from grounding.systems.config import TrainConfig
from grounding.systems.provenance import PROVENANCE_FILE, read_provenance
from grounding.systems.registry import load_initial_encoders
from grounding.training.curve_logger import CurveLogger
from grounding.training.distributed import SINGLE_PROCESS, DistributedContext
from grounding.training.train_state import TrainState
from pipeline import config as configuration
from pipeline.errors import InputError
from pipeline.io.jsonl import write_json
from pipeline.store import Store
from pipeline.store.lock import ExclusiveLock

CHECKPOINTS_FOLDER = "checkpoints"
RESUMABLE_KEYS = {"max_steps", "log_every", "checkpoint_every", "device"}
"""Configuration keys that may differ when a run is resumed."""
log = logging.getLogger(__name__)


class RunInUseError(InputError):
    """Another process holds a run directory."""


def lock_run_dir(
    run: Path, dist: DistributedContext = SINGLE_PROCESS
) -> AbstractContextManager[object]:
    """Hold the exclusive lock of a run directory while the context lasts.

    The lock file lies beside the directory, because a run may be moved aside.

    Args:
        run: The run directory; it need not exist yet.
        dist: The processes of this training. Only the main process takes the lock.

    Returns:
        The context manager.

    Raises:
        RunInUseError: On entering, if another process trains this run; the message names it.
    """
    if not dist.is_main:
        return nullcontext()

    return ExclusiveLock(run.parent / f".{run.name}.lock", f"run {run}", RunInUseError)


def prepare_run_dir(
    store: Path,
    run: Path,
    config: TrainConfig,
    resume: bool = False,
    dist: DistributedContext = SINGLE_PROCESS,
) -> Path | None:
    """Make a run directory ready: empty, or with the checkpoint that training resumes from.

    A stopped run of the same configuration, store and code is resumed. Resuming is exact, so the
    result is that of starting over. Any other run is moved to `RUN.old-N`: nothing is ever deleted.

    Args:
        store: The feature store to train on.
        run: The run directory.
        config: The configuration of the run.
        resume: Require a checkpoint to resume from, whatever code wrote it. Every key but
            `RESUMABLE_KEYS` must then be unchanged.
        dist: The processes of this training. The main process prepares, the others wait for it.

    Returns:
        The new path of a run that was moved aside; None if no run was, and in other processes.

    Raises:
        InputError: With `resume`, if there is no checkpoint or the configuration, store or
            encoders differ.
        StoreError: If the store lacks features for the `train` split, or a projection is damaged.
        PeerLostError: If another process has ended.
    """
    moved_to = None
    if dist.is_main:
        moved_to = _prepare_run_dir(store, run, config, resume)

    dist.barrier()
    return moved_to


def _prepare_run_dir(store: Path, run: Path, config: TrainConfig, resume: bool) -> Path | None:
    """Prepare the directory in the main process."""
    provenance = _build_provenance(store, config)
    projections = read_projections(store, provenance["products"])

    # Decide between resuming, moving the old run aside, and starting a new run.
    moved_to = None
    old_provenance: dict[str, Any] = {}
    has_checkpoint = _has_checkpoint(run)
    if has_checkpoint:
        old_provenance = read_provenance(run)
        if not _check_resumable(run, config, provenance, old_provenance, resume):
            moved_to = _move_aside(run)
            has_checkpoint = False
    elif resume:
        raise InputError(
            f"{run} holds no checkpoint to resume: leave out --resume to start a run there"
        )

    # Remove the leftovers of a run that ended before its first checkpoint.
    run.mkdir(parents=True, exist_ok=True)
    if not has_checkpoint:
        for leftover in ("curves", CHECKPOINTS_FOLDER, PROJECTIONS_FOLDER):
            shutil.rmtree(run / leftover, ignore_errors=True)

    # Write the configuration, projections and provenance of this run. A resumed run keeps what
    # its first start recorded.
    configuration.save(run / CONFIG_FILE, "train", config)
    save_projections(run, projections)
    if has_checkpoint:
        for key in ("lr_schedule_steps", "initialised"):
            if key in old_provenance:
                provenance[key] = old_provenance[key]
    write_json(run / PROVENANCE_FILE, provenance)
    return moved_to


def _has_checkpoint(run: Path) -> bool:
    """Return True if a run holds a checkpoint, also one that was being replaced at a kill."""
    if not (run / PROVENANCE_FILE).is_file():
        return False

    return any((run / CHECKPOINTS_FOLDER / name).exists() for name in ("last", ".last.old"))


def _check_resumable(
    run: Path,
    config: TrainConfig,
    provenance: Mapping[str, Any],
    old_provenance: Mapping[str, Any],
    resume: bool,
) -> bool:
    """Return True if the run can be resumed; with `resume`, raise if settings differ."""
    # Compare the settings. Encoders are compared by the digests in the provenance.
    settings = config.model_dump(mode="json")
    old_settings = configuration.read_section(run / CONFIG_FILE, "train")
    ignored_keys = {*RESUMABLE_KEYS, "encoders"}
    differences = set()
    for key, value in settings.items():
        if key not in ignored_keys and value != old_settings.get(key):
            differences.add(key)

    # Compare what the model reads.
    for key in ("store", "dims", "encoders"):
        if provenance[key] != old_provenance.get(key):
            differences.add(key)

    if differences and resume:
        raise InputError(
            f"{run} cannot be resumed: {', '.join(sorted(differences))} differ from what it was"
            " started with; give another --run"
        )
    if differences:
        return False

    # Without --resume, only a run that this very command would have written is taken up again.
    is_same_run = (
        old_provenance.get("code") == provenance["code"]
        and "finished" not in old_provenance
        and settings["max_steps"] == old_settings.get("max_steps")
    )
    return resume or is_same_run


def _build_provenance(store_path: Path, config: TrainConfig) -> dict[str, Any]:
    """Return a run's provenance: store and products, initial encoder weights, code."""
    store = Store(store_path)
    image, text = load_initial_encoders(config.encoders) if config.encoders else (None, None)

    # List the products that the model reads.
    motion_product = config.model.motion_product
    use_images = config.model.uses_images or text is not None
    product_names = ["frames" if use_images else "appearance"]
    if motion_product:
        product_names.append(motion_product)
    if text is None:
        product_names.append("text")

    # Open the train split for its channels and segment lengths.
    tokenize: Any = text.encoder.tokenize if text else None
    dataset = GroundingDataset.from_store(
        store_path, "train", 1, 1, tokenize, motion_product, use_images
    )

    encoder_digests = None
    if image is not None:
        encoder_digests = {"image": image.digest, "text": text.digest if text else None}
    return {
        "format": 1,
        "model": config.system,
        "dims": list(dataset.dims),
        "encoders": encoder_digests,
        "store": store.manifest_digest,
        "dataset": store.manifest.dataset,
        "segment_seconds": summarize_segment_seconds(dataset.queries),
        "products": {name: store.products[name].provenance for name in product_names},
        "code": compute_code_digest(config.encoders is not None),
        "torch": torch.__version__,
    }


def _move_aside(run: Path) -> Path:
    """Rename a run that is about to be replaced, and return its new path."""
    number = 1
    while run.with_name(f"{run.name}.old-{number}").exists():
        number += 1

    target = run.with_name(f"{run.name}.old-{number}")
    run.rename(target)
    log.info("the run that was in %s is now in %s", run, target)
    return target


class RunWriter:
    """Writer of a run's checkpoints, curves and provenance; only the main process writes.

    Args:
        run: The run directory.
        provenance: The run's provenance; it is written at once.
        state: The training state to go on from. Points of the curves after its step are dropped.
        dist: The processes of this training.
    """

    def __init__(
        self, run: Path, provenance: dict[str, Any], state: TrainState, dist: DistributedContext
    ) -> None:
        self._run_dir = run
        self._provenance = provenance
        self._dist = dist
        self._curve_logger: CurveLogger | None = None
        if dist.is_main:
            self._curve_logger = CurveLogger(run / "curves", state.step, state.validated_step)
            write_json(run / PROVENANCE_FILE, provenance)

    def save_checkpoint(self, state: TrainState, name: str) -> None:
        """Write a checkpoint; no process goes on before it is complete.

        Args:
            state: The training state to save.
            name: `last` or `best`.

        Raises:
            PeerLostError: If another process has ended.
        """
        if self._dist.is_main:
            state.save(self._run_dir / CHECKPOINTS_FOLDER / name)
        self._dist.barrier()

    def log_values(self, step: int, split: str, values: dict[str, float]) -> None:
        """Add one point to each of the curves `<split>/<name>`.

        Args:
            step: The number of steps taken.
            split: `train` or `val`.
            values: Value of each curve, by its name.
        """
        if self._curve_logger is None:
            return

        points = {f"{split}/{name}": value for name, value in values.items()}
        self._curve_logger.write(step, points)

    def finish(self, steps: int) -> None:
        """Close the curves and mark the run as finished.

        Args:
            steps: The number of steps taken.
        """
        if self._curve_logger is None:
            return

        self._curve_logger.close()
        write_json(self._run_dir / PROVENANCE_FILE, self._provenance | {"finished": steps})
