"""Asking about a video: the same answer as from the store, one row per frame, and every refusal."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import grounding.inference.predict
from grounding.data.dataset import GroundingDataset
from grounding.inference.predict import predict
from grounding.inference.segment_prediction import SegmentPrediction
from grounding.predictor.grounder import Grounder, load_recorded_encoder, validate_sentences
from grounding.predictor.results import GroundingResult, build_query_result
from grounding.systems.csdvl import CsdvlTrainConfig
from grounding.training.run_directory import prepare_run_dir
from grounding.training.train import train
from pipeline.config import load
from pipeline.errors import InputError, StoreError, VideoError
from pipeline.extraction.run import ExtractConfig
from pipeline.extraction.run import run_extraction as extract
from pipeline.features.builders import encode_texts
from pipeline.io.jsonl import read_jsonl
from pipeline.records import Prediction, Query
from pipeline.store import Store
from pipeline.video.process_decoder import ProcessDecoder
from pipeline.weights.load import load_backbone


@pytest.fixture(scope="module")
def grounder(tiny_run: Any) -> Grounder:
    return Grounder(tiny_run.run, device="cpu")


@pytest.fixture(scope="module")
def test_queries(tiny_run: Any) -> list[Query]:
    return [query for query in read_jsonl(tiny_run.index, Query) if query.split == "test"]


def test_a_video_gives_the_tube_that_its_store_gives(
    tiny_run: Any, grounder: Grounder, test_queries: list[Query]
) -> None:
    features = GroundingDataset.from_store(
        tiny_run.store, "test", grounder.ensemble.num_frames, grounder.ensemble.num_clips
    )
    stored = predict(grounder.ensemble.models, features, features.queries)
    asked = grounder.ground(
        tiny_run.root / test_queries[0].path, [query.text for query in test_queries]
    )
    edges = np.arange(test_queries[0].frame_count + 1) / test_queries[0].fps
    expected = [
        build_query_result(query.text, [prediction], edges)
        for query, prediction in zip(test_queries, stored, strict=True)
    ]
    assert [response.span_frames for response in asked.queries] == [
        response.span_frames for response in expected
    ]
    for own, other in zip(asked.queries, expected, strict=True):
        assert own.text == other.text
        assert own.score == pytest.approx(other.score, abs=1e-5)
        assert own.span_seconds == pytest.approx(other.span_seconds, abs=1e-3)
        np.testing.assert_allclose(own.boxes, other.boxes, atol=0.02)


def test_a_child_may_decode_while_networks_compute(
    tiny_run: Any, grounder: Grounder, test_queries: list[Query]
) -> None:
    path, texts = tiny_run.root / test_queries[0].path, [query.text for query in test_queries]
    with ProcessDecoder() as decoder:
        by_child = Grounder(tiny_run.run, device="cpu", decoder=decoder)
        assert [by_child.ground(path, texts) for _ in range(2)] == [
            grounder.ground(path, texts)
        ] * 2


def test_the_features_are_the_stores_own(
    tiny_run: Any, grounder: Grounder, test_queries: list[Query]
) -> None:
    stored = GroundingDataset.from_store(tiny_run.store, "test", 4, 8)
    features_of_video = grounder.encode_video(tiny_run.root / test_queries[0].path)
    for name in ("appearance", "motion"):
        own, other = features_of_video.features[name], getattr(stored, name)
        np.testing.assert_array_equal(
            own.read(features_of_video.video.path), other.read(test_queries[0].video)
        )
        np.testing.assert_array_equal(
            own.columns(features_of_video.video.path)["frame"],
            other.columns(test_queries[0].video)["frame"],
        )
        assert own.shape(features_of_video.video.path) == other.shape(test_queries[0].video)


def test_a_video_is_looked_at_once_for_all_sentences(
    tiny_run: Any, grounder: Grounder, test_queries: list[Query]
) -> None:
    progress_calls: list[tuple[int, int]] = []
    features_of_video = grounder.encode_video(
        tiny_run.root / test_queries[0].path,
        progress=lambda done, total: progress_calls.append((done, total)),
    )
    assert progress_calls[0] == (0, progress_calls[0][1])
    assert progress_calls[-1] == (progress_calls[0][1], progress_calls[0][1])
    np.testing.assert_allclose(
        features_of_video.frame_edges, np.arange(features_of_video.video.frame_count + 1) / 10
    )
    together = grounder.ground_encoded(features_of_video, ["the red circle spins.", "what falls?"])
    alone = grounder.ground_encoded(features_of_video, ["the red circle spins."])
    assert together.queries[0].score == pytest.approx(alone.queries[0].score, abs=1e-3)
    assert [prediction.text for prediction in together.queries] == [
        "the red circle spins.",
        "what falls?",
    ]


def test_every_frame_of_the_span_has_a_box(
    tiny_run: Any, grounder: Grounder, test_queries: list[Query]
) -> None:
    predictions = grounder.ground(
        tiny_run.root / test_queries[0].path, ["  the red circle spins. "]
    )
    (prediction,) = predictions.queries
    begin, end = prediction.span_frames
    assert prediction.text == "the red circle spins."
    assert [row[0] for row in prediction.boxes] == list(range(begin, end))
    assert prediction.span_seconds == pytest.approx((begin / 10, end / 10))
    assert (predictions.video.fps, predictions.video.frame_count, predictions.video.size) == (
        10.0,
        test_queries[0].frame_count,
        (160, 96),
    )
    assert (
        GroundingResult.model_validate_json(json.dumps(predictions.model_dump(mode="json")))
        == predictions
    )


def test_seconds_are_those_of_the_frames_and_boxes_interpolate() -> None:
    edges = np.array([0, 0.1, 0.2, 1.2, 1.3, 1.4])
    rows = [(1, 0.0, 0.0, 10.0, 10.0), (3, 20.0, 0.0, 30.0, 10.0)]
    prediction = build_query_result(
        "x", [Prediction(id="0", span=(2, 5), score=0.5, boxes=rows)], edges
    )
    assert prediction.span_seconds == (0.2, 1.4)
    assert prediction.boxes == [
        (2, 10.0, 0.0, 20.0, 10.0),
        (3, 20.0, 0.0, 30.0, 10.0),
        (4, 20.0, 0.0, 30.0, 10.0),
    ]


def test_more_frames_may_be_seen_at_once(tiny_run: Any, test_queries: list[Query]) -> None:
    grounder = Grounder(tiny_run.run, device="cpu", num_frames=12, batch_size=1)
    assert grounder.ensemble.num_frames == 12
    assert grounder.ground(tiny_run.root / test_queries[0].path, ["what falls?"]).queries[0].boxes


def test_several_runs_answer_together(
    tiny_run: Any, grounder: Grounder, test_queries: list[Query]
) -> None:
    """Two of the same are the one; spans between clips are an option."""
    video, sentences = (
        tiny_run.root / test_queries[0].path,
        ["what falls?", "the red circle spins."],
    )
    once = grounder.ground(video, sentences)
    assert Grounder(tiny_run.run, tiny_run.run, device="cpu").ground(video, sentences) == once
    literal = Grounder(tiny_run.run, device="cpu", subframe_boundaries=False).ground(
        video, sentences
    )
    clips = grounder.ensemble.num_clips
    edges = {round(k / clips * test_queries[0].frame_count) for k in range(clips + 1)}
    assert {edge for prediction in literal.queries for edge in prediction.span_frames} <= edges


def test_a_second_look_may_be_asked_for(
    tiny_run: Any, test_queries: list[Query], monkeypatch: pytest.MonkeyPatch
) -> None:
    refined_segments: list[SegmentPrediction] = []
    monkeypatch.setattr(
        grounding.inference.predict,
        "refine_segment",
        lambda features, first, between: refined_segments.append(first),
    )
    Grounder(tiny_run.run, device="cpu", refine_boundaries=True).ground(
        tiny_run.root / test_queries[0].path, ["what falls?", "what spins?"]
    )
    assert len(refined_segments) == 2


def test_other_videos_than_shapes_are_doubted(
    tiny_run: Any, grounder: Grounder, test_queries: list[Query], tmp_path: Path
) -> None:
    assert grounder.domain_warning(tiny_run.root / test_queries[0].path) == ""
    assert "was trained on `shapes`" in grounder.domain_warning(tmp_path / "holiday.mp4")


def test_sentences_must_say_something(grounder: Grounder) -> None:
    with pytest.raises(InputError, match="no sentence: say what to look for"):
        validate_sentences([])
    with pytest.raises(InputError, match="sentence 2 of 2 is empty"):
        grounder.ground(Path("not even opened.mp4"), ["a dog jumps.", " \t"])


def test_a_single_sentence_and_paths_may_be_strings(
    tiny_run: Any, grounder: Grounder, test_queries: list[Query], tmp_path: Path
) -> None:
    """A string is one sentence, not a sequence of letters."""
    video = tiny_run.root / test_queries[0].path
    expected = grounder.ground(video, ["the red circle spins."])
    assert validate_sentences(" what falls? ") == ["what falls?"]
    with pytest.raises(InputError, match="sentence 1 of 1 is empty"):
        validate_sentences(" ")
    from_strings = Grounder(str(tiny_run.run), device="cpu")
    assert from_strings.ensemble.runs == (tiny_run.run,)
    assert from_strings.ground(str(video), "the red circle spins.") == expected
    for cache_dir in (None, str(tmp_path / "cache")):
        features = from_strings.encode_video(str(video), cache_dir)
        assert from_strings.ground_encoded(features, "the red circle spins.") == expected
    assert from_strings.domain_warning(str(video)) == ""


def test_a_missing_video_is_named(grounder: Grounder, tmp_path: Path) -> None:
    with pytest.raises(VideoError, match=r"gone\.mp4 does not exist"):
        grounder.ground(tmp_path / "gone.mp4", ["a dog jumps."])


def test_other_weights_than_the_runs_are_refused(tiny_run: Any, tmp_path: Path) -> None:
    run = shutil.copytree(tiny_run.run, tmp_path / "run")
    provenance = json.loads((run / "provenance.json").read_text())
    provenance["products"]["motion"]["weights_digest"] = "0123456789abcdef"
    (run / "provenance.json").write_text(json.dumps(provenance))
    with pytest.raises(
        InputError,
        match=r"was trained on motion features of weights 'tiny' with digest 0123456789ab…",
    ):
        Grounder(run)


def test_a_run_without_a_checkpoint_is_refused(tiny_run: Any, tmp_path: Path) -> None:
    run = shutil.copytree(
        tiny_run.run, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints")
    )
    with pytest.raises(InputError, match="has no checkpoint yet"):
        Grounder(run)
    with pytest.raises(InputError, match="is not a run directory"):
        Grounder(tmp_path)


# Runs on reduced stores


@pytest.fixture(scope="module")
def make_reduced_run(
    tiny_run: Any, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Path, Path]]:
    """A store with this reduction of both visual products, and a run that took a step on it: not to
    be changed.
    """

    @cache
    def make(asked: str) -> tuple[Path, Path]:
        folder = tmp_path_factory.mktemp("reduced")
        settings = {
            "backbones": "tiny",
            "weights": "tiny",
            "workers": 0,
            "device": "cpu",
            "sampling": sampling_of(tiny_run.store),
        }
        config = ExtractConfig.model_validate(
            settings | {"reduce": {"appearance": asked, "motion": asked}}
        )
        extract(tiny_run.index, tiny_run.root, "shapes", folder / "store", config)
        training = load(CsdvlTrainConfig, "train", tiny_run.run / "config.yaml", ["max_steps=1"])
        prepare_run_dir(folder / "store", folder / "run", training)
        train(folder / "store", folder / "run", training)
        return folder / "store", folder / "run"

    return make


def sampling_of(store: Path) -> dict[str, Any]:
    products = Store(store).products
    return {
        key: value
        for name in ("appearance", "motion")
        for key, value in products[name].provenance["sampling"].items()
    }


@pytest.mark.parametrize(
    ("asked", "channels"), [("int8", (128, 384)), ("pca:6", (6, 6)), ("pca:6+int8", (6, 6))]
)
def test_a_run_on_reduced_features_reduces_what_it_is_asked_about(
    tiny_run: Any,
    make_reduced_run: Any,
    test_queries: list[Query],
    asked: str,
    channels: tuple[int, int],
) -> None:
    """Bit for bit what the store's reader gives, though the store is no longer there."""
    store, run = make_reduced_run(asked)
    features_of_video = Grounder(run, device="cpu").encode_video(
        tiny_run.root / test_queries[0].path
    )
    for name, width in zip(("appearance", "motion"), channels, strict=True):
        own, other = features_of_video.features[name], Store(store).open(name)
        assert own.shape(features_of_video.video.path) == other.shape(test_queries[0].video)
        assert own.shape(features_of_video.video.path)[-1] == width
        assert own.read(features_of_video.video.path).dtype == np.float16
        np.testing.assert_array_equal(
            own.read(features_of_video.video.path), other.read(test_queries[0].video)
        )
        np.testing.assert_array_equal(
            own.columns(features_of_video.video.path)["frame"],
            other.columns(test_queries[0].video)["frame"],
        )


