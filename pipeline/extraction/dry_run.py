"""What a run would make, how large it would be and whether it would be refused; nothing is written."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import StoreError
from pipeline.extraction.config import ExtractConfig, kind_of
from pipeline.extraction.file_digests import SeenFiles
from pipeline.extraction.invalidation import stale_texts, stale_videos
from pipeline.extraction.plan import VideoIndex, channels_of, plan_jobs, product_bytes, read_index
from pipeline.extraction.provenance import asked_of
from pipeline.extraction.run import refuse_impossible
from pipeline.features.reduction import CHANNELS, parse_reduction
from pipeline.records import Query
from pipeline.store import ProductReader, Store
from pipeline.store.layout import shard_path
from pipeline.store.writer import differences

Say = Callable[[str], None]


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


def survey(index: Path, folder: Path, dataset: str, store: Path, config: ExtractConfig, say: Say = lambda line: None) -> Survey:
    """What `run` would do; shards that a killed run left unlisted count as not made. A StoreError where `run` would refuse the store."""
    known = read_index(index, folder)
    refuse_impossible(config)
    there, done = _held(store, dataset, config, known, say)
    jobs = plan_jobs(store, config, known, lambda product, name: name in there[product], lambda product: done[product], {})
    made = [(product, video) for job in jobs for product, videos in job.lacking.items() for video in videos]
    videos = {video for _, video in made}
    place = next(path for path in (store.absolute(), *store.absolute().parents) if path.exists())
    return Survey(
        videos=len(known.paths),
        absent=sum(not path.is_file() for path in known.paths.values()),
        to_make=len(videos),
        seconds=sum(known.queries[video].frame_count / max(known.queries[video].fps, 1e-6) for video in videos),
        shards=sum(len(job.lacking) for job in jobs),
        bytes=sum(stored_bytes(known.queries[video], product, config, len(known.sentences[video])) for product, video in made),
        free_bytes=shutil.disk_usage(place).free,
    )


def stored_bytes(query: Query, product: str, config: ExtractConfig, sentences: int) -> int:
    """Bytes a video will take in one product, roughly, once its maps are pooled and reduced."""
    size = product_bytes(query, product, config, sentences)
    if product == "motion" and config.sampling.pool_motion:
        size //= 4
    if product in config.reduce:
        asked = parse_reduction(config.reduce[product])
        size = size * (asked.channels or CHANNELS) // channels_of(product, config) if asked.source else size
        size = size // 2 if asked.int8 else size
    return size


def _held(store: Path, dataset: str, config: ExtractConfig, index: VideoIndex, say: Say) -> tuple[dict[str, set[str]], dict[str, set[str]]]:
    """By product, the shards a run would keep and the videos in them that are as they were encoded."""
    there: dict[str, set[str]] = {product: set() for product in config.products}
    done: dict[str, set[str]] = {product: set() for product in config.products}
    if not (store / "manifest.json").exists():
        return there, done
    opened, seen = Store(store), SeenFiles(store)
    if opened.manifest.dataset != dataset:
        raise StoreError(f"store {store} holds dataset {opened.manifest.dataset!r}, not {dataset!r}: extract into another --store")
    for product in (name for name in config.products if name in opened.products):
        own = opened.products[product]
        asked = {"kind": kind_of(product, config), **asked_of(product, config, own.provenance)}
        otherwise = list(differences({"kind": own.kind, **own.provenance}, asked))
        if otherwise and not config.replace:
            raise StoreError(f"store {store}: product {product!r} was made with other settings: {'; '.join(otherwise)}")
        if otherwise:
            continue
        shards = {name: info for name, info in own.shards.items() if shard_path(store, product, name, own.kind).exists()}
        reader = ProductReader(store, product, own.model_copy(update={"shards": shards}))
        gone = stale_texts(reader, index) if product == "text" else set()
        changed = stale_videos(reader, index, seen, say) if product != "text" else set()
        fresh = {name: set(info.videos) - changed for name, info in shards.items() if name not in gone}
        there[product] = {name for name, videos in fresh.items() if videos}
        done[product] = set().union(*fresh.values())
    return there, done
