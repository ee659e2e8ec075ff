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

from pipeline.devices import device_of
from pipeline.encoders.optimize import frozen
from pipeline.errors import VideoError
from pipeline.extraction.config import ExtractConfig, kind_of, source_of
from pipeline.extraction.plan import Job
from pipeline.features.builders import encode_texts
from pipeline.features.reduction import Reduction, parse_reduction, stored_basis
from pipeline.features.stream import Decoder, FeatureStream
from pipeline.records import Failure
from pipeline.store import ShardBuilder, ShardInfo, is_made_from, made_from, shard_info
from pipeline.store.layout import shard_path
from pipeline.video.process_decoder import DecodeChild
from pipeline.weights.load import Backbone, load_backbone

Made = tuple[dict[str, ShardInfo], list[Failure]]
Tick = Callable[[str, bool], None]
"""Called after each video with its id, and with whether its sentences were encoded."""


def make_shard(job: Job, tick: Tick) -> Made:
    """Make the job's shards and name the videos that failed; one that another run has made of the same meanwhile is kept."""
    infos = shards_there(job)
    failures: list[Failure] = []
    with ExitStack() as stack:
        stack.enter_context(_one_thread())
        builders: dict[str, ShardBuilder] = {}
        for product in (product for product in job.lacking if product not in infos):
            kind = kind_of(product, job.config)
            origin = made_from(kind, job.provenance[product])
            builder = ShardBuilder(job.store, product, job.shard.name, kind, job.shard.videos, origin)
            builders[product] = stack.enter_context(builder)
        reductions = {product: reduction_of(product, job.config, job.store) for product in builders}
        for video in job.shard.videos:
            wanted = {product: builder for product, builder in builders.items() if video in job.lacking[product]}
            try:
                if wanted:
                    _add_sentences(job, video, wanted["text"]) if job.of_text else _add_video(job, video, wanted, reductions)
            except VideoError as error:
                failures.append(job.failure(video, error))
            tick(video, job.of_text)
        infos |= {product: builder.finish() for product, builder in builders.items()}
    return infos, failures


def shards_there(job: Job) -> dict[str, ShardInfo]:
    """The shards of a job that lie in the store, made of the same, whoever made them."""
    infos = {}
    for product in job.lacking:
        kind = kind_of(product, job.config)
        path = shard_path(job.store, product, job.shard.name, kind)
        if is_made_from(path, kind, made_from(kind, job.provenance[product])):
            infos[product] = shard_info(path, product, kind)
    return infos


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums depend on how many threads share them: with one, features are the same however the work is spread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _add_video(job: Job, video: str, builders: Mapping[str, ShardBuilder], reductions: Mapping[str, Reduction | None]) -> None:
    """Stream one video's features into the shards; a VideoError leaves them as they were."""
    encoders = {product: encoder_of(product, job.config) for product in builders}
    scales: dict[str, list[dict[str, np.ndarray]]] = defaultdict(list)
    for builder in builders.values():
        builder.begin(video, video)
    try:
        stream = FeatureStream(job.paths[video], job.config.sampling, encoders, job.config.batch, child())
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
        more = {name: np.concatenate([part[name] for part in scales[product]]) for name in scales[product][0]}
        builder.end(stream.columns[product] | more, stream.facts)


def _add_sentences(job: Job, video: str, builder: ShardBuilder) -> None:
    """Encode the sentences about one video, all before the first is written: a VideoError leaves the shard as it was."""
    ids, texts = zip(*job.sentences[video], strict=True)
    encoded = list(encode_texts(list(texts), encoder_of("text", job.config)))
    for key, text, (states, tokens) in zip(ids, texts, encoded, strict=True):
        builder.begin(key, video)
        builder.append(states)
        builder.end({"token": tokens}, {"text": text})


@lru_cache(maxsize=1)
def child() -> Decoder:
    """This process' decoder child, made when it is first needed; it ends with the process."""
    made = DecodeChild()
    atexit.register(made.close)
    return made


def encoder_of(product: str, config: ExtractConfig) -> nn.Module:
    """The product's encoder on its device, ready to compute; `frames` needs none."""
    if product == "frames":
        return nn.Identity()
    return _ready(backbone_of(product, config).encoder, device_of(config.device))


@lru_cache(maxsize=8)
def _ready(encoder: nn.Module, device: torch.device) -> nn.Module:
    return frozen(encoder.to(device))


def backbone_of(product: str, config: ExtractConfig) -> Backbone:
    return _backbone(product, config.backbones, source_of(product, config), config.slowfast, config.device)


@lru_cache(maxsize=8)
def _backbone(product: str, size: str, weights: str, slowfast: str | None, _device: str) -> Backbone:
    """One for each device: `frozen` changes its encoder for where it lies."""
    return load_backbone(product, size, weights, slowfast)


def reduction_of(product: str, config: ExtractConfig, store: Path) -> Reduction | None:
    """What the product's maps go through before they are stored; the basis lies in the store."""
    asked = config.reduce.get(product)
    if asked is None:
        return None
    parsed = parse_reduction(asked)
    return Reduction(stored_basis(store, product) if parsed.source else None, parsed.int8)
