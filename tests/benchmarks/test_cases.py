"""Every benchmark case at a small size: variants agree, and the results can be formatted.

No test looks at a time.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from benchmarks import timing
from benchmarks.case import Case
from benchmarks.cases import CASES, get_case_class
from benchmarks.machine import Rates
from benchmarks.results_page import format_page

SMALL_CSDVL = {
    "batch": 1,
    "model": {
        "num_frames": 3,
        "num_clips": 2,
        "num_layers": 1,
        "proposal_map_layers": 1,
        "proposal_map_channels": 8,
        "hidden_dim": 32,
        "num_heads": 2,
        "ffn_dim": 32,
    },
}
RATES = Rates(1e9, 1e9)
HEAVY = ("extraction",)
"""Cases that start Dask and several pools of processes."""


def build_small_case(name: str) -> Case:
    """Return a case of a size that takes seconds."""
    case = get_case_class(name)
    if name == "extraction":
        from benchmarks.extraction_stages import ExtractionWorkload

        return case(
            workloads=(ExtractionWorkload("tiny", 2, 1, (64, 48), 32, rounds=1),), workers=1
        )  # type: ignore[call-arg]
    if name == "end-to-end":
        from benchmarks.cases.end_to_end import EndToEndSize

        return case(
            device="cpu", size=EndToEndSize(SMALL_CSDVL, 64, (64, 64), (8, 64), 3, "tiny"), rounds=1
        )  # type: ignore[call-arg]
    if name == "systems":
        from benchmarks.cases.systems import PAPER_SHORT_SIDES, SystemsSize
        from benchmarks.training_step import CELL_STRIDE, CHANNELS, SLOWFAST_GRID

        options: Any = {
            "overrides": SMALL_CSDVL,
            "video_size": (64, 64),
            "num_tokens": 3,
            "backbones": "tiny",
            "channels": CHANNELS,
        }
        size = SystemsSize(
            "small",
            "hcstvg-v1",
            short_sides=dict.fromkeys(PAPER_SHORT_SIDES, 64),
            motion_grid=SLOWFAST_GRID,
            stride=CELL_STRIDE,
            single_batch=False,
            rounds=1,
            **options,
        )
        return case(device="cpu", sizes=(size,))  # type: ignore[call-arg]
    return case(**SMALL_SIZES[name])


SMALL_SIZES: dict[str, dict[str, Any]] = {
    "start": {"rounds": 1, "commands": ("report",), "imports": ("pipeline.errors",)},
    "decode": {"rounds": 1, "videos": (("small.mp4", (64, 48), 12), ("small.avi", (64, 48), 12))},
    "memory": {"video_seconds": (1, 2), "size": (64, 48), "slow_video_spec": ((64, 48), 10)},
    "store": {
        "shape": (2, 3, 4),
        "num_videos": 2,
        "num_frames": 6,
        "num_selected": 3,
        "rounds": 2,
        "zarr_rounds": 1,
    },
    "store-write": {"shape": (2, 3, 4), "num_videos": 2, "num_frames": 6, "rounds": 1},
    "index": {"num_videos": 12, "num_sentences": 60, "box_subset_divisor": 4, "rounds": 1},
    "loader": {
        "device": "cpu",
        "preset_name": "shapes",
        "overrides": {"batch": 2},
        "shapes": {"appearance": (8, 2, 3, 4), "motion": (4, 2, 2, 4), "text": (3, 4)},
        "warmup_steps": 1,
        "num_steps": 1,
        "rounds": 1,
    },
    "prediction": {
        "device": "cpu",
        "seconds": 2,
        "size": (64, 48),
        "short_side": 32,
        "num_sentences": 2,
        "rounds": 1,
        "overrides": SMALL_CSDVL,
        "backbones": "tiny",
        "preset_name": "shapes",
    },
    "long-video": {"minutes": (0.1, 0.15), "size": (64, 48)},
    "pictures": {"num_frames": 3, "height": 32, "width": 48, "rounds": 1},
    "evaluation": {"num_queries": 24, "num_frames": 12, "num_videos": 4, "rounds": 1},
}


def run_in_this_process(function: Callable[..., Any], *args: Any) -> Any:
    """Stand in for a process of its own, which takes seconds to start."""
    return function(*args)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.soak if name in HEAVY else ()) for name in CASES]
)
def test_a_case_agrees_and_its_findings_are_a_page(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for runner in ("run_in_spawned_process", "run_in_forked_process"):
        monkeypatch.setattr(
            f"{get_case_class(name).__module__}.{runner}", run_in_this_process, raising=False
        )
    with build_small_case(name) as case:
        case.check_agreement()
        groups = case.measure()
    records = [record for group in groups for record in group.to_records(RATES)]
    assert all(
        set(record) > {"of", "way"} and ("seconds" in record or "peak_bytes" in record)
        for record in records
    ), records
    case_record = {
        "compares": case.__doc__,
        "found": records,
        "rates": {"operations": 1e9, "bytes": 1e9, "precision": "float32"},
    }
    case_record |= {"where": "here", "load_before": 0.0, "date": "today", "took_seconds": 0.0}
    page = format_page(json.loads(json.dumps({name: case_record})))
    assert all(f"| {name} | {record['of']} | {record['way']} |" in page for record in records)
    hotspot_names = [line.partition(": `")[0] for line in page.splitlines() if " → " in line]
    assert hotspot_names == [
        f"- {record['of']} → {record['way']}"
        for record in records
        if "where_the_time_goes" in record
    ]
    assert hotspot_names
    assert len(set(hotspot_names)) == len(hotspot_names)
    assert any("floor" in record for record in records)


def test_a_floor_is_the_longer_of_computing_and_copying_shared_by_cores() -> None:
    from benchmarks.case import LowerBound

    assert LowerBound(operations=4e9, bytes=1e9).seconds(RATES) == 4
    assert LowerBound(operations=1e9, bytes=4e9, cores=2).seconds(RATES) == 2


def test_ways_take_turns_and_the_first_rounds_are_not_counted() -> None:
    order: list[str] = []
    result = timing.time_interleaved(
        {name: lambda name=name: order.append(name) for name in "ab"}, rounds=2
    )
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert {name: len(seconds) for name, seconds in result.items()} == {"a": 2, "b": 2}


def test_a_way_settles_before_it_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    monkeypatch.setattr(timing, "time_call", lambda way: called.append("timed") or way() or 1.0)
    result = timing.time_interleaved(
        {name: lambda name=name: called.append(name) for name in "ab"},
        rounds=1,
        warmup_rounds=0,
        untimed_calls=1,
    )
    assert called == ["a", "timed", "a", "b", "timed", "b"]
    assert result == {"a": [1.0], "b": [1.0]}


def test_a_ratio_is_the_middle_one_of_the_rounds() -> None:
    from benchmarks.case import Comparison, Measurement

    first, second = Comparison(
        "x",
        {
            "one": Measurement([1.0, 2.0, 1.0], peak_bytes=10),
            "two": Measurement([2.0, 2.0, 4.0], peak_bytes=30),
        },
    ).to_records(RATES)
    assert "ratio" not in first
    assert second["ratio"] == [2.0, 1.0, 4.0]
    assert second["peak_ratio"] == 3