def test_its_answer_is_that_of_its_store(
    tiny_run: Any, make_reduced_run: Any, test_queries: list[Query]
) -> None:
    store, run = make_reduced_run("pca:6+int8")
    grounder = Grounder(run, device="cpu")
    features = GroundingDataset.from_store(
        store, "test", grounder.ensemble.num_frames, grounder.ensemble.num_clips
    )
    asked = grounder.ground(
        tiny_run.root / test_queries[0].path, [query.text for query in test_queries]
    )
    for own, other in zip(
        asked.queries, predict(grounder.ensemble.models, features, features.queries), strict=True
    ):
        assert own.span_frames == other.span
        assert own.score == pytest.approx(other.score, abs=1e-5)


def test_a_run_keeps_the_projections_of_its_store(tiny_run: Any, make_reduced_run: Any) -> None:
    store, run = make_reduced_run("pca:6")
    kept = {path.stem: path.read_bytes() for path in (run / "basis").iterdir()}
    assert kept == {
        name: (store / name / "basis.safetensors").read_bytes() for name in ("appearance", "motion")
    }
    assert not (make_reduced_run("int8")[1] / "basis").exists()
    assert not (tiny_run.run / "basis").exists()


@pytest.mark.parametrize(
    ("content", "problem"),
    [(None, "does not exist"), (b"other", "is not the one the run was trained with")],
)
def test_a_run_without_its_projection_is_refused(
    make_reduced_run: Any, tmp_path: Path, content: bytes | None, problem: str
) -> None:
    run = shutil.copytree(make_reduced_run("pca:6")[1], tmp_path / "run")
    (run / "basis" / "motion.safetensors").unlink()
    if content is not None:
        (run / "basis" / "motion.safetensors").write_bytes(content)
    with pytest.raises(
        InputError,
        match=rf"motion.safetensors {problem}: put motion/basis.safetensors of its "
        rf"store there, or train again",
    ):
        Grounder(run)


