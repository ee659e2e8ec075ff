"""All videos of an index → a store. Dask runs the shards; only the store remembers what is done.

The plan of shards is a function of the index alone, so a run that was stopped goes on where it was and ends in the
same store. A shard's task decodes each of its videos once for all products that lack it. A video that cannot be
used is named in the ledger and tried again by the next run, in a shard of its own.
"""

from __future__ import annotations

import logging
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipeline.cluster import work
from pipeline.errors import InputError, StoreError
from pipeline.extract import VISUAL, file_digest
from pipeline.fitting import outline_of, reduction_to_open, refuse_unknown_reductions
from pipeline.jobs import ExtractConfig, Job, VideoIndex, kind_of, plan_jobs, product_bytes, read_index
from pipeline.records import Failure
from pipeline.shards import Made, backbone_of
from pipeline.store import ShardInfo, Store, StoreWriter
from pipeline.store.layout import shard_path
from pipeline.weights import ENCODED

Progress = Callable[[int, int], None]
Say = Callable[[str], None]
log = logging.getLogger("pipeline")
SAMPLED_BY = {
    "appearance": ("fps", "short"),
    "swin": ("fps", "short"),
    "frames": ("fps", "short", "jpeg_quality"),
    "motion": ("clip_every", "clip_span", "pool_motion"),
}
"""The keys of `SamplingConfig` that determine a product."""


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
    index: Path,
    folder: Path,
    dataset: str,
    store: Path,
    config: ExtractConfig,
    progress: Progress = lambda done, total: None,
    say: Say = lambda line: None,
) -> RunReport:
    """Fill `store` with every product of every video in `index`; video paths are relative to `folder`.

    `progress` counts videos; `say` is told what was loaded of each backbone's weights.
    """
    known = read_index(index, folder)
    refuse_unknown_products(config)
    for product in config.products:
        if product != "frames":
            loaded = backbone_of(product, config).report
            say(str(loaded))
            log.info("%s", loaded.every_key())
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


def survey(index: Path, folder: Path, dataset: str, store: Path, config: ExtractConfig) -> Survey:
    """What `run` would do, without writing anything; shards that a killed run left unlisted count as not made."""
    known = read_index(index, folder)
    refuse_unknown_products(config)
    held: dict[str, dict[str, ShardInfo]] = {product: {} for product in config.products}
    if (store / "manifest.json").exists():
        opened = Store(store)
        if opened.manifest.dataset != dataset:
            raise StoreError(f"store {store} holds dataset {opened.manifest.dataset!r}, not {dataset!r}: extract into another --store")
        for product in set(config.products) & set(opened.products):
            own = opened.products[product]
            made_from = {key: value for key, value in own.provenance.items() if key != "reduction"}
            if (own.kind, made_from) == (kind_of(product, config), provenance_of(product, config, made_from)):
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
        seconds=sum(known.queries[video].frame_count / max(known.queries[video].fps, 1e-6) for video in videos),
        shards=sum(len(job.lacking) for job in jobs),
        bytes=sum(product_bytes(known.queries[video], product, config, len(known.sentences[video])) for product, video in made),
        free_bytes=shutil.disk_usage(place).free,
    )


def refuse_unknown_products(config: ExtractConfig) -> None:
    """InputError for weights, reductions or products that do not exist."""
    refuse_unknown_reductions(config)
    for product in config.weights if isinstance(config.weights, dict) else ():
        if product not in ENCODED:
            raise InputError(f"weights are given for {product!r}; products with weights are {', '.join(ENCODED)}")
    for product in config.products:
        if product not in (*ENCODED, "frames"):
            raise InputError(f"unknown product {product!r}; the products are {', '.join((*ENCODED, 'frames'))}")


