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

from pipeline.devices import device_of
from pipeline.errors import InputError
from pipeline.extraction.cluster import work
from pipeline.extraction.config import ExtractConfig, kind_of
from pipeline.extraction.failure_ledger import _Ledger
from pipeline.extraction.file_digests import SeenFiles
from pipeline.extraction.fit_reduction import reduction_to_open, refuse_unknown_reductions
from pipeline.extraction.invalidation import stale_texts, stale_videos
from pipeline.extraction.plan import Job, VideoIndex, plan_jobs, read_index
from pipeline.extraction.provenance import asked_of
from pipeline.extraction.shard_task import Made, backbone_of
from pipeline.records import Failure
from pipeline.store import OtherProductError, Store, StoreWriter
from pipeline.weights.sources import ENCODED

Progress = Callable[[int, int], None]
Say = Callable[[str], None]
log = logging.getLogger("pipeline")


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
    index: Path,
    folder: Path,
    dataset: str,
    store: Path,
    config: ExtractConfig,
    progress: Progress = lambda done, total: None,
    say: Say = lambda line: None,
    begun: Callable[[], None] = lambda: None,
) -> RunReport:
    """Fill `store` with every product of every video in `index`; video paths are relative to `folder`.

    `begun` is called once index, settings and weights are found good, before anything is written. `progress` counts
    videos; `say` is told what was loaded of each backbone's weights, and what is made anew.
    """
    known = read_index(index, folder)
    refuse_impossible(config)
    loaded = [backbone_of(product, config).report for product in config.products if product != "frames"]
    begun()
    for backbone in loaded:
        say(str(backbone))
        log.info("%s", backbone.every_key())
    with StoreWriter(store, dataset, str(folder)) as writer:
        for product in config.products:
            _open(writer, product, store, config, known, say)
        writer.set_index(index, index.with_name("tracks.npz"))
        jobs = _adopt_and_plan_jobs(writer, store, config, known, say)
        ledger = _Ledger(writer, store, known, jobs)
        report = RunReport(videos=len(known.paths))
        try:
            for job, (infos, failed) in _work(jobs, config, progress):
                for product, info in infos.items():
                    writer.publish(product, job.shard.name, info)
                    report.made += info.entries > 0
                ledger.note(job, failed)
        finally:
            if config.scheduler is None:  # the workers of another scheduler may still be busy with a last shard
                writer.clear_leftovers()
        writer.clear_leftovers()
        report.failures = ledger.write()
    return report


def refuse_impossible(config: ExtractConfig) -> None:
    """InputError for weights, reductions or products that do not exist, and for a device that is not there or not said."""
    refuse_unknown_reductions(config)
    for product in config.weights if isinstance(config.weights, dict) else ():
        if product not in ENCODED:
            raise InputError(f"weights are given for {product!r}; products with weights are {', '.join(ENCODED)}")
    for product in config.products:
        if product not in (*ENCODED, "frames"):
            raise InputError(f"unknown product {product!r}; the products are {', '.join((*ENCODED, 'frames'))}")
    if config.scheduler is None:
        device_of(config.device)
    elif config.device == "auto":
        raise InputError(
            "with --scheduler each worker would choose a device of its own, and features of CPU and GPU differ: "
            "add --set device=cpu or --set device=cuda"
        )


def _open(writer: StoreWriter, product: str, store: Path, config: ExtractConfig, index: VideoIndex, say: Say) -> None:
    """Begin the product, or go on with it; with `replace`, one that was made otherwise is deleted once it can be remade."""
    kind, held = kind_of(product, config), writer.provenance(product)
    provenance = asked_of(product, config, held)
    otherwise = bool(held) and held != provenance
    if otherwise and not config.replace:  # refused before a new basis is fitted in vain
        writer.open_product(product, kind, provenance)
    reduction = reduction_to_open(product, config, index, store, say, anew=otherwise)
    if reduction is not None:
        provenance["reduction"] = reduction.provenance
    basis = reduction.basis.content if reduction and reduction.basis else None
    try:
        writer.open_product(product, kind, provenance, basis)
    except OtherProductError:
        if not config.replace:
            raise
        writer.drop_product(product)
        writer.open_product(product, kind, provenance, basis)


def _adopt_and_plan_jobs(writer: StoreWriter, path: Path, config: ExtractConfig, index: VideoIndex, say: Say) -> list[Job]:
    """The jobs left, after taking up what a killed run left on disk and forgetting what is no longer as it was encoded."""
    provenance = {product: writer.provenance(product) for product in config.products}

    def plan() -> list[Job]:
        jobs = plan_jobs(path, config, index, lambda product, name: writer.adopt(product, name) is not None, writer.done, provenance)
        for product in config.products:
            writer.remove_unlisted(product)
        return jobs

    jobs = plan()
    return plan() if _drop_stale(writer, path, config, index, say) else jobs


def _drop_stale(writer: StoreWriter, path: Path, config: ExtractConfig, index: VideoIndex, say: Say) -> bool:
    """Forget what has changed since it was encoded, and nothing beside it; whether there was any."""
    writer.flush()
    store, seen, found = Store(path), SeenFiles(path), False
    for product in config.products:
        reader = store.open(product)
        if product == "text":
            names = stale_texts(reader, index)
            sentences = sum(len(index.sentences.get(video, ())) for name in names for video in reader.product.shards[name].videos)
            what = f"{sentences} sentences in {len(names)} shards" if names else ""
            writer.drop_shards(product, names)
        else:
            videos = stale_videos(reader, index, seen, say)
            what = f"{len(videos)} videos" if videos else ""
            writer.drop_entries(product, videos)
        if what:
            say(f"{product}: {what} are made anew: what they were made of has changed")
            found = True
    seen.save()
    return found


def _work(jobs: Sequence[Job], config: ExtractConfig, progress: Progress) -> Iterator[tuple[Job, Made]]:
    """Run the jobs and yield each with its result as it ends; `progress` counts videos, each once.

    Sentences take no time beside videos: they are counted only where no video is decoded.
    """
    of_text = all(job.of_text for job in jobs)
    total = len({video for job in jobs if job.of_text == of_text for video in job.shard.videos})
    seen: set[str] = set()

    def count(video: str, text: bool) -> None:
        if text == of_text:
            seen.add(video)
            progress(len(seen), total)

    progress(0, total)
    if jobs:
        yield from work(jobs, config, count)
        progress(total, total)
