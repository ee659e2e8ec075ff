"""CG-STVG through the commands' own functions: trained, resumed, judged, asked, together and
closer, as CSDVL is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

import grounding.predictor.grounder
import pipeline.extraction.shard_task
from grounding.evaluation.config import EvaluateConfig
from grounding.evaluation.evaluate import predict_split
from grounding.inference.ensemble import Ensemble
from grounding.models.cgstvg import Cgstvg
from grounding.predictor.grounder import Grounder
from grounding.predictor.results import GroundingResult, build_query_result
from grounding.sweep.tables import load_table
from grounding.systems.cgstvg import CgstvgTrainConfig
from grounding.systems.registry import get_preset, get_system
from grounding.training.run_directory import prepare_run_dir
from grounding.training.train import train
from pipeline.config import merge, validate
from pipeline.errors import InputError, StoreError
from pipeline.extraction.run import ExtractConfig
from pipeline.extraction.run import run_extraction as extract
from pipeline.io.jsonl import read_jsonl
from pipeline.records import Prediction, Query
from pipeline.weights.checkpoint_files import LoadReport
from pipeline.weights.load import Backbone, load_backbone

Maker = Callable[..., Path]
QueryMaker = Callable[..., Query]
SMALL: dict[str, Any] = {
    "hidden_dim": 8,
    "num_heads": 2,
    "ffn_dim": 8,
    "num_layers": 1,
    "num_stages": 2,
    "num_frames": 4,
    "motion_product": "motion",
    "refinement": "none",
}
RECIPE: dict[str, Any] = {
    "device": "cpu",
    "batch": 4,
    "lr": 1e-2,
    "ema_decay": 0.9,
    "max_steps": 4,
    "validate_every": 2,
    "checkpoint_every": 1,
}
CPU = torch.device("cpu")


class Killed(BaseException):
    """Ends a run at once, as a signal would."""


def train_run(
    store: Path,
    run: Path,
    kill_at: int | None = None,
    model: dict[str, Any] | None = None,
    **changes: Any,
) -> Path:
    """A run of a few steps, as `stvg-train --model cgstvg` makes it; with `kill_at` it ends after
    that step.
    """

    def progress(done: int, total: int) -> None:
        if done == kill_at:
            raise Killed

    config = validate(
        CgstvgTrainConfig, {**RECIPE, "model": {**SMALL, **(model or {})}, **changes}, "test"
    )
    prepare_run_dir(store, run, config)
    train(store, run, config, progress)
    return run


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / "last" / "model.safetensors")


@pytest.fixture(scope="module")
def cg_run(tiny_run: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """On the store of `tiny_run`, whose motion is SlowFast's."""
    return train_run(tiny_run.store, tmp_path_factory.mktemp("runs") / "cgstvg", batch=2)


def assert_asked_is_stored(
    result: GroundingResult, queries: list[Query], predictions: list[Prediction]
) -> None:
    """What a video was asked is what the store's features of it answer."""
    edges = np.arange(queries[0].frame_count + 1) / queries[0].fps
    for tube, query, prediction in zip(result.queries, queries, predictions, strict=True):
        expected = build_query_result(query.text, [prediction], edges)
        assert tube.span_frames == expected.span_frames
        np.testing.assert_allclose(tube.boxes, expected.boxes, atol=0.02)


def test_a_resumed_run_is_the_uninterrupted_one(shapes_store: Path, tmp_path: Path) -> None:
    complete_run = train_run(shapes_store, tmp_path / "whole")
    with pytest.raises(Killed):
        train_run(shapes_store, tmp_path / "stopped", kill_at=3)
    resumed_run = train_run(shapes_store, tmp_path / "stopped")
    assert weights(complete_run).keys() == weights(resumed_run).keys()
    for name, value in weights(complete_run).items():
        assert torch.equal(value, weights(resumed_run)[name]), name


