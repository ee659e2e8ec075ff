"""All videos of an index → a store. Dask runs the shards; only the store remembers what is done.

The plan of shards is a function of the index alone, so a run that was stopped goes on where it was and ends in the
same store. A shard's task decodes each of its videos once for all products that lack it. A video that cannot be
used is named in the ledger and tried again by the next run, in a shard of its own.
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
    """What a run did. `failures` are all current ones; `made` the shards written, `videos` the videos in the index."""

    videos: int
    failures: list[Failure] = field(default_factory=list)
    shards_written: int = 0

    def exit_code(self, allow_failed: float) -> int:
        """0, or 1 where more videos failed than allowed: a share of all if below 1, else a count."""
        limit = allow_failed * self.videos if allow_failed < 1 else allow_failed
        return int(len(self.failures) > limit)


def run_extraction(
    index_path: Path,
    video_root: Path,
    dataset: str,
    store: Path,
    config: ExtractConfig,
    progress: ProgressCallback = lambda done, total: None,
    on_message: MessageCallback = lambda line: None,
    on_ready: Callable[[], None] = lambda: None,
) -> ExtractionReport:
    """Fill `store` with every product of every video in `index`; video paths are relative to `folder`.

    `begun` is called once index, settings and weights are found good, before anything is written. `progress` counts
    videos; `say` is told what was loaded of each backbone's weights, and what is made anew.
    """
    known = read_index(index_path, video_root)
    validate_config(config)
    loaded = [
        get_backbone(product, config).report
        for product in config.products
        if PRODUCTS[product].encoder
    ]
    on_ready()
    for backbone in loaded:
        on_message(str(backbone))
        log.info("%s", backbone.format_keys())
    with StoreWriter(store, dataset, str(video_root)) as writer:
        for product in config.products:
            _open_product(writer, product, store, config, known, on_message)
        writer.set_index(index_path, index_path.with_name("tracks.npz"))
        jobs = _adopt_and_plan_jobs(writer, store, config, known, on_message)
        ledger = FailureLedger(writer, store, known, jobs)
        report = ExtractionReport(videos=len(known.paths))
        try:
            for job, (infos, failed) in _run_jobs_with_progress(jobs, config, progress):
                for product, info in infos.items():
                    writer.publish_shard(product, job.shard.name, info)
                    report.shards_written += info.entries > 0
                ledger.record_job(job, failed)
        finally:
            if (
                config.scheduler is None
            ):  # the workers of another scheduler may still be busy with a last shard
                writer.remove_partial_files()
        writer.remove_partial_files()
        report.failures = ledger.write()
    return report


def validate_config(config: ExtractConfig) -> None:
    """InputError for weights, reductions or products that do not exist, and for a device that is not there or not said."""
    check_reductions(config)
    for product in config.weights if isinstance(config.weights, dict) else ():
        if product not in ENCODED_PRODUCTS:
            raise InputError(
                f"weights are given for {product!r}; products with weights are {', '.join(ENCODED_PRODUCTS)}"
            )
    for product in config.products:
        if product not in PRODUCTS:
            raise InputError(f"unknown product {product!r}; the products are {', '.join(PRODUCTS)}")
    if config.scheduler is None:
        resolve_device(config.device)
    elif config.device == "auto":
        raise InputError(
            "with --scheduler each worker would choose a device of its own, and features of CPU and GPU differ: "
            "add --set device=cpu or --set device=cuda"
        )


def _open_product(
    writer: StoreWriter,
    product: str,
    store: Path,
    config: ExtractConfig,
    index: VideoIndex,
    say: MessageCallback,
) -> None:
    """Begin the product, or go on with it; with `replace`, one that was made otherwise is deleted once it can be remade."""
    kind, held = get_shard_kind(product, config), writer.get_provenance(product)
    provenance = expected_provenance(product, config, held)
    otherwise = bool(held) and held != provenance
    if otherwise and not config.replace:  # refused before a new basis is fitted in vain
        writer.open_product(product, kind, provenance)
    reduction = load_or_fit_reduction(product, config, index, store, say, refit=otherwise)
    if reduction is not None:
        provenance["reduction"] = reduction.provenance
    basis = reduction.projection.file_bytes if reduction and reduction.projection else None
    try:
        writer.open_product(product, kind, provenance, basis)
    except ProductMismatchError:
        if not config.replace:
            raise
        writer.drop_product(product)
        writer.open_product(product, kind, provenance, basis)


def _adopt_and_plan_jobs(
    writer: StoreWriter, path: Path, config: ExtractConfig, index: VideoIndex, say: MessageCallback
) -> list[Job]:
    """The jobs left, after taking up what a killed run left on disk and forgetting what is no longer as it was encoded."""
    provenance = {product: writer.get_provenance(product) for product in config.products}

    def plan() -> list[Job]:
        jobs = plan_jobs(
            path,
            config,
            index,
            lambda product, name: writer.adopt_shard(product, name) is not None,
            writer.get_completed_videos,
            provenance,
        )
        for product in config.products:
            writer.remove_orphans(product)
        return jobs

    jobs = plan()
    return plan() if _drop_stale(writer, path, config, index, say) else jobs


def _drop_stale(
    writer: StoreWriter, path: Path, config: ExtractConfig, index: VideoIndex, say: MessageCallback
) -> bool:
    """Forget what has changed since it was encoded, and nothing beside it; whether there was any."""
    writer.flush()
    store, seen, found = Store(path), FileDigestCache(path), False
    for product in config.products:
        reader = store.open(product)
        if not PRODUCTS[product].is_visual:
            names = find_stale_text_shards(reader, index)
            sentences = sum(
                len(index.sentences.get(video, ()))
                for name in names
                for video in reader.product.shards[name].videos
            )
            what = f"{sentences} sentences in {len(names)} shards" if names else ""
            writer.drop_shards(product, names)
        else:
            videos = find_stale_videos(reader, index, seen, say)
            what = f"{len(videos)} videos" if videos else ""
            writer.drop_entries(product, videos)
        if what:
            say(f"{product}: {what} are made anew: what they were made of has changed")
            found = True
    seen.save()
    return found


def _run_jobs_with_progress(
    jobs: Sequence[Job], config: ExtractConfig, progress: ProgressCallback
) -> Iterator[tuple[Job, JobResult]]:
    """Run the jobs and yield each with its result as it ends; `progress` counts videos, each once.

    Sentences take no time beside videos: they are counted only where no video is decoded.
    """
    of_text = all(job.is_text for job in jobs)
    total = len({video for job in jobs if job.is_text == of_text for video in job.shard.videos})
    seen: set[str] = set()

    def count(video: str, text: bool) -> None:
        if text == of_text:
            seen.add(video)
            progress(len(seen), total)

    progress(0, total)
    if jobs:
        yield from run_jobs(jobs, config, count)
        progress(total, total)
