"""The report's folder: it is complete, text stays text, unreadable videos leave a note."""

from __future__ import annotations

import html.parser
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grounding.evaluation.ground_truth import ground_truth_for_split
from grounding.evaluation.results import RunResults, load_run_pair
from grounding.metrics.scores import Score, score_queries, summarize
from grounding.report.build import ReportConfig, write_report
from grounding.report.gallery import select_gallery
from grounding.report.page import build_histogram, build_results_table
from grounding.visualization.frame_strips import draw_strip, select_strip_frames
from grounding.visualization.learning_curves import build_curve, read_curve_table, read_curves
from grounding.visualization.video_source import VideoSource
from pipeline.errors import InputError, VideoError
from pipeline.io.jsonl import write_json, write_jsonl
from pipeline.records import Prediction, Query, Truth
from pipeline.tracks import Tracks

EVIL = "</script><script>alert(\"x\")</script> & 'quotes'"
BOX = (40.0, 30.0, 80.0, 60.0)


def make_queries(count: int, **fields: object) -> tuple[list[Query], Tracks]:
    tracks = Tracks()
    queries = []
    for number in range(count):
        tracks.add(f"t{number}", np.arange(20, 60), np.tile(np.array(BOX), (40, 1)))
        values = {
            "id": f"q{number}",
            "video": f"v{number}",
            "path": f"v{number}.mp4",
            "fps": 25.0,
            "frame_count": 100,
            "size": (160, 90),
        }
        values |= {
            "segment": (0, 100),
            "text": f"sentence {number}",
            "split": "test",
            "truth": Truth(span=(20, 60), track=f"t{number}"),
        }
        queries.append(Query.model_validate({**values, **fields}))
    return queries, tracks


def predict(query: Query, begin: int) -> Prediction:
    return Prediction(id=query.id, span=(begin, begin + 40), score=0.5, boxes=[(begin, *BOX)])


def open_gray_video(path: str) -> VideoSource:
    def read(frame_indices: Sequence[int]) -> Iterator[np.ndarray]:
        return (np.full((90, 160, 3), 128, np.uint8) for _ in frame_indices)

    return VideoSource(path, np.arange(101) / 25, "stamp", read)