def provenance_of(product: str, config: ExtractConfig, held: Mapping[str, Any]) -> dict[str, Any]:
    """What a product is made of: encoder and weights, sampling, library versions; all but its reduction.

    `held` is what the store says of it: weights that lie elsewhere now, or under another name, are still the same.
    """
    libraries = ["torch", "torchvision", *(("decord", "av") if product in VISUAL else ("transformers",))]
    if product == "frames":
        libraries.append("pillow")
    about: dict[str, Any] = {"versions": {name: version(name) for name in libraries}}
    if product != "frames":
        backbone = backbone_of(product, config)
        same = held.get("weights_digest") == backbone.digest and "weights" in held
        source = held["weights"] if same else backbone.source
        about |= {"backbone": config.backbones, "weights": source, "weights_digest": backbone.digest}
        if product == "motion":
            about["slowfast"] = backbone.encoder.kind
    if product in VISUAL:
        about["sampling"] = {key: getattr(config.sampling, key) for key in SAMPLED_BY[product]}
    return about


def _open(writer: StoreWriter, product: str, store: Path, config: ExtractConfig, index: VideoIndex, say: Say) -> None:
    """Begin the product, or go on with it; with `replace`, one that was made otherwise is deleted once it can be remade."""
    kind, held = kind_of(product, config), writer.provenance(product)
    provenance, outline = provenance_of(product, config, held), outline_of(product, config)
    known = {key: value for key, value in held.items() if key != "reduction"}
    reduced = {key: value for key, value in (held.get("reduction") or {}).items() if key != "basis_digest"}
    otherwise = bool(held) and (known, reduced) != (provenance, outline)
    if otherwise and not config.replace:  # refused before a new basis is fitted in vain
        writer.open_product(product, kind, {**provenance, **({"reduction": outline} if outline else {})})
    reduction = reduction_to_open(product, config, index, store, say, anew=otherwise)
    if reduction is not None:
        provenance["reduction"] = reduction.provenance
    basis = reduction.basis.content if reduction and reduction.basis else None
    try:
        writer.open_product(product, kind, provenance, basis)
    except StoreError:
        if not config.replace:
            raise
        writer.drop_product(product)
        writer.open_product(product, kind, provenance, basis)


def _adopt_and_plan_jobs(writer: StoreWriter, path: Path, config: ExtractConfig, index: VideoIndex, say: Say) -> list[Job]:
    """The jobs left, after taking up what a killed run left on disk and forgetting what is no longer as it was encoded."""

    def plan() -> list[Job]:
        jobs = plan_jobs(path, config, index, lambda product, name: writer.adopt(product, name) is not None, writer.done)
        for product in config.products:
            writer.remove_unlisted(product)
        return jobs

    jobs = plan()
    stale = {product: _stale_shards(Store(path), product, index) for product in config.products}
    for product, names in stale.items():
        if names:
            say(f"{product}: {len(names)} shards are made anew, because a video or a sentence in them has changed")
        writer.drop_shards(product, names)
    return plan() if any(stale.values()) else jobs


def _stale_shards(store: Store, product: str, index: VideoIndex) -> set[str]:
    """Shards that hold a video whose file, or a sentence whose words, are no longer what was encoded.

    Of those that hold other videos too, only ones whose videos are all at hand: they are deleted and made anew.
    """
    reader = store.open(product)

    def fresh(video: str) -> bool:
        if product == "text":
            return all(key in reader and reader.facts(key).get("text") == text for key, text in index.sentences.get(video, ()))
        now = _digest_of(index.paths[video]) if video in index.paths else None
        return now is None or reader.facts(video).get("digest") == now

    def whole(info: ShardInfo) -> bool:  # text only: no sentence that was removed, or is now another video's
        return product != "text" or info.entries == sum(len(index.sentences.get(video, ())) for video in info.videos)

    shards = store.products[product].shards
    stale = {name for name, info in shards.items() if not whole(info) or not all(fresh(video) for video in info.videos)}
    if product == "text":
        return stale
    return {name for name in stale if all(video in index.paths and index.paths[video].is_file() for video in shards[name].videos)}


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
    """Run the jobs and yield each with its result as it ends; `progress` counts videos."""
    total = sum(len(job.shard.videos) for job in jobs)
    seen = 0

    def count() -> None:
        nonlocal seen
        seen += 1
        progress(min(seen, total), total)

    progress(0, total)
    if jobs:
        yield from work(jobs, config, count)
        progress(total, total)
