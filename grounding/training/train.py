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
from grounding.data.batch_sampler import compute_steps_per_epoch
from grounding.data.dataset import GroundingDataset
from grounding.data.feature_reduction import load_reduction
from grounding.data.loader import Batch, Loader, SampleTransform
from grounding.data.negative_sampling import NegativeSentenceSampler
from grounding.data.sources import TokenizeFunction
from grounding.inference.predict import predict
from grounding.metrics.scores import score_queries, summarize
from grounding.modules.activation_checkpointing import enable_activation_checkpointing
from grounding.structures.targets import LossNormalizers
from grounding.systems.checkpoint import read_provenance
from grounding.systems.config import TrainConfig
from grounding.systems.csdvl import CsdvlTrainConfig as CsdvlTrainConfig
from grounding.systems.registry import build_model, get_system, get_tokenizer, unwrap_encoders
from grounding.training.distributed import DistributedContext
from grounding.training.run_directory import RunWriter
from grounding.training.run_directory import lock_run_dir as lock_run_dir
from grounding.training.run_directory import prepare_run_dir as prepare_run_dir
from grounding.training.signals import GracefulShutdown
from grounding.training.train_state import TrainState
from pipeline.errors import InputError, StvgError
from pipeline.io.jsonl import read_jsonl
from pipeline.records import Query
from pipeline.store import Store
from pipeline.store.manifest import compute_files_digest

ProgressCallback = Callable[[int, int], None]
ForwardFunction = Callable[..., Any]
"""From `Inputs` (and, where the system is taught, `Targets`) to outputs: the model, or the model compiled."""
log = logging.getLogger(__name__)


class NonFiniteLossError(StvgError):
    """The loss is not a number: training stops and names the batch."""

    exit_code = 1


def train(
    store: Path,
    run: Path,
    config: TrainConfig,
    progress: ProgressCallback = lambda done, total: None,
    warn: Callable[[str], None] = log.warning,
) -> None:
    """Train on a store's `train` split into `run`, which `prepare_run_dir` made ready. Validates on `val` if it is there.

    With several processes (`processes.joined`) all of them call this, and together they do what one would do. SIGTERM and
    Ctrl-C let the step be finished and saved, and are then handed on.
    """
    c, together = config, DistributedContext()
    torch.manual_seed(c.seed)
    device = together.get_device(c.device)
    about = read_provenance(run)
    model = build_model(c, about)
    features, held = (
        _load_split(store, split, c, get_tokenizer(model), device) for split in ("train", "val")
    )
    if features is None:
        raise InputError(f"store {store}: no query of split 'train' has a truth to learn from")
    per_epoch = compute_steps_per_epoch(len(features.queries), c.batch)
    last, every = c.max_steps or c.epochs * per_epoch, c.validate_every or per_epoch
    about.setdefault(
        "lr_schedule_steps", c.lr_schedule_steps or last
    )  # a resume with other max_steps keeps the schedule
    state = _init_or_resume(run, c, model, about, device, warn if together.is_main else log.warning)
    network: ForwardFunction = torch.compile(state.model) if c.compile else state.model
    if state.step > last:
        raise InputError(
            f"{run} has been trained for {state.step} steps already: max_steps must be at least that, not {last}"
        )
    together.barrier()  # until all have read what the first may replace
    written = RunWriter(run, about, state)
    queries, measure = features.queries, get_system(c.system).selection_metric(c.model)
    changes: list[SampleTransform] = (
        []
        if c.augment is None
        else [Augmentation(c.augment, c.seed, queries, get_tokenizer(model))]
    )
    flipped = c.augment is not None and c.augment.flip_probability > 0
    changes += (
        [NegativeSentenceSampler(c.negative_rate, c.seed, features, queries, flipped)]
        if c.negative_rate
        else []
    )
    loader = Loader(
        features,
        queries,
        c.batch,
        c.seed,
        state.step,
        together.rank,
        together.world_size,
        c.accumulation_steps,
        device,
        changes,
    )
    with GracefulShutdown(is_distributed=together.world_size > 1) as stop, loader:
        progress(state.step, last)
        batches = iter(loader)
        while True:
            if (
                held is not None
                and state.validated_step < state.step
                and (state.step % every == 0 or state.step == last)
            ):
                with (
                    stop.deliver_immediately()
                ):  # the step is saved, and who resumes here validates first
                    metrics = validate(state.ema_model.module, held, c, together)
                written.log_values(state.step, "val", metrics)
                log.info("step %d: val %s", state.step, json.dumps(metrics))
                state.validated_step, reached = (
                    state.step,
                    metrics.get(measure, metrics["m_tIoU"]),
                )  # a split without boxes has no m_vIoU
                if reached > state.best_metric:
                    state.best_metric = reached
                    written.save_checkpoint(state, "best")
                written.save_checkpoint(state, "last")
            if state.step == last:
                break
            if asked := together.all_reduce_max(stop.received_signal):
                stop.received_signal = asked
                written.save_checkpoint(state, "last")
                return
            losses, norm = train_step(network, state, next(batches), c, together)
            if state.step % c.log_every == 0 or state.step == last:
                rates = {"lr": float(state.lr_scheduler.get_last_lr()[0]), "gradient_norm": norm}
                written.log_values(state.step, "train", losses | rates)
            if (
                state.step % c.checkpoint_every == 0
                or state.step == last
                or (held is not None and state.step % every == 0)
            ):
                written.save_checkpoint(state, "last")
            progress(state.step, last)
    written.finish(last)


