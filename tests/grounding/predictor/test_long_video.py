"""Asking about a video longer than what a run was trained on: window by window, streamed or kept,
by every system.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grounding.data.segment_lengths import summarize_segment_seconds
from grounding.data.sources import InMemorySource
from grounding.predictor.grounder import Grounder, VideoFeatures
from grounding.predictor.window_length import get_window_seconds
from grounding.predictor.windows import plan_windows
from grounding.systems.cgstvg import CgstvgTrainConfig
from grounding.systems.config import TrainConfig
from grounding.systems.costa import CostaTrainConfig
from grounding.training.run_directory import prepare_run_dir
from grounding.training.train import train
from pipeline.datasets.shapes.joined import build_all_scenes, concatenate_scenes, concatenate_videos
from pipeline.datasets.shapes.make import SPLITS, ShapesConfig
from pipeline.datasets.shapes.sentences import PHRASES
from pipeline.errors import InputError, VideoError
from pipeline.extraction.run import ExtractConfig
from pipeline.extraction.run import run_extraction as extract
from pipeline.features.stream import FeatureStream
from pipeline.io.jsonl import read_jsonl
from pipeline.records import Query, Span
from pipeline.store import Entry, Store
from pipeline.video import probe

SENTENCES = ["the red circle spins.", "what falls?"]


@pytest.fixture(scope="module")
def grounder(tiny_run: Any) -> Grounder:
    return Grounder(tiny_run.run, device="cpu")


@pytest.fixture(scope="module")
def clip_paths(tiny_run: Any) -> list[Path]:
    return sorted({tiny_run.root / query.path for query in read_jsonl(tiny_run.index, Query)})


@pytest.fixture(scope="module")
def long_video(clip_paths: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four clips, 20 seconds: the run's segments were of 5."""
    path = tmp_path_factory.mktemp("long") / "long.mp4"
    concatenate_videos(path, [*clip_paths, clip_paths[0]])
    return path


def test_joined_clips_are_one_video_of_their_frames(long_video: Path) -> None:
    facts = probe(long_video)
    assert (facts.frame_count, facts.fps, facts.decord_unsafe_reason) == (200, 10.0, "")
    np.testing.assert_allclose(facts.edges, np.arange(201) / 10)


def test_a_window_is_as_long_as_the_segments_of_training(
    tiny_run: Any, grounder: Grounder, long_video: Path
) -> None:
    about = json.loads((tiny_run.run / "provenance.json").read_text())
    assert about["segment_seconds"] == {"median": 5.0, "longest": 5.0}
    assert grounder.window_seconds == 5.0
    assert len(plan_windows(probe(long_video).edges, grounder.window_seconds)) == 7


def test_one_long_segment_does_not_make_long_windows() -> None:
    queries = [
        Query.model_construct(segment=(0, frames), fps=10.0) for frames in (100, 200, 300, 36_000)
    ]
    assert (
        get_window_seconds(
            Path("run"), {"segment_seconds": summarize_segment_seconds(queries)}, 5.0
        )
        == 50.0
    )
    assert (
        get_window_seconds(
            Path("run"), {"segment_seconds": summarize_segment_seconds(queries[:3])}, 5.0
        )
        == 30.0
    )


def test_older_runs_say_it_by_what_they_were_judged_on(tmp_path: Path) -> None:
    with pytest.raises(
        InputError,
        match=r"does not record the lengths of its training segments.* with --window "
        r"SECONDS, or train the run again",
    ):
        get_window_seconds(tmp_path, {}, 5.0)
    rows = [[frame, 0.0, 0.0, 1.0, 1.0] for frame in range(0, 60, 2)]
    lines = [
        {"id": str(count), "span": [0, 2], "score": 0.5, "boxes": rows[:count]}
        for count in (20, 30, 30)
    ]
    (tmp_path / "predictions").mkdir()
    (tmp_path / "predictions" / "test.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in lines)
    )
    assert get_window_seconds(tmp_path, {}, 5.0) == 6.0


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan")])
def test_a_window_has_a_length(tiny_run: Any, seconds: float) -> None:
    with pytest.raises(InputError, match=f"a window of {seconds} seconds: give a number above 0"):
        Grounder(tiny_run.run, device="cpu", window_seconds=seconds)


