"""Training configurations: the papers' numbers per data set, and the recipe for `shapes`.

The paper trains the image and text encoders and starts from MDETR; here both are cached and frozen by default, so
results of the papers' presets are not comparable with the published ones.
"""

from __future__ import annotations

from typing import Any

from pipeline.errors import InputError

_HCSTVG: dict[str, Any] = {
    "model": {"frames": 48, "clips": 16, "alpha": 0.1, "map_kernel": 5, "map_layers": 8},
    "ema": 0.999,
}

CSDVL: dict[str, dict[str, Any]] = {
    "hcstvg-v1": {**_HCSTVG, "epochs": 10},
    "hcstvg-v2": {**_HCSTVG, "epochs": 4},
    "vidstg": {
        "model": {"frames": 64, "clips": 64, "alpha": 1.0, "map_kernel": 9, "map_layers": 4},
        "ema": 0.99997,
        "epochs": 10,
    },
    # Small and from scratch, in minutes. Boxes and clips are carried by attention over cells (`box_head`, `clip_pool`) and
    # that attention is told where the object is (`carriers`), because the paper's MLP box head and plain spatial mean lean
    # on MDETR's weights; A of eq. (2) is taken relative to its mean (`guide_gain`), because minutes do not teach FC its scale.
    "shapes": {
        "model": {
            "d": 64,
            "heads": 4,
            "ffn": 128,
            "dropout": 0.0,
            "layers": 2,
            "frames": 6,
            "clips": 16,
            "alpha": 1.0,
            "guide_gain": "cells",
            "box_head": "attention",
            "clip_pool": "attention",
            "map_channels": 64,
            "map_kernel": 5,
            "map_layers": 3,
        },
        "loss": {"carriers": 1.0},
        "batch": 8,
        "lr": 1e-3,
        "schedule": "one-cycle",
        "clip_norm": 1.0,
        "ema": 0.99,
        "max_steps": 1200,
        "validate_every": 600,
    },
}
"""The paper's presets use its MLP box head; `shapes` the attention head."""


def preset(name: str) -> dict[str, Any]:
    """A preset by name; an InputError lists the names there are."""
    try:
        return CSDVL[name]
    except KeyError:
        raise InputError(f"there is no preset {name!r}; the presets are {', '.join(CSDVL)}: name one with --preset") from None
