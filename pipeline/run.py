"""All videos of an index → a store. Dask runs the shards; only the store remembers what is done.

The plan of shards is a function of the index alone, so a run that was stopped goes on where it was and ends in the
same store. A shard's task decodes each of its videos once for all products that lack it. A video that cannot be
used is named in the ledger and tried again by the next run, in a shard of its own.
"""

from __future__ import annotations

import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import nn

from pipeline.errors import InputError, StoreError, VideoError
from pipeline.extract import VISUAL, encode_texts, extract_video, file_digest
from pipeline.jobs import ExtractConfig, Job, VideoIndex, kind_of, plan_jobs, product_bytes, read_index, source_of
from pipeline.records import Failure
from pipeline.store import Entry, ShardInfo, Store, StoreWriter, write_shard
from pipeline.store.layout import shard_path
from pipeline.weights import PRODUCTS, Backbone, device_of, load_backbone

Progress = Callable[[int, int], None]
Made = tuple[dict[str, ShardInfo], list[Failure]]
PROGRESS_TOPIC = "videos"


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


@dataclass(frozen=True)
class Survey:
    """What a run would do: `to_make` of `videos` lack something (`seconds` long in all), `absent` have no file; `bytes` is an estimate."""

    videos: int
    absent: int
    to_make: int
    seconds: float
    shards: int
    bytes: int
    free_bytes: int


def run(
    index: Path, folder: Path, dataset: str, store: Path, config: ExtractConfig, progress: Progress = lambda done, total: None
) -> RunReport:
    """Fill `store` with every product of every video in `index`; video paths are relative to `folder`."""
    known = read_index(index, folder)
    provenances = _provenances(config)
    with StoreWriter(store, dataset, str(folder)) as writer:
        for product, provenance in provenances.items():
            _open(writer, product, provenance, config)
        writer.set_index(index, index.with_name("tracks.npz"))
        jobs = _adopt_and_plan_jobs(writer, store, config, known)
        ledger = _Ledger(writer, store, known, jobs)
        report = RunReport(videos=len(known.paths))
        for job, (infos, failed) in _work(jobs, config, progress):
            for product, info in infos.items():
                writer.publish(product, job.shard.name, info)
                report.made += info.entries > 0
            ledger.note(job, failed)
        report.failures = ledger.write()
    return report


def survey(index: Path, folder: Path, dataset: str, store: Path, config: ExtractConfig) -> Survey:
    """What `run` would do, without writing anything; shards that a killed run left unlisted count as not made."""
    known = read_index(index, folder)
    held: dict[str, dict[str, ShardInfo]] = {product: {} for product in config.products}
    provenances = _provenances(config)
    if (store / "manifest.json").exists():
        opened = Store(store)
        if opened.manifest.dataset != dataset:
            raise StoreError(f"store {store} holds dataset {opened.manifest.dataset!r}, not {dataset!r}: extract into another --store")
        for product in set(config.products) & set(opened.products):
            own = opened.products[product]
            if (own.kind, own.provenance) == (kind_of(product, config), provenances[product]):
                stale = _stale_shards(opened, product, known)
                there = {name for name in own.shards if shard_path(store, product, name, own.kind).exists()}
                held[product] = {name: own.shards[name] for name in there - stale}
            elif not config.replace:
                raise StoreError(f"store {store}: product {product!r} was made with other settings; stvg-extract will refuse it")
    done = {product: {video for info in shards.values() for video in info.videos} for product, shards in held.items()}
    jobs = plan_jobs(store, config, known, lambda product, name: name in held[product], lambda product: done[product])
    made = [(product, video) for job in jobs for product, videos in job.lacking.items() for video in videos]
    videos = {video for _, video in made}
    place = next(path for path in (store.absolute(), *store.absolute().parents) if path.exists())
    return Survey(
        videos=len(known.paths),
        absent=sum(not path.is_file() for path in known.paths.values()),
        to_make=len(videos),
        seconds=sum(known.queries[video].frame_count / known.queries[video].fps for video in videos),
        shards=sum(len(job.lacking) for job in jobs),
        bytes=sum(product_bytes(known.queries[video], product, config, len(known.sentences[video])) for product, video in made),
        free_bytes=shutil.disk_usage(place).free,
    )