def test_a_video_of_one_window_is_answered_as_before(
    grounder: Grounder, tiny_run: Any, clip_paths: list[Path]
) -> None:
    """A window far longer than the video changes nothing, to the last bit."""
    wide = Grounder(tiny_run.run, device="cpu", window_seconds=1000.0)
    assert grounder.ground(clip_paths[0], SENTENCES) == wide.ground(clip_paths[0], SENTENCES)


def extract_window(video_features: VideoFeatures, window: Span) -> VideoFeatures:
    """Return a window as a video of its own, with frames counted from the window's first frame."""
    begin, end = window
    features = {}
    for name, product in video_features.features.items():
        frames, facts = (
            product.columns(video_features.key)["frame"],
            product.facts(video_features.key) | {"frame_count": end - begin},
        )
        rows = np.flatnonzero((frames >= begin) & (frames < end))
        entry = Entry(
            video_features.key,
            video_features.key,
            product.read(video_features.key, rows),
            {"frame": frames[rows] - begin},
            facts,
        )
        features[name] = InMemorySource([entry])
    edges = video_features.frame_edges[begin : end + 1] - video_features.frame_edges[begin]
    return VideoFeatures(
        video_features.video.model_copy(update={"frame_count": end - begin}),
        video_features.key,
        {**features},
        edges,
    )


def test_each_window_is_asked_as_a_video_of_its_own(grounder: Grounder, long_video: Path) -> None:
    """The answer about all of it is the surest of those about its windows, each alone, moved to
    where the window begins.
    """
    video_features = grounder.encode_video(long_video)
    windows = plan_windows(video_features.frame_edges, grounder.window_seconds)
    results_by_window = [
        grounder.ground_encoded(extract_window(video_features, window), SENTENCES).queries
        for window in windows
    ]
    for place, prediction in enumerate(grounder.ground_encoded(video_features, SENTENCES).queries):
        scores = [own[place].score for own in results_by_window]
        assert len(set(scores)) > 1
        assert prediction.score == pytest.approx(max(scores), abs=2e-6)
        moved = [
            (own[place], begin)
            for own, (begin, _) in zip(results_by_window, windows, strict=True)
            if own[place].score > max(scores) - 2e-6
        ]
        assert any(
            prediction.span_frames == (own.span_frames[0] + begin, own.span_frames[1] + begin)
            and np.allclose(prediction.boxes, np.add(own.boxes, [begin, 0, 0, 0, 0]), atol=0.02)
            for own, begin in moved
        )


def test_the_best_tubes_of_a_long_video_are_in_order_and_whole(
    grounder: Grounder, long_video: Path
) -> None:
    predictions = grounder.ground(long_video, SENTENCES, top_k=7)
    for prediction in predictions.queries:
        tubes = [prediction, *prediction.others]
        assert [tube.score for tube in tubes] == sorted(
            (tube.score for tube in tubes), reverse=True
        )
        assert all(0 <= tube.span_frames[0] < tube.span_frames[1] <= 200 for tube in tubes)
        for tube in tubes:
            assert tube.text == prediction.text
            assert [row[0] for row in tube.boxes] == list(range(*tube.span_frames))
            assert tube.span_seconds == pytest.approx([edge / 10 for edge in tube.span_frames])
    assert len(predictions.queries[0].others) >= 2


def test_streamed_in_memory_and_kept_answers_are_the_same(
    grounder: Grounder, long_video: Path, tmp_path: Path
) -> None:
    streamed = grounder.ground(long_video, SENTENCES, top_k=3)
    assert (
        grounder.ground_encoded(grounder.encode_video(long_video), SENTENCES, top_k=3) == streamed
    )
    assert (
        grounder.ground_encoded(
            grounder.encode_video(long_video, tmp_path / "kept"), SENTENCES, top_k=3
        )
        == streamed
    )


