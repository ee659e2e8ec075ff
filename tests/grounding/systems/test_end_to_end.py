"""Image and text encoders that train with the network, on pictures and tokens in the place of maps
and token states.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import grounding.models.end_to_end
from grounding.data.collate import collate
from grounding.data.dataset import GroundingDataset
from grounding.data.sources import ImageSource, TokenSource
from grounding.evaluation.config import EvaluateConfig
from grounding.evaluation.evaluate import predict_split
from grounding.models.end_to_end import EndToEnd
from grounding.modules.freezing import TRAINABLE_PREFIXES
from grounding.predictor.grounder import Grounder
from grounding.structures.inputs import ModelInputs
from grounding.systems.checkpoint import load_model
from grounding.systems.config import EncodersConfig
from grounding.systems.csdvl import CsdvlTrainConfig
from grounding.systems.provenance import read_provenance
from grounding.systems.registry import build_model, get_tokenizer, load_initial_encoders
from grounding.training.distributed import DistributedContext
from grounding.training.optimizer import build_optimizer
from grounding.training.run_directory import prepare_run_dir
from grounding.training.train import train
from pipeline.errors import InputError, StoreError
from pipeline.extraction.run import ExtractConfig
from pipeline.extraction.run import run_extraction as extract
from pipeline.io.jsonl import read_jsonl
from pipeline.records import Query
from pipeline.store import Store

FRAMES, CLIPS = 4, 8
MODEL = {
    "hidden_dim": 16,
    "num_heads": 2,
    "ffn_dim": 16,
    "num_layers": 1,
    "num_frames": FRAMES,
    "num_clips": CLIPS,
    "proposal_map_channels": 8,
    "proposal_map_layers": 1,
    "dropout": 0.0,
}
RECIPE: dict[str, Any] = {
    "model": MODEL,
    "encoders": {"backbones": "tiny", "image": "tiny", "text": "tiny"},
    "max_steps": 2,
    "batch": 2,
    "lr": 1e-3,
    "lr_image": 1e-2,
    "lr_text": 1e-3,
    "clip_norm": 1.0,
    "device": "cpu",
}


def recipe(**changes: Any) -> CsdvlTrainConfig:
    return CsdvlTrainConfig.model_validate(RECIPE | changes)


@pytest.fixture(scope="module")
def image_store(tiny_run: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small store, with pictures of best quality beside the features."""
    path = tmp_path_factory.mktemp("frames") / "store"
    shutil.copytree(tiny_run.store, path)
    settings = {
        "backbones": "tiny",
        "products": ["frames"],
        "sampling": {"fps": 5.0, "short_side": 96, "jpeg_quality": 100},
        "workers": 0,
        "device": "cpu",
    }
    extract(tiny_run.index, tiny_run.root, "shapes", path, ExtractConfig.model_validate(settings))
    return path


