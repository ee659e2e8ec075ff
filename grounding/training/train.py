"""Training: one visible loop. A run stopped anywhere goes on exactly as if it had not been."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn

from grounding.data.augmentation import Augmentation
from grounding.data.batch_sampler import steps_per_epoch
from grounding.data.dataset import FeatureSet
from grounding.data.feature_reduction import recorded_reduction
from grounding.data.loader import Batch, Change, Loader
from grounding.data.negative_sampling import Absence
from grounding.data.sources import Tokenise
from grounding.inference.predict import predict
from grounding.metrics.scores import score, summarise
from grounding.modules.activation_checkpointing import recompute
from grounding.structures.targets import Totals
from grounding.systems.checkpoint import read_provenance
from grounding.systems.config import Recipe
from grounding.systems.config import TrainConfig as TrainConfig
from grounding.systems.registry import built, network_of, system_of, tokenise_of
from grounding.training.distributed import Processes
from grounding.training.run_directory import RunWriter
from grounding.training.run_directory import open_run as open_run
from grounding.training.run_directory import sole_writer as sole_writer
from grounding.training.signals import Stop
from grounding.training.train_state import State
from pipeline.errors import InputError, StvgError
from pipeline.io.jsonl import read_jsonl
from pipeline.records import Query
from pipeline.store import Store
from pipeline.store.manifest import compute_files_digest

Progress = Callable[[int, int], None]
Network = Callable[..., Any]
"""From `Inputs` (and, where the system is taught, `Targets`) to outputs: the model, or the model compiled."""
log = logging.getLogger(__name__)


class NonFiniteLossError(StvgError):
    """The loss is not a number: training stops and names the batch."""

    exit_code = 1


def train(
    store: Path,
    run: Path,
    config: Recipe,
    progress: Progress = lambda done, total: None,
    warn: Callable[[str], None] = log.warning,
) -> None:
    """Train on a store's `train` split into `run`, which `open_run` made ready. Validates on `val` if it is there.

    With several processes (`processes.joined`) all of them call this, and together they do what one would do. SIGTERM and
    Ctrl-C let the step be finished and saved, and are then handed on.
    """
    c, together = config, Processes()
    torch.manual_seed(c.seed)
    device = together.device(c.device)
    about = read_provenance(run)
    model = built(c, about)
    features, held = (_split(store, split, c, tokenise_of(model), device) for split in ("train", "val"))
    if features is None:
        raise InputError(f"store {store}: no query of split 'train' has a truth to learn from")
    per_epoch = steps_per_epoch(len(features.queries), c.batch)
    last, every = c.max_steps or c.epochs * per_epoch, c.validate_every or per_epoch
    about.setdefault("schedule_steps", c.schedule_steps or last)  # a resume with other max_steps keeps the schedule
    state = _started(run, c, model, about, device, warn if together.first else log.warning)
    network: Network = torch.compile(state.model) if c.compile else state.model
    if state.step > last:
        raise InputError(f"{run} has been trained for {state.step} steps already: max_steps must be at least that, not {last}")
    together.wait()  # until all have read what the first may replace
    written = RunWriter(run, about, state)
    queries, measure = features.queries, system_of(c.system).measure(c.model)
    changes: list[Change] = [] if c.augment is None else [Augmentation(c.augment, c.seed, queries, tokenise_of(model))]
    flipped = c.augment is not None and c.augment.flip > 0
    changes += [Absence(c.absent, c.seed, features, queries, flipped)] if c.absent else []
    loader = Loader(features, queries, c.batch, c.seed, state.step, together.rank, together.world, c.accumulate, device, changes)
    with Stop(several=together.world > 1) as stop, loader:
        progress(state.step, last)
        batches = iter(loader)
        while True:
            if held is not None and state.judged < state.step and (state.step % every == 0 or state.step == last):
                with stop.at_once():  # the step is saved, and who resumes here validates first
                    metrics = validate(state.ema.module, held, c, together)
                written.draw(state.step, "val", metrics)
                log.info("step %d: val %s", state.step, json.dumps(metrics))
                state.judged, reached = state.step, metrics.get(measure, metrics["m_tIoU"])  # a split without boxes has no m_vIoU
                if reached > state.best:
                    state.best = reached
                    written.save(state, "best")
                written.save(state, "last")
            if state.step == last:
                break
            if asked := together.largest(stop.asked):
                stop.asked = asked
                written.save(state, "last")
                return
            losses, norm = learn(network, state, next(batches), c, together)
            if state.step % c.log_every == 0 or state.step == last:
                rates = {"lr": float(state.schedule.get_last_lr()[0]), "gradient_norm": norm}
                written.draw(state.step, "train", losses | rates)
            if state.step % c.checkpoint_every == 0 or state.step == last or (held is not None and state.step % every == 0):
                written.save(state, "last")
            progress(state.step, last)
    written.finish(last)


def learn(network: Network, state: State, parts: Sequence[Batch], c: Recipe, together: Processes) -> tuple[dict[str, float], float]:
    """One step on a global batch, of which `parts` are this process' own; gives the batch's losses and gradient norm.

    Every part's loss is its share of the whole batch's: losses and gradients add up over parts and processes. Random
    numbers (dropout) are a function of seed, step and the part's place in the batch alone.
    """
    system = system_of(c.system)
    totals = Totals(*together.sum(torch.stack([torch.stack(Totals.of(part.targets)) for part in parts]).sum(0)))
    found: list[dict[str, Tensor]] = []
    state.model.train()
    state.optimiser.zero_grad(set_to_none=True)
    for place, part in enumerate(parts, start=together.rank * len(parts)):
        torch.manual_seed(int(np.random.SeedSequence([c.seed, state.step, place]).generate_state(1)[0]))
        with torch.autocast(part.targets.span.device.type, torch.bfloat16, enabled=c.precision == "bfloat16"):
            out = network(part.inputs, part.targets) if system.taught(c.model) else network(part.inputs)
        losses = system.loss(_in_float32(out), part.targets, c.loss, totals)
        losses["loss"].backward()
        found.append({name: value.detach() for name, value in losses.items()})
    together.sum_gradients(state.model.parameters())
    gradient = nn.utils.clip_grad_norm_(state.model.parameters(), c.clip_norm)
    summed = together.sum(torch.stack([torch.stack([losses[name] for losses in found]).sum() for name in found[0]]))
    *sums, norm = torch.cat([summed, gradient[None]]).tolist()  # the one wait for a GPU in a step
    values = dict(zip(found[0], sums, strict=True))
    if not math.isfinite(values["loss"] + norm):
        _refuse(values["loss"], norm, state.step, [part.ids for part in parts], [losses["loss"] for losses in found], together)
    state.optimiser.step()
    state.schedule.step()
    state.ema.update_parameters(state.model)
    state.step += 1
    return values, norm


def validate(model: nn.Module, held: FeatureSet, c: Recipe, together: Processes) -> dict[str, float]:
    """Metrics on the held-out queries, which the processes share among them; no more at once, and as precise, as in training."""
    own, passes = held.queries[together.rank :: together.world], math.ceil(c.batch / (together.world * c.accumulate))
    with torch.autocast(next(model.parameters()).device.type, torch.bfloat16, enabled=c.precision == "bfloat16"):
        answers = together.gather(predict(model, held, own, passes))
    return summarise(score(held.queries, held.tracks, [answer for part in answers for answer in part]))


def _refuse(loss: float, norm: float, step: int, ids: list[list[str]], losses: list[Tensor], together: Processes) -> NoReturn:
    """Stop all processes with the queries of the parts whose loss is not finite, or of all parts where only the gradient is not."""
    finite = math.isfinite(loss)
    own = [name for part, value in zip(ids, losses, strict=True) if finite or not torch.isfinite(value) for name in part]
    names = ", ".join(name for part in together.gather(own) for name in part)
    what = f"the gradient is {norm}" if finite else f"the loss is {loss}"
    raise NonFiniteLossError(f"{what} at step {step}, in the batch of {names}: lower lr or look at them")


def _in_float32(out: Any) -> Any:
    """A network's outputs with every floating tensor in float32."""
    values = {field.name: getattr(out, field.name) for field in fields(out)}
    return replace(out, **{name: value.float() for name, value in values.items() if value.is_floating_point()})


