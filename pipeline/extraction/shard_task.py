"""Making one shard of each product a job lacks: the work of one task, in one process.

Videos are decoded in a child process that can be killed, while this one encodes; features go to disk as they come. A
video that fails leaves no trace in the shard and takes no other video with it.
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
from pipeline.store import ShardBuilder, ShardInfo, has_origin, origin_digest, read_shard_info
from pipeline.store.layout import shard_path
from pipeline.video.process_decoder import ProcessDecoder
from pipeline.weights.load import Backbone, load_backbone

JobResult = tuple[dict[str, ShardInfo], list[Failure]]
VideoCallback = Callable[[str, bool], None]
"""Called after each video with its id, and with whether its sentences were encoded."""


def extract_shard(job: Job, on_video: VideoCallback) -> JobResult:
    """Make the job's shards and name the videos that failed; one that another run has made of the same meanwhile is kept."""
    infos = existing_shards(job)
    failures: list[Failure] = []
    with ExitStack() as stack:
        stack.enter_context(_limit_to_one_thread())
        builders: dict[str, ShardBuilder] = {}
        for product in (product for product in job.missing if product not in infos):
            kind = get_shard_kind(product, job.config)
            origin = origin_digest(kind, job.provenance[product])
            builder = ShardBuilder(
                job.store, product, job.shard.name, kind, job.shard.videos, origin
            )
            builders[product] = stack.enter_context(builder)
        reductions = {
            product: load_product_reduction(product, job.config, job.store) for product in builders
        }
        for video in job.shard.videos:
            wanted = {
                product: builder
                for product, builder in builders.items()
                if video in job.missing[product]
            }
            try:
                if wanted:
                    if job.is_text:
                        _add_sentences(job, video, wanted)
                    else:
                        _add_video(job, video, wanted, reductions)
            except VideoError as error:
                failures.append(job.build_failure(video, error))
            on_video(video, job.is_text)
        infos |= {product: builder.finish() for product, builder in builders.items()}
    return infos, failures


def existing_shards(job: Job) -> dict[str, ShardInfo]:
    """The shards of a job that lie in the store, made of the same, whoever made them."""
    infos = {}
    for product in job.missing:
        kind = get_shard_kind(product, job.config)
        path = shard_path(job.store, product, job.shard.name, kind)
        if has_origin(path, kind, origin_digest(kind, job.provenance[product])):
            infos[product] = read_shard_info(path, product, kind)
    return infos


@contextmanager
def _limit_to_one_thread() -> Iterator[None]:
    """Sums depend on how many threads share them: with one, features are the same however the work is spread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _add_video(
    job: Job,
    video: str,
    builders: Mapping[str, ShardBuilder],
    reductions: Mapping[str, Reduction | None],
) -> None:
    """Stream one video's features into the shards; a VideoError leaves them as they were."""
    encoders = {product: get_encoder(product, job.config) for product in builders}
    scales: dict[str, list[dict[str, np.ndarray]]] = defaultdict(list)
    for builder in builders.values():
        builder.begin(video, video)
    try:
        stream = FeatureStream(
            job.paths[video], job.config.sampling, encoders, job.config.batch, shared_decoder()
        )
        for product, rows in stream:
            reduction = reductions[product]
            smaller, columns = reduction.apply(rows) if reduction else (rows, {})
            builders[product].append(smaller)
            scales[product].append(columns)
    except VideoError:
        for builder in builders.values():
            builder.abandon()
        raise
    for product, builder in builders.items():
        more = {
            name: np.concatenate([part[name] for part in scales[product]])
            for name in scales[product][0]
        }
        builder.end(stream.columns[product] | more, stream.facts)


def _add_sentences(job: Job, video: str, builders: Mapping[str, ShardBuilder]) -> None:
    """Encode the sentences about one video, all before the first is written: a VideoError leaves the shard as it was."""
    ids, texts = zip(*job.sentences[video], strict=True)
    for product, builder in builders.items():
        encoded = list(encode_texts(list(texts), get_encoder(product, job.config)))
        for key, text, (states, tokens) in zip(ids, texts, encoded, strict=True):
            builder.begin(key, video)
            builder.append(states)
            builder.end({"token": tokens}, {"text": text})


@lru_cache(maxsize=1)
def shared_decoder() -> FrameDecoder:
    """This process' decoder child, made when it is first needed; it ends with the process."""
    made = ProcessDecoder()
    atexit.register(made.close)
    return made


def get_encoder(product: str, config: ExtractConfig) -> nn.Module:
    """The product's encoder on its device, ready to compute; `frames` needs none."""
    if PRODUCTS[product].encoder is None:
        return nn.Identity()
    return _prepare_encoder(get_backbone(product, config).encoder, resolve_device(config.device))


@lru_cache(maxsize=8)
def _prepare_encoder(encoder: nn.Module, device: torch.device) -> nn.Module:
    return optimize_for_inference(encoder.to(device))


def get_backbone(product: str, config: ExtractConfig) -> Backbone:
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
    """One for each device: `frozen` changes its encoder for where it lies."""
    return load_backbone(product, size, weights, slowfast)


def load_product_reduction(product: str, config: ExtractConfig, store: Path) -> Reduction | None:
    """What the product's maps go through before they are stored; the basis lies in the store."""
    asked = config.reduce.get(product)
    if asked is None:
        return None
    parsed = parse_reduction(asked)
    return Reduction(load_stored_projection(store, product) if parsed.method else None, parsed.int8)