@pytest.fixture(scope="module")
def end_to_end_run(image_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps."""
    path = tmp_path_factory.mktemp("runs") / "run"
    prepare_run_dir(image_store, path, recipe())
    train(image_store, path, recipe())
    return path


@pytest.fixture
def model() -> EndToEnd:
    torch.manual_seed(0)
    model = build_model(recipe(), provenance())
    assert isinstance(model, EndToEnd)
    return model.eval()


def provenance() -> dict[str, Any]:
    """What a run of this recipe records of its encoders."""
    image, text = load_initial_encoders(recipe().encoders)  # type: ignore[arg-type]
    return {"dims": [3, 384, 1], "encoders": {"image": image.digest, "text": text.digest}}


def raw_features(store: Path, model: nn.Module) -> GroundingDataset:
    return GroundingDataset.from_store(store, "train", FRAMES, CLIPS, get_tokenizer(model))


def raw_inputs(store: Path, model: nn.Module, count: int = 3) -> ModelInputs:
    """Of the first queries, which are about one video, each with its own pictures."""
    features = raw_features(store, model)
    samples = [features.load_sample(query) for query in features.queries[:count]]
    return collate(samples, deduplicate=False)


def test_pictures_are_those_whose_features_are_stored(image_store: Path) -> None:
    """The image encoder gives the stored maps, as far as a JPEG of quality 100 lets it."""
    pictures, maps = (
        ImageSource.from_store(Store(image_store).open("frames")),
        Store(image_store).open("appearance"),
    )
    encoder = load_initial_encoders(recipe().encoders)[0].encoder  # type: ignore[arg-type]
    for video in maps.keys():  # noqa: SIM118 - it is no mapping
        assert video in pictures
        np.testing.assert_array_equal(
            pictures.columns(video)["frame"], maps.columns(video)["frame"]
        )
        assert pictures.facts(video)["size"] == maps.facts(video)["size"]
        rows = np.array([3, 0, 3])
        frames = pictures.read(video, rows)
        assert (frames.dtype, frames.shape[1:]) == (np.uint8, pictures.shape(video)[1:])
        np.testing.assert_array_equal(frames, pictures.read(video)[rows])
        expected = maps.read(video, rows).astype(np.float32)
        outputs = encoder(torch.from_numpy(frames).permute(0, 3, 1, 2)).detach().numpy()
        assert np.abs(outputs - expected).mean() < 0.1 * np.abs(expected).mean()


def test_tokens_are_the_sentences(image_store: Path, model: EndToEnd) -> None:
    queries = list(read_jsonl(Store(image_store).index_path, Query))
    tokens, states = (
        TokenSource(queries, model.text_encoder.tokenize),
        Store(image_store).open("text"),
    )
    for query in queries:
        assert query.id in tokens
        np.testing.assert_array_equal(
            tokens.read(query.id)[:, 0], states.columns(query.id)["token"]
        )
        assert tokens.shape(query.id) == (*states.shape(query.id)[:1], 1)
    assert "another" not in tokens


def test_it_answers_what_its_network_answers_to_its_encoders_features(
    image_store: Path, model: EndToEnd
) -> None:
    inputs = raw_inputs(image_store, model)
    pictures = inputs.appearance.flatten(0, 1).permute(0, 3, 1, 2)
    maps = model.image_encoder(pictures).unflatten(0, inputs.appearance.shape[:2])
    size = torch.tensor(maps.shape[2:4]).expand(len(inputs.text), 2)
    encoded_inputs = replace(
        inputs,
        appearance=maps,
        map_size=size,
        text=model.text_encoder(inputs.text[..., 0], inputs.text_mask),
    )
    with torch.no_grad():
        outputs, expected = model(inputs), model.network(encoded_inputs)
    torch.testing.assert_close(outputs.boxes, expected.boxes)
    torch.testing.assert_close(outputs.proposal_logits, expected.proposal_logits)


def test_pictures_that_several_ask_about_are_encoded_once(
    image_store: Path, model: EndToEnd
) -> None:
    features = raw_features(image_store, model)
    batch_sizes: list[int] = []
    shared, separate = (
        collate([features.load_sample(query) for query in features.queries[:3]]),
        raw_inputs(image_store, model),
    )
    handle = model.image_encoder.register_forward_pre_hook(
        lambda _, arguments: batch_sizes.append(len(arguments[0]))
    )
    with torch.no_grad():
        outputs, expected = model(shared), model(separate)
    handle.remove()
    assert len(shared.appearance) == 1
    assert batch_sizes[0] == FRAMES
    assert sum(batch_sizes[1:]) == 3 * FRAMES
    torch.testing.assert_close(outputs.boxes, expected.boxes)
    torch.testing.assert_close(outputs.proposal_logits, expected.proposal_logits)


def test_pictures_of_other_sizes_in_a_batch_change_nothing(
    image_store: Path, model: EndToEnd
) -> None:
    """Cut to half their width, the first query's pictures are padded in the batch; its maps are
    those it has alone.
    """
    inputs = raw_inputs(image_store, model, count=2)
    height, width = inputs.map_size[0].tolist()
    half = replace(
        inputs,
        appearance=inputs.appearance.clone(),
        map_size=torch.tensor([[height, width // 2], [height, width]]),
    )
    half.appearance[0, :, :, width // 2 :] = 200
    maps, cells = model.encode_images(half.appearance, half.map_size)
    alone, size = model.encode_images(inputs.appearance[:1, :, :, : width // 2], half.map_size[:1])
    assert cells[0].tolist() == size[0].tolist() != cells[1].tolist()
    rows, columns = size[0].tolist()
    torch.testing.assert_close(maps[0, :, :rows, :columns], alone[0])
    assert (maps[0, :, :, columns:] == 0).all()
    torch.testing.assert_close(
        maps[1], model.encode_images(inputs.appearance[1:], inputs.map_size[1:])[0][0]
    )


def test_what_learns_and_how_fast(model: EndToEnd) -> None:
    optimizer, _ = build_optimizer(model, recipe(), 10)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    rates = {
        names[id(parameter)]: group["initial_lr"]
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    trained_names = {
        name for name in names.values() if name.startswith("image_encoder.") and name in rates
    }
    assert {name.split(".")[2] for name in trained_names} == set(TRAINABLE_PREFIXES)
    assert not any(".bn" in name for name in trained_names)
    for name, rate in rates.items():
        assert rate == (1e-2 if name.startswith("image_encoder.") else 1e-3)
    assert all(name in rates for name in names.values() if not name.startswith("image_encoder."))


def test_training_moves_the_encoders_and_leaves_what_is_frozen(end_to_end_run: Path) -> None:
    trained, first = (
        load_model(end_to_end_run, "last")[0],
        build_model(recipe(), read_provenance(end_to_end_run)),
    )
    before = dict(first.named_parameters())
    changed_names = {
        name for name, now in trained.named_parameters() if not torch.equal(now, before[name])
    }
    assert {
        "image_encoder.body.layer2.0.conv1.weight",
        "image_encoder.body.layer4.1.conv2.weight",
    } <= changed_names
    assert any(name.startswith("text_encoder.roberta.encoder.layer.0") for name in changed_names)
    assert not any(
        name.startswith(("image_encoder.body.conv1", "image_encoder.body.layer1")) or ".bn" in name
        for name in changed_names
    )
    first_buffers = dict(first.named_buffers())
    trained_buffers = dict(trained.named_buffers())
    assert all(
        torch.equal(trained_buffers[name], value)
        for name, value in first_buffers.items()
        if name.startswith("image_encoder.")
    )


def test_a_stopped_run_goes_on_as_if_it_had_not_been(
    image_store: Path, end_to_end_run: Path, tmp_path: Path
) -> None:
    part = recipe(max_steps=1, lr_schedule_steps=2)
    prepare_run_dir(image_store, tmp_path / "run", part)
    train(image_store, tmp_path / "run", part)
    longer = recipe(lr_schedule_steps=2)
    prepare_run_dir(image_store, tmp_path / "run", longer, resume=True)
    train(image_store, tmp_path / "run", longer)
    expected, actual = (
        load_model(which, "last")[0].state_dict() for which in (end_to_end_run, tmp_path / "run")
    )
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=0, atol=0)


def test_recomputed_layers_give_the_same_gradients_from_less(
    image_store: Path, model: EndToEnd
) -> None:
    """In training with dropout: the same gradients, from a fraction of the saved tensors."""
    inputs = raw_inputs(image_store, model)

    def gradients() -> tuple[list[torch.Tensor], int]:
        saved_bytes: list[int] = []
        model.train().zero_grad()
        torch.manual_seed(7)
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: saved_bytes.append(tensor.nbytes) or tensor, lambda tensor: tensor
        ):
            out = model(inputs)
        (out.boxes.sum() + out.proposal_logits.sum()).backward()
        return [
            parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None
        ], sum(saved_bytes)

    gradients_without, all_bytes = gradients()
    model.enable_activation_checkpointing()
    gradients_with, checkpointed_bytes = gradients()
    for gradient, expected in zip(gradients_with, gradients_without, strict=True):
        torch.testing.assert_close(gradient, expected)
    assert checkpointed_bytes < 0.6 * all_bytes


def test_pictures_are_encoded_in_parts(
    image_store: Path, model: EndToEnd, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = raw_inputs(image_store, model)
    with torch.no_grad():
        expected_maps = model.encode_images(inputs.appearance, inputs.map_size)[0]
        monkeypatch.setattr(grounding.models.end_to_end, "ENCODER_BATCH_SIZE", 5)
        torch.testing.assert_close(
            model.encode_images(inputs.appearance, inputs.map_size)[0], expected_maps
        )


def test_gradients_summed_over_processes_keep_the_memory_layout_of_their_parameters(
    model: EndToEnd,
) -> None:
    """Convolutions have channels last; a fused optimiser takes steps of gradient and parameter side
    by side in memory.
    """

    class Two(DistributedContext):
        """As the first of two processes, of which the other has no gradients."""

        def all_reduce_sum(self, tensor: torch.Tensor) -> torch.Tensor:
            return tensor

    random = torch.Generator().manual_seed(0)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=random)
    expected_gradients = [
        parameter.grad.clone() for parameter in parameters if parameter.grad is not None
    ]
    Two(rank=0, world_size=2).all_reduce_gradients(parameters)
    for parameter, expected in zip(parameters, expected_gradients, strict=True):
        assert parameter.grad is not None
        assert parameter.grad.stride() == parameter.stride()
        torch.testing.assert_close(parameter.grad, expected, rtol=0, atol=0)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_they_train_in_parts_and_in_low_precision(
    image_store: Path, tmp_path: Path, precision: str
) -> None:
    """Cut into two parts, the first step has the same losses; every picture of the batch is seen in
    the end.
    """
    losses = []
    for accumulate in (1, 2):
        parts = recipe(precision=precision, accumulation_steps=accumulate, max_steps=1, log_every=1)
        prepare_run_dir(image_store, tmp_path / str(accumulate), parts)
        train(image_store, tmp_path / str(accumulate), parts)
        path = tmp_path / str(accumulate) / "curves" / "plots" / "metrics" / "train" / "loss.tsv"
        losses.append(float(path.read_text().split()[-1]))
    assert losses[0] == pytest.approx(losses[1], rel=0.02 if precision == "bfloat16" else 1e-4)


def test_encoders_of_another_tokenizer_do_not_answer_together(
    image_store: Path, end_to_end_run: Path, tmp_path: Path
) -> None:
    shutil.copytree(end_to_end_run, tmp_path / "other")
    provenance_values = json.loads((tmp_path / "other" / "provenance.json").read_text())
    other = load_initial_encoders(EncodersConfig(backbones="tiny", image="tiny", text="random:1"))[
        1
    ]
    provenance_values["encoders"]["text"] = other.digest
    (tmp_path / "other" / "provenance.json").write_text(json.dumps(provenance_values))
    config = tmp_path / "other" / "config.yaml"
    config.write_text(config.read_text().replace("text: tiny", "text: random:1"))
    with pytest.raises(
        InputError, match="their text encoders, and so their tokenizers, have different weights"
    ):
        predict_split(
            [end_to_end_run, tmp_path / "other"], image_store, EvaluateConfig(device="cpu")
        )


def test_first_weights_that_have_changed(end_to_end_run: Path, tmp_path: Path) -> None:
    shutil.copytree(end_to_end_run, tmp_path / "run")
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace("text: tiny", "text: random:1"))
    with pytest.raises(
        InputError,
        match=r"the run's encoder began with weights 'random:1' of digest "
        r"\w{12}….*restore the original weights",
    ):
        load_model(tmp_path / "run")


def test_a_run_is_judged_on_its_store_and_asked_about_a_video(
    image_store: Path, end_to_end_run: Path, tiny_run: Any
) -> None:
    predictions, missing = predict_split(
        [end_to_end_run], image_store, EvaluateConfig(device="cpu")
    )
    assert predictions
    assert missing == []
    query = next(
        query for query in read_jsonl(Store(image_store).index_path, Query) if query.split == "test"
    )
    result = Grounder(end_to_end_run, device="cpu").ground(tiny_run.root / query.path, [query.text])
    prediction = next(candidate for candidate in predictions if candidate.id == query.id)
    assert result.queries[0].score == pytest.approx(prediction.score, abs=0.02)
    begin, end = result.queries[0].span_frames
    assert abs(begin - prediction.span[0]) + abs(end - prediction.span[1]) <= 3
    boxes = {frame: box for frame, *box in prediction.boxes}
    for frame, *box in result.queries[0].boxes:
        assert frame not in boxes or np.abs(np.subtract(box, boxes[frame])).max() < 3


def test_several_runs_answer_about_a_store_but_not_about_a_video(
    image_store: Path, end_to_end_run: Path, tmp_path: Path, tiny_run: Any
) -> None:
    shutil.copytree(end_to_end_run, tmp_path / "twin")
    assert predict_split(
        [end_to_end_run, tmp_path / "twin"], image_store, EvaluateConfig(device="cpu")
    )[0]
    with pytest.raises(InputError, match=r"each of these runs has its own encoders.*give one run"):
        Grounder(end_to_end_run, tmp_path / "twin", device="cpu")
    with pytest.raises(InputError, match="does not fit run"):
        predict_split([end_to_end_run, tiny_run.run], image_store, EvaluateConfig(device="cpu"))


def test_a_store_without_pictures_is_refused(tiny_run: Any, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"has no product 'frames'.*run stvg-extract to add it"):
        prepare_run_dir(tiny_run.store, tmp_path / "run", recipe())


def test_a_split_that_is_not_there(image_store: Path, end_to_end_run: Path) -> None:
    with pytest.raises(StoreError, match="has no features for any query of split 'nothing'"):
        predict_split([end_to_end_run], image_store, EvaluateConfig(device="cpu", split="nothing"))


def test_other_first_weights_are_another_run(
    image_store: Path, end_to_end_run: Path, tmp_path: Path
) -> None:
    shutil.copytree(end_to_end_run, tmp_path / "run")
    other = recipe(encoders={"backbones": "tiny", "image": "random:1", "text": "tiny"})
    with pytest.raises(InputError, match="cannot be resumed: encoders differ"):
        prepare_run_dir(image_store, tmp_path / "run", other, resume=True)
    provenance_values = read_provenance(end_to_end_run)
    assert set(provenance_values["products"]) == {"frames", "motion"}
    assert provenance_values["encoders"] == provenance()["encoders"]
