"""The training loop. A run stopped anywhere resumes exactly as if it had not been stopped."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from grounding.systems.config import TrainConfig
from grounding.systems.provenance import read_provenance
from grounding.systems.registry import build_model, get_system, get_tokenizer, unwrap_encoders
from grounding.training.distributed import SINGLE_PROCESS, DistributedContext
from grounding.training.run_directory import CHECKPOINTS_FOLDER, RunWriter
from grounding.training.signals import GracefulShutdown
from grounding.training.train_state import TrainState
from pipeline.callbacks import MessageCallback, ProgressCallback
from pipeline.errors import InputError, StvgError
from pipeline.io.jsonl import read_jsonl
from pipeline.records import Query
from pipeline.store import Store
from pipeline.store.manifest import compute_files_digest

ForwardFunction = Callable[..., Any]
"""The model, or the compiled model: from `ModelInputs` to the model's outputs.

Some systems also take the `Targets` in training.
"""
log = logging.getLogger(__name__)


class NonFiniteLossError(StvgError):
    """The loss or the gradient is not finite; the message names the queries of the batch."""

    exit_code = 1


def _ignore_progress(done: int, total: int) -> None:
    """Report nothing."""


def train(
    store: Path,
    run: Path,
    config: TrainConfig,
    progress: ProgressCallback = _ignore_progress,
    warn: MessageCallback = log.warning,
    dist: DistributedContext = SINGLE_PROCESS,
) -> None:
    """Train a model on the `train` split of a store, and validate it on `val` if there is one.

    The first SIGTERM or Ctrl-C lets the current step end, saves a checkpoint, and is then handed on
    to the previous signal handler. With several processes all of them call this function; together
    they take the steps that one process would take.

    Args:
        store: The feature store.
        run: The run directory, made ready by `prepare_run_dir`.
        config: The training configuration.
        progress: Receives the number of finished steps and the number of all steps.
        warn: Receives warnings about the initial weights, in the main process.
        dist: The processes of this training, from `init_distributed`.

    Raises:
        InputError: If no query of split `train` has a ground truth, the batch cannot be divided,
            or the run has been trained for more than `max_steps`.
        NonFiniteLossError: If the loss or the gradient is not finite.
        PeerLostError: If another process has ended.
    """
    # Build the model and open the datasets.
    torch.manual_seed(config.seed)
    device = dist.get_device(config.device)
    provenance = read_provenance(run)
    model = build_model(config, provenance)
    tokenize = get_tokenizer(model)
    train_set = _load_split(store, "train", config, tokenize, device)
    val_set = _load_split(store, "val", config, tokenize, device)
    if train_set is None:
        raise InputError(f"store {store}: no query of split 'train' has a truth to learn from")

    # Count the steps. A resumed run keeps its learning rate schedule, whatever its max_steps.
    steps_per_epoch = compute_steps_per_epoch(len(train_set.queries), config.batch)
    last_step = config.max_steps or config.epochs * steps_per_epoch
    validate_every = config.validate_every or steps_per_epoch
    provenance.setdefault("lr_schedule_steps", config.lr_schedule_steps or last_step)

    # Load the last checkpoint, or initialize the weights.
    init_warn = warn if dist.is_main else log.warning
    state = _init_or_resume(run, config, model, provenance, device, init_warn)
    if state.step > last_step:
        raise InputError(
            f"{run} has been trained for {state.step} steps already: max_steps must be at least"
            f" that, not {last_step}"
        )
    forward: ForwardFunction = torch.compile(state.model) if config.compile else state.model

    # All processes have read the checkpoint before the main process may replace it.
    dist.barrier()
    writer = RunWriter(run, provenance, state, dist)
    selection_metric = get_system(config.system).selection_metric(config.model)
    loader = Loader(
        train_set,
        train_set.queries,
        config.batch,
        config.seed,
        state.step,
        dist.rank,
        dist.world_size,
        config.accumulation_steps,
        device,
        _build_transforms(config, train_set, tokenize),
    )

    with GracefulShutdown(is_distributed=dist.world_size > 1) as shutdown, loader:
        progress(state.step, last_step)
        steps = iter(loader)
        while True:
            is_last = state.step == last_step
            is_validation_due = (
                state.step % validate_every == 0 or is_last
            ) and state.validated_step < state.step

            # Validate after the step's checkpoint is saved: a signal may end the run at once,
            # because a resumed run validates first.
            if val_set is not None and is_validation_due:
                with shutdown.deliver_immediately():
                    metrics = validate(state.ema_model.module, val_set, config, dist)
                writer.log_values(state.step, "val", metrics)
                log.info("step %d: val %s", state.step, json.dumps(metrics))
                state.validated_step = state.step

                # A split without boxes has no m_vIoU.
                metric = metrics.get(selection_metric, metrics["m_tIoU"])
                if metric > state.best_metric:
                    state.best_metric = metric
                    writer.save_checkpoint(state, "best")
                writer.save_checkpoint(state, "last")

            if is_last:
                break

            # Stop at the same step in all processes, whichever received a signal.
            received_signal = dist.all_reduce_max(shutdown.received_signal)
            if received_signal:
                shutdown.received_signal = received_signal
                writer.save_checkpoint(state, "last")
                return

            losses, gradient_norm = train_step(forward, state, next(steps), config, dist)

            is_last = state.step == last_step
            if state.step % config.log_every == 0 or is_last:
                learning_rate = float(state.lr_scheduler.get_last_lr()[0])
                rates = {"lr": learning_rate, "gradient_norm": gradient_norm}
                writer.log_values(state.step, "train", losses | rates)

            is_checkpoint_due = state.step % config.checkpoint_every == 0 or is_last
            if is_checkpoint_due or (val_set is not None and state.step % validate_every == 0):
                writer.save_checkpoint(state, "last")
            progress(state.step, last_step)

    writer.finish(last_step)


def train_step(
    forward: ForwardFunction,
    state: TrainState,
    batches: Sequence[Batch],
    config: TrainConfig,
    dist: DistributedContext,
) -> tuple[dict[str, float], float]:
    """Take one training step on a global batch.

    Args:
        forward: The model, or the compiled model.
        state: The training state; it is changed in place.
        batches: The micro-batches of this process, on the device.
        config: The training configuration.
        dist: The processes of this training.

    Returns:
        The losses of the global batch by name (`loss` is minimized), and the gradient's norm before
        clipping.

    Raises:
        NonFiniteLossError: If the loss or the gradient norm is not finite.
        PeerLostError: If another process has ended.
    """
    state.model.train()
    state.optimizer.zero_grad(set_to_none=True)

    # Forward and backward of each micro-batch; gradients add up.
    micro_losses = []
    for losses in micro_batch_losses(forward, state, batches, config, dist):
        losses["loss"].backward()
        micro_losses.append({name: loss.detach() for name, loss in losses.items()})

    # Reduce over processes, clip, and check.
    parameters = list(state.model.parameters())
    dist.all_reduce_gradients(parameters)
    gradient_norm = nn.utils.clip_grad_norm_(parameters, config.clip_norm)
    total_losses, norm = reduce_losses(micro_losses, gradient_norm, dist)
    if not math.isfinite(total_losses["loss"] + norm):
        _raise_non_finite(total_losses["loss"], norm, state.step, batches, micro_losses, dist)

    # Step, schedule, EMA.
    state.optimizer.step()
    state.lr_scheduler.step()
    state.ema_model.update_parameters(state.model)
    state.step += 1
    return total_losses, norm


def micro_batch_losses(
    forward: ForwardFunction,
    state: TrainState,
    batches: Sequence[Batch],
    config: TrainConfig,
    dist: DistributedContext,
) -> Iterator[dict[str, Tensor]]:
    """Run the forward pass of each micro-batch.

    Losses are normalized by the totals of the global batch, so that losses and gradients of
    micro-batches and ranks sum to those of the global batch. Random numbers (dropout) are a
    function of the seed, the step and the index of the micro-batch in the global batch.

    Args:
        forward: The model, or the compiled model.
        state: The training state.
        batches: The micro-batches of this process, on the device.
        config: The training configuration.
        dist: The processes of this training.

    Yields:
        The losses of one micro-batch by name, with their autograd graph.

    Raises:
        PeerLostError: If another process has ended.
    """
    system = get_system(config.system)
    needs_targets = system.needs_targets(config.model)
    use_bfloat16 = config.precision == "bfloat16"
    normalizers = _sum_normalizers(batches, dist)

    # Ranks hold consecutive micro-batches of the global batch.
    first_index = dist.rank * len(batches)
    for index, batch in enumerate(batches, start=first_index):
        seeds = np.random.SeedSequence([config.seed, state.step, index])
        torch.manual_seed(int(seeds.generate_state(1)[0]))

        device_type = batch.targets.span.device.type
        with torch.autocast(device_type, torch.bfloat16, enabled=use_bfloat16):
            if needs_targets:
                outputs = forward(batch.inputs, batch.targets)
            else:
                outputs = forward(batch.inputs)

        yield system.loss(_to_float32(outputs), batch.targets, config.loss, normalizers)


def _sum_normalizers(batches: Sequence[Batch], dist: DistributedContext) -> LossNormalizers:
    """Return the loss normalizers of the global batch."""
    counts = [torch.stack(LossNormalizers.from_targets(batch.targets)) for batch in batches]
    totals = dist.all_reduce_sum(torch.stack(counts).sum(0))  # [3]
    return LossNormalizers(*totals)


def reduce_losses(
    micro_losses: Sequence[Mapping[str, Tensor]], gradient_norm: Tensor, dist: DistributedContext
) -> tuple[dict[str, float], float]:
    """Sum losses over micro-batches and processes, and copy them to the CPU.

    Args:
        micro_losses: The losses of each micro-batch of this process by name, without graph.
        gradient_norm: The norm of the summed gradient, equal in all processes.
        dist: The processes of this training.

    Returns:
        The losses of the global batch by name, and the gradient norm.

    Raises:
        PeerLostError: If another process has ended.
    """
    names = list(micro_losses[0])
    sums = []
    for name in names:
        sums.append(torch.stack([losses[name] for losses in micro_losses]).sum())
    totals = dist.all_reduce_sum(torch.stack(sums))  # [names]

    # One copy of all numbers: a step waits for the GPU only here.
    *values, norm = torch.cat([totals, gradient_norm[None]]).tolist()
    return dict(zip(names, values, strict=True)), norm


def validate(
    model: nn.Module, dataset: GroundingDataset, config: TrainConfig, dist: DistributedContext
) -> dict[str, float]:
    """Compute metrics on a dataset, with the batch size and precision of training.

    Args:
        model: The model with EMA weights.
        dataset: The validation split.
        config: The training configuration.
        dist: The processes of this training; each predicts a part of the queries.

    Returns:
        Mean metrics by name, equal in all processes.

    Raises:
        PeerLostError: If another process has ended.
    """
    # Predict this process's part of the queries.
    queries = dataset.queries[dist.rank :: dist.world_size]
    batch_size = math.ceil(config.batch / (dist.world_size * config.accumulation_steps))
    device_type = next(model.parameters()).device.type
    use_bfloat16 = config.precision == "bfloat16"
    with torch.autocast(device_type, torch.bfloat16, enabled=use_bfloat16):
        rank_predictions = dist.all_gather(predict(model, dataset, queries, batch_size))

    # Score the predictions of all processes.
    predictions = []
    for part in rank_predictions:
        predictions += part
    return summarize(score_queries(dataset.queries, dataset.tracks, predictions))


def _raise_non_finite(
    loss: float,
    gradient_norm: float,
    step: int,
    batches: Sequence[Batch],
    micro_losses: Sequence[Mapping[str, Tensor]],
    dist: DistributedContext,
) -> NoReturn:
    """Stop all processes, and name the queries of the micro-batches whose loss is not finite.

    If only the gradient is not finite, all queries of the global batch are named.
    """
    is_loss_finite = math.isfinite(loss)
    query_ids = []
    for batch, losses in zip(batches, micro_losses, strict=True):
        if is_loss_finite or not torch.isfinite(losses["loss"]):
            query_ids += batch.query_ids

    all_query_ids = []
    for part in dist.all_gather(query_ids):
        all_query_ids += part

    problem = f"the loss is {loss}"
    if is_loss_finite:
        problem = f"the gradient is {gradient_norm}"
    raise NonFiniteLossError(
        f"{problem} at step {step}, in the batch of {', '.join(all_query_ids)}: lower lr or look"
        " at them"
    )


def _to_float32(outputs: Any) -> Any:
    """Return a model's outputs with every floating-point tensor in float32."""
    tensors = {}
    for field in fields(outputs):
        value = getattr(outputs, field.name)
        if value.is_floating_point():
            tensors[field.name] = value.float()
    return replace(outputs, **tensors)