def test_what_is_kept_is_not_decoded_again(
    grounder: Grounder, long_video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = grounder.ground_encoded(grounder.encode_video(long_video, tmp_path / "kept"), SENTENCES)
    monkeypatch.setattr(
        FeatureStream, "__init__", lambda *arguments, **named: pytest.fail("it was decoded again")
    )
    moved = shutil.copy(long_video, tmp_path / "renamed.mp4")
    counted: list[tuple[int, int]] = []
    video_features = grounder.encode_video(moved, tmp_path / "kept")
    repeated = grounder.ground_encoded(
        video_features, SENTENCES, progress=lambda done, total: counted.append((done, total))
    )
    assert repeated.queries == first.queries
    assert repeated.video.path == str(moved)
    assert counted[0] == (0, 7)
    assert counted[-1] == (7, 7)


def test_several_videos_are_kept_in_one_folder(
    grounder: Grounder, clip_paths: list[Path], long_video: Path, tmp_path: Path
) -> None:
    for video in (long_video, clip_paths[1]):
        grounder.encode_video(video, tmp_path)
    assert {product.name for product in tmp_path.iterdir() if product.is_dir()} == {
        "appearance",
        "motion",
    }
    assert [len(product.videos) for product in Store(tmp_path).products.values()] == [2, 2]
    assert Store(tmp_path).verify() == []
    assert grounder.ground_encoded(
        grounder.encode_video(clip_paths[1], tmp_path), SENTENCES
    ) == grounder.ground(clip_paths[1], SENTENCES)


def test_what_is_kept_for_other_runs_is_refused(
    grounder: Grounder, clip_paths: list[Path], tiny_run: Any, tmp_path: Path
) -> None:
    grounder.encode_video(clip_paths[0], tmp_path / "kept")
    run = shutil.copytree(tiny_run.run, tmp_path / "run")
    provenance = json.loads((run / "provenance.json").read_text())
    provenance["products"]["appearance"]["sampling"]["fps"] = 2.0
    (run / "provenance.json").write_text(json.dumps(provenance))
    for video in (clip_paths[0], clip_paths[1]):
        with pytest.raises(
            InputError,
            match=r"kept holds appearance features of a run with other .*: give "
            r"another folder with --keep",
        ):
            Grounder(run, device="cpu").encode_video(video, tmp_path / "kept")


def test_a_video_that_fails_leaves_nothing(
    grounder: Grounder, tmp_path: Path, long_video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(VideoError, match=r"gone\.mp4 does not exist"):
        grounder.encode_video(tmp_path / "gone.mp4", tmp_path / "kept")

    def fail(done: int, total: int) -> None:
        if done == 150:
            raise VideoError("decode", "damaged", "no further")

    with pytest.raises(VideoError, match="no further"):
        grounder.encode_video(long_video, tmp_path / "kept", fail)
    assert all(not product.videos for product in Store(tmp_path / "kept").products.values())
    assert grounder.encode_video(long_video, tmp_path / "kept").video.frame_count == 200


# Every system


@pytest.fixture(scope="module")
def store_with_frames(tiny_run: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run's store, with pictures."""
    store = tmp_path_factory.mktemp("pictured") / "store"
    provenance = {
        name: product.provenance["sampling"]
        for name, product in Store(tiny_run.store).products.items()
        if name != "text"
    }
    sampling = provenance["appearance"] | provenance["motion"]
    settings = {
        "backbones": "tiny",
        "weights": "tiny",
        "sampling": sampling,
        "workers": 0,
        "device": "cpu",
    }
    products = {"products": ["appearance", "motion", "text", "frames"]}
    extract(
        tiny_run.index,
        tiny_run.root,
        "shapes",
        store,
        ExtractConfig.model_validate(settings | products),
    )
    return store


SMALL = {"hidden_dim": 8, "num_heads": 2, "ffn_dim": 8, "num_frames": 3}
SYSTEMS: dict[str, tuple[type[TrainConfig], dict[str, Any]]] = {
    "cgstvg": (
        CgstvgTrainConfig,
        {"model": {**SMALL, "num_layers": 1, "num_stages": 2, "motion_product": "motion"}},
    ),
    "costa": (
        CostaTrainConfig,
        {
            "model": {**SMALL, "num_layers": 1, "num_decoder_layers": 1, "r3d_width": 8},
            "encoders": {"backbones": "tiny", "image": "tiny"},
        },
    ),
}


@pytest.mark.parametrize("system", SYSTEMS)
def test_other_systems_answer_about_a_long_video(
    store_with_frames: Path, long_video: Path, clip_paths: list[Path], tmp_path: Path, system: str
) -> None:
    config_class, settings = SYSTEMS[system]
    config = config_class.model_validate(
        {**settings, "system": system, "max_steps": 1, "batch": 2, "device": "cpu"}
    )
    prepare_run_dir(store_with_frames, tmp_path / "run", config)
    train(store_with_frames, tmp_path / "run", config)
    grounder = Grounder(tmp_path / "run", device="cpu")
    streamed = grounder.ground(long_video, SENTENCES, top_k=2)
    assert len(streamed.queries[0].others) == 1
    assert (
        grounder.ground_encoded(
            grounder.encode_video(long_video, tmp_path / "kept"), SENTENCES, top_k=2
        )
        == streamed
    )
    wide = Grounder(tmp_path / "run", device="cpu", window_seconds=1000.0)
    assert grounder.ground(clip_paths[0], SENTENCES) == wide.ground(clip_paths[0], SENTENCES)


# Joined clips


def test_what_is_hidden_happens_nowhere_else(tiny_run: Any, tmp_path: Path) -> None:
    shapes = tmp_path / "shapes"
    shapes.mkdir()
    config = ShapesConfig(train_videos=12, val_videos=0, test_videos=12)
    (shapes / "shapes.json").write_text(config.model_dump_json())
    scenes = build_all_scenes(config)
    queries = []
    for clip, scene in scenes.items():
        for item in scene.objects:
            for event in item.events:
                text = (
                    f"the {item.color} {item.shape} "
                    f"{PHRASES[event.motion][2 if event.motion != 'left' else 1]}."
                )
                if event.motion in ("spin", "left", "still"):
                    said = {
                        "id": f"{clip}-{len(queries)}",
                        "video": clip,
                        "path": "v.mp4",
                        "text": text,
                        "form": "declarative",
                        "split": SPLITS[int(clip[0]) - 1],
                    }
                    facts = {
                        "fps": 10.0,
                        "frame_count": scene.frame_count,
                        "size": scene.size,
                        "segment": (0, scene.frame_count),
                    }
                    queries.append(
                        Query.model_validate(
                            {
                                **said,
                                **facts,
                                "truth": {"span": (event.begin, event.end), "track": None},
                            }
                        )
                    )
    queries = [query for query in queries if query.split == "test"]
    result = concatenate_scenes(shapes, queries, seed=1, seconds=300.0, num_hidden=3)
    assert concatenate_scenes(shapes, queries, seed=1, seconds=300.0, num_hidden=3) == result
    assert {SPLITS[int(clip[0]) - 1] for clip in result.clips} == {"test"}
    assert (
        result.clips
        != concatenate_scenes(shapes, queries, seed=2, seconds=300.0, num_hidden=3).clips
    )
    lengths = [scenes[clip].frame_count for clip in result.clips]
    assert list(result.first_frames) == np.cumsum([0, *lengths[:-1]]).tolist()
    assert sum(lengths) >= 3000
    assert len(result.hidden_events) == 3
    for own in result.hidden_events:
        place = int(np.searchsorted(result.first_frames, own.span[0], "right")) - 1
        assert result.clips[place] == own.query.video
        assert result.clips.count(own.query.video) == 1
        assert own.query.truth is not None
        assert own.span == tuple(edge + result.first_frames[place] for edge in own.query.truth.span)
        looks = tuple(own.query.text.split()[1:3])
        motion = {"rotates.": "spin", "left.": "left", "place.": "still"}[
            own.query.text.split()[-1]
        ]
        doers = [
            clip
            for clip in result.clips
            for item in scenes[clip].objects
            if item.color_and_shape == looks and motion in item.motions
        ]
        assert set(doers) == {own.query.video}
