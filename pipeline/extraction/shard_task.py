"""The work of one task: making one shard of each product that a job lacks, in one process.

Videos are decoded in a child process, which can be killed, while this process encodes. Features are
written to disk as they are computed. A video that fails leaves no trace in the shard and does not
affect other videos.
"""

from __future__ import annotations

import atexit
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import nn

from pipeline.devices import resolve_device
from pipeline.encoders.optimize import optimize_for_inference
from pipeline.errors import VideoError
from pipeline.extraction.config import ExtractConfig, get_shard_kind, get_weight_source
from pipeline.extraction.plan import Job
from pipeline.features.builders import encode_texts
from pipeline.features.products import PRODUCTS
from pipeline.features.reduction import Reduction, load_stored_projection, parse_reduction
from pipeline.features.stream import FeatureStream, FrameDecoder
from pipeline.records import Failure
from pipeline.store import (
    ShardBuilder,
    ShardInfo,
    compute_origin_digest,
    has_origin,
    read_shard_info,
)
from pipeline.store.layout import get_shard_path
from pipeline.video.process_decoder import ProcessDecoder
from pipeline.weights.load import Backbone, load_backbone

JobResult = tuple[dict[str, ShardInfo], list[Failure]]
"""The finished shards by product, and the failed videos."""
VideoCallback = Callable[[str, bool], None]
"""Called as `on_video(video, is_text)` after each video, or after the sentences about it."""


def extract_shard(job: Job, on_video: VideoCallback) -> JobResult:
    """Make the shards of a job.

    A shard of the same provenance that another run finished meanwhile is kept.

    Args:
        job: the job.
        on_video: called after each video.

    Returns:
        The finished shards, and the videos that failed.
    """
    infos = existing_shards(job)
    failures: list[Failure] = []
    with ExitStack() as stack:
        stack.enter_context(_limit_to_one_thread())

        # Open a builder for each shard that is not there.
        builders: dict[str, ShardBuilder] = {}
        for product in job.missing:
            if product in infos:
                continue
            kind = get_shard_kind(product, job.config)
            origin = compute_origin_digest(kind, job.provenance[product])
            builder = ShardBuilder(
                job.store, product, job.shard.name, kind, job.shard.videos, origin
            )
            builders[product] = stack.enter_context(builder)
        reductions = {
            product: load_product_reduction(product, job.config, job.store) for product in builders
        }

        for video in job.shard.videos:
            try:
                _encode_video(job, video, builders, reductions)
            except VideoError as error:
                failures.append(job.build_failure(video, error))
            on_video(video, job.is_text)

        for product, builder in builders.items():
            infos[product] = builder.finish()
    return infos, failures


def existing_shards(job: Job) -> dict[str, ShardInfo]:
    """Find the shards of a job that are in the store, whichever run made them.

    Args:
        job: the job.

    Returns:
        The shards with the provenance of the job, by product.
    """
    infos = {}
    for product in job.missing:
        kind = get_shard_kind(product, job.config)
        path = get_shard_path(job.store, product, job.shard.name, kind)
        if has_origin(path, kind, compute_origin_digest(kind, job.provenance[product])):
            infos[product] = read_shard_info(path, product, kind)
    return infos


@contextmanager
def _limit_to_one_thread() -> Iterator[None]:
    """Let torch use one thread.

    The order of summation depends on the number of threads. With one thread, features are the same
    however the work is distributed.
    """
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


def _encode_video(
    job: Job,
    video: str,
    builders: Mapping[str, ShardBuilder],
    reductions: Mapping[str, Reduction | None],
) -> None:
    """Encode one video, or the sentences about it, for the products that lack it."""
    video_builders = {
        product: builder for product, builder in builders.items() if video in job.missing[product]
    }
    if not video_builders:
        return
    if job.is_text:
        _add_sentences(job, video, video_builders)
    else:
        _add_video(job, video, video_builders, reductions)