@pytest.mark.parametrize("truth_iou", [None, -1.0])
def test_parts_of_a_batch_and_recomputed_layers_give_its_gradient(
    shapes_store: Path, tmp_path: Path, truth_iou: float | None
) -> None:
    model = {"dropout": 0.0, "teacher_iou": truth_iou}
    variants: dict[str, dict[str, Any]] = {
        "whole": {},
        "parts": {"accumulation_steps": 2},
        "recomputed": {"activation_checkpointing": True},
    }
    moments = {}
    for name, changes in variants.items():
        run = train_run(shapes_store, tmp_path / name, model=model, max_steps=1, **changes)
        state = torch.load(run / "checkpoints" / "last" / "state.pt", weights_only=True)[
            "optimizer"
        ]["state"]
        moments[name] = [item["exp_avg"] for item in state.values()]
    torch.testing.assert_close(moments["parts"], moments["whole"], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(moments["recomputed"], moments["whole"], rtol=0, atol=0)


def test_video_swin_s_maps_are_the_motion(make_store: Maker, tmp_path: Path) -> None:
    store = make_store(visual=("appearance", "swin"))
    run = train_run(store, tmp_path / "run", model={"motion_product": "swin"})
    predictions, missing = predict_split([run], store, EvaluateConfig(split="val", device="cpu"))
    assert (len(predictions), missing) == (3, [])
    assert all(0 <= prediction.span[0] < prediction.span[1] <= 100 for prediction in predictions)


def test_a_store_without_its_motion_is_refused(shapes_store: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"has no product 'swin' .*: run stvg-extract to add it"):
        train_run(shapes_store, tmp_path / "run", model={"motion_product": "swin"})


def test_queries_without_truth_are_answered(
    make_store: Maker, make_query: QueryMaker, shapes_store: Path, tmp_path: Path
) -> None:
    run = train_run(shapes_store, tmp_path / "run", model={"teacher_iou": 0.5})
    unlabeled_store = make_store(
        [make_query(0, "test", truth=None), make_query(1, "test", truth=None)], name="unknown"
    )
    labeled_store = make_store([make_query(0, "test"), make_query(1, "test")], name="known")
    predictions_without_truth, predictions_with_truth = (
        predict_split([run], path, EvaluateConfig(device="cpu"))[0]
        for path in (unlabeled_store, labeled_store)
    )
    assert predictions_without_truth == predictions_with_truth
    assert all(math.isfinite(prediction.score) for prediction in predictions_without_truth)


def test_a_video_gives_the_tube_that_its_store_gives(tiny_run: Any, cg_run: Path) -> None:
    queries = [query for query in read_jsonl(tiny_run.index, Query) if query.split == "test"]
    result = Grounder(cg_run, device="cpu").ground(
        tiny_run.root / queries[0].path, [query.text for query in queries]
    )
    assert_asked_is_stored(
        result, queries, predict_split([cg_run], tiny_run.store, EvaluateConfig(device="cpu"))[0]
    )


class Means(nn.Module):
    """Stands for Video Swin, which has no tiny build: windows of frames to maps of their 16×16
    means.
    """

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((3,), 0.01))
        self.channels, self.stride, self.num_frames = 3, 16, 4

    def forward(self, frames: Tensor) -> Tensor:
        return (
            functional.avg_pool3d(frames.float(), (1, 16, 16), ceil_mode=True).permute(
                0, 2, 3, 4, 1
            )
            * self.scale
        )


def test_a_video_gives_the_tube_that_a_store_of_video_swin_s_maps_gives(
    tiny_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(
        product: str, size: str, weights: str, slowfast: str | None = None, device: str = "cpu"
    ) -> Backbone:
        if product != "swin":
            return load_backbone(product, size, weights, slowfast)
        return Backbone(Means().eval(), weights, "0" * 64, LoadReport("means", 1, ()))

    monkeypatch.setattr(pipeline.extraction.shard_task, "_load_backbone", load)
    monkeypatch.setattr(grounding.predictor.grounder, "load_backbone", load)
    settings = {
        "backbones": "tiny",
        "weights": "tiny",
        "products": ["appearance", "swin", "text"],
        "workers": 0,
        "device": "cpu",
    }
    store = tmp_path / "store"
    extract(
        tiny_run.index,
        tiny_run.root,
        "shapes",
        store,
        ExtractConfig.model_validate({**settings, "sampling": {"short_side": 96}}),
    )
    run = train_run(store, tmp_path / "run", model={"motion_product": "swin"}, batch=2)
    queries = [query for query in read_jsonl(tiny_run.index, Query) if query.split == "test"]
    result = Grounder(run, device="cpu").ground(
        tiny_run.root / queries[0].path, [query.text for query in queries]
    )
    assert_asked_is_stored(
        result, queries, predict_split([run], store, EvaluateConfig(device="cpu"))[0]
    )


def test_runs_answer_together(tiny_run: Any, cg_run: Path, tmp_path: Path) -> None:
    other_run = train_run(tiny_run.store, tmp_path / "other", batch=2, seed=1)
    single_predictions, ensemble_predictions = (
        predict_split(runs, tiny_run.store, EvaluateConfig(device="cpu"))[0]
        for runs in ([cg_run], [cg_run, other_run])
    )
    assert [prediction.id for prediction in single_predictions] == [
        prediction.id for prediction in ensemble_predictions
    ]
    assert single_predictions != ensemble_predictions
    assert (
        predict_split([cg_run, cg_run], tiny_run.store, EvaluateConfig(device="cpu"))[0]
        == single_predictions
    )


def test_it_does_not_answer_together_with_csdvl(tiny_run: Any, cg_run: Path) -> None:
    expected = (
        r"tiny scores the proposals of 8 clips and .*cgstvg frames: scores are "
        r"averaged one by one, so .* must score the same"
    )
    with pytest.raises(InputError, match=expected):
        Ensemble.from_runs([tiny_run.run, cg_run], CPU)


def test_mdetr_s_checkpoint_is_refused(shapes_store: Path, tmp_path: Path) -> None:
    with pytest.raises(
        InputError,
        match=r"CG-STVG uses only MDETR's image and text encoders: extract with weights mdetr:FILE",
    ):
        train_run(shapes_store, tmp_path / "run", init_from=str(tmp_path / "mdetr.pth"))


@pytest.mark.parametrize("table", ["cgstvg", "cgstvg_context", "cgstvg_thresholds"])
def test_every_ablation_of_its_tables_is_a_configuration(table: str) -> None:
    model_configs = {}
    for name, variant in load_table(table).trained_variants.items():
        config = validate(
            CgstvgTrainConfig, merge(get_preset("shapes", "cgstvg"), variant.changes), name
        )
        assert isinstance(get_system("cgstvg").build((3, 3, 3), config.model), Cgstvg)
        model_configs[name] = config.model
    assert len({model.model_dump_json() for model in model_configs.values()}) == len(
        model_configs
    )  # no two are the same
