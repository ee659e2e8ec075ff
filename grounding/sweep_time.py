"""The same training time for variants whose steps cost differently: each takes as many steps as fit into the time of the
steps of the one whose cost is 1. Its schedule runs over its own steps, and it is validated as many times as the others."""

from __future__ import annotations

import math
from collections.abc import Mapping

from grounding.recipe import Recipe
from grounding.sweep_plan import SweepTable
from pipeline.errors import InputError


def for_the_same_time(table: SweepTable, configs: Mapping[str, Recipe]) -> dict[str, Recipe]:
    """The configurations with the steps that their costs leave them; as they are where the table states no costs."""
    return {name: _limited(table, name, config, configs[table.unit]) for name, config in configs.items()}


def _limited(table: SweepTable, name: str, config: Recipe, unit: Recipe) -> Recipe:
    cost = table.variants[name].cost
    if cost is None:
        return config
    if unit.max_steps is None or unit.schedule_steps is not None:
        raise InputError(
            f"variant {table.unit!r} gives all others their training time: its steps must be set, and its schedule run over them:"
            " --set max_steps=N --set schedule_steps=null"
        )
    steps = max(1, round(unit.max_steps / cost.step))
    validations = math.ceil(unit.max_steps / (unit.validate_every or unit.max_steps))
    return config.model_copy(update={"max_steps": steps, "schedule_steps": None, "validate_every": math.ceil(steps / validations)})