def _add_video(
    job: Job,
    video: str,
    builders: Mapping[str, ShardBuilder],
    reductions: Mapping[str, Reduction | None],
) -> None:
    """Stream one video's features into the shards; a VideoError leaves the shards unchanged."""
    encoders = {product: get_encoder(product, job.config) for product in builders}
    reduction_columns: dict[str, list[dict[str, np.ndarray]]] = defaultdict(list)
    for builder in builders.values():
        builder.begin(video, video)

    try:
        stream = FeatureStream(
            job.paths[video], job.config.sampling, encoders, job.config.batch_size, shared_decoder()
        )
        for product, rows in stream:
            reduction = reductions[product]
            if reduction is None:
                builders[product].append(rows)
                reduction_columns[product].append({})
            else:
                reduced_rows, block_columns = reduction.apply(rows)
                builders[product].append(reduced_rows)
                reduction_columns[product].append(block_columns)
    except VideoError:
        for builder in builders.values():
            builder.abandon()
        raise

    for product, builder in builders.items():
        columns = dict(stream.columns[product])
        blocks = reduction_columns[product]
        for name in blocks[0]:
            columns[name] = np.concatenate([block[name] for block in blocks])
        builder.end(columns, stream.facts)


def _add_sentences(job: Job, video: str, builders: Mapping[str, ShardBuilder]) -> None:
    """Encode the sentences about one video; a VideoError leaves the shards unchanged."""
    keys = [key for key, _ in job.sentences[video]]
    texts = [text for _, text in job.sentences[video]]

    # Encode all sentences before the first one is written, because encoding may fail.
    encoded = {}
    for product in builders:
        encoded[product] = list(encode_texts(texts, get_encoder(product, job.config)))

    for product, builder in builders.items():
        for key, text, (states, tokens) in zip(keys, texts, encoded[product], strict=True):
            builder.begin(key, video)
            builder.append(states)
            builder.end({"token": tokens}, {"text": text})


@lru_cache(maxsize=1)
def shared_decoder() -> FrameDecoder:
    """Return this process's decoder, a child process that ends with this one.

    Returns:
        The decoder; it is started on the first call.
    """
    decoder = ProcessDecoder()
    atexit.register(decoder.close)
    return decoder


def get_encoder(product: str, config: ExtractConfig) -> nn.Module:
    """Return the encoder of a product on its device, optimized for inference.

    Args:
        product: name of the product.
        config: section `extract`.

    Returns:
        The encoder, cached; an identity for a product without an encoder.
    """
    if PRODUCTS[product].encoder is None:
        return nn.Identity()
    return _prepare_encoder(get_backbone(product, config).encoder, resolve_device(config.device))


@lru_cache(maxsize=8)
def _prepare_encoder(encoder: nn.Module, device: torch.device) -> nn.Module:
    """Return the encoder on a device, optimized for inference there."""
    return optimize_for_inference(encoder.to(device))


def get_backbone(product: str, config: ExtractConfig) -> Backbone:
    """Return the encoder of a product with the digest of its weights.

    Args:
        product: name of a product with an encoder.
        config: section `extract`.

    Returns:
        The encoder as loaded; the result is cached.

    Raises:
        InputError: the weights cannot be loaded.
    """
    return _load_backbone(
        product,
        config.backbones,
        get_weight_source(product, config),
        config.slowfast,
        config.device,
    )


@lru_cache(maxsize=8)
def _load_backbone(
    product: str, size: str, weights: str, slowfast: str | None, _device: str
) -> Backbone:
    """Return a backbone of its own for each device: optimization changes an encoder in place."""
    return load_backbone(product, size, weights, slowfast)


def load_product_reduction(product: str, config: ExtractConfig, store: Path) -> Reduction | None:
    """Load the reduction of a product's maps, with the projection in the store.

    Args:
        product: name of the product.
        config: section `extract`.
        store: directory of the store.

    Returns:
        The reduction, or None if the settings name none for the product.

    Raises:
        StoreError: the stored projection is damaged.
    """
    text = config.reduce.get(product)
    if text is None:
        return None
    spec = parse_reduction(text)
    projection = load_stored_projection(store, product) if spec.method else None
    return Reduction(projection, spec.int8)