def _build_transforms(
    config: TrainConfig, dataset: GroundingDataset, tokenize: TokenizeFunction | None
) -> list[SampleTransform]:
    """Return the random changes of training samples: augmentation, then negative sentences."""
    transforms: list[SampleTransform] = []
    queries = dataset.queries
    if config.augment is not None:
        transforms.append(Augmentation(config.augment, config.seed, queries, tokenize))

    if config.negative_rate:
        allow_flip = config.augment is not None and config.augment.flip_probability > 0
        transforms.append(
            NegativeSentenceSampler(config.negative_rate, config.seed, dataset, queries, allow_flip)
        )
    return transforms


def _init_or_resume(
    run: Path,
    config: TrainConfig,
    model: nn.Module,
    provenance: dict[str, Any],
    device: torch.device,
    warn: MessageCallback,
) -> TrainState:
    """Resume from the last checkpoint, or initialize the weights, randomly or from `init_from`."""
    checkpoints = run / CHECKPOINTS_FOLDER
    if config.init_from is not None and not checkpoints.exists():
        _load_pretrained(run, config, model, provenance, warn)

    state = TrainState.create(model.to(device), config, provenance["lr_schedule_steps"])
    if checkpoints.exists():
        state.load(checkpoints / "last")
        log.info("resumed %s at step %d", run, state.step)

    if config.activation_checkpointing:
        enable_activation_checkpointing(model)
    return state


