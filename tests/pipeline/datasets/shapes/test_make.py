"""`shapes` on disk: VidSTG's layout, the same bytes each time, splits that share nothing, taken up
where it was left.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from pipeline.datasets.prepare import prepare
from pipeline.datasets.shapes import make, render
from pipeline.datasets.shapes.make import (
    SPLITS,
    ShapesConfig,
    build_entries,
    make_shapes,
    scene_seed,
    video_id,
)
from pipeline.datasets.shapes.scene import make_scene
from pipeline.datasets.vidstg import parse
from pipeline.errors import InputError
from pipeline.io.atomic import atomic_write
from pipeline.io.jsonl import read_jsonl
from pipeline.records import Query
from pipeline.tracks import Tracks
from pipeline.video import probe

SMALL = ShapesConfig(train_videos=2, val_videos=1, test_videos=1, sentences_per_video=3)


@pytest.fixture(scope="module")
def shapes_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shapes") / "shapes"
    make_shapes(root, SMALL, workers=1)
    return root


def contents(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def test_vidstgs_parser_reads_it_without_a_defect(shapes_root: Path) -> None:
    parsed = parse(shapes_root)

    assert parsed.defects.to_list() == []
    assert {query.split for query in parsed.queries} == set(SPLITS)
    assert len(parsed.queries) == sum(
        len(json.loads(path.read_text()))
        for path in shapes_root.glob("annotations/*_annotations.json")
    )


def test_queries_say_what_the_scene_is(shapes_root: Path, tmp_path: Path) -> None:
    prepare("shapes", shapes_root, tmp_path / "index.jsonl")
    queries = list(read_jsonl(tmp_path / "index.jsonl", Query))
    tracks = Tracks.load(tmp_path / "tracks.npz")

    for split, index in (("train", 1), ("test", 0)):
        scene = make_scene(scene_seed(SMALL.seed, split, index))
        own = [query for query in queries if query.video == video_id(split, index)]
        expected = {
            entry[key][0]["description"]: entry
            for entry in build_entries(scene, video_id(split, index), 3)
            for key in ("captions", "questions")
            if entry[key]
        }
        assert {query.text for query in own} == set(expected)
        for query in own:
            assert query.truth is not None
            assert query.truth.track is not None
            item = int(query.truth.track.rpartition("/")[2])
            event = next(e for e in scene.objects[item].events if e.begin == query.truth.span[0])
            assert query.truth.span == (event.begin, event.end)
            assert (query.object, query.split, query.frame_count) == (
                scene.objects[item].shape,
                split,
                scene.frame_count,
            )
            said = expected[query.text]
            assert list(query.tags) == (said["captions"] or said["questions"])[0]["tags"]
            frames, boxes = tracks[query.truth.track]
            assert frames.tolist() == list(range(scene.frame_count))
            np.testing.assert_allclose(
                boxes, render.compute_boxes(scene, scene.objects[item]), atol=0.5
            )


def test_videos_are_what_the_annotations_say(shapes_root: Path) -> None:
    for path in shapes_root.glob("annotation/*/*/*.json"):
        said = json.loads(path.read_text())
        facts = probe(shapes_root / "video" / said["video_path"])
        assert (facts.frame_count, facts.size) == (
            said["frame_count"],
            (said["width"], said["height"]),
        )
        assert facts.fps == pytest.approx(said["fps"])


def test_two_makes_give_the_same_bytes(shapes_root: Path, tmp_path: Path) -> None:
    make_shapes(tmp_path / "again", SMALL, workers=2)
    assert contents(tmp_path / "again") == contents(shapes_root)


def test_splits_share_no_video_and_no_seed() -> None:
    splits = (*SPLITS, "pretrain")
    seeds = [
        scene_seed(seed, split, index)
        for seed in (0, 1)
        for split in splits
        for index in range(600)
    ]

    assert len(set(seeds)) == len(seeds)

    ids = [video_id(split, index) for split in SPLITS for index in range(600)]

    assert len(set(ids)) == len(ids)
    assert all(name.isdigit() for name in ids)


def test_a_finished_make_is_kept(shapes_root: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in shapes_root.rglob("*")}
    recorded: list[tuple[int, int]] = []
    make_shapes(
        shapes_root, SMALL, workers=1, progress=lambda done, total: recorded.append((done, total))
    )
    assert recorded == [(1, 1)]
    assert {path: path.stat().st_mtime_ns for path in shapes_root.rglob("*")} == before


def test_a_foreign_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")

    with pytest.raises(
        InputError, match="holds files that are not `shapes`: give an empty folder with --root"
    ):
        make_shapes(tmp_path, SMALL, workers=1)

    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_an_interrupted_make_goes_on(shapes_root: Path, tmp_path: Path) -> None:
    class StopError(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise StopError

    with pytest.raises(StopError):
        make_shapes(tmp_path / "s", SMALL, workers=1, progress=stop)

    kept = next((tmp_path / "s").rglob("*.mp4"))
    before = kept.stat().st_mtime_ns
    make_shapes(tmp_path / "s", SMALL, workers=1)

    assert kept.stat().st_mtime_ns == before
    assert contents(tmp_path / "s") == contents(shapes_root)


def test_a_video_cut_short_by_a_kill_is_never_in_place(tmp_path: Path) -> None:
    def broken() -> Any:
        yield np.zeros((96, 160, 3), np.uint8)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), atomic_write(tmp_path / "v.mp4") as aside:
        make.write_video(aside, broken(), 10)

    assert list(tmp_path.iterdir()) == []


def test_other_settings_are_made_anew(tmp_path: Path) -> None:
    item = ShapesConfig(train_videos=1, val_videos=0, test_videos=0)
    make_shapes(tmp_path / "s", item.model_copy(update={"seed": 5, "train_videos": 2}), workers=1)
    make_shapes(tmp_path / "s", item, workers=1)
    make_shapes(tmp_path / "fresh", item, workers=1)
    assert contents(tmp_path / "s") == contents(tmp_path / "fresh")


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(ValidationError, match="colours"):
        ShapesConfig.model_validate({"colours": 3})


def test_entries_hold_no_more_than_asked() -> None:
    scene = make_scene(0)
    counts: Any = [len(build_entries(scene, "1", count)) for count in (1, 3)]
    assert counts == [1, 3]
    assert make.VIDOR_PART == {"train": "training", "val": "training", "test": "validation"}
