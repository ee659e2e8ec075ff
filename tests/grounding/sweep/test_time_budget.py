"""The same training time: steps and validations by what a step costs."""

from __future__ import annotations

from typing import Any

import pytest

from grounding.sweep.tables import SweepTable
from grounding.sweep.time_budget import equalize_training_time
from grounding.systems.cgstvg import CgstvgTrainConfig
from grounding.systems.config import TrainConfig
from grounding.systems.csdvl import CsdvlTrainConfig
from pipeline.errors import InputError


def table_of(step: float | None) -> SweepTable:
    """One variant beside the unit; its step takes `step` times as long. None: no costs."""
    costs: list[dict[str, Any]] = (
        [{}, {}]
        if step is None
        else [{"cost": {"step_time": item, "memory": 1}} for item in (1, step)]
    )
    variants = {
        name: {"label": name, "system": name, **cost}
        for name, cost in zip(("csdvl", "cgstvg"), costs, strict=True)
    }
    section = {"title": "part", "reference": "csdvl", "rows": ["csdvl", "cgstvg"]}
    return SweepTable.model_validate(
        {"title": "a table", "variants": variants, "sections": [section]}
    )


def limited(step: float | None, **unit: Any) -> dict[str, TrainConfig]:
    configs = {
        "csdvl": CsdvlTrainConfig(**unit),
        "cgstvg": CgstvgTrainConfig(max_steps=77, validate_every=7, lr_schedule_steps=70),
    }
    return equalize_training_time(table_of(step), configs)


@pytest.mark.parametrize("step", [0.5, 1.0, 1.7, 7.3, 1000.0])
@pytest.mark.parametrize("every", [750, None])
def test_all_train_for_the_time_of_the_unit_and_are_validated_as_often_and_last(
    step: float, every: int | None
) -> None:
    result = limited(step, max_steps=1500, validate_every=every)
    unit, own = result["csdvl"], result["cgstvg"]
    assert (unit.max_steps, own.lr_schedule_steps) == (1500, None)
    assert own.max_steps is not None
    assert own.validate_every is not None
    assert own.max_steps == 1 or abs(own.max_steps * step - 1500) <= step / 2
    times = -(-own.max_steps // own.validate_every)
    assert times == min({750: 2, 400: 4, None: 1}[every], own.max_steps)


def test_without_costs_all_stay_as_they_are() -> None:
    result = limited(None, max_steps=1500)
    assert (
        result["cgstvg"].max_steps,
        result["cgstvg"].validate_every,
        result["cgstvg"].lr_schedule_steps,
    ) == (77, 7, 70)


@pytest.mark.parametrize("unit", [{}, {"max_steps": 9, "lr_schedule_steps": 20}])
def test_a_time_that_is_not_known_is_refused(unit: dict[str, Any]) -> None:
    with pytest.raises(
        InputError, match=r"variant 'csdvl' gives all others their training time.*--set max_steps=N"
    ):
        limited(2.0, **unit)
