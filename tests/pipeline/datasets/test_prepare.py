"""From a folder to the three files: each unusable video and each broken entry is named, and the
rest goes on.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.datasets import PARSERS, DefectLog
from pipeline.datasets.prepare import PrepareReport, SplitCounts, check_index_path, prepare
from pipeline.errors import InputError
from pipeline.io.jsonl import read_jsonl
from pipeline.records import Query
from pipeline.tracks import Tracks

FRAMES = 30


def entry(vid: str, **changes: Any) -> dict[str, Any]:
    """A VidSTG entry of a 30-frame video of 128x48 at 25 fps, with one caption."""
    return {
        "vid": vid,
        "fps": 25,
        "frame_count": FRAMES,
        "used_segment": {"begin_fid": 0, "end_fid": FRAMES - 1},
        "width": 128,
        "height": 48,
        "subject/objects": [{"tid": 1, "category": "dog"}],
        "temporal_gt": {"begin_fid": 5, "end_fid": 20},
        "captions": [{"description": f"a dog in {vid}", "target_id": 1}],
        "questions": [],
    } | changes


@pytest.fixture
def root(tmp_path: Path, make_video: Any) -> Callable[..., Path]:
    """A VidSTG folder: the entries, a sound video and a VidOR file for each of the `videos`."""

    def make(
        entries: list[Any], videos: list[str], box: tuple[float, ...] = (1, 2, 30, 40)
    ) -> Path:
        (tmp_path / "annotations").mkdir()
        (tmp_path / "annotations" / "test_annotations.json").write_text(json.dumps(entries))
        bbox = dict(zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))

        for folder in ("video/0001", "annotation/validation/0001"):
            (tmp_path / folder).mkdir(parents=True)

        for vid in videos:
            make_video(tmp_path / "video" / "0001" / f"{vid}.mp4", FRAMES)
            content = {"trajectories": [[{"tid": 1, "bbox": bbox}]] * FRAMES}
            (tmp_path / "annotation" / "validation" / "0001" / f"{vid}.json").write_text(
                json.dumps(content)
            )

        return tmp_path

    return make


def outcome(report: PrepareReport) -> dict[str, list[str]]:
    """Each kind of defect and the entries it names."""
    return {row["kind"]: [item["entry"] for item in row["entries"]] for row in report.defects}


def test_a_sound_data_set(root: Any, tmp_path: Path) -> None:
    recorded: list[tuple[int, int]] = []
    index = tmp_path / "out" / "index.jsonl"
    report = prepare(
        "vidstg",
        root([entry("a"), entry("b")], ["a", "b"]),
        index,
        lambda done, total: recorded.append((done, total)),
    )

    assert (report.queries, report.videos, report.queries_by_split, report.num_excluded) == (
        2,
        2,
        {"test": 2},
        0,
    )
    assert (report.num_failures, report.exit_code(), report.defects) == (0, 0, [])
    assert recorded == [(1, 2), (2, 2), (1, 2), (2, 2)]

    queries = list(read_jsonl(index, Query))

    assert [query.id for query in queries] == ["test-00000-c0", "test-00001-c0"]
    assert [query.path for query in queries] == ["video/0001/a.mp4", "video/0001/b.mp4"]
    assert [query.truth.span for query in queries if query.truth] == [(5, 20), (5, 20)]
    assert sorted(Tracks.load(index.with_name("tracks.npz")).keys()) == ["a/1", "b/1"]

    summary = json.loads(index.with_name("defects.json").read_text())

    assert summary == {
        "format": 1,
        "dataset": "vidstg",
        "queries": 2,
        "videos": 2,
        "checked_videos": 2,
        "edit_lists": 0,
        "splits": {"test": 2},
        "totals": {
            "test": {
                "queries": 2,
                "videos": 2,
                "left_out": {},
                "without_video": 0,
                "without_boxes": 0,
            }
        },
        "left_out": 0,
        "without_video": 0,
        "without_boxes": 0,
        "defects": [],
    }
    assert sorted(path.name for path in index.parent.iterdir()) == [
        "defects.json",
        "index.jsonl",
        "tracks.npz",
    ]


def test_everything_that_can_be_wrong_is_named_and_the_rest_goes_on(
    root: Any, cut_file: Any, tmp_path: Path
) -> None:
    entries = [entry(vid) for vid in ("good", "missing", "zero", "short", "words")]
    entries.append(entry("good", temporal_gt={"begin_fid": 9, "end_fid": 9}))
    folder = root(entries, ["good", "missing", "zero", "short", "words"], box=(-4, 2, 30, 40))
    videos = folder / "video" / "0001"
    (videos / "missing.mp4").unlink()
    (videos / "zero.mp4").write_bytes(b"")
    cut_file(videos / "short.mp4", 0.5)
    (videos / "words.mp4").write_text("not a video")
    report = prepare("vidstg", folder, tmp_path / "index.jsonl")

    assert outcome(report) == {
        "box outside picture": ["good/1", "missing/1", "zero/1", "short/1", "words/1"],
        "empty span": ["test-00005"],
        "video empty": ["test-00002-c0"],
        "video missing": ["test-00001-c0"],
        "video truncated": ["test-00003-c0"],
        "video unreadable": ["test-00004-c0"],
    }
    assert report.defects[0]["count"] == 5 * FRAMES
    assert [query.id for query in read_jsonl(tmp_path / "index.jsonl", Query)] == ["test-00000-c0"]
    assert list(Tracks.load(tmp_path / "tracks.npz").keys()) == ["good/1"]
    assert json.loads((tmp_path / "defects.json").read_text())["defects"] == report.defects
    assert (report.num_excluded, report.num_failures) == (5, 5)

    kinds = ("empty span", "video empty", "video missing", "video truncated", "video unreadable")

    assert report.split_counts == {"test": SplitCounts(1, 1, dict.fromkeys(kinds, 1), 0, 0)}
    assert (report.checked_videos, report.edit_lists) == (4, 0)
    assert [report.exit_code(allowed) for allowed in (0, 4, 5, 0.5, 0.9)] == [1, 1, 0, 1, 0]


def test_what_the_video_says_otherwise_is_counted(root: Any, tmp_path: Path) -> None:
    longer = entry(
        "longer",
        frame_count=33,
        used_segment={"begin_fid": 0, "end_fid": 32},
        temporal_gt={"begin_fid": 5, "end_fid": 33},
    )
    beyond = entry(
        "beyond",
        frame_count=33,
        used_segment={"begin_fid": 30, "end_fid": 32},
        temporal_gt={"begin_fid": 30, "end_fid": 33},
    )
    entries = [
        longer,
        beyond,
        entry("other", frame_count=60),
        entry("fps", fps=30),
        entry("size", width=256, height=96),
    ]
    report = prepare(
        "vidstg",
        root(entries, ["longer", "beyond", "other", "fps", "size"]),
        tmp_path / "index.jsonl",
    )

    assert outcome(report) == {
        "no box in the span": ["test-00001-c0"],
        "frame count differs": ["test-00000-c0", "test-00001-c0"],
        "fps disagrees": ["test-00003-c0"],
        "frame count disagrees": ["test-00002-c0"],
        "picture size disagrees": ["test-00004-c0"],
        "span beyond the video": ["test-00001-c0"],
    }

    queries = list(read_jsonl(tmp_path / "index.jsonl", Query))

    assert [query.video for query in queries] == ["longer", "fps", "size"]
    assert (queries[0].frame_count, queries[0].segment) == (30, (0, 30))
    assert queries[0].truth is not None
    assert queries[0].truth.span == (5, 30)
    assert queries[1].fps == pytest.approx(25)
    assert queries[2].size == (256, 96)
    assert report.num_failures == 2


def test_without_any_video_the_index_is_made_from_the_annotations(
    root: Any, tmp_path: Path
) -> None:
    report = prepare("vidstg", root([entry("a"), entry("b")], []), tmp_path / "index.jsonl")

    assert len(list(read_jsonl(tmp_path / "index.jsonl", Query))) == 2
    assert outcome(report) == {
        "no VidOR annotations": [str(tmp_path)],
        "no videos": [str(tmp_path)],
    }
    assert (report.num_excluded, report.without_video, report.without_boxes) == (0, 2, 2)
    assert report.split_counts == {"test": SplitCounts(2, 2, {}, 2, 2)}
    assert report.checked_videos == 0
    assert (report.num_failures, report.exit_code(), report.exit_code(2)) == (2, 1, 0)


def test_own_sentences(tmp_path: Path, make_video: Any) -> None:
    make_video(tmp_path / "a.mp4", FRAMES)
    (tmp_path / "data.jsonl").write_text(
        '{"video": "a.mp4", "text": "a dog"}\n{"video": "b.mp4", "text": "a cat"}\n'
    )
    report = prepare("jsonl", tmp_path / "data.jsonl", tmp_path / "out" / "index.jsonl")

    assert outcome(report) == {"video missing": ["2"]}
    assert (report.queries, report.without_boxes, report.exit_code()) == (1, 0, 1)
    assert report.split_counts == {"test": SplitCounts(1, 1, {"video missing": 1}, 0, 0)}
    assert report.queries_by_split == {"test": 1}
    assert [query.id for query in read_jsonl(tmp_path / "out" / "index.jsonl", Query)] == ["1"]


def test_an_edit_list_is_counted(tmp_path: Path, make_video: Any) -> None:
    import av

    complete = make_video(tmp_path / "whole.mp4", FRAMES)
    options = {"avoid_negative_ts": "disabled", "use_editlist": "1"}
    with (
        av.open(str(complete)) as old,
        av.open(str(tmp_path / "edited.mp4"), "w", options=options) as new,
    ):
        copy = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(old.streams.video[0]):
            if packet.dts is not None:
                packet.pts, packet.dts, packet.stream = (
                    packet.pts - 7 * 512,
                    packet.dts - 7 * 512,
                    copy,
                )
                new.mux(packet)

    (tmp_path / "data.jsonl").write_text('{"video": "edited.mp4", "text": "a dog"}\n')
    report = prepare("jsonl", tmp_path / "data.jsonl", tmp_path / "index.jsonl")

    assert outcome(report) == {"edit list": ["edited.mp4"]}
    assert (report.queries, report.exit_code()) == (1, 0)
    assert (report.checked_videos, report.edit_lists) == (1, 1)


def test_empty_and_repeated_sentences_and_broken_boxes_are_named(root: Any, tmp_path: Path) -> None:
    empty = entry("a", captions=[{"description": " ", "target_id": 1}])
    folder = root([entry("a"), entry("a"), empty], ["a"], box=(9, 2, 9, 40))
    report = prepare("vidstg", folder, tmp_path / "index.jsonl")

    assert outcome(report) == {
        "box without area": ["a/1"],
        "no box in the span": ["test-00000-c0", "test-00001-c0"],
        "empty sentence": ["test-00002-c0"],
        "repeated sentence": ["test-00000-c0"],
    }
    assert report.split_counts == {"test": SplitCounts(2, 1, {"empty sentence": 1}, 0, 2)}


def test_totals_know_the_split_of_each_entry_left_out(root: Any, tmp_path: Path) -> None:
    folder = root([entry("a"), entry("gone")], ["a"])
    broken = [entry("a", fps=0), entry("a"), entry("gone")]
    (folder / "annotations" / "val_annotations.json").write_text(json.dumps(broken))
    (folder / "annotations" / "train_annotations.json").write_text(json.dumps([entry("a", fps=0)]))
    report = prepare("vidstg", folder, tmp_path / "index.jsonl")

    assert report.split_counts == {
        "test": SplitCounts(1, 1, {"video missing": 1}, 0, 0),
        "train": SplitCounts(0, 0, {"malformed entry": 1}, 0, 0),
        "val": SplitCounts(1, 1, {"malformed entry": 1, "video missing": 1}, 0, 0),
    }
    assert (report.num_excluded, report.queries_by_split) == (4, {"test": 1, "val": 1})
    assert json.loads((tmp_path / "defects.json").read_text())["totals"]["train"]["left_out"] == {
        "malformed entry": 1
    }


def test_what_is_left_out_is_counted_in_queries(root: Any, tmp_path: Path) -> None:
    """An entry of three sentences that is left out fails three times, as its sentences would one by
    one.
    """
    asked = {
        "questions": [
            {"description": "who?", "target_id": 1},
            {"description": "what?", "target_id": 1},
        ]
    }
    entries = [
        entry("a"),
        entry("a", temporal_gt={"begin_fid": 9, "end_fid": 9}, **asked),
        entry("a", fps=0, **asked),
    ]
    report = prepare("vidstg", root(entries, ["a"]), tmp_path / "index.jsonl")

    assert report.split_counts == {
        "test": SplitCounts(1, 1, {"empty span": 3, "malformed entry": 3}, 0, 0)
    }
    assert outcome(report) == {"empty span": ["test-00001"], "malformed entry": ["test-00002"]}
    assert (report.queries, report.num_excluded, report.num_failures) == (1, 6, 6)
    assert [report.exit_code(allowed) for allowed in (5, 6, 0.85, 0.86)] == [1, 0, 1, 0]

    summary = json.loads((tmp_path / "defects.json").read_text())

    assert (summary["left_out"], summary["totals"]["test"]["left_out"]) == (
        6,
        {"empty span": 3, "malformed entry": 3},
    )
    assert [(row["excluded"], row["entries"][0]["count"]) for row in summary["defects"]] == [
        (3, 3),
        (3, 3),
    ]


def test_only_the_first_of_the_kept_are_named_and_all_that_are_left_out() -> None:
    defects = DefectLog()

    for number in range(30):
        defects.add("kind", f"kept {number}", "")
        defects.add("kind", f"lost {number}", "", excluded=True, count=2)

    (row,) = defects.to_list()

    assert (row["count"], row["excluded"], defects.num_excluded) == (90, 60, 60)
    assert [item["entry"] for item in row["entries"] if item["outcome"] == "kept"] == [
        f"kept {number}" for number in range(20)
    ]
    assert [item["entry"] for item in row["entries"] if item["outcome"] == "left out"] == [
        f"lost {number}" for number in range(30)
    ]


@pytest.mark.parametrize(
    ("dataset", "place", "content"),
    [
        ("vidstg", "annotations/test_annotations.json", "[]"),
        ("hcstvg-v1", "train.json", "{}"),
        ("hcstvg-v2", "trainv2.json", "{}"),
        ("jsonl", "", "\n"),
    ],
)
def test_where_no_entry_is_nothing_is_written(
    dataset: str, place: str, content: str, tmp_path: Path
) -> None:
    path = tmp_path / "root" / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)

    with pytest.raises(InputError, match=r"there is no entry in|holds no sentence"):
        prepare(dataset, tmp_path / "root", tmp_path / "out" / "index.jsonl")

    assert not (tmp_path / "out").exists()


def test_an_index_goes_over_an_index_alone(tmp_path: Path) -> None:
    root = tmp_path / "root.jsonl"
    root.write_text('{"video": "a.mp4", "text": "a dog"}\n')
    (tmp_path / "link.jsonl").symlink_to(root)
    (tmp_path / "folder.jsonl").mkdir()
    sound = tmp_path / "sound.jsonl"

    for content in ("", '{"format": 1, "id": "1"}\n', '{"format": 7}\n'):
        sound.write_text(content)
        check_index_path(sound, root)

    check_index_path(tmp_path / "nowhere" / "index.jsonl", tmp_path / "absent")

    for name in (
        "index.json",
        "defects.json",
        "tracks.npz",
        "index.log",
        "index",
        "index.jsonl.log",
    ):
        with pytest.raises(InputError, match=rf"the index \S+/{name} must be called <name>\.jsonl"):
            check_index_path(tmp_path / name, root)

    for name in ("root", "link"):
        with pytest.raises(
            InputError,
            match=rf"the index \S+/{name}\.jsonl is the data set's own file; give another",
        ):
            check_index_path(tmp_path / f"{name}.jsonl", root)

    with pytest.raises(InputError, match=r"the index \S+/folder\.jsonl is a folder or a device"):
        check_index_path(tmp_path / "folder.jsonl", root)

    for content in (root.read_text(), "video,text\n", "[" * 100_000, '["format"]', "\n7"):
        sound.write_text(content)
        with pytest.raises(
            InputError,
            match=(
                r"sound\.jsonl exists and is not an index, so it is not overwritten; "
                r"give another"
            ),
        ):
            prepare("jsonl", root, sound)
        assert sound.read_text() == content


def test_totals_know_the_split_of_what_hcstvg_leaves_out(tmp_path: Path) -> None:
    sound = {
        "bbox": [[1, 2, 3, 4]],
        "st_frame": 1,
        "img_num": 200,
        "caption": "a man",
        "width": 64,
        "height": 48,
    }
    (tmp_path / "train.json").write_text(
        json.dumps({"a.mp4": sound, "b.mp4": {**sound, "caption": " "}})
    )
    (tmp_path / "test.json").write_text(
        json.dumps({"c.mp4": sound, "d.mp4": {**sound, "img_num": -1}, "a.mp4": sound})
    )
    report = prepare("hcstvg-v1", tmp_path, tmp_path / "index.jsonl")
    left_out = {split: totals.left_out for split, totals in report.split_counts.items()}

    assert left_out == {
        "train": {"empty sentence": 1},
        "test": {"malformed entry": 1, "repeated id": 1},
    }


VIDSTG_LAYOUT = (
    r"holds no VidSTG annotations\. Put there\n  annotations/\{train,val,test\}_annotations\.json"
)
EXPECTED = {
    "shapes": VIDSTG_LAYOUT,
    "vidstg": VIDSTG_LAYOUT,
    "hcstvg-v1": r"holds no HC-STVG v1 annotations\. Put there\n  train\.json, test\.json\n",
    "hcstvg-v2": (
        r"holds no HC-STVG v2 annotations\. Put there\n"
        r"  trainv2\.json, valv2\.json, testv2\.json\n"
    ),
    "jsonl": r"is not a file of sentences\. Write one JSON object per line",
    "cvat": (
        r"holds no export of CVAT\. Put into one folder\n  the videos, and\n"
        r"  what CVAT exports as 'CVAT for video 1\.1'"
    ),
}


def test_every_data_set_is_asked_for_below() -> None:
    assert set(EXPECTED) == set(PARSERS)


@pytest.mark.parametrize("name", EXPECTED)
def test_an_empty_folder_says_what_to_put_there(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=EXPECTED[name]) as raised:
        prepare(name, tmp_path, tmp_path / "index.jsonl")
    assert str(raised.value).startswith(str(tmp_path))
    assert 3 <= len(str(raised.value).splitlines()) <= 8
    assert not list(tmp_path.iterdir())