def train_step(
    forward: ForwardFunction,
    state: TrainState,
    batches: Sequence[Batch],
    config: TrainConfig,
    dist: DistributedContext,
) -> tuple[dict[str, float], float]:
    """One step on a global batch, of which `parts` are this process' own; gives the batch's losses and gradient norm.

    Every part's loss is its share of the whole batch's: losses and gradients add up over parts and processes. Random
    numbers (dropout) are a function of seed, step and the part's place in the batch alone.
    """
    system = get_system(config.system)
    totals = LossNormalizers(
        *dist.all_reduce_sum(
            torch.stack(
                [torch.stack(LossNormalizers.from_targets(part.targets)) for part in batches]
            ).sum(0)
        )
    )
    found: list[dict[str, Tensor]] = []
    state.model.train()
    state.optimizer.zero_grad(set_to_none=True)
    for place, part in enumerate(batches, start=dist.rank * len(batches)):
        torch.manual_seed(
            int(np.random.SeedSequence([config.seed, state.step, place]).generate_state(1)[0])
        )
        with torch.autocast(
            part.targets.span.device.type, torch.bfloat16, enabled=config.precision == "bfloat16"
        ):
            out = (
                forward(part.inputs, part.targets)
                if system.needs_targets(config.model)
                else forward(part.inputs)
            )
        losses = system.loss(_to_float32(out), part.targets, config.loss, totals)
        losses["loss"].backward()
        found.append({name: value.detach() for name, value in losses.items()})
    dist.all_reduce_gradients(state.model.parameters())
    gradient = nn.utils.clip_grad_norm_(state.model.parameters(), config.clip_norm)
    summed = dist.all_reduce_sum(
        torch.stack([torch.stack([losses[name] for losses in found]).sum() for name in found[0]])
    )
    *sums, norm = torch.cat([summed, gradient[None]]).tolist()  # the one wait for a GPU in a step
    values = dict(zip(found[0], sums, strict=True))
    if not math.isfinite(values["loss"] + norm):
        _raise_non_finite(
            values["loss"],
            norm,
            state.step,
            [part.query_ids for part in batches],
            [losses["loss"] for losses in found],
            dist,
        )
    state.optimizer.step()
    state.lr_scheduler.step()
    state.ema_model.update_parameters(state.model)
    state.step += 1
    return values, norm


