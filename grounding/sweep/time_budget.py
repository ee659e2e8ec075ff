"""Equal training time for variants whose training steps cost differently.

Each variant takes as many steps as fit into the training time of the reference, whose cost is 1.
Its learning rate schedule runs over its own steps, and it is validated as many times as the others.
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
    """Set the number of steps of each variant from its cost.

    Args:
        table: Table with the costs of the variants.
        configs: Training config of each trained variant.

    Returns:
        Configs by variant; unchanged if the table has no costs.

    Raises:
        InputError: The reference has no number of steps, or its schedule is of another length.
    """
    if not table.has_costs:
        return dict(configs)

    reference = configs[table.cost_reference]
    if reference.max_steps is None or reference.lr_schedule_steps is not None:
        raise InputError(
            f"variant {table.cost_reference!r} gives all others their training time: its steps must"
            " be set, and its schedule run over them:"
            " --set max_steps=N --set lr_schedule_steps=null"
        )

    validate_every = reference.validate_every or reference.max_steps
    num_validations = math.ceil(reference.max_steps / validate_every)

    steps = {}
    for name, variant in table.trained_variants.items():
        if variant.cost:
            steps[name] = max(1, round(reference.max_steps / variant.cost.step_time))
    return {
        name: _set_steps(config, steps[name], num_validations) for name, config in configs.items()
    }


def _set_steps(config: TrainConfig, steps: int, num_validations: int) -> TrainConfig:
    """Return the config with a number of steps; the last step is validated."""
    return config.model_copy(
        update={
            "max_steps": steps,
            "lr_schedule_steps": None,
            "validate_every": math.ceil(steps / num_validations),
        }
    )