def _provenances(config: ExtractConfig) -> dict[str, dict[str, Any]]:
    """What each product is made of: encoder and weights, sampling, library versions."""
    result: dict[str, dict[str, Any]] = {}
    for product in config.weights if isinstance(config.weights, dict) else ():
        if product not in PRODUCTS:
            raise InputError(f"weights are given for {product!r}; products with weights are {', '.join(PRODUCTS)}")
    for product in config.products:
        if product not in (*PRODUCTS, "frames"):
            raise InputError(f"unknown product {product!r}; the products are {', '.join((*PRODUCTS, 'frames'))}")
        about: dict[str, Any] = {"versions": {name: version(name) for name in ("torch", "torchvision")}}
        if product != "frames":
            backbone = _backbone(product, config.backbones, source_of(product, config), config.slowfast)
            about |= {"backbone": config.backbones, "weights": backbone.source, "weights_digest": backbone.digest}
        if product == "motion":
            about["slowfast"] = config.slowfast
        if product in VISUAL:
            keys = {
                "appearance": ("fps", "short"),
                "frames": ("fps", "short", "jpeg_quality"),
                "motion": ("clip_every", "clip_span", "pool_motion"),
            }
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


def _adopt_and_plan_jobs(writer: StoreWriter, path: Path, config: ExtractConfig, index: VideoIndex) -> list[Job]:
    """The jobs left, after taking up what a killed run left on disk and forgetting what is no longer as it was encoded."""

    def plan() -> list[Job]:
        jobs = plan_jobs(path, config, index, lambda product, name: writer.adopt(product, name) is not None, writer.done)
        for product in config.products:
            writer.remove_unlisted(product)
        return jobs

    jobs = plan()
    stale = {product: _stale_shards(Store(path), product, index) for product in config.products}
    for product, names in stale.items():
        writer.drop_shards(product, names)
    return plan() if any(stale.values()) else jobs


def _stale_shards(store: Store, product: str, index: VideoIndex) -> set[str]:
    """Shards that hold a video whose file, or a sentence whose words, are no longer what was encoded."""
    reader = store.open(product)

    def fresh(video: str) -> bool:
        if product == "text":
            return all(key in reader and reader.facts(key).get("text") == text for key, text in index.sentences.get(video, ()))
        now = _digest_of(index.paths[video]) if video in index.paths else None
        return now is None or reader.facts(video).get("digest") == now

    def whole(info: ShardInfo) -> bool:  # text only: no sentence that was removed, or is now another video's
        return product != "text" or info.entries == sum(len(index.sentences.get(video, ())) for video in info.videos)

    shards = store.products[product].shards
    return {name for name, info in shards.items() if not whole(info) or not all(fresh(video) for video in info.videos)}


def _digest_of(path: Path) -> str | None:
    """The digest of a video's file; None where it cannot be read now, which says nothing against its features."""
    try:
        return file_digest(path)
    except OSError:
        return None


