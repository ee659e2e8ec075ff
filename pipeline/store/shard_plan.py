"""Which videos go into which shard: a pure function of the ids and their estimated bytes, so every run plans alike."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Shard:
    """The videos one worker writes into one file. The name holds a digest of them: other videos, other name."""

    name: str
    videos: tuple[str, ...]


def plan_shards(sizes: Mapping[str, int], target_bytes: int) -> list[Shard]:
    """Cut the sorted ids into runs of at most `target_bytes` estimated bytes each.

    A video is never split: one larger than the target has a shard of its own. Planning only the missing videos
    gives overlay shards, whose names differ from those of the first plan.
    """
    if target_bytes <= 0:
        raise ValueError(f"target_bytes is {target_bytes}; it must be positive")
    groups: list[list[str]] = []
    filled = 0
    for video in sorted(sizes):
        if not groups or filled + sizes[video] > target_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(video)
        filled += sizes[video]
    return [
        Shard(_build_shard_name(number, videos), tuple(videos))
        for number, videos in enumerate(groups)
    ]


def _build_shard_name(number: int, videos: list[str]) -> str:
    digest = hashlib.sha256(json.dumps(videos).encode()).hexdigest()
    return f"{number:05d}-{digest[:8]}"
