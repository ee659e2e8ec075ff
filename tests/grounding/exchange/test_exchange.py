"""Tubes for other tools, against expectations made by hand: what is shown, CVAT's files, FiftyOne's
data set, and the way back.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grounding.evaluation.evaluate import score_predictions
from grounding.evaluation.ground_truth import GroundTruth, ground_truth_for_split, load_ground_truth
from grounding.evaluation.hcstvg_challenge import write_challenge
from grounding.exchange.annotated_videos import (
    AnnotatedVideo,
    build_file_names,
    check_has_queries,
    check_output_dir,
    iterate_annotated_videos,
)
from grounding.exchange.cvat import write_cvat_folder
from grounding.exchange.fiftyone import write_fiftyone
from grounding.structures.tubes import Tubes
from pipeline.datasets.cvat import parse
from pipeline.errors import InputError, VideoError
from pipeline.io.cvat_xml import read_cvat
from pipeline.records import Prediction, Query, Truth
from pipeline.tracks import Tracks
from pipeline.video import VideoMetadata

QueryMaker = Callable[..., Query]
HOSTILE = "</box><script>alert('1')</script> & \"一人の男\" ]]>"


def quiet(done: int, total: int) -> None:
    pass


@pytest.fixture
def ground_truth(make_query: QueryMaker) -> GroundTruth:
    """Two queries about a video, one about another; the second's truth has boxes at 30, 31 and 34
    only, the third's has none.
    """
    tracks = Tracks()
    tracks.add("v0", np.arange(20, 80), np.tile([16.0, 9.0, 48.0, 27.0], (60, 1)))
    tracks.add("gaps", np.array([30, 31, 34]), np.tile([0.0, 0.0, 64.0, 36.0], (3, 1)))
    queries = [
        make_query(0, "test", text=HOSTILE, tags=("night",), form="declarative"),
        make_query(3, "test", path="v0.mp4", truth=Truth(span=(30, 40), track="gaps")),
        make_query(1, "test", path="sub/../v0.MKV", truth=Truth(span=(0, 100))),
    ]
    return ground_truth_for_split(queries, tracks, "test")


@pytest.fixture
def videos(ground_truth: GroundTruth) -> list[AnnotatedVideo]:
    rows = [(30, 0.0, 0.0, 32.0, 18.0), (34, 8.0, 0.0, 40.0, 18.0), (60, 0.0, 0.0, 1.0, 1.0)]
    said = [
        Prediction(id="test-0", span=(31, 36), score=0.25, boxes=rows),
        Prediction(id="test-1", span=(90, 100), score=1, boxes=[]),
    ]
    tubes = Tubes.from_predictions(said)
    scores = score_predictions(ground_truth, tubes, "every-frame")
    return list(
        iterate_annotated_videos(
            ground_truth, tubes, scores, {item.id: item.score for item in said}
        )
    )


def test_a_video_shows_the_tubes_of_all_its_queries(videos: list[AnnotatedVideo]) -> None:
    assert [
        (video.first_query.path, [(tube.query.id, tube.kind) for tube in video.tubes])
        for video in videos
    ] == [
        ("v0.mp4", [("test-0", "truth"), ("test-0", "prediction"), ("test-3", "truth")]),
        ("sub/../v0.MKV", [("test-1", "truth"), ("test-1", "prediction")]),
    ]
    true, predicted, gaps = videos[0].tubes
    assert (true.frames.tolist(), true.keyframe_mask.all(), true.confidence, true.score) == (
        list(range(30, 60)),
        True,
        None,
        None,
    )
    assert (gaps.span, gaps.frames.tolist()) == ((30, 40), [30, 31, 34])
    assert (predicted.span, predicted.frames.tolist(), predicted.confidence) == (
        (31, 36),
        [31, 32, 33, 34, 35],
        0.25,
    )
    assert predicted.boxes[:, 0].tolist()[:4] == [2, 4, 6, 8]  # between its samples, linearly
    assert predicted.keyframe_mask.tolist() == [False, False, False, True, False]
    assert predicted.score is not None
    assert predicted.score.tIoU == pytest.approx(5 / 30)
    assert [len(tube.frames) for tube in videos[1].tubes] == [0, 0]


def test_cvat_gets_a_file_per_video_and_the_labels(
    videos: list[AnnotatedVideo], tmp_path: Path
) -> None:
    assert write_cvat_folder(tmp_path / "out", videos, quiet) == 2  # tubes without a box
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "labels.json",
        "v0-2.xml",
        "v0.xml",
    ]
    (video,) = read_cvat(tmp_path / "out" / "v0.xml")
    assert [item.label for item in video.tracks.values()] == ["truth", "prediction", "truth"]
    about = video.tracks["1"].attributes
    assert (about["sentence"], about["score"], about["vIoU"]) == (
        HOSTILE,
        "0.250",
        f"{videos[0].tubes[1].score.vIoU:.3f}",
    )  # type: ignore[union-attr]
    line = {
        "id": "test-0",
        "video": "v0.mp4",
        "split": "test",
        "segment": [0, 100],
        "tags": ["night"],
    }
    assert json.loads(about["query"]) == line
    (empty,) = read_cvat(tmp_path / "out" / "v0-2.xml")
    assert (empty.source, empty.tracks) == ("v0.MKV", {})


def test_cvat_and_back_is_the_same_truth(tmp_path: Path, ground_truth: GroundTruth) -> None:
    def probe(
        folder: Path, paths: Iterable[str], progress: Any
    ) -> dict[str, VideoMetadata | VideoError]:
        return {
            path: VideoMetadata(
                folder / path, (64, 36), 25.0, np.arange(100) / 25, 4.0, False, "h264"
            )
            for path in paths
        }

    displayed = list(iterate_annotated_videos(ground_truth, Tubes.from_predictions([]), [], {}))
    write_cvat_folder(tmp_path / "videos" / "out", displayed, quiet)
    parsed = parse(tmp_path / "videos", probe=probe)
    back = ground_truth_for_split(parsed.queries, parsed.tracks, "test")
    assert [(query.id, query.segment, query.tags) for query in back.queries] == [
        ("test-0", (0, 100), ("night",)),
        ("test-3", (0, 100), ()),
    ]
    for name in ("test-0", "test-3"):
        before, after = (
            item.true_tubes.tubes.select(np.array([item.true_tubes.tubes.ids.index(name)]))
            for item in (ground_truth, back)
        )
        assert before.frames.tolist() == after.frames.tolist()
        assert before.boxes.tolist() == after.boxes.tolist()


def read(out: Path) -> tuple[dict[str, Any], list[dict[str, Any]], list[dict[str, Any]]]:
    metadata, samples, frames = (
        json.loads((out / f"{name}.json").read_text()) for name in ("metadata", "samples", "frames")
    )
    return metadata, samples["samples"], frames["frames"]


def test_fiftyone_gets_fractions_from_the_top_left_and_frames_from_1(
    videos: list[AnnotatedVideo], tmp_path: Path
) -> None:
    write_fiftyone(tmp_path / "out", videos, quiet)
    _, samples, frames = read(tmp_path / "out")
    assert [(item["filepath"], item["tags"]) for item in samples] == [
        ("v0.mp4", ["test"]),
        ("sub/../v0.MKV", ["test"]),
    ]
    facts = {
        "frame_width": 64,
        "frame_height": 36,
        "frame_rate": 25.0,
        "total_frame_count": 100,
        "duration": 4.0,
        "mime_type": "video/mp4",
    }
    assert {key: value for key, value in samples[0]["metadata"].items() if key != "_cls"} == facts
    true, gaps = samples[0]["truth"]["detections"]
    assert (true["support"], true["label"], true["tags"], true["form"]) == (
        [31, 60],
        HOSTILE,
        ["night"],
        "declarative",
    )
    assert gaps["support"] == [31, 40]
    (said,) = samples[0]["prediction"]["detections"]
    assert (said["support"], said["confidence"], said["query"], said["split"]) == (
        [32, 36],
        0.25,
        "test-0",
        "test",
    )
    assert said["tIoU"] == pytest.approx(5 / 30)
    numbers = [item["frame_number"] for item in frames]
    assert numbers == list(range(31, 61))  # of the second video no frame has a box
    first = frames[0]
    assert [item["bounding_box"] for item in first["truth"]["detections"]] == [
        [0.25, 0.25, 0.5, 0.5],
        [0, 0, 1, 1],
    ]
    assert [item["index"] for item in first["truth"]["detections"]] == [0, 2]
    assert (first["prediction"]["detections"], first["_sample_id"]) == ([], samples[0]["_id"])
    assert frames[3]["prediction"]["detections"][0]["bounding_box"] == [6 / 64, 0, 0.5, 0.5]
    assert [item["query"] for item in frames[3]["truth"]["detections"]] == [
        "test-0"
    ]  # the other has no box at its frame 33


def test_every_document_of_fiftyone_has_an_id_of_its_own_that_stays(
    videos: list[AnnotatedVideo], tmp_path: Path
) -> None:
    for name in ("one", "two"):
        write_fiftyone(tmp_path / name, videos, quiet)
    assert read(tmp_path / "one") == read(tmp_path / "two")
    _, samples, frames = read(tmp_path / "one")
    labels = [
        item
        for document in (*samples, *frames)
        for kind in ("truth", "prediction")
        for item in document[kind]["detections"]
    ]
    ids = [item["_id"]["$oid"] for item in (*samples, *frames, *labels)]
    assert all(len(item) == 24 and int(item, 16) for item in ids)
    assert len(set(ids)) == len(ids)


def test_what_fiftyone_is_told_of_its_fields_is_what_the_documents_hold(
    videos: list[AnnotatedVideo], tmp_path: Path
) -> None:
    write_fiftyone(tmp_path / "out", videos, quiet)
    metadata, samples, frames = read(tmp_path / "out")

    def names(fields: list[dict[str, Any]]) -> set[str]:
        return {field["db_field"] for field in fields}

    def inner(fields: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
        return next(field["fields"] for field in fields if field["name"] == name)

    for documents, fields in (
        (samples, metadata["sample_fields"]),
        (frames, metadata["frame_fields"]),
    ):
        for document in documents:
            assert set(document) <= names(fields)
            for kind in ("truth", "prediction"):
                known = names(inner(inner(fields, kind), "detections"))
                for label in document[kind]["detections"]:
                    assert set(label) - {"_cls", "attributes"} <= known


@pytest.mark.parametrize(
    "video",
    [
        "../../etc/passwd",
        "/etc/passwd",
        "a/b.c.mp4",
        "nul\0",
        "一人.mkv",
        "",
        "...",
        "CON.mp4",
        "-rf.mp4",
        "x" * 300,
    ],
)
def test_a_videos_name_never_becomes_a_path(video: str) -> None:
    (name,) = build_file_names([video])
    assert name
    assert len(name) <= 80
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")


def test_videos_of_one_name_have_files_of_their_own() -> None:
    assert build_file_names(["a/x.mp4", "b/X.mp4", "c/x.mkv", "x-2.mp4"]) == [
        "x",
        "X-2",
        "x-3",
        "x-2-2",
    ]


def test_corrections_are_not_written_over(videos: list[AnnotatedVideo], tmp_path: Path) -> None:
    check_output_dir(tmp_path / "new")
    (tmp_path / "mine.xml").write_text("corrected")
    for write in (write_cvat_folder, write_fiftyone):
        with pytest.raises(
            InputError,
            match="is not empty, and corrections may lie in it: give a new folder",
        ):
            write(tmp_path, videos, quiet)
    with pytest.raises(InputError, match=r"mine\.xml is a file: give a new folder"):
        check_output_dir(tmp_path / "mine.xml")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.xml"]


def test_the_challenges_file_names_no_videos(tmp_path: Path) -> None:
    write_challenge(tmp_path / "truth.json", Tubes.from_predictions([]))
    with pytest.raises(
        InputError, match="--cvat needs an index as --truth: the challenge's file names no videos"
    ):
        check_has_queries(load_ground_truth(tmp_path / "truth.json", "test"), "--cvat")
