"""HC-STVG's conventions, each pinned on files written by hand, in either version's words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.datasets.hcstvg import parse_v1, parse_v2
from pipeline.datasets.parsed import ParsedDataset
from pipeline.datasets.prepare import prepare
from pipeline.errors import InputError
from pipeline.io.jsonl import read_jsonl
from pipeline.records import Query
from pipeline.tracks import Tracks

NAME = "55_vfjywN5CN0Y.mp4"
IN_V2 = {"English": "A woman waves.", "img_size": [50, 100], "ed_frame": 159}


def outcome(parsed: ParsedDataset) -> dict[str, list[tuple[str, str]]]:
    """Each kind of defect: the entries it names, and what became of them."""
    return {
        row["kind"]: [(item["entry"], item["outcome"]) for item in row["entries"]]
        for row in parsed.defects.to_list()
    }


def without(entry: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key not in keys}


def test_an_entry_of_version_1(write_hcstvg: Any, make_hcstvg_entry: Any) -> None:
    """`st_frame` counts from 1, the tube is as long as its boxes, `img_num` is 20 seconds of
    frames, boxes are x, y, width, height.
    """
    parsed = parse_v1(write_hcstvg("train.json", {NAME: make_hcstvg_entry()}))
    (query,) = parsed.queries

    assert (query.id, query.video, query.path, query.split) == (
        NAME,
        NAME,
        f"video/{NAME}",
        "train",
    )
    assert (query.fps, query.frame_count, query.size, query.segment) == (
        24,
        480,
        (100, 50),
        (0, 480),
    )
    assert (query.text, query.form, query.object) == ("The man opens the bag.", None, None)
    assert query.truth is not None
    assert (query.truth.span, query.truth.track) == ((156, 159), NAME)

    frames, boxes = parsed.tracks[NAME]

    assert frames.tolist() == [156, 157, 158]
    assert boxes.tolist() == [[1, 2, 31, 42], [2, 2, 32, 42], [3, 2, 33, 42]]
    assert outcome(parsed) == {}


def test_the_first_frame_is_frame_0(write_hcstvg: Any, make_hcstvg_entry: Any) -> None:
    entry = make_hcstvg_entry(st_frame=1, st_time=0.0107, ed_time=0.12, img_num=501)
    (query,) = parse_v1(write_hcstvg("test.json", {NAME: entry})).queries
    assert query.truth is not None
    assert (query.truth.span, query.fps, query.split) == ((0, 3), 25.05, "test")


def test_an_entry_of_version_2(write_hcstvg: Any, make_hcstvg_entry: Any) -> None:
    """`img_size` is [height, width], with or without channels; `ed_frame` is the last frame,
    counted from 1.
    """
    entry = without(make_hcstvg_entry(), "caption", "width", "height") | IN_V2
    write_hcstvg("trainv2.json", {"1_a.mp4": entry})
    parsed = parse_v2(write_hcstvg("valv2.json", {"2_a.mp4": entry | {"img_size": [50, 100, 3]}}))

    assert [(query.text, query.size, query.split) for query in parsed.queries] == [
        ("A woman waves.", (100, 50), "train"),
        ("A woman waves.", (100, 50), "val"),
    ]
    assert [query.truth.span for query in parsed.queries if query.truth] == [(156, 159)] * 2
    assert outcome(parsed) == {}


@pytest.mark.parametrize("parse", [parse_v1, parse_v2])
def test_either_words_are_read_in_either_version(
    write_hcstvg: Any, make_hcstvg_entry: Any, parse: Any
) -> None:
    second = without(make_hcstvg_entry(), "caption", "width", "height") | IN_V2
    parsed = parse(write_hcstvg("train.json", {"1_a.mp4": make_hcstvg_entry(), "2_a.mp4": second}))

    assert not parsed.defects.num_excluded

    first, second = parsed.queries

    assert first.size == second.size
    assert first.truth.span == second.truth.span


@pytest.mark.parametrize(("img_num", "fps"), [(200, 10.0), (599, 29.95), (1200, 60.0)])
def test_the_rate_is_img_num_over_20_seconds(
    write_hcstvg: Any, make_hcstvg_entry: Any, img_num: int, fps: float
) -> None:
    entry = make_hcstvg_entry(img_num=img_num, st_time=156 / fps, ed_time=159 / fps)
    parsed = parse_v1(write_hcstvg("train.json", {NAME: entry}))
    assert (parsed.queries[0].fps, parsed.queries[0].frame_count) == (fps, img_num)
    assert outcome(parsed) == {}


def test_the_boxes_say_how_long_the_tube_is(write_hcstvg: Any, make_hcstvg_entry: Any) -> None:
    parsed = parse_v2(write_hcstvg("train.json", {NAME: make_hcstvg_entry(ed_frame=160)}))
    assert parsed.queries[0].truth is not None
    assert parsed.queries[0].truth.span == (156, 159)
    assert outcome(parsed) == {"end frame disagrees": [(NAME, "kept")]}


@pytest.mark.parametrize(
    ("times", "reported"),
    [
        ({"st_time": 6.5 + 0.49}, False),
        ({"st_time": 6.5 + 0.51}, True),
        ({"ed_time": 159 / 24 - 0.49}, False),
        ({"ed_time": 159 / 24 - 0.51}, True),
        ({"st_time": None, "ed_time": None}, False),
        ({"st_time": "6.5", "ed_time": 159 / 24}, False),
        ({"st_time": "0:03"}, True),
        ({"ed_time": [6.6]}, True),
        ({"ed_time": float("nan")}, True),
        ({"st_time": 10**400}, True),
    ],
)
def test_frames_win_over_times(
    write_hcstvg: Any, make_hcstvg_entry: Any, times: dict[str, Any], reported: bool
) -> None:
    parsed = parse_v1(write_hcstvg("train.json", {NAME: make_hcstvg_entry(**times)}))
    assert parsed.queries[0].truth is not None
    assert parsed.queries[0].truth.span == (156, 159)
    assert outcome(parsed) == ({"times disagree": [(NAME, "kept")]} if reported else {})


@pytest.mark.parametrize(("st_frame", "span"), [(0, (0, 2)), (479, (478, 480))])
def test_a_tube_that_leaves_the_video_is_clipped(
    write_hcstvg: Any, make_hcstvg_entry: Any, st_frame: int, span: tuple[int, int]
) -> None:
    parsed = parse_v1(
        write_hcstvg(
            "train.json", {NAME: make_hcstvg_entry(st_frame=st_frame, st_time=None, ed_time=None)}
        )
    )

    assert parsed.queries[0].truth is not None
    assert parsed.queries[0].truth.span == span

    frames, boxes = parsed.tracks[NAME]

    assert frames.tolist() == list(range(*span))
    assert boxes[:, 0].tolist() == ([2, 3] if st_frame == 0 else [1, 2])
    assert outcome(parsed) == {"span leaves the video": [(NAME, "kept")]}


def test_boxes_are_clipped_to_the_picture(write_hcstvg: Any, make_hcstvg_entry: Any) -> None:
    boxes = [[-5, 2, 30, 60], [120, 2, 10, 40], [20, 20, 0, 10], [30, 5, -10, 10], [1, 2, 30, 40]]
    parsed = parse_v2(write_hcstvg("trainv2.json", {NAME: make_hcstvg_entry(bbox=boxes)}))
    frames, kept = parsed.tracks[NAME]

    assert frames.tolist() == [156, 160]
    assert kept.tolist() == [[0, 2, 25, 50], [1, 2, 31, 42]]
    assert {row["kind"]: row["count"] for row in parsed.defects.to_list()} == {
        "box outside picture": 2,
        "box without area": 3,
    }


def test_a_tube_whose_boxes_all_lie_outside_keeps_its_span(
    write_hcstvg: Any, make_hcstvg_entry: Any
) -> None:
    parsed = parse_v1(
        write_hcstvg("train.json", {NAME: make_hcstvg_entry(bbox=[[120, 2, 10, 40]])})
    )
    assert parsed.queries[0].truth is not None
    assert (parsed.queries[0].truth.span, parsed.queries[0].truth.track) == ((156, 157), None)
    assert outcome(parsed)["no box in the span"] == [(NAME, "kept")]


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"caption": 7}, "malformed entry"),
        ({"caption": "a\0b"}, "malformed entry"),
        ({"caption": " "}, "empty sentence"),
        ({"img_num": 0}, "malformed entry"),
        ({"width": 2**16 + 1}, "malformed entry"),
        ({"st_frame": "first"}, "malformed entry"),
        ({"st_frame": None}, "malformed entry"),
        ({"bbox": [[1, 2, 3]]}, "malformed entry"),
        ({"bbox": [[1, 2, 3, None]]}, "malformed entry"),
        ({"bbox": [[1, 2, 3, 4], [1, 2]]}, "malformed entry"),
        ({"bbox": [[1, 2, 3, 10**30]]}, "malformed entry"),
        ({"bbox": [[1, 2, 3, 10**400]]}, "malformed entry"),
        ({"bbox": {"156": [1, 2, 3, 4]}}, "malformed entry"),
        ({"bbox": 7}, "malformed entry"),
        ({"bbox": None}, "malformed entry"),
        ({"bbox": None, "st_frame": None}, "no truth"),
        ({"bbox": []}, "empty span"),
        ({"st_frame": 481}, "span beyond the video"),
        ({"st_frame": -9}, "span beyond the video"),
    ],
)
def test_a_broken_entry_is_left_out_by_name(
    write_hcstvg: Any, make_hcstvg_entry: Any, changes: dict[str, Any], kind: str
) -> None:
    parsed = parse_v1(
        write_hcstvg(
            "train.json",
            {
                "1_a.mp4": make_hcstvg_entry(),
                "2_a.mp4": make_hcstvg_entry(**changes),
                "3_a.mp4": make_hcstvg_entry(),
            },
        )
    )
    assert [query.id for query in parsed.queries] == ["1_a.mp4", "3_a.mp4"]
    assert outcome(parsed) == {kind: [("2_a.mp4", "left out")]}


@pytest.mark.parametrize("entry", [None, 7, [], {}, ""])
def test_an_entry_of_any_type_is_a_defect(write_hcstvg: Any, entry: Any) -> None:
    parsed = parse_v2(write_hcstvg("train.json", {NAME: entry}))
    assert not parsed.queries
    assert list(outcome(parsed).values()) == [[(NAME, "left out")]]


def test_what_is_wrong_with_boxes_is_said(write_hcstvg: Any, make_hcstvg_entry: Any) -> None:
    parsed = parse_v1(write_hcstvg("train.json", {NAME: make_hcstvg_entry(bbox=[[1, 2, 3]])}))
    (row,) = parsed.defects.to_list()[0]["entries"]

    assert row["detail"].startswith(
        "bbox: not a list of [x, y, width, height] in pixels, each at most 1000000 "
        "(got [[1, 2, 3]])"
    )


@pytest.mark.parametrize(
    "name",
    [
        "../a.mp4",
        "/etc/a.mp4",
        "a/b.mp4",
        "a\0.mp4",
        "a\n.mp4",
        "",
        "..",
        ".hidden.mp4",
        "a\\b.mp4",
        "\ud800.mp4",
    ],
)
def test_a_name_that_is_not_plain_never_becomes_a_path(
    write_hcstvg: Any, make_hcstvg_entry: Any, name: str
) -> None:
    parsed = parse_v1(
        write_hcstvg("train.json", {name: make_hcstvg_entry(), NAME: make_hcstvg_entry()})
    )
    assert [query.path for query in parsed.queries] == [f"video/{NAME}"]
    assert outcome(parsed) == {"video name is not a plain name": [(repr(name), "left out")]}


@pytest.mark.parametrize("frame", ["last", [159], 10**400, 158.5])
def test_an_end_frame_that_is_no_number_disagrees(
    write_hcstvg: Any, make_hcstvg_entry: Any, frame: Any
) -> None:
    parsed = parse_v2(write_hcstvg("trainv2.json", {NAME: make_hcstvg_entry(ed_frame=frame)}))
    assert parsed.queries[0].truth is not None
    assert parsed.queries[0].truth.span == (156, 159)
    assert outcome(parsed) == {"end frame disagrees": [(NAME, "kept")]}


def test_a_name_in_two_splits_counts_once(write_hcstvg: Any, make_hcstvg_entry: Any) -> None:
    write_hcstvg("train.json", {NAME: make_hcstvg_entry(caption="first")})
    parsed = parse_v1(write_hcstvg("test.json", {NAME: make_hcstvg_entry(caption="second")}))
    assert [(query.split, query.text) for query in parsed.queries] == [("train", "first")]
    assert outcome(parsed) == {"repeated id": [(NAME, "left out")]}


def test_one_video_in_two_splits_is_reported_and_kept(
    write_hcstvg: Any, make_hcstvg_entry: Any, tmp_path: Path
) -> None:
    (tmp_path / "1_a.mp4").touch()
    write_hcstvg("train.json", {"1_a.mp4": make_hcstvg_entry()})
    parsed = parse_v1(write_hcstvg("test.json", {"1_a.mkv": make_hcstvg_entry()}))
    assert [query.path for query in parsed.queries] == ["1_a.mp4", "1_a.mp4"]
    assert outcome(parsed)["video in several splits"] == [("1_a.mp4", "kept")]


def test_videos_are_found_anywhere_below_the_root(
    write_hcstvg: Any, make_hcstvg_entry: Any, tmp_path: Path
) -> None:
    places = [
        "v1_video/1_a.mp4",
        "video/7/2_a.mkv",
        "parts/b/3_a.mp4",
        "parts/a/3_a.mp4",
        "4_a.mkv",
    ]

    for place in places:
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).touch()

    (tmp_path / "parts" / "again").symlink_to(tmp_path / "parts")
    names = ["1_a.mp4", "2_a.mkv", "3_a.mp4", "4_a.mp4", "5_a.mkv"]
    parsed = parse_v1(
        write_hcstvg("train.json", {name: make_hcstvg_entry(caption=name) for name in names})
    )

    assert [query.path for query in parsed.queries] == [
        "v1_video/1_a.mp4",
        "video/7/2_a.mkv",
        "parts/a/3_a.mp4",
        "4_a.mkv",
        "video/5_a.mkv",
    ]
    assert outcome(parsed) == {
        "several videos of one name": [("3_a.mp4", "kept")],
        "video with another extension": [("4_a.mp4", "kept")],
    }

    (twice,) = [
        row["entries"][0]["detail"]
        for row in parsed.defects.to_list()
        if row["kind"] == "several videos of one name"
    ]

    assert twice == "parts/a/3_a.mp4 is used, parts/b/3_a.mp4 ignored"


@pytest.mark.parametrize("file", ["22_a.MP4", "parts/22_a.Mp4"])
def test_the_case_of_an_extension_does_not_count(
    write_hcstvg: Any, make_hcstvg_entry: Any, tmp_path: Path, file: str
) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).touch()
    parsed = parse_v1(write_hcstvg("train.json", {"22_a.mp4": make_hcstvg_entry()}))
    assert [query.path for query in parsed.queries] == [file]
    assert outcome(parsed) == {}


@pytest.mark.parametrize(
    ("place", "parse", "split"),
    [
        ("train.json", parse_v1, "train"),
        ("annotations/test.json", parse_v1, "test"),
        ("annos/hcstvg_v1/test.json", parse_v1, "test"),
        ("trainv2.json", parse_v2, "train"),
        ("annos/train_v2.json", parse_v2, "train"),
        ("annos/hcstvg_v2/val.json", parse_v2, "val"),
        ("anno_v2/valv2.json", parse_v2, "val"),
        ("testv2.json", parse_v2, "test"),
        ("test_v2.json", parse_v2, "test"),
        ("queryv2.json", parse_v2, "test"),
        ("annotations/query_v2.json", parse_v2, "test"),
    ],
)
def test_where_annotations_may_lie(
    write_hcstvg: Any, make_hcstvg_entry: Any, place: str, parse: Any, split: str
) -> None:
    assert [
        query.split for query in parse(write_hcstvg(place, {NAME: make_hcstvg_entry()})).queries
    ] == [split]


def test_version_2s_own_names_come_first(write_hcstvg: Any, make_hcstvg_entry: Any) -> None:
    """Some copy the validation file to `test.json`: the file with version 2's name wins, wherever
    it lies.
    """
    write_hcstvg("test.json", {"1_a.mp4": make_hcstvg_entry()})
    parsed = parse_v2(write_hcstvg("annos/query_v2.json", {"2_a.mp4": make_hcstvg_entry()}))
    assert [query.id for query in parsed.queries] == ["2_a.mp4"]


BARE = {"English": "A woman waves.", "img_num": 480, "img_size": [50, 100]}
FIRST = {
    "caption": "A man.",
    "img_num": 480,
    "width": 100,
    "height": 50,
    "st_frame": 157,
    "bbox": [[1, 2, 30, 40]],
}
SECOND = BARE | {"st_frame": 157, "ed_frame": 157, "bbox": [[1, 2, 30, 40]]}


@pytest.mark.parametrize(
    ("parse", "place", "entries", "other"),
    [
        (parse_v2, "train.json", [FIRST, FIRST], "1"),
        (parse_v2, "annos/test.json", [FIRST, FIRST, SECOND], "1"),
        (parse_v1, "train.json", [SECOND, SECOND, FIRST], "2"),
        (parse_v1, "annotations/test.json", [BARE, "A woman waves."], "2"),
    ],
)
def test_the_other_versions_root_is_refused(
    write_hcstvg: Any, parse: Any, place: str, entries: list[Any], other: str
) -> None:
    root = write_hcstvg(place, {f"{number}_a.mp4": entry for number, entry in enumerate(entries)})
    message = (
        rf"{place} is a file of HC-STVG v{other}: 2 of its {len(entries)} entries .* "
        rf"read it with --dataset hcstvg-v{other}, or give"
    )

    with pytest.raises(InputError, match=message):
        parse(root)


@pytest.mark.parametrize(
    ("parse", "place", "entries"),
    [
        (parse_v2, "trainv2.json", [FIRST]),
        (parse_v2, "annos/hcstvg_v2/train.json", [FIRST]),
        (parse_v2, "train.json", [FIRST | {"ed_frame": 157}]),
        (parse_v2, "train.json", [FIRST, SECOND]),
        (parse_v1, "annos/hcstvg_v1/train.json", [SECOND]),
        (
            parse_v1,
            "train.json",
            [{key: value for key, value in SECOND.items() if key != "ed_frame"}],
        ),
        (parse_v1, "train.json", [FIRST, SECOND]),
    ],
)
def test_the_other_versions_words_alone_are_read(
    write_hcstvg: Any, parse: Any, place: str, entries: list[Any]
) -> None:
    parsed = parse(
        write_hcstvg(place, {f"{number}_a.mp4": entry for number, entry in enumerate(entries)})
    )
    assert [query.truth.span for query in parsed.queries if query.truth] == [(156, 157)] * len(
        entries
    )


def test_files_without_an_entry_are_refused(write_hcstvg: Any, make_hcstvg_entry: Any) -> None:
    write_hcstvg("train.json", {})

    with pytest.raises(
        InputError,
        match=r"there is no entry in \S+train\.json, \S+test\.json; download the annotations again",
    ):
        parse_v1(write_hcstvg("test.json", {}))

    assert outcome(parse_v1(write_hcstvg("test.json", {NAME: 7}))) == {
        "malformed entry": [(NAME, "left out")]
    }


def test_a_root_that_is_no_folder_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(
        InputError,
        match=r"file is a file; the data set's folder is expected\. Put there\n  train\.json",
    ):
        parse_v1(tmp_path / "file")

    with pytest.raises(InputError, match=r"nowhere does not exist\. Put there\n  trainv2\.json"):
        parse_v2(tmp_path / "nowhere")


def test_sentences_without_truth(
    write_hcstvg: Any, make_hcstvg_entry: Any, tmp_path: Path, make_video: Any
) -> None:
    """Test sentences may say nothing else: the video says the rest, and without it they are left
    out by name.
    """
    make_video(tmp_path / "2_a.mp4")
    entries = {
        "1_a.mp4": without(make_hcstvg_entry(), "bbox", "st_frame", "st_time", "ed_time"),
        "2_a.mp4": "A man runs.",
        "3_a.mp4": {"English": "A man sits."},
    }
    parsed = parse_v2(write_hcstvg("queryv2.json", entries))
    stated, bare = parsed.queries

    assert (stated.frame_count, stated.fps, stated.size, stated.truth) == (480, 24, (100, 50), None)
    assert (bare.frame_count, bare.fps, bare.size, bare.truth) == (
        40,
        pytest.approx(25),
        (128, 48),
        None,
    )
    assert (bare.text, bare.segment) == ("A man runs.", (0, 40))
    assert outcome(parsed) == {"video missing": [("3_a.mp4", "left out")]}


@pytest.mark.parametrize(
    ("parse", "message"),
    [
        (parse_v1, r"holds no HC-STVG v1 annotations\. Put there\n  train\.json, test\.json\n"),
        (
            parse_v2,
            r"holds no HC-STVG v2 annotations\. Put there\n"
            r"  trainv2\.json, valv2\.json, testv2\.json\n",
        ),
    ],
)
def test_a_folder_without_annotations_says_what_to_put_there(
    tmp_path: Path, parse: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        parse(tmp_path)


def test_a_file_that_is_not_an_object_is_named(write_hcstvg: Any) -> None:
    with pytest.raises(
        InputError, match=r"train\.json must hold an object with an entry for each video, not list"
    ):
        parse_v1(write_hcstvg("train.json", []))


@pytest.mark.parametrize(
    ("version", "file"), [("hcstvg-v1", "train.json"), ("hcstvg-v2", "trainv2.json")]
)
def test_from_the_folder_to_the_index(
    write_hcstvg: Any,
    make_hcstvg_entry: Any,
    tmp_path: Path,
    make_video: Any,
    version: str,
    file: str,
) -> None:
    sound = make_hcstvg_entry(img_num=500, width=128, height=48, st_time=None, ed_time=None)
    make_video(tmp_path / "1_a.mp4", 500)
    (tmp_path / "2_a.mp4").write_bytes(b"")
    root = write_hcstvg(file, {"1_a.mp4": sound, "2_a.mp4": sound, "3_a.mp4": sound})
    report = prepare(version, root, tmp_path / "out" / "index.jsonl")

    assert {row["kind"]: [item["entry"] for item in row["entries"]] for row in report.defects} == {
        "video empty": ["2_a.mp4"],
        "video missing": ["3_a.mp4"],
    }

    (query,) = read_jsonl(tmp_path / "out" / "index.jsonl", Query)

    assert (query.id, query.fps, query.frame_count) == ("1_a.mp4", 25, 500)
    assert Tracks.load(tmp_path / "out" / "tracks.npz")["1_a.mp4"][0].tolist() == [156, 157, 158]
