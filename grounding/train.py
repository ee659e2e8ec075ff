"""Training: one visible loop over cached features. A run stopped anywhere goes on exactly as if it had not been."""

from __future__ import annotations

import json
import logging
import math
import os
import pickle
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from filelock import FileLock, Timeout
from pydantic import Field
from safetensors.torch import save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from grounding.checkpoint import CONFIG, code_digest, read_provenance
from grounding.curves import Curves
from grounding.data import FeatureSet, Sample, batches, collate, join_targets, to_device
from grounding.losses import LossConfig, csdvl_loss
from grounding.metrics import score, summarise
from grounding.models.csdvl import Csdvl, CsdvlConfig
from grounding.predict import predict
from grounding.projections import FOLDER, keep_projections, projections_of
from pipeline import config as configuration
from pipeline.config import Config
from pipeline.errors import InputError, StvgError
from pipeline.records import Query, read_jsonl, write_json
from pipeline.store import Store
from pipeline.weights import device_of

Progress = Callable[[int, int], None]
MAY_CHANGE = {"max_steps", "log_every", "checkpoint_every", "device"}
"""What a resumed run may set anew."""
log = logging.getLogger(__name__)


class TrainConfig(Config):
    """Section `train`. Defaults are CSDVL's (supplement B.1)."""

    model: CsdvlConfig = CsdvlConfig()
    loss: LossConfig = LossConfig()
    seed: int = Field(default=0, ge=0)
    device: str = "auto"
    batch: int = Field(default=8, ge=1)
    lr: float = Field(default=1e-4, gt=0)
    weight_decay: float = Field(default=1e-4, ge=0)
    clip_norm: float = Field(default=0.1, gt=0)
    ema: float = Field(default=0.999, ge=0, le=1)
    schedule: Literal["constant", "one-cycle"] = "constant"
    """`one-cycle`: 5 % linear warm-up, then cosine to 0 over `schedule_steps`."""
    epochs: int = Field(default=10, ge=1)
    max_steps: int | None = Field(default=None, ge=1)
    """Steps to train; by default `epochs` passes over the train split."""
    schedule_steps: int | None = Field(default=None, ge=1)
    """Steps the schedule runs over; by default `max_steps`."""
    validate_every: int | None = Field(default=None, ge=1)
    """Steps between validations on the EMA weights; by default once an epoch."""
    checkpoint_every: int = Field(default=100, ge=1)
    log_every: int = Field(default=20, ge=1)


class NonFiniteLossError(StvgError):
    """The loss is not a number: training stops and names the batch."""

    exit_code = 1


