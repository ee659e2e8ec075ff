"""Assignment of videos to shards: a pure function of video ids and estimated sizes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Shard:
    """The videos that one worker writes into one file.

    Attributes:
        name: Name with a digest of the videos: other videos, other name.
        videos: Identifiers of the videos.
    """

    name: str
    videos: tuple[str, ...]


def plan_shards(sizes: Mapping[str, int], target_bytes: int) -> list[Shard]:
    """Cut the sorted videos into shards.

    A video is never split: a video larger than the target has a shard of its own. Planning only
    the missing videos gives additional shards with other names than those of the first plan.

    Args:
        sizes: Estimated bytes by video.
        target_bytes: Maximum of estimated bytes per shard.

    Returns:
        The shards. Equal arguments give equal shards.

    Raises:
        ValueError: `target_bytes` is not positive.
    """
    if target_bytes <= 0:
        raise ValueError(f"target_bytes is {target_bytes}; it must be positive")

    # Fill one group after the other, in the order of ids.
    groups: list[list[str]] = []
    group_bytes = 0
    for video in sorted(sizes):
        if not groups or group_bytes + sizes[video] > target_bytes:
            groups.append([])
            group_bytes = 0
        groups[-1].append(video)
        group_bytes += sizes[video]

    shards = []
    for index, videos in enumerate(groups):
        shards.append(Shard(_build_shard_name(index, videos), tuple(videos)))
    return shards


def _build_shard_name(index: int, videos: list[str]) -> str:
    """Build a name from a shard's index and videos, such as `00000-0123abcd`."""
    digest = hashlib.sha256(json.dumps(videos).encode()).hexdigest()
    return f"{index:05d}-{digest[:8]}"
