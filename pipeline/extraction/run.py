"""Extraction of all videos of an index into a store.

Dask runs one task per shard; only the store records what is finished. The plan of shards is a
function of the index alone, so a stopped run resumes where it was and ends in the same store. A
task decodes each of its videos once for all products that lack it. A video that fails is recorded
in the ledger, and the next run tries it again, in a shard of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.callbacks import MessageCallback, ProgressCallback
from pipeline.devices import resolve_device
from pipeline.errors import InputError
from pipeline.extraction.cluster import run_jobs
from pipeline.extraction.config import ExtractConfig, get_shard_kind
from pipeline.extraction.failure_ledger import FailureLedger
from pipeline.extraction.file_digests import FileDigestCache
from pipeline.extraction.fit_reduction import check_reductions, load_or_fit_reduction
from pipeline.extraction.invalidation import find_stale_text_shards, find_stale_videos
from pipeline.extraction.plan import Job, VideoIndex, plan_jobs, read_index
from pipeline.extraction.provenance import expected_provenance
from pipeline.extraction.shard_task import JobResult, get_backbone
from pipeline.features.products import PRODUCTS
from pipeline.records import Failure
from pipeline.store import ProductMismatchError, Store, StoreWriter
from pipeline.weights.sources import ENCODED_PRODUCTS

log = logging.getLogger("pipeline")


@dataclass
class ExtractionReport:
    """Result of a run.

    Attributes:
        videos: number of videos in the index.
        failures: all current failures, of this run and of earlier ones.
        shards_written: number of shards that this run wrote.
    """

    videos: int
    failures: list[Failure] = field(default_factory=list)
    shards_written: int = 0

    def exit_code(self, allow_failed: float) -> int:
        """Return the exit code of the command.

        Args:
            allow_failed: failed videos to tolerate: a share of all videos if below 1, otherwise a
                number.

        Returns:
            1 if more videos failed, otherwise 0.
        """
        max_failures = allow_failed * self.videos if allow_failed < 1 else allow_failed
        return int(len(self.failures) > max_failures)


def _ignore_progress(done: int, total: int) -> None:
    """Do nothing."""


def _ignore_message(line: str) -> None:
    """Do nothing."""


def _ignore_ready() -> None:
    """Do nothing."""


def run_extraction(
    index_path: Path,
    video_root: Path,
    dataset: str,
    store: Path,
    config: ExtractConfig,
    progress: ProgressCallback = _ignore_progress,
    on_message: MessageCallback = _ignore_message,
    on_ready: Callable[[], None] = _ignore_ready,
) -> ExtractionReport:
    """Fill a store with every product of every video in an index.

    Args:
        index_path: the file of queries, with `tracks.npz` beside it.
        video_root: directory that video paths are relative to.
        dataset: name of the data set.
        store: directory of the store; it is created if necessary.
        config: section `extract`.
        progress: called with the number of finished videos.
        on_message: called with a line about the weights of each encoder, and about everything that
            is computed again.
        on_ready: called once index, settings and weights are valid, before anything is written.

    Returns:
        The current failures and the number of written shards.

    Raises:
        InputError: index, settings or weights are not valid.
        StoreError: the store is of another data set, or a product was made with other settings and
            `replace` is off.
    """
    index = read_index(index_path, video_root)
    validate_config(config)
    load_reports = [
        get_backbone(product, config).report
        for product in config.products
        if PRODUCTS[product].encoder is not None
    ]
    on_ready()
    for load_report in load_reports:
        on_message(str(load_report))
        log.info("%s", load_report.format_keys())

    with StoreWriter(store, dataset, str(video_root)) as writer:
        for product in config.products:
            _open_product(writer, product, store, config, index, on_message)
        writer.set_index(index_path, index_path.with_name("tracks.npz"))

        jobs = _adopt_and_plan_jobs(writer, store, config, index, on_message)
        ledger = FailureLedger(writer, store, index, jobs)
        report = ExtractionReport(videos=len(index.paths))
        try:
            for job, (infos, failures) in _run_jobs_with_progress(jobs, config, progress):
                for product, info in infos.items():
                    writer.publish_shard(product, job.shard.name, info)
                    report.shards_written += info.entries > 0
                ledger.record_job(job, failures)
        finally:
            # After an error the workers of another scheduler may still write their last shards.
            if config.scheduler is None:
                writer.remove_partial_files()
        writer.remove_partial_files()
        report.failures = ledger.write()
    return report


def validate_config(config: ExtractConfig) -> None:
    """Check the settings.

    Args:
        config: section `extract`.

    Raises:
        InputError: a product, reduction, encoder or device does not exist, or no device is named
            for the workers of another scheduler.
    """
    check_reductions(config)
    if isinstance(config.weights, dict):
        for product in config.weights:
            if product not in ENCODED_PRODUCTS:
                raise InputError(
                    f"weights are given for {product!r}; products with weights are "
                    f"{', '.join(ENCODED_PRODUCTS)}"
                )
    for product in config.products:
        if product not in PRODUCTS:
            raise InputError(f"unknown product {product!r}; the products are {', '.join(PRODUCTS)}")
    if config.scheduler is None:
        resolve_device(config.device)
    elif config.device == "auto":
        raise InputError(
            "with --scheduler each worker would choose a device of its own, and features of CPU "
            "and GPU differ: add --set device=cpu or --set device=cuda"
        )


def _open_product(
    writer: StoreWriter,
    product: str,
    store: Path,
    config: ExtractConfig,
    index: VideoIndex,
    on_message: MessageCallback,
) -> None:
    """Open a product for writing.

    A product with other settings raises ProductMismatchError. With `replace` it is deleted, once
    nothing else can fail.
    """
    kind = get_shard_kind(product, config)
    stored_provenance = writer.get_provenance(product)
    provenance = expected_provenance(product, config, stored_provenance)

    # Refuse other settings before a projection is fitted, which takes time.
    is_changed = bool(stored_provenance) and stored_provenance != provenance
    if is_changed and not config.replace:
        writer.open_product(product, kind, provenance)

    reduction = load_or_fit_reduction(product, config, index, store, on_message, refit=is_changed)
    projection_bytes = None
    if reduction is not None:
        provenance["reduction"] = reduction.provenance
        if reduction.projection is not None:
            projection_bytes = reduction.projection.file_bytes

    try:
        writer.open_product(product, kind, provenance, projection_bytes)
    except ProductMismatchError:
        if not config.replace:
            raise
        writer.drop_product(product)
        writer.open_product(product, kind, provenance, projection_bytes)


def _adopt_and_plan_jobs(
    writer: StoreWriter,
    store: Path,
    config: ExtractConfig,
    index: VideoIndex,
    on_message: MessageCallback,
) -> list[Job]:
    """Adopt finished shards of a killed run, drop stale entries, and return the remaining jobs."""
    provenance = {product: writer.get_provenance(product) for product in config.products}

    def adopt_shard(product: str, name: str) -> bool:
        return writer.adopt_shard(product, name) is not None

    def plan() -> list[Job]:
        jobs = plan_jobs(store, config, index, adopt_shard, writer.get_completed_videos, provenance)
        for product in config.products:
            writer.remove_orphans(product)
        return jobs

    jobs = plan()
    if _drop_stale(writer, store, config, index, on_message):
        jobs = plan()
    return jobs


def _drop_stale(
    writer: StoreWriter,
    store_path: Path,
    config: ExtractConfig,
    index: VideoIndex,
    on_message: MessageCallback,
) -> bool:
    """Drop entries whose video or sentences changed since extraction.

    Returns True if anything was dropped.
    """
    writer.flush()
    store = Store(store_path)
    digest_cache = FileDigestCache(store_path)
    is_any_stale = False
    for product in config.products:
        reader = store.open(product)
        summary = ""
        if PRODUCTS[product].is_visual:
            videos = find_stale_videos(reader, index, digest_cache, on_message)
            if videos:
                summary = f"{len(videos)} videos"
            writer.drop_entries(product, videos)
        else:
            shard_names = find_stale_text_shards(reader, index)
            if shard_names:
                num_sentences = 0
                for name in shard_names:
                    for video in reader.product.shards[name].videos:
                        num_sentences += len(index.sentences.get(video, ()))
                summary = f"{num_sentences} sentences in {len(shard_names)} shards"
            writer.drop_shards(product, shard_names)

        if summary:
            on_message(f"{product}: {summary} are made anew: what they were made of has changed")
            is_any_stale = True
    digest_cache.save()
    return is_any_stale


def _run_jobs_with_progress(
    jobs: Sequence[Job], config: ExtractConfig, progress: ProgressCallback
) -> Iterator[tuple[Job, JobResult]]:
    """Run the jobs, yield their results as they end, and report the number of finished videos.

    Sentences take little time compared to videos: they count only if no video is decoded.
    """
    counts_text = all(job.is_text for job in jobs)
    videos_to_count: set[str] = set()
    for job in jobs:
        if job.is_text == counts_text:
            videos_to_count.update(job.shard.videos)
    total = len(videos_to_count)

    # A video that is tried twice, after the death of a worker, counts once.
    finished_videos: set[str] = set()

    def count_video(video: str, is_text: bool) -> None:
        if is_text == counts_text:
            finished_videos.add(video)
            progress(len(finished_videos), total)

    progress(0, total)
    if jobs:
        yield from run_jobs(jobs, config, count_video)
        progress(total, total)