@dataclass
class State:
    """All that training changes. Saved and loaded whole, so that a resumed run is the uninterrupted one."""

    model: Csdvl
    ema: AveragedModel
    optimiser: torch.optim.AdamW
    schedule: torch.optim.lr_scheduler.LambdaLR
    step: int = 0
    best: float = -1.0

    def save(self, folder: Path) -> None:
        """Write EMA weights (`model.safetensors`) and everything else (`state.pt`); the folder is replaced as a whole."""
        aside = folder.with_name(f".{folder.name}.part")
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        save_file({key: value.contiguous() for key, value in self.ema.module.state_dict().items()}, aside / "model.safetensors")
        whole = {
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "schedule": self.schedule.state_dict(),
            "step": self.step,
            "best": self.best,
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }
        torch.save(whole, aside / "state.pt")
        for path in aside.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        old = folder.with_name(f".{folder.name}.old")
        if folder.exists():  # else an earlier kill left `old` as the only whole one: it stays until the new one is in place
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)
        aside.rename(folder)
        shutil.rmtree(old, ignore_errors=True)

    def load(self, folder: Path) -> None:
        """Take up a saved state; one that was being replaced when the run was killed is found beside it."""
        if not folder.exists():
            folder = folder.with_name(f".{folder.name}.old")
        try:
            whole = torch.load(folder / "state.pt", weights_only=True, map_location="cpu")
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError):
            raise InputError(f"{folder / 'state.pt'} is damaged: delete {folder.parent.parent} and train again") from None
        self.model.load_state_dict(whole["model"])
        self.ema.load_state_dict(whole["ema"])
        self.optimiser.load_state_dict(whole["optimiser"])
        self.schedule.load_state_dict(whole["schedule"])
        self.step, self.best = whole["step"], whole["best"]
        torch.set_rng_state(whole["rng"])
        if whole["cuda_rng"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(whole["cuda_rng"])


def train(store: Path, run: Path, config: TrainConfig, progress: Progress = lambda done, total: None) -> None:
    """Train on a store's `train` split into `run`, which `open_run` made ready. Validates on `val` if it is there."""
    c = config
    torch.manual_seed(c.seed)
    device = device_of(c.device)
    features = FeatureSet.of_store(store, "train", c.model.frames, c.model.clips)
    queries = [query for query in features.queries if query.truth is not None]
    if not queries:
        raise InputError(f"store {store}: no query of split 'train' has a truth to learn from")
    held = _held_out(store, c)
    per_epoch = max(1, len(queries) // min(c.batch, len(queries)))
    last = c.epochs * per_epoch if c.max_steps is None else c.max_steps
    every = c.validate_every or per_epoch
    model = Csdvl(features.dims, c.model).to(device)
    about = read_provenance(run)
    about.setdefault("schedule_steps", c.schedule_steps or last)  # a resume with other max_steps keeps the schedule
    write_json(run / "provenance.json", about)
    state = _state(model, c, about["schedule_steps"])
    if (run / "checkpoints").exists():
        state.load(run / "checkpoints" / "last")
        log.info("resumed %s at step %d of %d", run, state.step, last)
        if state.step > last:
            raise InputError(f"{run} has been trained for {state.step} steps already: max_steps must be at least that, not {last}")
    curves = Curves(run / "curves", state.step)
    progress(state.step, last)
    for numbers in batches(len(queries), c.batch, c.seed, state.step):
        if state.step >= last:
            break
        samples = [features.sample(queries[number]) for number in numbers]
        inputs = to_device(collate(samples), device)
        targets = to_device(join_targets([features.truth(sample) for sample in samples]), device)
        state.model.train()
        out = state.model(inputs)
        parts = csdvl_loss(out, targets, c.loss)
        if not torch.isfinite(parts["loss"]):
            raise NonFiniteLossError(
                f"the loss is {parts['loss'].item()} at step {state.step}, in the batch of {ids_of(samples)}: lower lr or look at them"
            )
        state.optimiser.zero_grad(set_to_none=True)
        parts["loss"].backward()
        norm = nn.utils.clip_grad_norm_(state.model.parameters(), c.clip_norm)
        if not torch.isfinite(norm):
            raise NonFiniteLossError(
                f"the gradient is not finite at step {state.step}, in the batch of {ids_of(samples)}: lower lr or look at them"
            )
        state.optimiser.step()
        state.schedule.step()
        state.ema.update_parameters(state.model)
        state.step += 1
        if state.step % c.log_every == 0 or state.step == last:
            values = {f"train/{name}": value.item() for name, value in parts.items()}
            curves.write(state.step, {**values, "train/lr": float(state.schedule.get_last_lr()[0]), "train/gradient_norm": norm.item()})
        if held is not None and (state.step % every == 0 or state.step == last):
            metrics = summarise(score(held.queries, held.tracks, predict(state.ema.module, held, held.queries)))
            curves.write(state.step, {f"val/{name}": value for name, value in metrics.items()})
            log.info("step %d: val %s", state.step, json.dumps(metrics))
            reached = metrics.get("m_vIoU", metrics["m_tIoU"])
            if reached > state.best:
                state.best = reached
                state.save(run / "checkpoints" / "best")
        if state.step % c.checkpoint_every == 0 or state.step == last:
            state.save(run / "checkpoints" / "last")
        progress(state.step, last)
    curves.close()
    write_json(run / "provenance.json", about | {"finished": last})


def ids_of(samples: Sequence[Sample]) -> str:
    """The queries of a batch, for a message."""
    return ", ".join(sample.query.id for sample in samples)


@contextmanager
def sole_writer(run: Path) -> Iterator[None]:
    """Hold a run directory; a second training of it is refused. The lock lies beside it, since a run may be moved aside."""
    run.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(run.parent / f".{run.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(f"{run} is being trained by another process: wait until it ends, stop it, or name another --run") from None
    try:
        yield
    finally:
        lock.release()


def _state(model: Csdvl, c: TrainConfig, schedule_steps: int) -> State:
    """Model, its moving average, AdamW (no decay on norms and biases is not asked for by the paper) and the schedule."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=c.lr, weight_decay=c.weight_decay)

    def factor(step: int) -> float:
        if c.schedule == "constant":
            return 1.0
        warm = max(1, round(0.05 * schedule_steps))
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm) / max(1, schedule_steps - warm))))

    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(c.ema), use_buffers=True)
    return State(model, ema, optimiser, torch.optim.lr_scheduler.LambdaLR(optimiser, factor))


def _held_out(store: Path, c: TrainConfig) -> FeatureSet | None:
    """The `val` split, where the index has one with truths."""
    if not any(query.split == "val" and query.truth is not None for query in read_jsonl(Store(store).index_path, Query)):
        return None
    held = FeatureSet.of_store(store, "val", c.model.frames, c.model.clips)
    held.queries = [query for query in held.queries if query.truth is not None]
    return held if held.queries else None


def open_run(store: Path, run: Path, config: TrainConfig, resume: bool = False) -> None:
    """Make the run directory ready: empty, or holding the checkpoint to go on from.

    A run of the same configuration, store and code that was stopped is taken up again (being exact, that is the same as
    starting over, only sooner). With `resume` anything but `MAY_CHANGE` that differs is an error; without it the old
    run is moved aside.
    """
    now, settings = _made_from(store), config.model_dump(mode="json")
    projections = projections_of(store, now["products"])
    known = run / "provenance.json"
    there = known.is_file() and any((run / "checkpoints" / name).exists() for name in ("last", ".last.old"))
    if there:
        old, old_config = read_provenance(run), configuration.read_section(run / CONFIG, "train")
        differs = sorted(key for key in settings if key not in MAY_CHANGE and settings[key] != old_config.get(key))
        differs += sorted(key for key in ("store", "dims", "model") if now[key] != old.get(key))
        if resume and differs:
            raise InputError(f"{run} cannot be resumed: {', '.join(differs)} differ from what it was started with; name another --run")
        anew = old.get("code") != now["code"] or "finished" in old or settings["max_steps"] != old_config.get("max_steps")
        same = not differs and (resume or not anew)
        if not same:
            _move_aside(run)
            there = False
    elif resume:
        raise InputError(f"{run} holds no checkpoint to resume: leave out --resume to start a run there")
    run.mkdir(parents=True, exist_ok=True)
    if not there:
        for leftover in ("curves", "checkpoints", FOLDER):
            shutil.rmtree(run / leftover, ignore_errors=True)
    configuration.save(run / CONFIG, "train", config)
    keep_projections(run, projections)
    if there and "schedule_steps" in old:
        now["schedule_steps"] = old["schedule_steps"]
    write_json(known, now)


def _made_from(store: Path) -> dict[str, Any]:
    """A run's provenance: the store and its products, the code."""
    opened = Store(store)
    return {
        "format": 1,
        "model": "csdvl",
        "dims": list(FeatureSet.of_store(store, "train", 1, 1).dims),
        "store": opened.manifest_digest,
        "dataset": opened.manifest.dataset,
        "products": {name: opened.products[name].provenance for name in ("appearance", "motion", "text")},
        "code": code_digest(),
        "torch": torch.__version__,
    }


def _move_aside(run: Path) -> None:
    """Rename a run that is about to be replaced; nothing is lost."""
    number = 1
    while (aside := run.with_name(f"{run.name}.old-{number}")).exists():
        number += 1
    run.rename(aside)
    log.info("the run that was in %s is now in %s", run, aside)