def validate(
    model: nn.Module, dataset: GroundingDataset, config: TrainConfig, dist: DistributedContext
) -> dict[str, float]:
    """Metrics on the held-out queries, which the processes share among them; no more at once, and as precise, as in training."""
    own, passes = (
        dataset.queries[dist.rank :: dist.world_size],
        math.ceil(config.batch / (dist.world_size * config.accumulation_steps)),
    )
    with torch.autocast(
        next(model.parameters()).device.type, torch.bfloat16, enabled=config.precision == "bfloat16"
    ):
        answers = dist.all_gather(predict(model, dataset, own, passes))
    return summarize(
        score_queries(
            dataset.queries, dataset.tracks, [answer for part in answers for answer in part]
        )
    )


def _raise_non_finite(
    loss: float,
    gradient_norm: float,
    step: int,
    query_ids: list[list[str]],
    losses: list[Tensor],
    dist: DistributedContext,
) -> NoReturn:
    """Stop all processes with the queries of the parts whose loss is not finite, or of all parts where only the gradient is not."""
    finite = math.isfinite(loss)
    own = [
        name
        for part, value in zip(query_ids, losses, strict=True)
        if finite or not torch.isfinite(value)
        for name in part
    ]
    names = ", ".join(name for part in dist.all_gather(own) for name in part)
    what = f"the gradient is {gradient_norm}" if finite else f"the loss is {loss}"
    raise NonFiniteLossError(
        f"{what} at step {step}, in the batch of {names}: lower lr or look at them"
    )


def _to_float32(outputs: Any) -> Any:
    """A network's outputs with every floating tensor in float32."""
    values = {field.name: getattr(outputs, field.name) for field in fields(outputs)}
    return replace(
        outputs,
        **{name: value.float() for name, value in values.items() if value.is_floating_point()},
    )


def _init_or_resume(
    run: Path,
    config: TrainConfig,
    model: nn.Module,
    provenance: dict[str, Any],
    device: torch.device,
    warn: Callable[[str], None],
) -> TrainState:
    """The state of the run's last checkpoint; before there is one, that of first weights, from scratch or from `initialise`."""
    checkpoints = run / "checkpoints"
    if config.init_from is not None and not checkpoints.exists():
        reduction = load_reduction(run, "appearance", provenance["products"].get("appearance", {}))
        basis = None if reduction is None else reduction.projection
        log.info(
            "%s",
            get_system(config.system).load_pretrained(
                unwrap_encoders(model), config.init_from, basis
            ),
        )
        provenance["initialised"] = compute_files_digest([config.init_from])
        for what, weights in _weight_sources(config, provenance).items():
            if not weights.startswith("mdetr:"):
                warn(
                    f"MDETR's static stream reads {what} features of MDETR's own encoder, and this run's come from {weights!r}"
                )
    state = TrainState.create(model.to(device), config, provenance["lr_schedule_steps"])
    if checkpoints.exists():
        state.load(checkpoints / "last")
        log.info("resumed %s at step %d", run, state.step)
    if config.activation_checkpointing:
        enable_activation_checkpointing(model)
    return state


def _weight_sources(config: TrainConfig, provenance: dict[str, Any]) -> dict[str, str]:
    """Where the weights of the image and the text encoder come from."""
    if config.encoders is not None and config.encoders.text is not None:
        return {"appearance": config.encoders.image, "text": config.encoders.text}
    return {
        name: provenance["products"][name].get("weights", "an unknown source")
        for name in ("appearance", "text")
    }


def _load_split(
    store: Path,
    split: str,
    config: TrainConfig,
    tokenize: TokenizeFunction | None,
    device: torch.device,
) -> GroundingDataset | None:
    """The queries of a split that have a truth, with their features; None where there are none."""
    if not any(
        query.split == split and query.truth is not None
        for query in read_jsonl(Store(store).index_path, Query)
    ):
        return None
    features = GroundingDataset.from_store(
        store,
        split,
        config.model.num_frames,
        config.model.num_clips,
        tokenize,
        config.model.motion_product,
        config.model.uses_images,
        device,
        with_truth=True,
    )
    return features if features.queries else None
