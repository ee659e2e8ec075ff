"""Scenes that several tests read."""

from __future__ import annotations

from functools import cache

from pipeline.datasets.shapes.scene import Scene, make_scene


@cache
def make_scenes() -> list[Scene]:
    """Return the scenes of the first 300 seeds. Read only."""
    return [make_scene(seed) for seed in range(300)]
