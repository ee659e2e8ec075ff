"""CoSTA through the commands' own functions: trained on pictures, resumed, judged, asked, together
and closer, as the others are.
"""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import grounding.data.dataset
from grounding.data.collate import collate, to_device
from grounding.data.dataset import GroundingDataset
from grounding.data.loader import Loader
from grounding.data.sources import ImageSource
from grounding.evaluation.config import EvaluateConfig
from grounding.evaluation.evaluate import predict_split
from grounding.inference.ensemble import Ensemble
from grounding.models.costa import Costa
from grounding.predictor.grounder import Grounder
from grounding.predictor.results import build_query_result
from grounding.sweep.tables import load_table
from grounding.systems.cgstvg import CgstvgTrainConfig
from grounding.systems.checkpoint import load_model
from grounding.systems.costa import CostaTrainConfig
from grounding.systems.csdvl import CsdvlTrainConfig
from grounding.systems.provenance import read_provenance
from grounding.systems.registry import get_preset, get_system
from grounding.training.optimizer import build_optimizer
from grounding.training.run_directory import prepare_run_dir
from grounding.training.train import train
from pipeline.config import merge, validate
from pipeline.encoders.appearance import AppearanceEncoder
from pipeline.errors import InputError, StoreError
from pipeline.extraction.run import ExtractConfig
from pipeline.extraction.run import run_extraction as extract
from pipeline.io.jsonl import read_jsonl
from pipeline.records import Query
from pipeline.store import Store

SMALL: dict[str, Any] = {
    "hidden_dim": 8,
    "num_heads": 2,
    "ffn_dim": 8,
    "num_layers": 1,
    "num_decoder_layers": 1,
    "num_frames": 3,
    "r3d_width": 8,
}
RECIPE: dict[str, Any] = {
    "device": "cpu",
    "batch": 2,
    "lr": 1e-2,
    "lr_image": 1e-3,
    "lr_text": 1e-3,
    "ema_decay": 0.9,
    "max_steps": 2,
    "validate_every": 2,
    "checkpoint_every": 1,
}
TINY = {"backbones": "tiny", "image": "tiny"}
BOTH = {**TINY, "text": "tiny"}
CPU = torch.device("cpu")


class Killed(BaseException):
    """Ends a run at once, as a signal would."""


def build_config(model: dict[str, Any] | None = None, **changes: Any) -> CostaTrainConfig:
    return validate(
        CostaTrainConfig,
        {**RECIPE, "encoders": TINY, "model": {**SMALL, **(model or {})}, **changes},
        "test",
    )


def train_run(
    store: Path,
    run: Path,
    kill_at: int | None = None,
    model: dict[str, Any] | None = None,
    **changes: Any,
) -> Path:
    """A run of a few steps, as `stvg-train --model costa` makes it; with `kill_at` it ends after
    that step.
    """

    def progress(done: int, total: int) -> None:
        if done == kill_at:
            raise Killed

    config = build_config(model, **changes)
    prepare_run_dir(store, run, config)
    train(store, run, config, progress)
    return run


def read_weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / "last" / "model.safetensors")


def assert_equal_weights(run: Path, expected_run: Path) -> None:
    weights, expected = read_weights(run), read_weights(expected_run)
    assert weights.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(weights[name], value), name