def _started(run: Path, c: Recipe, model: nn.Module, about: dict[str, Any], device: torch.device, warn: Callable[[str], None]) -> State:
    """The state of the run's last checkpoint; before there is one, that of first weights, from scratch or from `initialise`."""
    checkpoints = run / "checkpoints"
    if c.initialise is not None and not checkpoints.exists():
        reduction = recorded_reduction(run, "appearance", about["products"].get("appearance", {}))
        basis = None if reduction is None else reduction.projection
        log.info("%s", system_of(c.system).initialise(network_of(model), c.initialise, basis))
        about["initialised"] = compute_files_digest([c.initialise])
        for what, weights in _weights_read(c, about).items():
            if not weights.startswith("mdetr:"):
                warn(f"MDETR's static stream reads {what} features of MDETR's own encoder, and this run's come from {weights!r}")
    state = State.start(model.to(device), c, about["schedule_steps"])
    if checkpoints.exists():
        state.load(checkpoints / "last")
        log.info("resumed %s at step %d", run, state.step)
    if c.recompute:
        recompute(model)
    return state


def _weights_read(c: Recipe, about: dict[str, Any]) -> dict[str, str]:
    """Where the weights of the image and the text encoder come from."""
    if c.encoders is not None and c.encoders.text is not None:
        return {"appearance": c.encoders.image, "text": c.encoders.text}
    return {name: about["products"][name].get("weights", "an unknown source") for name in ("appearance", "text")}


def _split(store: Path, split: str, c: Recipe, tokenise: Tokenise | None, device: torch.device) -> FeatureSet | None:
    """The queries of a split that have a truth, with their features; None where there are none."""
    if not any(query.split == split and query.truth is not None for query in read_jsonl(Store(store).index_path, Query)):
        return None
    features = FeatureSet.of_store(store, split, c.model.frames, c.model.clips, tokenise, c.model.motion, c.model.pictures, device)
    features.queries = [query for query in features.queries if query.truth is not None]
    return features if features.queries else None