@pytest.mark.parametrize(
    ("content", "problem"),
    [(None, "does not exist"), (b"other", "is not the one its shards were made with")],
)
def test_no_run_is_opened_on_a_store_that_lost_its_projection(
    make_reduced_run: Any, tmp_path: Path, content: bytes | None, problem: str
) -> None:
    """And nothing of the run that was there is touched."""
    store, run = (shutil.copytree(path, tmp_path / path.name) for path in make_reduced_run("pca:6"))
    (store / "appearance" / "basis.safetensors").unlink()
    if content is not None:
        (store / "appearance" / "basis.safetensors").write_bytes(content)
    with pytest.raises(
        StoreError,
        match=rf"basis.safetensors {problem}: restore it, or extract into another --store",
    ):
        prepare_run_dir(
            store, run, load(CsdvlTrainConfig, "train", run / "config.yaml", ["lr=1.0"])
        )
    assert (run / "checkpoints" / "last").exists()


def test_a_run_on_other_features_forgets_old_projections(
    tiny_run: Any, make_reduced_run: Any, tmp_path: Path
) -> None:
    """A run directory without a checkpoint (it was killed at once) is used again."""
    run = shutil.copytree(
        make_reduced_run("pca:6")[1], tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints")
    )
    prepare_run_dir(tiny_run.store, run, load(CsdvlTrainConfig, "train", run / "config.yaml", []))
    assert not (run / "basis").exists()


