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
from grounding.systems.checkpoint import load_model, read_provenance
from grounding.systems.costa import CostaTrainConfig
from grounding.systems.csdvl import CsdvlTrainConfig
from grounding.systems.registry import get_preset, get_system
from grounding.training.optimizer import build_optimizer
from grounding.training.train import prepare_run_dir, train
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


def recipe(model: dict[str, Any] | None = None, **changes: Any) -> CostaTrainConfig:
    return validate(
        CostaTrainConfig,
        {**RECIPE, "encoders": TINY, "model": {**SMALL, **(model or {})}, **changes},
        "test",
    )


def trained(
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

    config = recipe(model, **changes)
    prepare_run_dir(store, run, config)
    train(store, run, config, progress)
    return run


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / "last" / "model.safetensors")


@pytest.fixture(scope="module")
def pictured(tiny_run: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of `tiny_run`'s videos and sentences with all that CoSTA reads: pictures and token
    states.
    """
    place = tmp_path_factory.mktemp("frames") / "store"
    sampling = {"fps": 5.0, "short_side": 48}
    settings = {
        "backbones": "tiny",
        "products": ["frames", "text"],
        "sampling": sampling,
        "workers": 0,
        "device": "cpu",
    }
    extract(tiny_run.index, tiny_run.root, "shapes", place, ExtractConfig.model_validate(settings))
    return place


@pytest.fixture(scope="module")
def costa_run(pictured: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With token states of the store."""
    return trained(pictured, tmp_path_factory.mktemp("runs") / "costa")


@pytest.fixture(scope="module")
def whole_run(pictured: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a text encoder that trains too."""
    return trained(pictured, tmp_path_factory.mktemp("runs") / "whole", encoders=BOTH)


# Reading


def test_it_reads_pictures_and_cached_words_and_no_motion(pictured: Path) -> None:
    features = GroundingDataset.from_store(pictured, "train", 3, None, None, None, use_images=True)
    query, opened = features.queries[0], Store(pictured)
    sample = features.load_sample(query)
    pictures, words = ImageSource.from_store(opened.open("frames")), opened.open("text")
    assert features.dims == (3, 0, words.shape(query.id)[-1])
    assert sample.appearance.dtype == np.uint8
    rows = np.searchsorted(pictures.columns(query.video)["frame"], sample.frame_indices)
    np.testing.assert_array_equal(sample.appearance, pictures.read(query.video, rows))
    np.testing.assert_array_equal(sample.text, words.read(query.id))
    assert features.nbytes(query) == 2 * sample.appearance.size
    inputs = collate([sample, features.load_sample(features.queries[1])])
    assert inputs.video_indices is not None  # both are about one video
    assert inputs.video_indices.tolist() == [0, 0]
    assert inputs.motion.shape == (1, 0, 1, 1, 0)
    assert inputs.picture_in_square.tolist() == [[0, 0, 1, 1]]
    truth = features.targets(sample)
    assert torch.equal(truth.clip_labels, truth.frame_labels)


def test_what_a_run_was_made_from(costa_run: Path, whole_run: Path) -> None:
    cached, whole = read_provenance(costa_run), read_provenance(whole_run)
    assert set(cached["products"]) == {"frames", "text"}
    assert set(whole["products"]) == {"frames"}
    assert cached["encoders"] == {"image": whole["encoders"]["image"], "text": None}
    assert whole["encoders"]["text"]


# Training


@pytest.mark.parametrize("encoders", [TINY, BOTH])
def test_a_resumed_run_is_the_uninterrupted_one(
    pictured: Path, tmp_path: Path, encoders: dict[str, str]
) -> None:
    """Dropout, β and augmentation draw what they would have drawn."""
    augment = {"flip_probability": 0.5, "min_scale": 0.7, "crop_probability": 0.5}
    changes: dict[str, Any] = {
        "encoders": encoders,
        "max_steps": 4,
        "model": {"teacher_forcing_rate": 0.5},
        "augment": augment,
    }
    whole = trained(pictured, tmp_path / "whole", **changes)
    with pytest.raises(Killed):
        trained(pictured, tmp_path / "stopped", kill_at=3, **changes)
    resumed = trained(pictured, tmp_path / "stopped", **changes)
    assert weights(whole).keys() == weights(resumed).keys()
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(resumed)[name]), name


@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_parts_of_a_batch_and_recomputed_layers_give_its_gradient(
    pictured: Path, tmp_path: Path, beta: float
) -> None:
    model = {"dropout": 0.0, "teacher_forcing_rate": beta}
    ways: dict[str, dict[str, Any]] = {
        "whole": {},
        "parts": {"accumulation_steps": 2},
        "recomputed": {"activation_checkpointing": True},
    }
    moments = {}
    for name, changes in ways.items():
        run = trained(pictured, tmp_path / name, model=model, max_steps=1, **changes)
        state = torch.load(run / "checkpoints" / "last" / "state.pt", weights_only=True)[
            "optimizer"
        ]["state"]
        moments[name] = [one["exp_avg"] for one in state.values()]
    torch.testing.assert_close(moments["parts"], moments["whole"], rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(moments["recomputed"], moments["whole"], rtol=0, atol=0)


def test_augmented_training_goes_elsewhere_and_answers_the_same_pictures(
    pictured: Path, costa_run: Path, tmp_path: Path
) -> None:
    """Nothing is changed at validation and test."""
    other = trained(pictured, tmp_path / "run", augment={"flip_probability": 1.0, "min_scale": 0.5})
    assert any(
        not torch.equal(value, weights(costa_run)[name]) for name, value in weights(other).items()
    )
    shutil.copytree(costa_run, tmp_path / "same")
    config = tmp_path / "same" / "config.yaml"
    config.write_text(
        config.read_text().replace("augment: null", "augment: {flip_probability: 1.0, min_scale: 0.5}")
    )
    ours, theirs = (
        predict_split([run], pictured, EvaluateConfig(device="cpu"))[0]
        for run in (tmp_path / "same", costa_run)
    )
    assert ours == theirs


def test_pictures_that_wait_for_their_device_train_and_answer_the_same(
    pictured: Path, costa_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for a GPU, but on the CPU: the batch is decoded when it is sent."""
    expected = predict_split([costa_run], pictured, EvaluateConfig(device="cpu"))[0]
    part = Loader._load_batch
    monkeypatch.setattr(grounding.data.dataset, "can_decode_jpegs", lambda device: True)
    monkeypatch.setattr(
        Loader,
        "_load_batch",
        lambda *given: (lambda made: replace(made, inputs=to_device(made.inputs, CPU)))(
            part(*given)
        ),
    )
    late = trained(pictured, tmp_path / "run")
    for name, value in weights(costa_run).items():
        assert torch.equal(weights(late)[name], value), name
    assert predict_split([late], pictured, EvaluateConfig(device="cpu"))[0] == expected


@pytest.mark.parametrize("tuned", [True, False])
def test_what_learns_and_how_fast(pictured: Path, tuned: bool) -> None:
    config = recipe({"train_image_encoder": tuned}, encoders=BOTH)
    image, text = AppearanceEncoder("tiny"), load_text()
    model = Costa((3, 0, 1), config.model, image, text)
    optimiser, _ = build_optimizer(model, config, 10)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    rates = {
        names[id(parameter)]: group["initial_lr"]
        for group in optimiser.param_groups
        for parameter in group["params"]
    }
    assert any(name.startswith("image_encoder.") for name in rates) == tuned
    for name, rate in rates.items():
        assert rate == (1e-3 if name.startswith(("image_encoder.", "text_encoder.")) else 1e-2)
    assert all(name in rates for name in names.values() if not name.startswith("image_encoder."))


def load_text() -> Any:
    from pipeline.encoders.text import TextEncoder

    return TextEncoder("tiny")


def test_training_moves_what_learns_and_leaves_what_is_frozen(
    pictured: Path, tmp_path: Path, costa_run: Path
) -> None:
    frozen = trained(pictured, tmp_path / "run", model={"train_image_encoder": False})
    first = AppearanceEncoder("tiny")
    first.load_state_dict(
        {
            name.removeprefix("image_encoder."): value
            for name, value in weights(frozen).items()
            if name.startswith("image_encoder.")
        }
    )
    moved = {
        name
        for name, value in weights(costa_run).items()
        if not torch.equal(value, weights(frozen)[name])
    }
    own = {name for name in moved if name.startswith("image_encoder.")}
    assert own
    assert {name.split(".")[2] for name in own} <= {"layer2", "layer3", "layer4"}
    assert not any(".bn" in name for name in own)
    assert any(name.startswith("r3d.") for name in moved)


# Answers


@pytest.mark.parametrize("run_of", ["costa_run", "whole_run"])
def test_a_video_gives_the_tube_that_its_store_gives(
    pictured: Path, tiny_run: Any, run_of: str, request: pytest.FixtureRequest
) -> None:
    """Its pictures go through JPEG, as the store's did."""
    run = request.getfixturevalue(run_of)
    queries = [query for query in read_jsonl(tiny_run.index, Query) if query.split == "test"]
    stored, missing = predict_split([run], pictured, EvaluateConfig(device="cpu"))
    assert missing == []
    asked = Grounder(run, device="cpu").ground(
        tiny_run.root / queries[0].path, [query.text for query in queries]
    )
    edges = np.arange(queries[0].frame_count + 1) / queries[0].fps
    for own, query, prediction in zip(asked.queries, queries, stored, strict=True):
        other = build_query_result(query.text, [prediction], edges)
        assert own.span_frames == other.span_frames
        np.testing.assert_allclose(own.boxes, other.boxes, atol=0.02)


def test_a_second_look_and_other_frames_at_test_time(pictured: Path, costa_run: Path) -> None:
    for config in (
        EvaluateConfig(device="cpu", refine_boundaries=True),
        EvaluateConfig(device="cpu", frames=5),
    ):
        answers, _ = predict_split([costa_run], pictured, config)
        assert answers
        assert all(math.isfinite(answer.score) for answer in answers)


@pytest.mark.parametrize("encoders", [TINY, BOTH])
def test_runs_answer_together_about_a_store_and_about_a_video(
    pictured: Path, tiny_run: Any, tmp_path: Path, encoders: dict[str, str]
) -> None:
    """Each with its own encoders: the pictures are the same for all."""
    runs = [
        trained(pictured, tmp_path / str(seed), encoders=encoders, seed=seed) for seed in (0, 1)
    ]
    alone, both = (
        predict_split(chosen, pictured, EvaluateConfig(device="cpu"))[0]
        for chosen in (runs[:1], runs)
    )
    assert alone != both
    assert predict_split([runs[0], runs[0]], pictured, EvaluateConfig(device="cpu"))[0] == alone
    query = next(query for query in read_jsonl(tiny_run.index, Query) if query.split == "test")
    asked = (
        Grounder(*runs, device="cpu").ground(tiny_run.root / query.path, [query.text]).queries[0]
    )
    own = next(answer for answer in both if answer.id == query.id)
    assert asked.span_frames == own.span


# Refused


def test_it_does_not_answer_together_with_others(
    tiny_run: Any, costa_run: Path, whole_run: Path, tmp_path: Path
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
        Ensemble.from_runs([whole_run, costa_run], CPU)


def test_a_store_without_pictures_is_refused(tiny_run: Any, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"has no product 'frames'.*run stvg-extract to add it"):
        trained(tiny_run.store, tmp_path / "run")


def test_a_store_with_other_pictures_is_refused(
    pictured: Path, costa_run: Path, tmp_path: Path
) -> None:
    shutil.copytree(costa_run, tmp_path / "run")
    about = json.loads((tmp_path / "run" / "provenance.json").read_text())
    about["products"]["frames"]["sampling"]["jpeg_quality"] = 50
    (tmp_path / "run" / "provenance.json").write_text(json.dumps(about))
    with pytest.raises(StoreError, match=r"does not fit run .*frames sampling is"):
        predict_split([tmp_path / "run"], pictured, EvaluateConfig(device="cpu"))


def test_first_weights_that_have_changed(costa_run: Path, tmp_path: Path) -> None:
    shutil.copytree(costa_run, tmp_path / "run")
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace("image: tiny", "image: random:1"))
    with pytest.raises(
        InputError,
        match=r"the run's encoder began with weights 'random:1' of digest \w{12}….*restore the original weights",
    ):
        load_model(tmp_path / "run")


def test_another_choice_of_encoders_is_another_run(
    pictured: Path, costa_run: Path, tmp_path: Path
) -> None:
    shutil.copytree(costa_run, tmp_path / "run")
    with pytest.raises(InputError, match=r"cannot be resumed: .*encoders differ"):
        prepare_run_dir(
            pictured, tmp_path / "run", recipe(encoders={**TINY, "image": "random:1"}), resume=True
        )
    with pytest.raises(InputError, match=r"cannot be resumed: .*encoders differ"):
        prepare_run_dir(pictured, tmp_path / "run", recipe(encoders=BOTH), resume=True)


def test_mdetr_s_checkpoint_is_refused(pictured: Path, tmp_path: Path) -> None:
    with pytest.raises(
        InputError,
        match=r"CoSTA uses only MDETR's image and text encoders: set encoders.image=mdetr:FILE",
    ):
        trained(pictured, tmp_path / "run", init_from=str(tmp_path / "mdetr.pth"))


def test_encoders_that_do_not_fit_the_system_are_refused() -> None:
    with pytest.raises(
        InputError, match="encoders: costa reads images: name its image encoder's weights"
    ):
        validate(CostaTrainConfig, {"encoders": None}, "section 'train'")
    with pytest.raises(
        InputError, match=r"encoders\.text: name the weights of csdvl's text encoder"
    ):
        validate(CsdvlTrainConfig, {"encoders": TINY}, "section 'train'")


def test_a_wrong_config_is_named() -> None:
    with pytest.raises(InputError, match=r"model\.backbones: .*'3d' \(got 'all'\)"):
        validate(CostaTrainConfig, {"model": {"backbones": "all"}}, "section 'train'")


# Ablations


def test_every_ablation_of_its_table_is_a_configuration() -> None:
    built = {}
    for name, variant in load_table("costa").trained_variants.items():
        config = validate(
            CostaTrainConfig, merge(get_preset("shapes", "costa"), variant.changes), name
        )
        assert isinstance(
            get_system("costa").build((3, 0, 3), config.model, AppearanceEncoder("tiny"), None),
            Costa,
        )
        built[name] = config.model
    assert len({model.model_dump_json() for model in built.values()}) == len(
        built
    )  # no two are the same


def test_every_published_row_of_its_table_is_found() -> None:
    for section in load_table("costa").sections:
        if section.published is not None:
            for variant in section.published.names:
                assert section.published.scores(variant)["m_vIoU"] > 0, variant
