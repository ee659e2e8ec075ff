"""Dry run: the work and size of an extraction, and its refusals, without writing anything."""

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
    Job,
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
from pipeline.store import Product, ProductReader, Store
from pipeline.store.layout import get_shard_path
from pipeline.store.writer import describe_differences


@dataclass(frozen=True)
class DryRunReport:
    """Result of a dry run.

    Attributes:
        videos: number of videos in the index.
        missing_files: number of videos without a file.
        pending_videos: number of videos that a product lacks.
        pending_seconds: total duration of the pending videos.
        pending_shards: number of shards to write.
        estimated_bytes: estimated size of the pending shards.
        free_bytes: free space on the store's disk.
    """

    videos: int
    missing_files: int
    pending_videos: int
    pending_seconds: float
    pending_shards: int
    estimated_bytes: int
    free_bytes: int


def _ignore_message(line: str) -> None:
    """Do nothing."""


def estimate_run(
    index_path: Path,
    video_root: Path,
    dataset: str,
    store: Path,
    config: ExtractConfig,
    on_message: MessageCallback = _ignore_message,
) -> DryRunReport:
    """Estimate the work of `run_extraction`.

    Shards that a killed run wrote, but did not list in the manifest, count as pending.

    Args:
        index_path: the file of queries, with `tracks.npz` beside it.
        video_root: directory that video paths are relative to.
        dataset: name of the data set.
        store: directory of the store.
        config: section `extract`.
        on_message: called with the progress of reading video files.

    Returns:
        The estimate.

    Raises:
        InputError: index, settings or weights are not valid.
        StoreError: `run_extraction` would refuse the store.
    """
    index = read_index(index_path, video_root)
    validate_config(config)
    shard_names, stored_videos = _find_reusable_shards(store, dataset, config, index, on_message)

    def shard_exists(product: str, name: str) -> bool:
        return name in shard_names[product]

    def get_stored_videos(product: str) -> set[str]:
        return stored_videos[product]

    jobs = plan_jobs(store, config, index, shard_exists, get_stored_videos, {})
    pending = _list_pending(jobs)
    pending_videos = {video for _, video in pending}

    pending_seconds: float = 0
    for video in pending_videos:
        query = index.queries[video]
        pending_seconds += query.frame_count / max(query.fps, 1e-6)

    estimated_bytes = 0
    for product, video in pending:
        num_sentences = len(index.sentences[video])
        estimated_bytes += estimate_stored_bytes(
            index.queries[video], product, config, num_sentences
        )

    # The store may not exist yet: its closest existing parent is on the same disk.
    path = store.absolute()
    disk_path = next(parent for parent in (path, *path.parents) if parent.exists())
    return DryRunReport(
        videos=len(index.paths),
        missing_files=sum(not path.is_file() for path in index.paths.values()),
        pending_videos=len(pending_videos),
        pending_seconds=pending_seconds,
        pending_shards=sum(len(job.missing) for job in jobs),
        estimated_bytes=estimated_bytes,
        free_bytes=shutil.disk_usage(disk_path).free,
    )


def _list_pending(jobs: list[Job]) -> list[tuple[str, str]]:
    """Return the pairs of product and video to compute."""
    pending = []
    for job in jobs:
        for product, videos in job.missing.items():
            for video in videos:
                pending.append((product, video))
    return pending


def estimate_stored_bytes(
    query: Query, product: str, config: ExtractConfig, num_sentences: int
) -> int:
    """Estimate the bytes of one video in one product, after pooling and reduction.

    Args:
        query: a query about the video.
        product: name of the product.
        config: section `extract`.
        num_sentences: number of sentences about the video.

    Returns:
        Bytes.
    """
    num_bytes = estimate_product_bytes(query, product, config, num_sentences)
    is_poolable = "pool_motion_2x2" in PRODUCTS[product].sampling_keys
    if is_poolable and config.sampling.pool_motion_2x2:
        num_bytes //= 4

    if product in config.reduce:
        reduction = parse_reduction(config.reduce[product])
        if reduction.method:
            num_outputs = reduction.channels or DEFAULT_CHANNELS
            num_bytes = num_bytes * num_outputs // get_num_channels(product, config)
        if reduction.int8:
            num_bytes //= 2
    return num_bytes


def _find_reusable_shards(
    store_path: Path,
    dataset: str,
    config: ExtractConfig,
    index: VideoIndex,
    on_message: MessageCallback,
) -> tuple[dict[str, set[str]], dict[str, set[str]]]:
    """Return by product the shards that a run would keep, and their videos that are not stale."""
    shard_names: dict[str, set[str]] = {product: set() for product in config.products}
    stored_videos: dict[str, set[str]] = {product: set() for product in config.products}
    if not (store_path / "manifest.json").exists():
        return shard_names, stored_videos

    store = Store(store_path)
    if store.manifest.dataset != dataset:
        raise StoreError(
            f"store {store_path} holds dataset {store.manifest.dataset!r}, not {dataset!r}: "
            "extract into another --store"
        )

    digest_cache = FileDigestCache(store_path)
    for name in config.products:
        product = store.products.get(name)
        if product is None or _is_replaced(store_path, name, product, config):
            continue
        videos_by_shard = _find_fresh_videos(
            store_path, name, product, index, digest_cache, on_message
        )
        for shard_name, videos in videos_by_shard.items():
            stored_videos[name] |= videos
            # A shard without a fresh video is made again.
            if videos:
                shard_names[name].add(shard_name)
    return shard_names, stored_videos


def _is_replaced(store_path: Path, name: str, product: Product, config: ExtractConfig) -> bool:
    """Return True if a run would delete a product; raise StoreError if it would refuse."""
    requested = {
        "kind": get_shard_kind(name, config),
        **expected_provenance(name, config, product.provenance),
    }
    stored = {"kind": product.kind, **product.provenance}
    differences = list(describe_differences(stored, requested))
    if differences and not config.replace:
        raise StoreError(
            f"store {store_path}: product {name!r} was made with other settings: "
            f"{'; '.join(differences)}"
        )
    return bool(differences)


def _find_fresh_videos(
    store_path: Path,
    name: str,
    product: Product,
    index: VideoIndex,
    digest_cache: FileDigestCache,
    on_message: MessageCallback,
) -> dict[str, set[str]]:
    """Return the videos of each existing shard that are not stale; omit stale text shards."""
    shards = {
        shard_name: info
        for shard_name, info in product.shards.items()
        if get_shard_path(store_path, name, shard_name, product.kind).exists()
    }
    reader = ProductReader(store_path, name, product.model_copy(update={"shards": shards}))

    stale_videos: set[str] = set()
    stale_shards: set[str] = set()
    if PRODUCTS[name].is_visual:
        stale_videos = find_stale_videos(reader, index, digest_cache, on_message)
    else:
        stale_shards = find_stale_text_shards(reader, index)

    fresh_videos = {}
    for shard_name, info in shards.items():
        if shard_name not in stale_shards:
            fresh_videos[shard_name] = set(info.videos) - stale_videos
    return fresh_videos
