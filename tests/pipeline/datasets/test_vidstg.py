"""VidSTG's conventions, each pinned on a tree written by hand, and the real validation file."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.datasets.parsed import ParsedDataset
from pipeline.datasets.vidstg import parse
from pipeline.errors import InputError

REPOSITORY = Path(__file__).parents[3]
ANNOTATIONS = Path(
    os.environ.get("STVG_ANNOTATIONS") or REPOSITORY.parent / "shared" / "annotations"
)
BOX = (1, 2, 30, 40)


def kinds(parsed: ParsedDataset) -> dict[str, tuple[int, int]]:
    """Each kind of defect: (count, left out)."""
    return {row["kind"]: (row["count"], row["excluded"]) for row in parsed.defects.to_list()}


def named(parsed: ParsedDataset, kind: str) -> list[str]:
    return [
        item["entry"]
        for row in parsed.defects.to_list()
        if row["kind"] == kind
        for item in row["entries"]
    ]


def test_each_caption_and_question_is_a_query(
    write_vidstg: Any, make_vidstg_entry: Any, write_vidor: Any
) -> None:
    write_vidor("101", {4: [(0, *BOX), (3, 5, 5, 9, 9)]})
    caption, question = parse(
        write_vidstg(
            val=[make_vidstg_entry(vid="x", captions=[], questions=[]), make_vidstg_entry()]
        )
    ).queries

    assert (caption.id, question.id) == ("val-00001-c0", "val-00001-q0")
    assert (caption.form, question.form) == ("declarative", "interrogative")
    assert (caption.object, question.object) == ("dog", "ball")
    assert caption.text == "a dog chases a ball."
    assert (caption.video, caption.path, caption.split) == ("101", "video/0007/101.mp4", "val")
    assert (caption.fps, caption.frame_count, caption.size) == (10, 20, (100, 50))
    assert caption.truth is not None
    assert question.truth is not None
    assert (caption.truth.track, question.truth.track) == ("101/0", "101/3")


def test_a_span_ends_before_its_end_and_a_segment_with_it(
    write_vidstg: Any, make_vidstg_entry: Any
) -> None:
    """`temporal_gt.end_fid` is exclusive, `used_segment.end_fid` inclusive: [4, 14) lies in [2, 13
    + 1).
    """
    query = parse(write_vidstg(test=[make_vidstg_entry()])).queries[0]
    assert query.segment == (2, 14)
    assert query.truth is not None
    assert query.truth.span == (4, 14)


def test_the_first_frame_belongs_to_segment_and_span(
    write_vidstg: Any, make_vidstg_entry: Any
) -> None:
    """Both `begin_fid` are inclusive."""
    query = parse(
        write_vidstg(test=[make_vidstg_entry(used_segment={"begin_fid": 4, "end_fid": 13})])
    ).queries[0]
    assert query.truth is not None
    assert (query.segment[0], query.truth.span[0]) == (4, 4)


def test_a_truth_may_end_with_its_segment(write_vidstg: Any, make_vidstg_entry: Any) -> None:
    """`temporal_gt.end_fid` = `used_segment.end_fid` + 1: the last frame of both is the same, and
    nothing is clipped.
    """
    parsed = parse(
        write_vidstg(
            test=[
                make_vidstg_entry(
                    used_segment={"begin_fid": 2, "end_fid": 13},
                    temporal_gt={"begin_fid": 4, "end_fid": 14},
                )
            ]
        )
    )
    query = parsed.queries[0]

    assert query.truth is not None
    assert query.segment[1] == query.truth.span[1] == 14
    assert "span leaves its segment" not in kinds(parsed)


@pytest.mark.parametrize("fps", [10, 29.97, 60])
def test_any_rate_is_kept(write_vidstg: Any, make_vidstg_entry: Any, fps: float) -> None:
    query = parse(write_vidstg(test=[make_vidstg_entry(fps=fps)])).queries[0]
    assert (query.fps, query.frame_count, query.segment) == (fps, 20, (2, 14))


def test_boxes_of_a_tall_picture_are_clipped_to_it(
    write_vidstg: Any, make_vidstg_entry: Any, write_vidor: Any
) -> None:
    write_vidor("101", {4: [(0, 10, 20, 70, 90)]})
    parsed = parse(write_vidstg(test=[make_vidstg_entry(width=50, height=100)]))
    assert parsed.queries[0].size == (50, 100)
    assert parsed.tracks["101/0"][1].tolist() == [[10, 20, 50, 90]]


def test_entries_that_disagree_on_the_picture_are_reported(
    write_vidstg: Any, make_vidstg_entry: Any
) -> None:
    parsed = parse(write_vidstg(val=[make_vidstg_entry(), make_vidstg_entry(width=50)]))
    assert [query.size for query in parsed.queries] == [(100, 50)] * 2 + [(50, 50)] * 2
    assert named(parsed, "picture sizes disagree") == ["101"]


def test_one_video_in_two_splits_is_reported_and_kept(
    write_vidstg: Any, make_vidstg_entry: Any
) -> None:
    parsed = parse(write_vidstg(train=[make_vidstg_entry()], test=[make_vidstg_entry()]))
    assert len(parsed.queries) == 4
    assert named(parsed, "video in several splits") == ["video/101.mp4"]


def test_a_segment_is_clipped_to_the_video(write_vidstg: Any, make_vidstg_entry: Any) -> None:
    parsed = parse(
        write_vidstg(test=[make_vidstg_entry(used_segment={"begin_fid": 0, "end_fid": 20})])
    )
    assert parsed.queries[0].segment == (0, 20)
    assert not parsed.defects.num_excluded


def test_a_span_that_leaves_its_segment_is_clipped_and_counted(
    write_vidstg: Any, make_vidstg_entry: Any
) -> None:
    parsed = parse(
        write_vidstg(test=[make_vidstg_entry(temporal_gt={"begin_fid": 1, "end_fid": 16})])
    )
    assert parsed.queries[0].truth is not None
    assert parsed.queries[0].truth.span == (2, 14)
    assert kinds(parsed)["span leaves its segment"] == (1, 0)


def test_boxes_come_from_either_half_of_vidor(
    write_vidstg: Any, make_vidstg_entry: Any, write_vidor: Any
) -> None:
    write_vidor(
        "101",
        {
            3: [(0, *BOX)],
            4: [(0, 2, 2, 30, 40), (9, 0, 0, 1, 1)],
            6: [(0, *BOX), (0, 9, 9, 10, 10)],
        },
        "validation",
        "1000",
    )
    parsed = parse(write_vidstg(test=[make_vidstg_entry(questions=[])]))
    frames, boxes = parsed.tracks["101/0"]

    assert frames.tolist() == [3, 4, 6]
    assert boxes.tolist() == [list(BOX), [2, 2, 30, 40], list(BOX)]
    assert boxes.dtype == np.float32
    assert list(parsed.tracks.keys()) == ["101/0"]
    assert parsed.queries[0].path == "video/1000/101.mp4"
    assert not kinds(parsed)


def test_without_vidor_spans_remain(write_vidstg: Any, make_vidstg_entry: Any) -> None:
    parsed = parse(write_vidstg(test=[make_vidstg_entry()]))
    assert [query.truth.track for query in parsed.queries if query.truth] == [None, None]
    assert parsed.queries[0].path == "video/101.mp4"
    assert kinds(parsed) == {"no VidOR annotations": (1, 0)}


def test_a_video_is_found_where_it_lies(
    write_vidstg: Any, make_vidstg_entry: Any, tmp_path: Path
) -> None:
    (tmp_path / "video" / "0042").mkdir(parents=True)
    (tmp_path / "video" / "0042" / "101.mp4").touch()
    assert parse(write_vidstg(test=[make_vidstg_entry()])).queries[0].path == "video/0042/101.mp4"


@pytest.mark.parametrize(
    ("file", "noted"),
    [("0042/101.MP4", []), ("0042/101.mkv", ["101.mp4"]), ("0042/101.WEBM", ["101.mp4"])],
)
def test_a_video_is_found_whatever_its_extension(
    write_vidstg: Any, make_vidstg_entry: Any, tmp_path: Path, file: str, noted: list[str]
) -> None:
    (tmp_path / "video" / "0042").mkdir(parents=True)
    (tmp_path / "video" / file).touch()
    parsed = parse(write_vidstg(test=[make_vidstg_entry(), make_vidstg_entry()]))

    assert {query.path for query in parsed.queries} == {f"video/{file}"}
    assert named(parsed, "video with another extension") == noted
    assert not parsed.defects.num_excluded


def test_boxes_are_found_in_files_of_upper_case(
    write_vidstg: Any, make_vidstg_entry: Any, write_vidor: Any, tmp_path: Path
) -> None:
    write_vidor("101", {4: [(0, *BOX)]})
    path = tmp_path / "annotation" / "training" / "0007" / "101.json"
    path.rename(path.with_suffix(".JSON"))
    assert list(parse(write_vidstg(test=[make_vidstg_entry()])).tracks.keys()) == ["101/0"]


def test_boxes_are_clipped_to_the_picture(
    write_vidstg: Any, make_vidstg_entry: Any, write_vidor: Any
) -> None:
    write_vidor(
        "101",
        {
            4: [(0, -5, 2, 30, 60)],
            5: [(0, 120, 2, 130, 40)],
            6: [(0, 20, 20, 20, 30)],
            7: [(0, *BOX)],
        },
    )
    parsed = parse(write_vidstg(test=[make_vidstg_entry(questions=[])]))
    frames, boxes = parsed.tracks["101/0"]

    assert frames.tolist() == [4, 7]
    assert boxes.tolist() == [[0, 2, 30, 50], list(BOX)]
    assert kinds(parsed) == {"box outside picture": (2, 0), "box without area": (2, 0)}


def test_a_target_without_a_box_in_the_span_keeps_its_span(
    write_vidstg: Any, make_vidstg_entry: Any, write_vidor: Any
) -> None:
    write_vidor("101", {3: [(0, *BOX)], 14: [(0, *BOX)]})
    parsed = parse(write_vidstg(test=[make_vidstg_entry()]))
    assert [query.truth.track for query in parsed.queries if query.truth] == [None, None]
    assert named(parsed, "no box in the span") == ["test-00000-c0", "test-00000-q0"]


def test_vidor_files_that_are_broken_or_absent_are_named(
    write_vidstg: Any, make_vidstg_entry: Any, write_vidor: Any, tmp_path: Path
) -> None:
    write_vidor("101", {4: [(0, *BOX)]})
    good = tmp_path / "annotation" / "training" / "0007" / "101.json"
    (good.parent / "102.json").write_text('{"trajectories": [')
    (good.parent / "103.json").write_text("[1, 2]")
    (good.parent / "105.json").write_text(
        '{"trajectories": [7, [{"tid": 0}], [{"tid": 0, "bbox": {"xmin": NaN}}], [null]]}'
    )
    parsed = parse(
        write_vidstg(
            test=[make_vidstg_entry(vid=vid) for vid in ("101", "102", "103", "104", "105")]
        )
    )

    assert len(parsed.queries) == 10
    assert named(parsed, "unreadable box file") == ["102", "103"]
    assert named(parsed, "no box file") == ["104"]
    assert kinds(parsed)["malformed box"] == (4, 0)


@pytest.mark.parametrize(
    "side", ["NaN", "1e999", "1000001", "-1000001", "1" + "0" * 400, '"left"', "null", "[1]"]
)
def test_a_box_with_a_side_that_is_no_place_is_left_out(
    write_vidstg: Any, make_vidstg_entry: Any, write_vidor: Any, tmp_path: Path, side: str
) -> None:
    write_vidor("101", {4: [(0, 987654, *BOX[1:])], 5: [(0, *BOX)]})
    path = tmp_path / "annotation" / "training" / "0007" / "101.json"
    path.write_text(path.read_text().replace("987654", side))
    parsed = parse(write_vidstg(test=[make_vidstg_entry(questions=[])]))

    assert parsed.tracks["101/0"][0].tolist() == [5]
    assert kinds(parsed) == {"malformed box": (1, 0)}


def test_the_kind_of_an_object_id_is_exact(
    write_vidstg: Any, make_vidstg_entry: Any, write_vidor: Any, tmp_path: Path
) -> None:
    """1 is neither true nor 1.0."""
    write_vidor("101", {4: [(0, *BOX)], 5: [(False, *BOX)], 6: [(0.0, *BOX)]})
    parsed = parse(write_vidstg(test=[make_vidstg_entry(questions=[])]))
    assert parsed.tracks["101/0"][0].tolist() == [4]
    assert kinds(parsed) == {"malformed box": (2, 0)}


def test_tags_are_carried(write_vidstg: Any, make_vidstg_entry: Any) -> None:
    caption = {"description": "a dog", "target_id": 0, "tags": ["look-alike"]}
    assert parse(write_vidstg(test=[make_vidstg_entry(captions=[caption], questions=[])])).queries[
        0
    ].tags == ("look-alike",)


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"vid": 101}, "malformed entry"),
        ({"fps": 0}, "malformed entry"),
        ({"fps": float("nan")}, "malformed entry"),
        ({"fps": 1001}, "malformed entry"),
        ({"fps": 1e-300}, "malformed entry"),
        ({"frame_count": 10**30}, "malformed entry"),
        ({"height": 2**16 + 1}, "malformed entry"),
        ({"temporal_gt": {"begin_fid": 4, "end_fid": 10**9}}, "malformed entry"),
        ({"subject/objects": [{"tid": 2**63, "category": "dog"}]}, "malformed entry"),
        ({"subject/objects": [{"tid": 0, "category": "a\0"}]}, "malformed entry"),
        ({"vid": "a\0"}, "video id is not a plain name"),
        ({"vid": "/etc/passwd"}, "video id is not a plain name"),
        ({"frame_count": "20"}, "malformed entry"),
        ({"temporal_gt": None}, "malformed entry"),
        ({"used_segment": {"begin_fid": 0}}, "malformed entry"),
        ({"subject/objects": {}}, "malformed entry"),
        ({"captions": "a dog"}, "malformed entry"),
        ({"vid": "../../etc/passwd"}, "video id is not a plain name"),
        ({"vid": ".."}, "video id is not a plain name"),
        ({"vid": "a\n"}, "video id is not a plain name"),
        ({"vid": ""}, "video id is not a plain name"),
        ({"captions": [], "questions": []}, "entry without sentences"),
        ({"used_segment": {"begin_fid": 9, "end_fid": 8}}, "empty segment"),
        ({"used_segment": {"begin_fid": 20, "end_fid": 30}}, "empty segment"),
        ({"temporal_gt": {"begin_fid": 6, "end_fid": 6}}, "empty span"),
        ({"temporal_gt": {"begin_fid": 14, "end_fid": 16}}, "span outside its segment"),
    ],
)
def test_a_broken_entry_is_left_out_by_name(
    write_vidstg: Any, make_vidstg_entry: Any, changes: dict[str, Any], kind: str
) -> None:
    parsed = parse(
        write_vidstg(
            test=[make_vidstg_entry(), make_vidstg_entry(**changes), make_vidstg_entry(vid="102")]
        )
    )

    assert [query.id[:10] for query in parsed.queries] == [
        "test-00000",
        "test-00000",
        "test-00002",
        "test-00002",
    ]
    assert named(parsed, kind) == ["test-00001"]

    sentences = (changes.get(key, [{}]) for key in ("captions", "questions"))
    lost = sum(len(result) for result in sentences if isinstance(result, list)) or 1

    assert kinds(parsed)[kind] == (lost, lost)


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"fps": 0}, "malformed entry"),
        ({"vid": ".."}, "video id is not a plain name"),
        ({"used_segment": {"begin_fid": 9, "end_fid": 8}}, "empty segment"),
        ({"temporal_gt": {"begin_fid": 6, "end_fid": 6}}, "empty span"),
        ({"temporal_gt": {"begin_fid": 14, "end_fid": 16}}, "span outside its segment"),
    ],
)
def test_an_entry_left_out_counts_as_all_its_queries(
    write_vidstg: Any, make_vidstg_entry: Any, changes: dict[str, Any], kind: str
) -> None:
    question = {"description": "what?", "target_id": 3}
    parsed = parse(
        write_vidstg(
            test=[
                make_vidstg_entry(),
                make_vidstg_entry(questions=[question, question], **changes),
                make_vidstg_entry(captions=7),
            ]
        )
    )

    assert kinds(parsed)[kind] == ((4, 4) if kind == "malformed entry" else (3, 3))
    assert named(parsed, kind)[0] == "test-00001"
    assert (
        parsed.defects.num_excluded == 4
    )  # of an entry whose captions are no list, the one question


@pytest.mark.parametrize("raw", [7, {}, {"captions": 7, "questions": "what?"}])
def test_an_entry_whose_queries_cannot_be_counted_is_one(
    write_vidstg: Any, make_vidstg_entry: Any, raw: Any
) -> None:
    assert kinds(parse(write_vidstg(test=[make_vidstg_entry(), raw])))["malformed entry"] == (1, 1)


@pytest.mark.parametrize(
    ("sentence", "kind"),
    [
        ("a dog", "malformed sentence"),
        ({"description": None, "target_id": 0}, "malformed sentence"),
        ({"description": "\ud800", "target_id": 0}, "malformed sentence"),
        ({"description": "a dog", "target_id": "0"}, "malformed sentence"),
        ({"description": " \n", "target_id": 0}, "empty sentence"),
        ({"description": "a dog", "target_id": 8}, "target is not among the objects"),
    ],
)
def test_a_broken_sentence_is_left_out_by_name(
    write_vidstg: Any, make_vidstg_entry: Any, sentence: Any, kind: str
) -> None:
    parsed = parse(write_vidstg(test=[make_vidstg_entry(captions=[sentence])]))
    assert [query.id for query in parsed.queries] == ["test-00000-q0"]
    assert named(parsed, kind) == ["test-00000-c0"]


@pytest.mark.parametrize("entries", [[None], [[]], ["x"], [7]])
def test_an_entry_of_any_type_is_a_defect(write_vidstg: Any, entries: list[Any]) -> None:
    parsed = parse(write_vidstg(test=entries))
    assert not parsed.queries
    assert named(parsed, "malformed entry") == ["test-00000"]


def test_repeated_sentences_are_reported_and_kept(
    write_vidstg: Any, make_vidstg_entry: Any
) -> None:
    parsed = parse(
        write_vidstg(test=[make_vidstg_entry(), make_vidstg_entry(), make_vidstg_entry(vid="102")])
    )
    assert len(parsed.queries) == 6
    assert named(parsed, "repeated sentence") == ["test-00000-c0", "test-00000-q0"]


def test_a_file_that_is_not_json_is_named_with_the_place(write_vidstg: Any, tmp_path: Path) -> None:
    path = write_vidstg(test=[]) / "annotations" / "val_annotations.json"
    path.write_text('[\n {"vid": }\n]')

    with pytest.raises(InputError, match=r"val_annotations.json, line 2, column 10: not JSON"):
        parse(tmp_path)

    path.write_bytes(b"[\xff]")

    with pytest.raises(InputError, match=r"val_annotations.json, byte 1: not UTF-8"):
        parse(tmp_path)

    path.write_text("[" * 100_000)

    with pytest.raises(InputError, match=r"val_annotations.json"):
        parse(tmp_path)

    path.write_text("{}")

    with pytest.raises(
        InputError, match=r"val_annotations.json must hold a list of entries, not dict"
    ):
        parse(tmp_path)


def test_a_folder_without_annotations_says_what_to_put_there(tmp_path: Path) -> None:
    with pytest.raises(
        InputError,
        match=(
            r"holds no VidSTG annotations. Put there\n"
            r"  annotations/\{train,val,test\}_annotations.json"
        ),
    ):
        parse(tmp_path)


def test_a_root_that_is_no_folder_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(
        InputError,
        match=r"file is a file; the data set's folder is expected\. Put there\n  annotations/",
    ):
        parse(tmp_path / "file")

    with pytest.raises(InputError, match=r"nowhere does not exist\. Put there\n  annotations/"):
        parse(tmp_path / "nowhere")


def test_files_without_an_entry_are_refused(write_vidstg: Any, make_vidstg_entry: Any) -> None:
    with pytest.raises(
        InputError,
        match=(
            r"there is no entry in \S+train_annotations\.json, \S+test_annotations\.json; download"
        ),
    ):
        parse(write_vidstg(train=[], test=[]))

    assert len(parse(write_vidstg(train=[], test=[make_vidstg_entry()])).queries) == 2
    assert kinds(parse(write_vidstg(train=[], test=[7]))) == {
        "malformed entry": (1, 1),
        "no VidOR annotations": (0, 0),
    }


@pytest.mark.skipif(
    not ANNOTATIONS.is_dir(),
    reason=f"no real annotations: {ANNOTATIONS} is absent (set STVG_ANNOTATIONS)",
)
def test_the_real_validation_file(tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "val_annotations.json").symlink_to(
        ANNOTATIONS / "val_annotations.json"
    )
    parsed = parse(tmp_path)
    raw = {
        f"val-{number:05d}": entry
        for number, entry in enumerate(
            json.loads((ANNOTATIONS / "val_annotations.json").read_text())
        )
    }

    assert len(parsed.queries) == len({query.id for query in parsed.queries}) == 8956
    assert len({query.video for query in parsed.queries}) == 602
    assert sum(query.form == "declarative" for query in parsed.queries) == 3996
    assert kinds(parsed) == {"repeated sentence": (1151, 0), "no VidOR annotations": (602, 0)}
    assert len({query.id[:9] for query in parsed.queries if query.fps == 10}) == 23

    to_the_end = set()

    for query in parsed.queries:
        used, truth = raw[query.id[:9]]["used_segment"], raw[query.id[:9]]["temporal_gt"]
        assert query.truth is not None
        assert query.truth.span == (truth["begin_fid"], truth["end_fid"])
        assert query.segment[0] <= query.truth.span[0] < query.truth.span[1] <= query.segment[1]
        assert query.segment == (used["begin_fid"], min(used["end_fid"] + 1, query.frame_count))
        if truth["end_fid"] == used["end_fid"] + 1:
            to_the_end.add(query.id[:9])
            assert query.truth.span[1] == query.segment[1]

    assert len(to_the_end) == 744
