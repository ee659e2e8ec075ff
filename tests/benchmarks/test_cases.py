"""Every case of the benchmark runs at small sizes: what it compares agrees, and what it finds can
be written down. No time is looked at.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from benchmarks import timing as measuring
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
"""It starts Dask, and processes for each of its parts."""


def small(name: str) -> Case:
    """A case at a size of seconds."""
    case = get_case_class(name)
    if name == "extraction":
        from benchmarks.extraction_stages import ExtractionWorkload

        return case(clips=(ExtractionWorkload("tiny", 2, 1, (64, 48), 32, rounds=1),), workers=1)  # type: ignore[call-arg]
    if name == "end-to-end":
        from benchmarks.cases.end_to_end import EndToEndSize

        return case(
            device="cpu", size=EndToEndSize(SMALL_CSDVL, 64, (64, 64), (8, 64), 3, "tiny"), rounds=1
        )  # type: ignore[call-arg]
    if name == "systems":
        from benchmarks.cases.systems import PAPER_SHORT_SIDES
        from benchmarks.training_step import CELL_STRIDE, CHANNELS, SLOWFAST_GRID

        some: Any = {
            "given": SMALL_CSDVL,
            "video": (64, 64),
            "words": 3,
            "backbones": "tiny",
            "channels": CHANNELS,
        }
        size = EndToEndSize(
            "small",
            "hcstvg-v1",
            short_sides=dict.fromkeys(PAPER_SHORT_SIDES, 64),
            motion_grid=SLOWFAST_GRID,
            stride=CELL_STRIDE,
            single_batch=False,
            rounds=1,
            **some,
        )
        return case(device="cpu", sizes=(size,))  # type: ignore[call-arg]
    return case(**SMALL[name])


SMALL: dict[str, dict[str, Any]] = {
    "start": {"rounds": 1, "commands": ("report",), "imports": ("pipeline.errors",)},
    "decode": {"rounds": 1, "videos": (("small.mp4", (64, 48), 12), ("small.avi", (64, 48), 12))},
    "memory": {"seconds": (1, 2), "size": (64, 48), "slow": ((64, 48), 10)},
    "store": {
        "shape": (2, 3, 4),
        "videos": 2,
        "num_frames": 6,
        "wanted": 3,
        "rounds": 2,
        "zarr_rounds": 1,
    },
    "store-write": {"shape": (2, 3, 4), "videos": 2, "num_frames": 6, "rounds": 1},
    "index": {"videos": 12, "sentences": 60, "box_subset_divisor": 4, "rounds": 1},
    "loader": {
        "device": "cpu",
        "name": "shapes",
        "given": {"batch": 2},
        "shapes": {"appearance": (8, 2, 3, 4), "motion": (4, 2, 2, 4), "text": (3, 4)},
        "warm": 1,
        "steps": 1,
        "rounds": 1,
    },
    "prediction": {
        "device": "cpu",
        "seconds": 2,
        "size": (64, 48),
        "short": 32,
        "sentences": 2,
        "rounds": 1,
        "given": SMALL_CSDVL,
        "backbones": "tiny",
        "preset_name": "shapes",
    },
    "long-video": {"minutes": (0.2, 0.3), "size": (64, 48)},
    "pictures": {"num_frames": 3, "rows": 32, "columns": 48, "rounds": 1},
    "evaluation": {"queries": 24, "num_frames": 12, "videos": 4, "rounds": 1},
}


def here(work: Callable[..., Any], *given: Any) -> Any:
    """What is measured in a process of its own is done in this one: a process takes seconds to
    begin.
    """
    return work(*given)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.soak if name in HEAVY else ()) for name in CASES]
)
def test_a_case_agrees_and_its_findings_are_a_page(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for process in ("apart", "branched"):
        monkeypatch.setattr(f"{get_case_class(name).__module__}.{process}", here, raising=False)
    with small(name) as case:
        case.check_agreement()
        groups = case.measure()
    found = [record for group in groups for record in group.to_records(RATES)]
    assert all(
        set(record) > {"of", "way"} and ("seconds" in record or "peak_bytes" in record)
        for record in found
    ), found
    about = {
        "compares": case.__doc__,
        "found": found,
        "rates": {"operations": 1e9, "bytes": 1e9, "precision": "float32"},
    }
    about |= {"where": "here", "load_before": 0.0, "date": "today", "took_seconds": 0.0}
    written = format_page(json.loads(json.dumps({name: about})))
    assert all(f"| {name} | {record['of']} | {record['way']} |" in written for record in found)
    named = [line.partition(": `")[0] for line in written.splitlines() if " → " in line]
    assert named == [
        f"- {record['of']} → {record['way']}" for record in found if "where_the_time_goes" in record
    ]
    assert named
    assert len(set(named)) == len(named)
    assert any("floor" in record for record in found)


def test_a_floor_is_the_longer_of_computing_and_copying_shared_by_cores() -> None:
    from benchmarks.case import LowerBound

    assert LowerBound(operations=4e9, bytes=1e9).seconds(RATES) == 4
    assert LowerBound(operations=1e9, bytes=4e9, cores=2).seconds(RATES) == 2


def test_ways_take_turns_and_the_first_rounds_are_not_counted() -> None:
    order: list[str] = []
    found = measuring.time_interleaved(
        {name: lambda name=name: order.append(name) for name in "ab"}, rounds=2
    )
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert {name: len(seconds) for name, seconds in found.items()} == {"a": 2, "b": 2}


def test_a_way_settles_before_it_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    monkeypatch.setattr(measuring, "timed", lambda way: called.append("timed") or way() or 1.0)
    found = measuring.time_interleaved(
        {name: lambda name=name: called.append(name) for name in "ab"},
        rounds=1,
        warmup_rounds=0,
        untimed_calls=1,
    )
    assert called == ["a", "timed", "a", "b", "timed", "b"]
    assert found == {"a": [1.0], "b": [1.0]}


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
