"""All videos of an index → a store. Dask runs the shards; only the store remembers what is done.

The plan of shards is a function of the index alone, so a run that was stopped goes on where it was and ends in the
same store. A shard's task decodes each of its videos once for all products that lack it. A video that cannot be
used is named in the ledger and tried again by the next run, in a shard of its own.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.cluster import work
from pipeline.errors import InputError
from pipeline.extract import VISUAL
from pipeline.fitting import reduction_to_open, refuse_unknown_reductions
from pipeline.jobs import ExtractConfig, Job, VideoIndex, kind_of, plan_jobs, read_index
from pipeline.provenance import asked_of
from pipeline.records import Failure
from pipeline.seen import SeenFiles
from pipeline.shards import Made, backbone_of
from pipeline.stale import stale_texts, stale_videos
from pipeline.store import OtherProductError, Store, StoreWriter
from pipeline.weights import ENCODED, device_of

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


class _Ledger:
    """The failures that are current at any moment of a run: found by it, or known before and not yet tried again."""

    def __init__(self, writer: StoreWriter, store: Path, index: VideoIndex, jobs: Sequence[Job]) -> None:
        self._writer = writer
        self._known = {failure.video: failure for failure in writer.read_failures()}
        self._found: dict[str, Failure] = {}
        self._jobs_left: dict[str, int] = defaultdict(int)
        for job in jobs:
            for video in () if job.of_text else job.shard.videos:
                self._jobs_left[video] += 1
        made = [product.videos for name, product in Store(store).products.items() if name in VISUAL]
        lacked = {video for video in self._known if video in index.paths and not all(video in videos for videos in made)}
        self._untried = lacked - set(self._jobs_left)
        self.write()

    def note(self, job: Job, failed: Sequence[Failure]) -> None:
        """A job has ended, and these videos of it have failed."""
        for video in () if job.of_text else job.shard.videos:
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