@pytest.fixture(scope="module")
def frames_store(tiny_run: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of `tiny_run`'s videos and sentences with all that CoSTA reads: pictures and token
    states.
    """
    path = tmp_path_factory.mktemp("frames") / "store"
    sampling = {"fps": 5.0, "short_side": 48}
    settings = {
        "backbones": "tiny",
        "products": ["frames", "text"],
        "sampling": sampling,
        "workers": 0,
        "device": "cpu",
    }
    extract(tiny_run.index, tiny_run.root, "shapes", path, ExtractConfig.model_validate(settings))
    return path


@pytest.fixture(scope="module")
def costa_run(frames_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With token states of the store."""
    return train_run(frames_store, tmp_path_factory.mktemp("runs") / "costa")


@pytest.fixture(scope="module")
def end_to_end_run(frames_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a text encoder that trains too."""
    return train_run(frames_store, tmp_path_factory.mktemp("runs") / "whole", encoders=BOTH)


# Reading


def test_it_reads_pictures_and_cached_words_and_no_motion(frames_store: Path) -> None:
    features = GroundingDataset.from_store(
        frames_store, "train", 3, None, None, None, use_images=True
    )
    query, opened = features.queries[0], Store(frames_store)
    sample = features.load_sample(query)
    pictures, words = ImageSource.from_store(opened.open("frames")), opened.open("text")
    assert features.dims == (3, 0, words.shape(query.id)[-1])
    assert sample.appearance.dtype == np.uint8
    rows = np.searchsorted(pictures.columns(query.video)["frame"], sample.frame_indices)
    np.testing.assert_array_equal(sample.appearance, pictures.read(query.video, rows))
    np.testing.assert_array_equal(sample.text, words.read(query.id))
    assert features.count_bytes(query) == 2 * sample.appearance.size
    inputs = collate([sample, features.load_sample(features.queries[1])])
    assert inputs.video_indices is not None  # both are about one video
    assert inputs.video_indices.tolist() == [0, 0]
    assert inputs.motion.shape == (1, 0, 1, 1, 0)
    assert inputs.picture_in_square.tolist() == [[0, 0, 1, 1]]
    truth = features.load_targets(sample)
    assert torch.equal(truth.clip_labels, truth.frame_labels)


def test_what_a_run_was_made_from(costa_run: Path, end_to_end_run: Path) -> None:
    cached, end_to_end = read_provenance(costa_run), read_provenance(end_to_end_run)
    assert set(cached["products"]) == {"frames", "text"}
    assert set(end_to_end["products"]) == {"frames"}
    assert cached["encoders"] == {"image": end_to_end["encoders"]["image"], "text": None}
    assert end_to_end["encoders"]["text"]


# Training


@pytest.mark.parametrize("encoders", [TINY, BOTH])
def test_a_resumed_run_is_the_uninterrupted_one(
    frames_store: Path, tmp_path: Path, encoders: dict[str, str]
) -> None:
    """Dropout, β and augmentation draw what they would have drawn."""
    augment = {"flip_probability": 0.5, "min_scale": 0.7, "crop_probability": 0.5}
    changes: dict[str, Any] = {
        "encoders": encoders,
        "max_steps": 4,
        "model": {"teacher_forcing_rate": 0.5},
        "augment": augment,
    }
    complete_run = train_run(frames_store, tmp_path / "whole", **changes)
    with pytest.raises(Killed):
        train_run(frames_store, tmp_path / "stopped", kill_at=3, **changes)
    resumed_run = train_run(frames_store, tmp_path / "stopped", **changes)
    assert_equal_weights(resumed_run, complete_run)


@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_parts_of_a_batch_and_recomputed_layers_give_its_gradient(
    frames_store: Path, tmp_path: Path, beta: float
) -> None:
    model = {"dropout": 0.0, "teacher_forcing_rate": beta}
    ways: dict[str, dict[str, Any]] = {
        "whole": {},
        "parts": {"accumulation_steps": 2},
        "recomputed": {"activation_checkpointing": True},
    }
    moments = {}
    for name, changes in ways.items():
        run = train_run(frames_store, tmp_path / name, model=model, max_steps=1, **changes)
        state = torch.load(run / "checkpoints" / "last" / "state.pt", weights_only=True)[
            "optimizer"
        ]["state"]
        moments[name] = [item["exp_avg"] for item in state.values()]
    torch.testing.assert_close(moments["parts"], moments["whole"], rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(moments["recomputed"], moments["whole"], rtol=0, atol=0)


def test_augmented_training_goes_elsewhere_and_answers_the_same_pictures(
    frames_store: Path, costa_run: Path, tmp_path: Path
) -> None:
    """Nothing is changed at validation and test."""
    other = train_run(
        frames_store, tmp_path / "run", augment={"flip_probability": 1.0, "min_scale": 0.5}
    )
    other_weights = read_weights(other)
    assert any(
        not torch.equal(value, other_weights[name])
        for name, value in read_weights(costa_run).items()
    )
    shutil.copytree(costa_run, tmp_path / "same")
    config = tmp_path / "same" / "config.yaml"
    config.write_text(
        config.read_text().replace(
            "augment: null", "augment: {flip_probability: 1.0, min_scale: 0.5}"
        )
    )
    current, expected = (
        predict_split([run], frames_store, EvaluateConfig(device="cpu"))[0]
        for run in (tmp_path / "same", costa_run)
    )
    assert current == expected


def test_pictures_that_wait_for_their_device_train_and_answer_the_same(
    frames_store: Path, costa_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for a GPU, but on the CPU: the batch is decoded when it is sent."""
    expected = predict_split([costa_run], frames_store, EvaluateConfig(device="cpu"))[0]
    part = Loader._load_batch
    monkeypatch.setattr(grounding.data.dataset, "can_decode_jpegs", lambda device: True)
    monkeypatch.setattr(
        Loader,
        "_load_batch",
        lambda *given: (lambda made: replace(made, inputs=to_device(made.inputs, CPU)))(
            part(*given)
        ),
    )
    deferred_run = train_run(frames_store, tmp_path / "run")
    assert_equal_weights(deferred_run, costa_run)
    assert predict_split([deferred_run], frames_store, EvaluateConfig(device="cpu"))[0] == expected


@pytest.mark.parametrize("trains_image_encoder", [True, False])
def test_what_learns_and_how_fast(frames_store: Path, trains_image_encoder: bool) -> None:
    config = build_config({"train_image_encoder": trains_image_encoder}, encoders=BOTH)
    image, text = AppearanceEncoder("tiny"), load_text()
    model = Costa((3, 0, 1), config.model, image, text)
    optimizer, _ = build_optimizer(model, config, 10)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    rates = {
        names[id(parameter)]: group["initial_lr"]
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    assert any(name.startswith("image_encoder.") for name in rates) == trains_image_encoder
    for name, rate in rates.items():
        assert rate == (1e-3 if name.startswith(("image_encoder.", "text_encoder.")) else 1e-2)
    assert all(name in rates for name in names.values() if not name.startswith("image_encoder."))


def load_text() -> Any:
    from pipeline.encoders.text import TextEncoder

    return TextEncoder("tiny")


def test_training_moves_what_learns_and_leaves_what_is_frozen(
    frames_store: Path, tmp_path: Path, costa_run: Path
) -> None:
    frozen = train_run(frames_store, tmp_path / "run", model={"train_image_encoder": False})
    frozen_weights = read_weights(frozen)
    first = AppearanceEncoder("tiny")
    first.load_state_dict(
        {
            name.removeprefix("image_encoder."): value
            for name, value in frozen_weights.items()
            if name.startswith("image_encoder.")
        }
    )
    changed_names = {
        name
        for name, value in read_weights(costa_run).items()
        if not torch.equal(value, frozen_weights[name])
    }
    encoder_names = {name for name in changed_names if name.startswith("image_encoder.")}
    assert encoder_names
    assert {name.split(".")[2] for name in encoder_names} <= {"layer2", "layer3", "layer4"}
    assert not any(".bn" in name for name in encoder_names)
    assert any(name.startswith("r3d.") for name in changed_names)


# Answers


@pytest.mark.parametrize("run_of", ["costa_run", "end_to_end_run"])
def test_a_video_gives_the_tube_that_its_store_gives(
    frames_store: Path, tiny_run: Any, run_of: str, request: pytest.FixtureRequest
) -> None:
    """Its pictures go through JPEG, as the store's did."""
    run = request.getfixturevalue(run_of)
    queries = [query for query in read_jsonl(tiny_run.index, Query) if query.split == "test"]
    predictions, missing = predict_split([run], frames_store, EvaluateConfig(device="cpu"))
    assert missing == []
    result = Grounder(run, device="cpu").ground(
        tiny_run.root / queries[0].path, [query.text for query in queries]
    )
    edges = np.arange(queries[0].frame_count + 1) / queries[0].fps
    for tube, query, prediction in zip(result.queries, queries, predictions, strict=True):
        other = build_query_result(query.text, [prediction], edges)
        assert tube.span_frames == other.span_frames
        np.testing.assert_allclose(tube.boxes, other.boxes, atol=0.02)


def test_a_second_look_and_other_frames_at_test_time(frames_store: Path, costa_run: Path) -> None:
    for config in (
        EvaluateConfig(device="cpu", refine_boundaries=True),
        EvaluateConfig(device="cpu", frames=5),
    ):
        predictions, _ = predict_split([costa_run], frames_store, config)
        assert predictions
        assert all(math.isfinite(prediction.score) for prediction in predictions)


@pytest.mark.parametrize("encoders", [TINY, BOTH])
def test_runs_answer_together_about_a_store_and_about_a_video(
    frames_store: Path, tiny_run: Any, tmp_path: Path, encoders: dict[str, str]
) -> None:
    """Each with its own encoders: the pictures are the same for all."""
    runs = [
        train_run(frames_store, tmp_path / str(seed), encoders=encoders, seed=seed)
        for seed in (0, 1)
    ]
    single_predictions, ensemble_predictions = (
        predict_split(chosen, frames_store, EvaluateConfig(device="cpu"))[0]
        for chosen in (runs[:1], runs)
    )
    assert single_predictions != ensemble_predictions
    assert (
        predict_split([runs[0], runs[0]], frames_store, EvaluateConfig(device="cpu"))[0]
        == single_predictions
    )
    query = next(query for query in read_jsonl(tiny_run.index, Query) if query.split == "test")
    result = (
        Grounder(*runs, device="cpu").ground(tiny_run.root / query.path, [query.text]).queries[0]
    )
    tube = next(candidate for candidate in ensemble_predictions if candidate.id == query.id)
    assert result.span_frames == tube.span


# Refused


def test_it_does_not_answer_together_with_others(
    tiny_run: Any, costa_run: Path, end_to_end_run: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="the runs of an ensemble must"):
        Ensemble.from_runs([tiny_run.run, costa_run], CPU)
    other = {
        "hidden_dim": 8,
        "num_heads": 2,
        "ffn_dim": 8,
        "num_layers": 1,
        "num_stages": 1,
        "num_frames": 3,
        "motion_product": "motion",
    }
    config = CgstvgTrainConfig.model_validate({**RECIPE, "model": other})
    prepare_run_dir(tiny_run.store, tmp_path / "cgstvg", config)
    train(tiny_run.store, tmp_path / "cgstvg", config)
    with pytest.raises(
        InputError, match=r"does not fit run .*appearance is absent; motion is absent"
    ):
        Ensemble.from_runs([tmp_path / "cgstvg", costa_run], CPU)
    with pytest.raises(InputError, match=r"does not fit run .*frames is absent"):
        Ensemble.from_runs([costa_run, tmp_path / "cgstvg"], CPU)
    with pytest.raises(
        InputError, match="their text encoders, and so their tokenizers, have different weights"
    ):
        Ensemble.from_runs([end_to_end_run, costa_run], CPU)


def test_a_store_without_pictures_is_refused(tiny_run: Any, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"has no product 'frames'.*run stvg-extract to add it"):
        train_run(tiny_run.store, tmp_path / "run")


def test_a_store_with_other_pictures_is_refused(
    frames_store: Path, costa_run: Path, tmp_path: Path
) -> None:
    shutil.copytree(costa_run, tmp_path / "run")
    provenance = json.loads((tmp_path / "run" / "provenance.json").read_text())
    provenance["products"]["frames"]["sampling"]["jpeg_quality"] = 50
    (tmp_path / "run" / "provenance.json").write_text(json.dumps(provenance))
    with pytest.raises(StoreError, match=r"does not fit run .*frames sampling is"):
        predict_split([tmp_path / "run"], frames_store, EvaluateConfig(device="cpu"))


def test_first_weights_that_have_changed(costa_run: Path, tmp_path: Path) -> None:
    shutil.copytree(costa_run, tmp_path / "run")
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace("image: tiny", "image: random:1"))
    with pytest.raises(
        InputError,
        match=r"the run's encoder began with weights 'random:1' of digest "
        r"\w{12}….*restore the original weights",
    ):
        load_model(tmp_path / "run")


def test_another_choice_of_encoders_is_another_run(
    frames_store: Path, costa_run: Path, tmp_path: Path
) -> None:
    shutil.copytree(costa_run, tmp_path / "run")
    with pytest.raises(InputError, match=r"cannot be resumed: .*encoders differ"):
        prepare_run_dir(
            frames_store,
            tmp_path / "run",
            build_config(encoders={**TINY, "image": "random:1"}),
            resume=True,
        )
    with pytest.raises(InputError, match=r"cannot be resumed: .*encoders differ"):
        prepare_run_dir(frames_store, tmp_path / "run", build_config(encoders=BOTH), resume=True)


def test_mdetr_s_checkpoint_is_refused(frames_store: Path, tmp_path: Path) -> None:
    with pytest.raises(
        InputError,
        match=r"CoSTA uses only MDETR's image and text encoders: set encoders.image=mdetr:FILE",
    ):
        train_run(frames_store, tmp_path / "run", init_from=str(tmp_path / "mdetr.pth"))


def test_encoders_that_do_not_fit_the_system_are_refused() -> None:
    with pytest.raises(
        InputError, match="encoders: costa reads images: give its image encoder's weights"
    ):
        validate(CostaTrainConfig, {"encoders": None}, "section 'train'")
    with pytest.raises(
        InputError, match=r"encoders\.text: give the weights of csdvl's text encoder"
    ):
        validate(CsdvlTrainConfig, {"encoders": TINY}, "section 'train'")


def test_a_wrong_config_is_named() -> None:
    with pytest.raises(InputError, match=r"model\.backbones: .*'3d' \(got 'all'\)"):
        validate(CostaTrainConfig, {"model": {"backbones": "all"}}, "section 'train'")


# Ablations


def test_every_ablation_of_its_table_is_a_configuration() -> None:
    model_configs = {}
    for name, variant in load_table("costa").trained_variants.items():
        config = validate(
            CostaTrainConfig, merge(get_preset("shapes", "costa"), variant.changes), name
        )
        assert isinstance(
            get_system("costa").build((3, 0, 3), config.model, AppearanceEncoder("tiny"), None),
            Costa,
        )
        model_configs[name] = config.model
    assert len({model.model_dump_json() for model in model_configs.values()}) == len(
        model_configs
    )  # no two are the same


def test_every_published_row_of_its_table_is_found() -> None:
    for section in load_table("costa").sections:
        if section.published is not None:
            for variant in section.published.names:
                assert section.published.scores(variant)["m_vIoU"] > 0, variant