# The recorded backbones


@pytest.mark.parametrize(
    ("provenance_values", "kind"),
    [({"slowfast": "kinetics"}, "kinetics"), ({"slowfast": "ava"}, "ava"), ({}, "ava")],
)
def test_motion_is_built_as_recorded(
    tmp_path: Path, provenance_values: dict[str, str], kind: str
) -> None:
    digest = load_backbone("motion", "tiny", "random:0", kind).digest
    about = {
        "backbone": "tiny",
        "weights": "random:0",
        "weights_digest": digest,
        **provenance_values,
    }
    assert load_recorded_encoder(tmp_path, "motion", about, torch.device("cpu")).variant == kind


def test_sentences_are_tokenised_as_recorded(tmp_path: Path) -> None:
    """By the tokenizer of the folder that the weights came from, not by the shipped one."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import RobertaConfig, RobertaModel

    folder = tmp_path / "roberta"
    small = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    RobertaModel(
        RobertaConfig(vocab_size=270, max_position_embeddings=66, **small), add_pooling_layer=False
    ).save_pretrained(folder)
    result = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    result.train_from_iterator(
        ["hum hum hum hum"],
        vocab_size=270,
        min_frequency=1,
        special_tokens=special,
        show_progress=False,
    )
    result.save_model(str(folder))
    digest = load_backbone("text", "full", f"hf:{folder}").digest
    about = {"backbone": "full", "weights": f"hf:{folder}", "weights_digest": digest}
    ((states, tokens),) = encode_texts(
        ["hum the zoo"], load_recorded_encoder(tmp_path, "text", about, torch.device("cpu"))
    )
    assert tokens.tolist() == [0, *result.encode("hum the zoo").ids, 2]
    assert states.shape == (len(tokens), 16)