class Page(html.parser.HTMLParser):
    """Collects the tags, the links to files and to anchors, and the visible text of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value for name, value in attributes if name == "src" and value]

    def handle_data(self, data: str) -> None:
        self.text += data

    def script(self, name: str) -> Any:
        """Return the arguments that a script of the folder hands to the page."""
        content = (self.path.parent / name).read_text(encoding="utf-8")
        return json.loads("[" + re.fullmatch(r"stvg\.\w+\((.*)\);\n", content)[1] + "]")

    @property
    def pictures(self) -> list[str]:
        return [source for source in self.sources if source.startswith("strips/")]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "shapes"
    for name, values in (
        ("train/loss", range(60, 0, -1)),
        ("train/lr", [1e-4] * 60),
        ("validation/m_vIoU", [0.1, 0.4, 0.2]),
        ("train/other", [1]),
    ):
        path = folder / "curves" / "plots" / "metrics" / f"{name}.tsv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            f"step\t{path.stem}\n"
            + "".join(f"{step}\t{value}\n" for step, value in enumerate(values))
        )
    (folder / "config.yaml").write_text(f"train: {EVIL}\n")
    return folder


def make_run_results(
    run: Path, queries: list[Query], tracks: Tracks, predictions: list[Prediction]
) -> RunResults:
    scores = score_queries(queries, tracks, predictions)
    metrics = summarize(scores) | {"baseline_m_vIoU": 0.123}
    return RunResults(
        run,
        run.name,
        {prediction.id: prediction for prediction in predictions},
        {score.id: score for score in scores},
        metrics,
    )


def write_page(
    run: Path,
    out: Path,
    queries: list[Query],
    tracks: Tracks,
    predictions: list[Prediction],
    open_video=open_gray_video,
    config=None,
    **options: Any,
) -> Page:
    ground_truth = ground_truth_for_split(queries, tracks, "test", options.pop("dataset", None))
    runs = [make_run_results(run, queries, tracks, predictions), *options.pop("others", [])]
    return Page(
        write_report(out, ground_truth, runs, open_video, config or ReportConfig(), **options)
    )


def test_the_folder_holds_everything(run: Path, tmp_path: Path) -> None:
    queries, tracks = make_queries(12, form="declarative", tags=("look-alike",))
    predictions = [predict(q, 20 + 4 * i) for i, q in enumerate(queries[:-1])]
    page = write_page(run, tmp_path / "out", queries, tracks, predictions)
    assert len(page.pictures) == 12
    for source in page.sources:
        assert (tmp_path / "out" / source).is_file()
    for text in (
        "shapes",
        "12.3",
        "declarative",
        "look-alike",
        "train/loss",
        "validation/m_vIoU",
        "1 more curves",
        "1 without a prediction",
    ):
        assert text in page.text
    (data,) = page.script("data.js")
    assert data["runs"] == ["shapes"]
    assert [query["id"] for query in data["queries"][:2]] == ["q0", "q1"]
    assert data["queries"][0] == {
        "id": "q0",
        "text": "sentence 0",
        "path": "v0.mp4",
        "video": 0,
        "form": "declarative",
        "tags": ["look-alike"],
        "segment": [0, 100],
        "truth": [20, 60],
        "spans": [[20, 60]],
        "scores": [[1.0, 1.0, 1.0]],
    }
    assert len({video["file"] for video in data["videos"]}) == 12
    number, details = page.script("queries/0.js")
    assert (number, details["size"], details["seen"]) == (0, [160, 90], [])
    assert details["truth"] == [[frame, *BOX] for frame in range(20, 60)]
    assert details["answers"] == [{"score": 0.5, "boxes": [[20, *BOX]]}]


def test_whatever_the_data_says_is_text(run: Path, tmp_path: Path) -> None:
    queries, tracks = make_queries(3, text=EVIL, path=f"{EVIL}.mp4", tags=(EVIL,), form=None)
    evil = [
        query.model_copy(update={"id": f"{EVIL}/../../{number}"})
        for number, query in enumerate(queries)
    ]
    page = write_page(run, tmp_path / "out", evil, tracks, [predict(query, 20) for query in evil])
    assert page.tags.count("script") == 6
    assert EVIL in page.text
    assert page.script("data.js")[0]["queries"][0]["text"] == EVIL
    for path in (tmp_path / "out").rglob("*.*"):
        if path.suffix in (".html", ".js"):
            assert "<script>alert" not in path.read_text(encoding="utf-8")
            assert path.suffix == ".html" or EVIL[:9] not in path.read_text(encoding="utf-8")
    assert sorted(path.name for path in (tmp_path / "out" / "strips").iterdir()) == [
        "000.jpg",
        "001.jpg",
        "002.jpg",
    ]
    assert sorted(path.name for path in (tmp_path / "out" / "queries").iterdir()) == [
        "0.js",
        "1.js",
        "2.js",
    ]
    assert re.fullmatch(r"[0-9a-f]{16}\.mp4", next((tmp_path / "out" / "videos").iterdir()).name)


def test_a_video_that_cannot_be_read_leaves_a_note(run: Path, tmp_path: Path) -> None:
    def broken(path: str) -> VideoSource:
        raise VideoError("open", "missing", f"{path} does not exist")

    queries, tracks = make_queries(2)
    page = write_page(run, tmp_path / "out", queries, tracks, [], broken)
    assert "No picture: missing (open): v0.mp4 does not exist" in page.text
    assert page.pictures == []
    assert page.script("data.js")[0]["videos"] == [
        {"trouble": f"missing (open): v{n}.mp4 does not exist"} for n in range(2)
    ]


def test_a_video_shorter_than_the_index_says_leaves_a_note(run: Path, tmp_path: Path) -> None:
    queries, tracks = make_queries(1)
    page = write_page(
        run,
        tmp_path / "out",
        queries,
        tracks,
        [],
        lambda path: replace(open_gray_video(path), frame_edges=np.arange(31) / 25),
    )
    assert page.script("data.js")[0]["videos"] == [
        {"trouble": "changed (decode): v0.mp4 has 30 frames, but the index has more"}
    ]


def test_videos_are_made_once_and_the_others_go(run: Path, tmp_path: Path) -> None:
    queries, tracks = make_queries(3)
    videos_dir = tmp_path / "out" / "videos"

    def list_videos() -> dict[str, int]:
        return {path.name: path.stat().st_ino for path in videos_dir.iterdir()}

    write_page(run, tmp_path / "out", queries, tracks, [])
    first = list_videos()
    write_page(run, tmp_path / "out", queries, tracks, [])
    assert list_videos() == first
    page = write_page(
        run, tmp_path / "out", queries, tracks, [], config=ReportConfig(videos=1, gallery_size=1)
    )
    assert len(list_videos()) == 1
    assert list_videos().items() < first.items()
    assert [video.get("trouble") for video in page.script("data.js")[0]["videos"]] == [
        None,
        *["only 1 videos are shown (report.videos)"] * 2,
    ]
    write_page(
        run,
        tmp_path / "out",
        queries,
        tracks,
        [],
        lambda path: replace(open_gray_video(path), fingerprint="other"),
    )
    assert not list_videos().keys() & first.keys()


def test_a_videos_frames_have_their_own_times(run: Path, tmp_path: Path) -> None:
    """The video holds the queried frames 10 to 90; a variable rate is listed frame by frame."""
    import av

    queries, tracks = make_queries(2, segment=(10, 90), path="v.mp4", video="v")
    edges = np.concatenate([np.arange(60) / 25, 60 / 25 + np.arange(41) / 10])
    for open_video, varies in (
        (open_gray_video, False),
        (lambda path: replace(open_gray_video(path), frame_edges=edges), True),
    ):
        page = write_page(run, tmp_path / "out", queries, tracks, [], open_video)
        (video,) = page.script("data.js")[0]["videos"]
        assert (video["first"], video["count"], "starts" in video) == (10, 80, varies)
        with av.open(str(tmp_path / "out" / video["file"])) as container:
            stream = container.streams.video[0]
            assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
            seconds = [frame.time for frame in container.decode(stream)]
        count, length = video["count"], video["length"]
        np.testing.assert_allclose(
            seconds, video.get("starts") or np.arange(count) * length / count, atol=1e-3
        )
    assert video["length"] == pytest.approx(50 / 25 + 30 / 10, abs=1e-3)


def test_large_videos_are_made_smaller_and_small_ones_not_larger(run: Path, tmp_path: Path) -> None:
    import av

    queries, tracks = make_queries(1)
    for side, size in ((480, (160, 90)), (40, (40, 22))):
        page = write_page(
            run, tmp_path / "out", queries, tracks, [], config=ReportConfig(max_side=side)
        )
        with av.open(
            str(tmp_path / "out" / page.script("data.js")[0]["videos"][0]["file"])
        ) as container:
            context = container.streams.video[0].codec_context
            assert (context.width, context.height) == size


def test_old_pictures_do_not_stay(run: Path, tmp_path: Path) -> None:
    queries, tracks = make_queries(3)
    write_page(run, tmp_path / "out", queries, tracks, [])
    write_page(run, tmp_path / "out", queries[:1], tracks, [])
    assert [path.name for path in (tmp_path / "out" / "strips").iterdir()] == ["000.jpg"]
    assert [path.name for path in (tmp_path / "out" / "queries").iterdir()] == ["0.js"]


def test_a_bare_run_without_boxes_or_curves_has_a_page(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    queries, tracks = make_queries(2, truth=Truth(span=(20, 60)))
    page = write_page(
        tmp_path / "run", tmp_path / "out", queries, tracks, [predict(queries[0], 20)]
    )
    assert "This run has no curves" in page.text
    assert "0 with boxes" in page.text


def test_two_runs_are_compared_with_intervals(run: Path, tmp_path: Path) -> None:
    queries, tracks = make_queries(12)
    other = make_run_results(
        tmp_path / "other", queries, tracks, [predict(query, 40) for query in queries]
    )
    page = write_page(
        run,
        tmp_path / "out",
        queries,
        tracks,
        [predict(query, 20 + n) for n, query in enumerate(queries)],
        others=[other],
    )
    assert "shapes minus other" in page.text
    table = page.text[page.text.index("shapes minus other") :]
    score, other_score, gain, low, high = map(
        float, re.findall(r"[-−+]?\d+\.\d", table.replace("−", "-").replace("+", ""))[:5]
    )
    assert gain == pytest.approx(score - other_score, abs=0.11)
    assert low < gain < high
    assert "far better than other" in page.text
    data = page.script("data.js")[0]
    assert data["runs"] == ["shapes", "other"]
    assert data["queries"][0]["spans"] == [[20, 60], [40, 80]]
    assert data["queries"][0]["scores"] == [
        [1.0, 1.0, 1.0],
        [pytest.approx(1 / 3, abs=1e-4), pytest.approx(1 / 3, abs=1e-4), 1.0],
    ]


def test_the_published_table_has_this_run_in_it(run: Path, tmp_path: Path) -> None:
    queries, tracks = make_queries(2, split="test")
    page = write_page(
        run,
        tmp_path / "out",
        queries,
        tracks,
        [predict(query, 20) for query in queries],
        dataset="hcstvg-v1",
    )
    assert "Published results" in page.text
    assert "TubeDETR" in page.text
    assert page.text.count("100.0") > 4
    assert (
        "Published results"
        not in write_page(run, tmp_path / "out", queries, tracks, [], dataset="shapes").text
    )


def write_run(folder: Path, queries: list[Query], tracks: Tracks) -> Path:
    results = make_run_results(folder, queries, tracks, [predict(query, 20) for query in queries])
    write_json(folder / "metrics.json", {**results.metrics, "val_m_vIoU": 0.25})
    write_jsonl(folder / "predictions" / "test.jsonl", results.predictions.values())
    write_json(
        folder / "scores" / "test.json", [score.model_dump() for score in results.scores.values()]
    )
    return folder


def test_two_runs_of_one_name_are_told_apart_and_others_refused(tmp_path: Path) -> None:
    queries, tracks = make_queries(2)
    first, second = (write_run(tmp_path / name / "shapes", queries, tracks) for name in "ab")
    assert [run.name for run in load_run_pair(first, second, "test")] == [str(first), str(second)]
    third = write_run(tmp_path / "c", queries[:1], tracks)
    assert RunResults.from_run(third, "test").name == "c"
    with pytest.raises(
        InputError, match=r"do not score the same queries: 1 are in one only, for example 'q1'"
    ):
        load_run_pair(first, third, "test")
    with pytest.raises(InputError, match=r"val\.jsonl"):
        RunResults.from_run(first, "val")


def with_scores(
    values: dict[str, float], confidences: dict[str, float] | None = None, name: str = "run"
) -> RunResults:
    scores = {key: Score(id=key, vIoU=value, tIoU=0.5, sIoU=0.5) for key, value in values.items()}
    predictions = {
        key: Prediction(id=key, span=(0, 1), score=value, boxes=[])
        for key, value in (confidences or {}).items()
    }
    return RunResults(Path(name), name, predictions, scores, {})


def test_the_gallery_shows_the_best_the_middle_and_the_surest_failures() -> None:
    values = {str(i): i / 100 for i in range(101)} | {f"bad{i}": 0.0 for i in range(5)}
    groups = {
        group.title: group.query_ids
        for group in select_gallery(with_scores(values, {"bad3": 0.99}), None, 15)
    }
    assert list(groups) == ["best", "near 0.8", "near 0.5", "near 0.3", "failures"]
    assert groups["best"] == ["100", "99", "98"]
    assert sorted(groups["near 0.8"]) == ["79", "80", "81"]
    assert groups["failures"][0] == "bad3"
    assert len(groups["failures"]) == 3
    assert (
        select_gallery(with_scores(values), None, 0)
        == select_gallery(with_scores({}), None, 12)
        == []
    )


def test_the_gallery_shows_a_query_once_and_calls_nothing_near_that_is_far() -> None:
    groups = select_gallery(with_scores({"a": 0.5, "b": 0.65, "c": 1.0}), None, 100)
    assert [(group.title, group.query_ids) for group in groups] == [
        ("best", ["c", "b"]),
        ("near 0.5", ["a"]),
    ]


def test_the_gallery_shows_where_two_runs_differ_most() -> None:
    scores, other_scores = (
        {"won": 0.9, "lost": 0.2, "same": 0.5},
        {"won": 0.1, "lost": 0.8, "same": 0.5},
    )
    groups = {
        group.title: group.query_ids
        for group in select_gallery(with_scores(scores), with_scores(other_scores, name="other"), 7)
    }
    assert groups == {
        "near 0.5": ["same"],
        "far better than other": ["won"],
        "far worse than other": ["lost"],
    }


def test_strip_frames_cover_both_spans_inside_the_segment() -> None:
    (query,), _ = make_queries(1)
    frame_indices = select_strip_frames(query, [predict(query, 58)])
    assert len(frame_indices) == 8
    assert frame_indices == sorted(set(frame_indices))
    assert 0 <= frame_indices[0] < 20
    assert 97 < frame_indices[-1] < 100
    short = query.model_copy(update={"segment": (20, 22), "truth": Truth(span=(20, 21))})
    assert select_strip_frames(short, [None]) == [20, 21]


def test_boxes_are_drawn_only_where_they_hold() -> None:
    (query,), tracks = make_queries(1)
    frames = [np.zeros((90, 160, 3), np.uint8)] * 3
    shifted = Prediction(id="q0", span=(50, 80), score=1.0, boxes=[(50, 100, 30, 140, 60)])
    strip = np.asarray(draw_strip(query, tracks, [shifted], [10, 30, 70], frames)).astype(int)
    width = (strip.shape[1] - 2 * 3) // 3
    parts = [strip[:, i * (width + 3) : i * (width + 3) + width] for i in range(3)]
    green = [bool(((part[..., 1] > 150) & (part[..., 0] < 100)).any()) for part in parts]
    yellow = [bool(((part[..., 0] > 200) & (part[..., 2] < 60)).any()) for part in parts]
    assert (green, yellow) == ([False, True, False], [False, False, True])


def test_curves_come_in_order_and_skip_what_is_not_a_number(run: Path) -> None:
    folder = run / "curves" / "plots" / "metrics"
    (folder / "train" / "odd.tsv").write_text("step\todd\n0\tnan\n1\t2.5\nx\ty\n3\n")
    (folder / "train" / "empty.tsv").write_text("step\tempty\n")
    assert [curve.name for curve in read_curves(folder)][:3] == [
        "train/loss",
        "train/lr",
        "validation/m_vIoU",
    ]
    steps, values = read_curve_table(folder / "train" / "odd.tsv")
    assert (steps.tolist(), values.tolist()) == ([1.0], [2.5])
    assert "train/empty" not in [curve.name for curve in read_curves(folder)]


@pytest.mark.parametrize("values", [[0.0], [5.0, 5.0], [-1e-9, 1e-9], [0.0, 1e6], [3.0] * 1000])
def test_every_curve_fits_its_axes(values: list[float]) -> None:
    curve = build_curve("x", np.arange(len(values), dtype=float), np.array(values))
    points = [tuple(map(float, point.split(","))) for point in curve.raw.split()]
    assert len(points) <= 400
    assert all(52 <= x <= 398 and 12 <= y <= 192 for x, y in points)
    assert 2 <= len(curve.y_ticks) <= 7


def test_the_headline_prefers_the_metrics_file() -> None:
    run = replace(with_scores({"a": 0.5}), metrics={"m_vIoU": 0.7, "baseline_m_vIoU": 0.1})
    table = dict(build_results_table([run]))
    assert (table["this run"]["m_vIoU"], table["this run"]["m_tIoU"]) == (0.7, 0.5)
    assert (table["constant"]["m_vIoU"], table["constant"]["m_tIoU"]) == (0.1, None)
    assert "random" not in table
    assert [
        name for name, _ in build_results_table([run, with_scores({"a": 0.2}, name="other")])
    ] == ["run", "other", "constant"]


def test_the_histogram_counts_every_boxed_query() -> None:
    scores = [Score(id="a", vIoU=value, tIoU=0.5, sIoU=0.5) for value in (0.0, 0.5, 1.0, None)]
    bins = build_histogram(scores)
    assert sum(count for _, count, _ in bins) == 3
    assert (bins[0], bins[-1]) == (("0.00–0.05", 1, 100.0), ("0.95–1.00", 1, 100.0))


def test_a_sweep_is_shown_with_its_pictures(run: Path, tmp_path: Path) -> None:
    queries, tracks = make_queries(3)
    sweep = tmp_path / "sweep"
    sweep.mkdir()
    for name in ("table", "curves", "table-odd"):
        (sweep / f"{name}.png").write_bytes(name.encode())
    claim = {
        "higher": "full",
        "lower": EVIL,
        "metric": "m_vIoU",
        "source": "a paper",
        "seen": "yes",
    }
    claim |= {"difference": 0.1, "low": 0.05, "high": 0.15}
    table = {
        "title": EVIL,
        "dataset": "shapes",
        "split": "test",
        "protocol": "every-frame",
        "seeds": [0, 1],
        "steps": [3, 4],
    }
    table |= {"codes": ["a"], "groups": {"all": {"queries": 480, "videos": 60}}, "claims": [claim]}
    (sweep / "table.json").write_text(json.dumps(table))
    page = write_page(run, tmp_path / "out", queries, tracks, [], sweep_dir=sweep)
    assert page.text.count(EVIL) >= 2
    assert "480 queries about 60 videos. 2 seeds (0, 1), 3 or 4 steps each" in page.text
    assert "The runs differ in their steps (3, 4)." in page.text
    assert "+10.0 [+5.0, +15.0]" in page.text
    assert [source for source in page.sources if "sweep" in source] == [
        "sweep/table.png",
        "sweep/curves.png",
        "sweep/table-odd.png",
    ]
    assert (tmp_path / "out" / "sweep" / "table-odd.png").read_bytes() == b"table-odd"
    assert page.tags.count("script") == 6
    assert not any(
        "sweep" in source
        for source in write_page(run, tmp_path / "out", queries, tracks, []).sources
    )


def test_a_sweep_that_is_not_finished(run: Path, tmp_path: Path) -> None:
    queries, tracks = make_queries(3)
    with pytest.raises(
        InputError, match=r"sweep holds no table\.json: let stvg-sweep --out .* finish first"
    ):
        write_page(run, tmp_path / "out", queries, tracks, [], sweep_dir=tmp_path / "sweep")
    (tmp_path / "table.json").write_text("{")
    with pytest.raises(InputError, match=r"table\.json is damaged"):
        write_page(run, tmp_path / "out", queries, tracks, [], sweep_dir=tmp_path)
