"""What a run would make, how large it would be and whether it would be refused; nothing is written."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from pipeline.callbacks import MessageCallback
from pipeline.errors import StoreError
from pipeline.extraction.config import ExtractConfig, get_shard_kind
from pipeline.extraction.file_digests import FileDigestCache
from pipeline.extraction.invalidation import find_stale_text_shards, find_stale_videos
from pipeline.extraction.plan import (
    VideoIndex,
    estimate_product_bytes,
    get_num_channels,
    plan_jobs,
    read_index,
)
from pipeline.extraction.provenance import expected_provenance
from pipeline.extraction.run import validate_config
from pipeline.features.products import PRODUCTS
from pipeline.features.reduction import DEFAULT_CHANNELS, parse_reduction
from pipeline.records import Query
from pipeline.store import ProductReader, Store
from pipeline.store.layout import shard_path
from pipeline.store.writer import describe_differences


@dataclass(frozen=True)
class DryRunReport:
    """What a run would do: `pending_videos` of `videos` lack something (`seconds` long in all), `absent` have no file; `bytes` is an estimate."""

    videos: int
    missing_files: int
    pending_videos: int
    pending_seconds: float
    pending_shards: int
    estimated_bytes: int
    free_bytes: int


def estimate_run(
    index_path: Path,
    video_root: Path,
    dataset: str,
    store: Path,
    config: ExtractConfig,
    on_message: MessageCallback = lambda line: None,
) -> DryRunReport:
    """What `run` would do; shards that a killed run left unlisted count as not made. A StoreError where `run` would refuse the store."""
    known = read_index(index_path, video_root)
    validate_config(config)
    there, done = _find_reusable_shards(store, dataset, config, known, on_message)
    jobs = plan_jobs(
        store,
        config,
        known,
        lambda product, name: name in there[product],
        lambda product: done[product],
        {},
    )
    made = [
        (product, video)
        for job in jobs
        for product, videos in job.missing.items()
        for video in videos
    ]
    videos = {video for _, video in made}
    place = next(path for path in (store.absolute(), *store.absolute().parents) if path.exists())
    return DryRunReport(
        videos=len(known.paths),
        missing_files=sum(not path.is_file() for path in known.paths.values()),
        pending_videos=len(videos),
        pending_seconds=sum(
            known.queries[video].frame_count / max(known.queries[video].fps, 1e-6)
            for video in videos
        ),
        pending_shards=sum(len(job.missing) for job in jobs),
        estimated_bytes=sum(
            estimate_stored_bytes(
                known.queries[video], product, config, len(known.sentences[video])
            )
            for product, video in made
        ),
        free_bytes=shutil.disk_usage(place).free,
    )


def estimate_stored_bytes(
    query: Query, product: str, config: ExtractConfig, num_sentences: int
) -> int:
    """Bytes a video will take in one product, roughly, once its maps are pooled and reduced."""
    size = estimate_product_bytes(query, product, config, num_sentences)
    if "pool_motion_2x2" in PRODUCTS[product].sampling_keys and config.sampling.pool_motion_2x2:
        size //= 4
    if product in config.reduce:
        asked = parse_reduction(config.reduce[product])
        size = (
            size * (asked.channels or DEFAULT_CHANNELS) // get_num_channels(product, config)
            if asked.method
            else size
        )
        size = size // 2 if asked.int8 else size
    return size


def _find_reusable_shards(
    store: Path, dataset: str, config: ExtractConfig, index: VideoIndex, say: MessageCallback
) -> tuple[dict[str, set[str]], dict[str, set[str]]]:
    """By product, the shards a run would keep and the videos in them that are as they were encoded."""
    there: dict[str, set[str]] = {product: set() for product in config.products}
    done: dict[str, set[str]] = {product: set() for product in config.products}
    if not (store / "manifest.json").exists():
        return there, done
    opened, seen = Store(store), FileDigestCache(store)
    if opened.manifest.dataset != dataset:
        raise StoreError(
            f"store {store} holds dataset {opened.manifest.dataset!r}, not {dataset!r}: extract into another --store"
        )
    for product in (name for name in config.products if name in opened.products):
        own = opened.products[product]
        asked = {
            "kind": get_shard_kind(product, config),
            **expected_provenance(product, config, own.provenance),
        }
        otherwise = list(describe_differences({"kind": own.kind, **own.provenance}, asked))
        if otherwise and not config.replace:
            raise StoreError(
                f"store {store}: product {product!r} was made with other settings: {'; '.join(otherwise)}"
            )
        if otherwise:
            continue
        shards = {
            name: info
            for name, info in own.shards.items()
            if shard_path(store, product, name, own.kind).exists()
        }
        reader = ProductReader(store, product, own.model_copy(update={"shards": shards}))
        gone = find_stale_text_shards(reader, index) if not PRODUCTS[product].is_visual else set()
        changed = (
            find_stale_videos(reader, index, seen, say) if PRODUCTS[product].is_visual else set()
        )
        fresh = {
            name: set(info.videos) - changed for name, info in shards.items() if name not in gone
        }
        there[product] = {name for name, videos in fresh.items() if videos}
        done[product] = set().union(*fresh.values())
    return there, done
