"""Values that the presets of several systems share.

A preset is a set of values of section `train`: the paper's numbers for a data set, or a recipe for
`shapes`. Keys that a preset leaves out keep the defaults of the system's config.

The papers train the image and text encoders and start from MDETR. By default this code caches the
features of frozen encoders, and trains from scratch unless `init_from` names MDETR's checkpoint
(CSDVL only). Results of the papers' presets without the encoders' training and MDETR's weights are
not comparable with the published results.
"""

from __future__ import annotations

from typing import Any

Presets = dict[str, dict[str, Any]]
"""Preset name → values of section `train`."""

# A model that trains in minutes on two cores.
SMALL_MODEL: dict[str, Any] = {"hidden_dim": 64, "num_heads": 4, "ffn_dim": 128, "dropout": 0.0}
SHORT_TRAINING: dict[str, Any] = {
    "optimizer": "adamw",
    "batch": 8,
    "lr": 1e-3,
    "schedule": "one-cycle",
    "clip_norm": 1.0,
    "ema_decay": 0.99,
    "max_steps": 1500,
    "validate_every": 750,
}