def _load_pretrained(
    run: Path,
    config: TrainConfig,
    model: nn.Module,
    provenance: dict[str, Any],
    warn: MessageCallback,
) -> None:
    """Load the published weights `init_from`, and warn about features of other encoders."""
    assert config.init_from is not None
    appearance = provenance["products"].get("appearance", {})
    reduction = load_reduction(run, "appearance", appearance)
    projection = None if reduction is None else reduction.projection
    system = get_system(config.system)
    report = system.load_pretrained(unwrap_encoders(model), config.init_from, projection)
    log.info("%s", report)

    provenance["initialised"] = compute_files_digest([config.init_from])
    for product, weights in _get_feature_weights(config, provenance).items():
        if not weights.startswith("mdetr:"):
            warn(
                f"MDETR's static stream reads {product} features of MDETR's own encoder, and this"
                f" run's come from {weights!r}"
            )


def _get_feature_weights(config: TrainConfig, provenance: dict[str, Any]) -> dict[str, str]:
    """Return the sources of the image and text encoder's weights, by product."""
    if config.encoders is not None and config.encoders.text is not None:
        return {"appearance": config.encoders.image, "text": config.encoders.text}

    sources = {}
    for product in ("appearance", "text"):
        sources[product] = provenance["products"][product].get("weights", "an unknown source")
    return sources


def _load_split(
    store: Path,
    split: str,
    config: TrainConfig,
    tokenize: TokenizeFunction | None,
    device: torch.device,
) -> GroundingDataset | None:
    """Return the queries of a split that have a ground truth and features; None if none has."""
    queries = read_jsonl(Store(store).index_path, Query)
    if not any(query.split == split and query.truth is not None for query in queries):
        return None

    dataset = GroundingDataset.from_store(
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
    return dataset if dataset.queries else None
