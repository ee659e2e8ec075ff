"""A run small enough to be made in seconds, for the tests that need a model with its data set and
its store.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
"""Before torch is imported: its networks here are small, and threads that wait for a busy core cost
ten times their work.
"""
signal.signal(signal.SIGINT, signal.default_int_handler)
"""A shell ignores Ctrl-C for what it starts in the background; tests send it, to themselves and to
what they start.
"""
settings.register_profile("without deadlines", deadline=None)
settings.load_profile("without deadlines")
"""No test asserts on time: an example of hypothesis that a busy machine holds up for 200 ms is no
failure.
"""
SAMPLING = {"fps": 5.0, "short_side": 96, "clip_stride_seconds": 0.4, "clip_seconds": 0.8}
MODEL = {
    "hidden_dim": 16,
    "num_heads": 2,
    "ffn_dim": 32,
    "num_layers": 1,
    "num_frames": 4,
    "num_clips": 8,
    "proposal_map_channels": 8,
    "proposal_map_kernel": 3,
    "proposal_map_layers": 1,
}


class TinyRun(NamedTuple):
    """`root` holds the data set `shapes` (three videos), `index` its queries, `store` their
    features; `run` took two steps on it.
    """

    root: Path
    index: Path
    store: Path
    run: Path


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """Read only: copy the run before writing into it."""
    from grounding.systems.csdvl import CsdvlTrainConfig
    from grounding.training.run_directory import prepare_run_dir
    from grounding.training.train import train
    from pipeline.datasets.prepare import prepare
    from pipeline.datasets.shapes.make import ShapesConfig, make_shapes
    from pipeline.extraction.run import ExtractConfig
    from pipeline.extraction.run import run_extraction as extract

    place = tmp_path_factory.mktemp("tiny")
    result = TinyRun(
        place / "shapes", place / "index" / "index.jsonl", place / "store", place / "runs" / "tiny"
    )
    counts = {
        "train_videos": 1,
        "val_videos": 1,
        "test_videos": 1,
        "sentences_per_video": 4,
        "seconds": (5.0, 5.0),
    }
    make_shapes(result.root, ShapesConfig.model_validate(counts), workers=1)
    prepare("shapes", result.root, result.index)
    settings = {
        "backbones": "tiny",
        "weights": "tiny",
        "sampling": SAMPLING,
        "workers": 0,
        "device": "cpu",
    }
    extract(
        result.index, result.root, "shapes", result.store, ExtractConfig.model_validate(settings)
    )
    config = CsdvlTrainConfig.model_validate(
        {"model": MODEL, "max_steps": 2, "batch": 2, "lr": 1e-3, "device": "cpu"}
    )
    prepare_run_dir(result.store, result.run, config)
    train(result.store, result.run, config)
    return result
