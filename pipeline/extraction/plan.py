"""What is still to be made: the index by video, and from it one job per shard.

The plan of shards is a function of the index and the settings alone, so every run plans alike.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
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
    """The index by video: one of its queries, its file, and its sentences `(id, text)`."""

    queries: dict[str, Query]
    paths: dict[str, Path]
    sentences: dict[str, list[tuple[str, str]]]


def read_index(index_path: Path, video_root: Path) -> VideoIndex:
    """The queries of an index by video; InputError where it holds none, or its tracks are not beside it."""
    if not index_path.with_name("tracks.npz").is_file():
        raise InputError(
            f"{index_path.with_name('tracks.npz')} does not exist: run stvg-prepare first"
        )
    queries: dict[str, Query] = {}
    sentences: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for query in read_jsonl(index_path, Query):
        queries[query.video] = query
        sentences[query.video].append((query.id, query.text))
    if not queries:
        raise InputError(f"{index_path} holds no query: run stvg-prepare again")
    return VideoIndex(
        queries,
        {video: video_root / query.path for video, query in queries.items()},
        dict(sentences),
    )


@dataclass(frozen=True)
class Job:
    """One shard to make: of each product the videos it lacks, where they lie (id → path), or their sentences.

    `shard.videos` are the videos that any of the products lacks, in the shard's order. `provenance` is what the store
    says of each product.
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
        return bool(self.sentences)

    def split_unfinished(self, shard_infos: Mapping[str, ShardInfo]) -> tuple[Job, list[Job]]:
        """The job as far as its shards are `made`, and for each video that they lack a job, with a shard, of its own."""
        left = {
            product: videos - set(shard_infos[product].videos if product in shard_infos else ())
            for product, videos in self.missing.items()
        }
        again = [
            video for video in self.shard.videos if any(video in videos for videos in left.values())
        ]
        done = tuple(video for video in self.shard.videos if video not in again)
        return replace(self, shard=Shard(self.shard.name, done)), [
            self._build_single_video_job(video, left) for video in again
        ]

    def build_failure(self, video: str, error: VideoError) -> Failure:
        """The ledger's line about a video of this job."""
        return Failure(
            video=video,
            path=str(self.paths[video]),
            stage=error.stage,
            reason=error.reason,
            detail=error.detail,
        )

    def _build_single_video_job(self, video: str, left: Mapping[str, frozenset[str]]) -> Job:
        missing = {
            product: frozenset({video}) for product, videos in left.items() if video in videos
        }
        said = {video: self.sentences[video]} if self.is_text else {}
        return replace(
            self,
            shard=plan_shards({video: 1}, 1)[0],
            missing=missing,
            paths={video: self.paths[video]},
            sentences=said,
        )


def plan_jobs(
    store: Path,
    config: ExtractConfig,
    index: VideoIndex,
    shard_exists: Callable[[str, str], bool],
    get_stored_videos: Callable[[str], set[str]],
    provenance: Mapping[str, Mapping[str, Any]],
) -> list[Job]:
    """The shards still to be made: those of the plan, then, for videos that shards of it lack, overlay shards.

    `there(product, shard)` says whether a shard is made, `done(product)` which videos are in made shards.
    """
    jobs: list[Job] = []
    for is_text in (False, True):
        group = [name for name in config.products if PRODUCTS[name].is_visual != is_text]
        sizes = {
            v: _estimate_video_bytes(q, is_text, config, len(index.sentences[v]))
            for v, q in index.queries.items()
        }
        shards: dict[str, Shard] = {}
        lacking: dict[str, dict[str, frozenset[str]]] = defaultdict(dict)
        for product in group:
            planned = plan_shards(sizes, config.shard_mb << 20)
            while planned:  # ends, because a shard that is there holds at least one of its videos
                made = {shard.name for shard in planned if shard_exists(product, shard.name)}
                had = get_stored_videos(product)
                missing = {shard.name: set(shard.videos) - had for shard in planned}
                for shard in planned:
                    if shard.name not in made and missing[shard.name]:
                        shards[shard.name] = shard
                        lacking[shard.name][product] = frozenset(missing[shard.name])
                again = {video: sizes[video] for name in made for video in missing[name]}
                planned = plan_shards(again, config.shard_mb << 20)
        for name, shard in shards.items():
            wanted = tuple(
                video
                for video in shard.videos
                if any(video in videos for videos in lacking[name].values())
            )
            said = {video: index.sentences[video] for video in wanted} if is_text else {}
            paths = {video: index.paths[video] for video in wanted}
            jobs.append(
                Job(store, Shard(name, wanted), lacking[name], paths, said, config, provenance)
            )
    return jobs


def _estimate_video_bytes(query: Query, text: bool, config: ExtractConfig, sentences: int) -> int:
    """Bytes a video will take, roughly: what the shard plan goes by. The same whichever visual products are made."""
    total = 0 if text else 1
    for spec in PRODUCTS.values():
        if spec.determines_shard_plan and spec.is_visual != text:
            total += estimate_product_bytes(query, spec.name, config, sentences)
    return total


def estimate_product_bytes(
    query: Query, product: str, config: ExtractConfig, num_sentences: int
) -> int:
    """Bytes of a video's whole maps in one product, roughly (a JPEG: a fifth of a byte per pixel, and half a page left empty)."""
    spec = PRODUCTS[product]
    channels = spec.channels.get(config.backbones, 0)
    return spec.estimate_bytes(
        SizeRequest(query, num_sentences, config.sampling, config.backbones, channels)
    )


def get_num_channels(product: str, config: ExtractConfig) -> int:
    """How many numbers each cell of a product's maps has."""
    return PRODUCTS[product].channels[config.backbones]
