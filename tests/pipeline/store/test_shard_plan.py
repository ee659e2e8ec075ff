"""The shard plan is a pure function of ids and sizes."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.store import plan_shards

SIZES = st.dictionaries(st.text(max_size=8), st.integers(0, 50), max_size=30)


@settings(max_examples=60)
@given(SIZES, st.integers(1, 60), st.randoms())
def test_every_id_once_in_order_within_the_target(
    sizes: dict[str, int], target: int, random: Random
) -> None:
    plan = plan_shards(sizes, target)
    assert [video for shard in plan for video in shard.videos] == sorted(sizes)
    for shard in plan:
        assert len(shard.videos) == 1 or sum(sizes[video] for video in shard.videos) <= target
    shuffled = list(sizes.items())
    random.shuffle(shuffled)
    assert plan_shards(dict(shuffled), target) == plan
    assert len({shard.name for shard in plan}) == len(plan)


def test_names_tell_position_and_videos() -> None:
    first = plan_shards({"a": 1, "b": 1, "c": 1}, 2)
    overlay = plan_shards({"b": 1}, 2)
    assert [(shard.name[:6], shard.videos) for shard in first] == [
        ("00000-", ("a", "b")),
        ("00001-", ("c",)),
    ]
    assert overlay[0].name.startswith("00000-")
    assert overlay[0].name != first[0].name
    assert first[0].name == "00000-3554d2b8"  # printf '["a", "b"]' | sha256sum


def test_a_target_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="target_bytes is 0; it must be positive"):
        plan_shards({"a": 1}, 0)
