"""The same training time for variants whose steps cost differently: each takes as many steps as fit into the time of the
steps of the one whose cost is 1. Its schedule runs over its own steps, and it is validated as many times as the others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from grounding.sweep.tables import SweepTable
from grounding.systems.config import TrainConfig
from pipeline.errors import InputError


def equalize_training_time(
    table: SweepTable, configs: Mapping[str, TrainConfig]
) -> dict[str, TrainConfig]:
    """The configurations with the steps that their costs leave them; as they are where the table states no costs."""
    if not table.has_costs:
        return dict(configs)
    unit = configs[table.cost_reference]
    if unit.max_steps is None or unit.lr_schedule_steps is not None:
        raise InputError(
            f"variant {table.cost_reference!r} gives all others their training time: its steps must be set, and its schedule run over them:"
            " --set max_steps=N --set lr_schedule_steps=null"
        )
    validations = math.ceil(unit.max_steps / (unit.validate_every or unit.max_steps))
    steps = {
        name: max(1, round(unit.max_steps / variant.cost.step_time))
        for name, variant in table.trained_variants.items()
        if variant.cost
    }
    return {name: _set_steps(config, steps[name], validations) for name, config in configs.items()}


def _set_steps(config: TrainConfig, steps: int, validations: int) -> TrainConfig:
    """Trained for `steps`, the last of which is validated."""
    return config.model_copy(
        update={
            "max_steps": steps,
            "lr_schedule_steps": None,
            "validate_every": math.ceil(steps / validations),
        }
    )