class _Ledger:
    """The failures that are current at any moment of a run: found by it, or known before and not yet tried again."""

    def __init__(self, writer: StoreWriter, store: Path, index: VideoIndex, jobs: Sequence[Job]) -> None:
        self._writer = writer
        self._known = {failure.video: failure for failure in writer.read_failures()}
        self._found: dict[str, Failure] = {}
        self._jobs_left: dict[str, int] = defaultdict(int)
        for job in jobs:
            for video in () if job.sentences else job.shard.videos:
                self._jobs_left[video] += 1
        made = [product.videos for name, product in Store(store).products.items() if name in VISUAL]
        lacked = {video for video in self._known if video in index.paths and not all(video in videos for videos in made)}
        self._untried = lacked - set(self._jobs_left)
        self.write()

    def note(self, job: Job, failed: Sequence[Failure]) -> None:
        """A job has ended, and these videos of it have failed."""
        for video in () if job.sentences else job.shard.videos:
            self._jobs_left[video] -= 1
        for failure in failed:
            before = self._known.get(failure.video)
            self._found[failure.video] = failure.model_copy(update={"attempts": before.attempts + 1 if before else 1})
        self.write()

    def write(self) -> list[Failure]:
        """Replace the ledger on disk; returns it, in the videos' order."""
        waiting = self._untried | {video for video, left in self._jobs_left.items() if left}
        current = {video: failure for video, failure in self._known.items() if video in waiting} | self._found
        self._writer.write_failures(current.values())
        return [current[video] for video in sorted(current)]


def _work(jobs: Sequence[Job], config: ExtractConfig, progress: Progress) -> Iterator[tuple[Job, Made]]:
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
        futures = {client.submit(_make_shard_on_worker, _located(job), pure=False): job for job in jobs}
        for future in as_completed(futures):
            yield futures[future], _result(future, futures[future])
    progress(total, total)


def _located(job: Job) -> Job:
    """The job with absolute paths: workers of another scheduler run in another folder."""
    if job.config.scheduler is None:
        return job
    return replace(job, store=job.store.absolute(), paths={video: path.absolute() for video, path in job.paths.items()})


def _result(future: Any, job: Job) -> Made:
    """What a job gave. A job whose workers died again and again, Dask's retries included, fails with all its videos."""
    from distributed.scheduler import KilledWorker

    try:
        made: Made = future.result()
    except KilledWorker:
        detail = (
            f"the worker process died each time shard {job.shard.name} ({len(job.shard.videos)} videos) was made: "
            "killed, crashed by one of its videos, or out of memory; run again with fewer --workers or a smaller batch"
        )
        return {}, [Failure(video=v, path=str(job.paths[v]), stage="worker", reason="died", detail=detail) for v in job.shard.videos]
    return made


@contextmanager
def _client(config: ExtractConfig) -> Iterator[Any]:
    """A client of the named scheduler, or of a cluster of processes on this machine."""
    import dask
    from distributed import Client, LocalCluster

    cores = os.cpu_count() or 1
    if config.scheduler:
        try:
            client = Client(config.scheduler)
        except (OSError, ValueError) as error:
            raise InputError(f"no Dask scheduler answers at {config.scheduler} ({error}): start one, or leave out --scheduler") from None
        with client:
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


def make_shard(job: Job, tick: Callable[[], None]) -> Made:
    """Make one shard of each product the job lacks; a shard's features stay in memory until they are written."""
    if job.sentences:
        kind = kind_of("text", job.config)
        return {"text": write_shard(job.store, "text", job.shard.name, kind, _text_entries(job, tick), job.shard.videos)}, []
    encoders = {product: _encoder(product, job.config) for product in job.lacking}
    entries: dict[str, list[Entry]] = {product: [] for product in job.lacking}
    failures = []
    for video in job.shard.videos:
        wanted = {product: encoders[product] for product, videos in job.lacking.items() if video in videos}
        try:
            features = extract_video(job.paths[video], job.config.sampling, wanted, job.config.batch)
            for product in wanted:
                entries[product].append(features.entry(product, video))
        except VideoError as error:
            path = str(job.paths[video])
            failures.append(Failure(video=video, path=path, stage=error.stage, reason=error.reason, detail=error.detail))
        tick()
    infos = {p: write_shard(job.store, p, job.shard.name, kind_of(p, job.config), made, job.shard.videos) for p, made in entries.items()}
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
    return _backbone(product, config.backbones, source_of(product, config), config.slowfast).encoder.to(device_of(config.device))


@lru_cache(maxsize=8)
def _backbone(product: str, size: str, weights: str, slowfast: str) -> Backbone:
    return load_backbone(product, size, weights, slowfast)
