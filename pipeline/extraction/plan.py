"""The plan of a run: the index grouped by video, and one job per missing shard.

The plan of shards is a function of the index and the settings alone, so every run plans the same
shards.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.errors import InputError, VideoError
from pipeline.extraction.config import ExtractConfig
from pipeline.features.products import PRODUCTS, SizeRequest
from pipeline.io.jsonl import read_jsonl
from pipeline.records import Failure, Query
from pipeline.store import Shard, ShardInfo, plan_shards


@dataclass(frozen=True)
class VideoIndex:
    """The index grouped by video.

    Attributes:
        queries: one query about each video.
        paths: the file of each video.
        sentences: id and text of the sentences about each video.
    """

    queries: dict[str, Query]
    paths: dict[str, Path]
    sentences: dict[str, list[tuple[str, str]]]


def read_index(index_path: Path, video_root: Path) -> VideoIndex:
    """Read the queries of an index, grouped by video.

    Args:
        index_path: the file of queries, with `tracks.npz` beside it.
        video_root: directory that video paths are relative to.

    Returns:
        The index.

    Raises:
        InputError: the file holds no query, or there are no tracks beside it.
    """
    tracks_path = index_path.with_name("tracks.npz")
    if not tracks_path.is_file():
        raise InputError(f"{tracks_path} does not exist: run stvg-prepare first")

    queries: dict[str, Query] = {}
    sentences: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for query in read_jsonl(index_path, Query):
        queries[query.video] = query
        sentences[query.video].append((query.id, query.text))
    if not queries:
        raise InputError(f"{index_path} holds no query: run stvg-prepare again")

    paths = {video: video_root / query.path for video, query in queries.items()}
    return VideoIndex(queries, paths, dict(sentences))


@dataclass(frozen=True)
class Job:
    """One shard to make, of one or several products. A job is sent to a worker process.

    Attributes:
        store: directory of the store.
        shard: the shard; its videos are those that any of the products lacks, in stored order.
        missing: the videos that each product lacks.
        paths: the file of each video.
        sentences: id and text of the sentences about each video; empty for visual products.
        config: section `extract`.
        provenance: provenance of each product in the store.
    """

    store: Path
    shard: Shard
    missing: dict[str, frozenset[str]]
    paths: dict[str, Path]
    sentences: dict[str, list[tuple[str, str]]]
    config: ExtractConfig
    provenance: Mapping[str, Mapping[str, Any]]

    @property
    def is_text(self) -> bool:
        """True if the job encodes sentences, False if it encodes videos."""
        return bool(self.sentences)

    def split_unfinished(self, shard_infos: Mapping[str, ShardInfo]) -> tuple[Job, list[Job]]:
        """Split an interrupted job into its finished part and one job per missing video.

        Args:
            shard_infos: the shards of the job that are in the store, by product.

        Returns:
            The job with the finished videos, and jobs with a shard of one missing video each.
        """
        still_missing = {}
        for product, videos in self.missing.items():
            stored = shard_infos[product].videos if product in shard_infos else ()
            still_missing[product] = videos - set(stored)

        unfinished = []
        finished = []
        for video in self.shard.videos:
            is_missing = any(video in videos for videos in still_missing.values())
            if is_missing:
                unfinished.append(video)
            else:
                finished.append(video)

        finished_job = replace(self, shard=Shard(self.shard.name, tuple(finished)))
        single_video_jobs = [
            self._build_single_video_job(video, still_missing) for video in unfinished
        ]
        return finished_job, single_video_jobs

    def build_failure(self, video: str, error: VideoError) -> Failure:
        """Return the ledger's record of a failed video.

        Args:
            video: a video of this job.
            error: the reason.

        Returns:
            The record.
        """
        return Failure(
            video=video,
            path=str(self.paths[video]),
            stage=error.stage,
            reason=error.reason,
            detail=error.detail,
        )

    def _build_single_video_job(self, video: str, missing: Mapping[str, frozenset[str]]) -> Job:
        """Return a job that computes one video for the products that lack it."""
        single_missing = {
            product: frozenset({video}) for product, videos in missing.items() if video in videos
        }
        sentences = {video: self.sentences[video]} if self.is_text else {}
        return replace(
            self,
            shard=plan_shards({video: 1}, 1)[0],
            missing=single_missing,
            paths={video: self.paths[video]},
            sentences=sentences,
        )


def plan_jobs(
    store: Path,
    config: ExtractConfig,
    index: VideoIndex,
    shard_exists: Callable[[str, str], bool],
    get_stored_videos: Callable[[str], set[str]],
    provenance: Mapping[str, Mapping[str, Any]],
) -> list[Job]:
    """Plan the shards that are still to be made.

    The first shards are those of the index alone. Videos that a finished shard lacks are planned
    again, in additional shards.

    Args:
        store: directory of the store.
        config: section `extract`.
        index: the index.
        shard_exists: called with the names of a product and a shard; True if the shard is finished.
        get_stored_videos: called with the name of a product; its videos in finished shards.
        provenance: provenance of each product in the store.

    Returns:
        One job per shard: first the visual products, then the products of sentences.
    """
    jobs: list[Job] = []
    # Visual products share their shards, so that a job decodes each video once for all of them.
    for is_text in (False, True):
        products = [name for name in config.products if PRODUCTS[name].is_visual != is_text]
        video_bytes = {
            video: _estimate_video_bytes(query, is_text, config, len(index.sentences[video]))
            for video, query in index.queries.items()
        }
        shards, missing = _plan_missing_shards(
            products, video_bytes, config.shard_mb << 20, shard_exists, get_stored_videos
        )

        for name, shard in shards.items():
            videos = tuple(
                video
                for video in shard.videos
                if any(video in lacking for lacking in missing[name].values())
            )
            paths = {video: index.paths[video] for video in videos}
            sentences = {video: index.sentences[video] for video in videos} if is_text else {}
            jobs.append(
                Job(store, Shard(name, videos), missing[name], paths, sentences, config, provenance)
            )
    return jobs


def _plan_missing_shards(
    products: Sequence[str],
    video_bytes: Mapping[str, int],
    shard_bytes: int,
    shard_exists: Callable[[str, str], bool],
    get_stored_videos: Callable[[str], set[str]],
) -> tuple[dict[str, Shard], dict[str, dict[str, frozenset[str]]]]:
    """Return the shards to make, and by shard and product the videos that are missing."""
    shards: dict[str, Shard] = {}
    missing: dict[str, dict[str, frozenset[str]]] = defaultdict(dict)
    for product in products:
        planned = plan_shards(video_bytes, shard_bytes)
        # The loop ends, because a finished shard holds at least one of its videos.
        while planned:
            # The order of the two calls matters: the first one may take up a shard that a stopped
            # run left, whose videos then count as stored.
            finished = {shard.name for shard in planned if shard_exists(product, shard.name)}
            stored_videos = get_stored_videos(product)

            replanned: dict[str, int] = {}
            for shard in planned:
                lacking = set(shard.videos) - stored_videos
                if shard.name in finished:
                    # A finished shard is never changed: its missing videos get another shard.
                    replanned |= {video: video_bytes[video] for video in lacking}
                elif lacking:
                    shards[shard.name] = shard
                    missing[shard.name][product] = frozenset(lacking)
            planned = plan_shards(replanned, shard_bytes)
    return shards, missing


def _estimate_video_bytes(
    query: Query, is_text: bool, config: ExtractConfig, num_sentences: int
) -> int:
    """Return the estimated size of a video for the plan of shards.

    The size is the same whichever visual products are computed, so all of them have equal shards.
    """
    total = 0 if is_text else 1
    for spec in PRODUCTS.values():
        if spec.determines_shard_plan and spec.is_visual != is_text:
            total += estimate_product_bytes(query, spec.name, config, num_sentences)
    return total


def estimate_product_bytes(
    query: Query, product: str, config: ExtractConfig, num_sentences: int
) -> int:
    """Estimate the bytes of one video in one product, before pooling and reduction.

    Args:
        query: a query about the video.
        product: name of the product.
        config: section `extract`.
        num_sentences: number of sentences about the video.

    Returns:
        Bytes.
    """
    spec = PRODUCTS[product]
    channels = spec.channels.get(config.backbones, 0)
    request = SizeRequest(query, num_sentences, config.sampling, config.backbones, channels)
    return spec.estimate_bytes(request)


def get_num_channels(product: str, config: ExtractConfig) -> int:
    """Return the number of channels of a product's maps.

    Args:
        product: name of a product of feature maps.
        config: section `extract`.

    Returns:
        C, before reduction.
    """
    return PRODUCTS[product].channels[config.backbones]
