"""All videos of an index → a store. Dask runs the shards; only the store remembers what is done.

The plan of shards is a function of the index alone, so a run that was stopped goes on where it was and ends in the
same store. A shard's task decodes each of its videos once for all products that lack it. A video that cannot be
used is named in the ledger and tried again by the next run, in a shard of its own.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.config import Config
from pipeline.errors import InputError, StoreError, VideoError
from pipeline.extract import VISUAL, Backbones, SamplingConfig, encode_texts, extract_video, file_digest
from pipeline.records import Failure, Query, read_jsonl
from pipeline.store import Entry, Kind, Shard, ShardInfo, Store, StoreWriter, plan_shards, write_shard
from pipeline.weights import PRODUCTS, Backbone, load_backbone

Progress = Callable[[int, int], None]
PROGRESS_TOPIC = "videos"


class ExtractConfig(Config):
    """Section `extract`. `weights` is one source for all backbones or one per product."""

    backbones: Backbones = "full"
    weights: str | dict[str, str] = "tiny"
    products: tuple[str, ...] = ("appearance", "motion", "text")
    sampling: SamplingConfig = SamplingConfig()
    format: Kind = "zarr"
    """Of visual products; text is always HDF5."""
    shard_mb: int = 256
    workers: int | None = None
    """Processes; by default one per two cores, at least two. 0 works in this process, without Dask."""
    scheduler: str | None = None
    batch: int = 16
    device: str = "auto"
    allow_failed: float = 0
    replace: bool = False
    """Delete and remake products that were made with other settings, instead of refusing."""


@dataclass(frozen=True)
class Job:
    """One shard to make: which products of it, of which videos (id → path), or the sentences of the videos."""

    store: Path
    shard: Shard
    products: dict[str, Kind]
    paths: dict[str, Path]
    sentences: dict[str, list[tuple[str, str]]]
    config: ExtractConfig


@dataclass
class RunReport:
    """What a run did. `failures` are all current ones; `made` the shards written, `videos` the videos in the index."""

    videos: int
    failures: list[Failure] = field(default_factory=list)
    made: int = 0

    def exit_code(self, allow_failed: float) -> int:
        """0, or 1 where more videos failed than allowed: a share of all if below 1, else a count."""
        limit = allow_failed * self.videos if allow_failed < 1 else allow_failed
        return int(len(self.failures) > limit)


def run(
    index: Path, folder: Path, dataset: str, store: Path, config: ExtractConfig, progress: Progress = lambda done, total: None
) -> RunReport:
    """Fill `store` with every product of every video in `index`; video paths are relative to `folder`."""
    queries = list(read_jsonl(index, Query))
    if not queries:
        raise InputError(f"{index} holds no query: run stvg-prepare again")
    paths = {query.video: folder / query.path for query in queries}
    sentences: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for query in queries:
        sentences[query.video].append((query.id, query.text))
    report = RunReport(videos=len(paths))
    with StoreWriter(store, dataset, str(folder)) as writer:
        for product, provenance in _provenances(config).items():
            _open(writer, product, provenance, config)
        _drop_stale(writer, store, config, paths, sentences)
        writer.set_index(index, index.with_name("tracks.npz"))
        jobs = _jobs(writer, store, config, queries, paths, sentences)
        known = {failure.video: failure for failure in writer.read_failures()}
        failures: dict[str, Failure] = {}
        for job, (infos, failed) in _work(jobs, config, progress):
            for product, info in infos.items():
                writer.publish(product, job.shard.name, info)
                report.made += info.entries > 0
            for failure in failed:
                attempts = known[failure.video].attempts + 1 if failure.video in known else 1
                failures[failure.video] = failure.model_copy(update={"attempts": attempts})
            writer.write_failures(failures.values())
        writer.write_failures(failures.values())
    report.failures = sorted(failures.values(), key=lambda failure: failure.video)
    return report


def kind_of(product: str, config: ExtractConfig) -> Kind:
    """Text lies in HDF5, visual products in what `format` says."""
    return "hdf5" if product == "text" else config.format


def source_of(product: str, config: ExtractConfig) -> str:
    """The weights asked for a product."""
    return config.weights if isinstance(config.weights, str) else config.weights.get(product, "tiny")


def _provenances(config: ExtractConfig) -> dict[str, dict[str, Any]]:
    """What each product is made of: encoder and weights, sampling, library versions."""
    result: dict[str, dict[str, Any]] = {}
    for product in config.products:
        if product not in (*PRODUCTS, "frames"):
            raise InputError(f"unknown product {product!r}; the products are {', '.join((*PRODUCTS, 'frames'))}")
        about: dict[str, Any] = {"versions": {name: version(name) for name in ("torch", "torchvision")}}
        if product != "frames":
            backbone = _backbone(product, config.backbones, source_of(product, config))
            about |= {"backbone": config.backbones, "weights": backbone.source, "weights_digest": backbone.digest}
        if product in VISUAL:
            keys = {"appearance": ("fps", "short"), "frames": ("fps", "short", "jpeg_quality"), "motion": ("clip_every", "clip_span")}
            about["sampling"] = {key: getattr(config.sampling, key) for key in keys[product]}
        result[product] = about
    return result


def _open(writer: StoreWriter, product: str, provenance: Mapping[str, Any], config: ExtractConfig) -> None:
    try:
        writer.open_product(product, kind_of(product, config), provenance)
    except StoreError:
        if not config.replace:
            raise
        writer.drop_product(product)
        writer.open_product(product, kind_of(product, config), provenance)


def _drop_stale(
    writer: StoreWriter, path: Path, config: ExtractConfig, paths: Mapping[str, Path], sentences: Mapping[str, list[tuple[str, str]]]
) -> None:
    """Forget shards that hold a video whose file, or a sentence whose words, are no longer what was encoded."""
    store = Store(path)
    digests: dict[str, str] = {}
    for product in config.products:
        reader = store.open(product)
        stale = set()
        for name, info in store.products[product].shards.items():
            for video in info.videos:
                if product == "text":
                    fresh = all(key in reader and reader.facts(key).get("text") == text for key, text in sentences.get(video, ()))
                elif video in paths and paths[video].is_file():
                    if video not in digests:
                        digests[video] = file_digest(paths[video])
                    fresh = reader.facts(video).get("digest") == digests[video]
                else:
                    fresh = True
                if not fresh:
                    stale.add(name)
                    break
        if stale:
            writer.drop_shards(product, stale)


def _jobs(
    writer: StoreWriter,
    store: Path,
    config: ExtractConfig,
    queries: Sequence[Query],
    paths: Mapping[str, Path],
    sentences: Mapping[str, list[tuple[str, str]]],
) -> list[Job]:
    """The shards still to be made: those of the plan, then shards for videos that failed when theirs was made."""
    jobs: list[Job] = []
    for group in ([p for p in config.products if p in VISUAL], [p for p in config.products if p == "text"]):
        if not group:
            continue
        sizes = {query.video: _estimate(query, group[0], config, len(sentences[query.video])) for query in queries}
        plan = plan_shards(sizes, config.shard_mb << 20)
        adopted = {shard.name: {p for p in group if writer.adopt(p, shard.name) is not None} for shard in plan}
        again = {v for shard in plan for p in adopted[shard.name] for v in set(shard.videos) - writer.done(p)}
        retry = plan_shards({video: sizes[video] for video in again}, config.shard_mb << 20) if again else []
        adopted |= {shard.name: {p for p in group if writer.adopt(p, shard.name) is not None} for shard in retry}
        for shard in (*plan, *retry):
            kinds = {p: kind_of(p, config) for p in group if p not in adopted[shard.name]}
            wanted = tuple(v for v in shard.videos if any(v not in writer.done(p) for p in kinds))
            if wanted:
                said = {v: sentences[v] for v in wanted} if group == ["text"] else {}
                jobs.append(Job(store, Shard(shard.name, wanted), kinds, {v: paths[v] for v in wanted}, said, config))
        for product in group:
            writer.remove_unlisted(product)
    return jobs


def _estimate(query: Query, product: str, config: ExtractConfig, sentences: int) -> int:
    """Bytes a video will take, roughly: what the shard plan goes by."""
    seconds = query.frame_count / max(query.fps, 1e-6)
    if product == "text":
        return sentences * 16 * 768 * 2
    scale = min(config.sampling.short / min(query.size), 1.8 * config.sampling.short / max(query.size))
    stride, channels, motion = (32, 2048, 16 * 16 * 2304) if config.backbones == "full" else (16, 128, 8 * 8 * 384)
    cells = query.size[0] * query.size[1] * scale**2 / stride**2
    return int(2 * seconds * (config.sampling.fps * cells * channels + motion / config.sampling.clip_every)) + 1


def _work(
    jobs: Sequence[Job], config: ExtractConfig, progress: Progress
) -> Iterator[tuple[Job, tuple[dict[str, ShardInfo], list[Failure]]]]:
    """Run the jobs, here or by Dask, and yield each with its result as it ends."""
    total = sum(len(job.shard.videos) for job in jobs)
    seen = 0

    def count(videos: int = 1) -> None:
        nonlocal seen
        seen += videos
        progress(min(seen, total), total)

    progress(0, total)
    if not jobs:
        return
    if config.workers == 0:
        for job in jobs:
            yield job, make_shard(job, count)
        return
    with _client(config) as client:
        from distributed import as_completed

        client.subscribe_topic(PROGRESS_TOPIC, lambda event: count())
        futures = {client.submit(_make_shard_on_worker, job, pure=False): job for job in jobs}
        for future in as_completed(futures):
            yield futures[future], future.result()
    progress(total, total)


@contextmanager
def _client(config: ExtractConfig) -> Iterator[Any]:
    """A client of the named scheduler, or of a cluster of processes on this machine."""
    import dask
    from distributed import Client, LocalCluster

    cores = os.cpu_count() or 1
    if config.scheduler:
        with Client(config.scheduler) as client:
            yield client
        return
    workers = config.workers or max(2, cores // 2)
    threads = max(1, cores // workers)
    # Dask's own default trims the heap after every free, which costs a third of the time where tensors come and go.
    memory = {"MALLOC_TRIM_THRESHOLD_": str(1 << 32), "MALLOC_MMAP_THRESHOLD_": str(1 << 32)}
    environment = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), **memory}
    dask.config.set({"distributed.logging.distributed": "error", "distributed.nanny.pre-spawn-environ": environment})
    with (
        LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None, memory_limit=0) as cluster,
        Client(cluster) as client,
    ):
        yield client


def _make_shard_on_worker(job: Job) -> tuple[dict[str, ShardInfo], list[Failure]]:
    from distributed import get_worker

    return make_shard(job, lambda: get_worker().log_event(PROGRESS_TOPIC, 1))


def make_shard(job: Job, tick: Callable[[], None]) -> tuple[dict[str, ShardInfo], list[Failure]]:
    """Make one shard of each product the job lacks; a shard's features stay in memory until they are written."""
    if job.sentences:
        info = write_shard(job.store, "text", job.shard.name, job.products["text"], _text_entries(job, tick), job.shard.videos)
        return {"text": info}, []
    encoders = {p: _encoder(p, job.config) for p in job.products}
    entries: dict[str, list[Entry]] = {product: [] for product in job.products}
    failures = []
    for video in job.shard.videos:
        try:
            features = extract_video(job.paths[video], job.config.sampling, encoders, job.config.batch)
            for product, made in entries.items():
                made.append(features.entry(product, video))
        except VideoError as error:
            path = str(job.paths[video])
            failures.append(Failure(video=video, path=path, stage=error.stage, reason=error.reason, detail=error.detail))
        tick()
    infos = {p: write_shard(job.store, p, job.shard.name, kind, entries[p], job.shard.videos) for p, kind in job.products.items()}
    return infos, failures


def _text_entries(job: Job, tick: Callable[[], None]) -> Iterator[Entry]:
    encoder = _encoder("text", job.config)
    for video in job.shard.videos:
        ids, texts = zip(*job.sentences[video], strict=True)
        for key, text, (states, tokens) in zip(ids, texts, encode_texts(list(texts), encoder), strict=True):
            yield Entry(key, video, states, {"token": tokens}, {"text": text})
        tick()


def _encoder(product: str, config: ExtractConfig) -> nn.Module:
    """The product's encoder on its device; `frames` needs none."""
    if product == "frames":
        return nn.Identity()
    device = ("cuda" if torch.cuda.is_available() else "cpu") if config.device == "auto" else config.device
    return _backbone(product, config.backbones, source_of(product, config)).encoder.to(device)


@lru_cache(maxsize=8)
def _backbone(product: str, size: str, weights: str) -> Backbone:
    return load_backbone(product, size, weights)
