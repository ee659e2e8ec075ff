"""The report page: everything is there, text stays text, unreadable videos leave a note."""

from __future__ import annotations

import html.parser
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from grounding.metrics import Score, score, summarise
from grounding.report import bar, histogram, systems, write_report
from grounding.report_curves import make_curve, read_curves, read_table
from grounding.report_strips import choose, draw_strip, strip_frames
from pipeline.errors import InputError, VideoError
from pipeline.records import Prediction, Query, Tracks, Truth

EVIL = "<script>alert(\"x\")</script> & 'quotes'"
BOX = (40.0, 30.0, 80.0, 60.0)


def make_queries(count: int, **fields: object) -> tuple[list[Query], Tracks]:
    tracks = Tracks()
    queries = []
    for number in range(count):
        tracks.add(f"t{number}", np.arange(20, 60), np.tile(np.array(BOX), (40, 1)))
        values = {"id": f"q{number}", "video": f"v{number}", "path": f"v{number}.mp4", "fps": 25.0, "frame_count": 100, "size": (160, 90)}
        values |= {"segment": (0, 100), "text": f"sentence {number}", "split": "test", "truth": Truth(span=(20, 60), track=f"t{number}")}
        queries.append(Query.model_validate({**values, **fields}))
    return queries, tracks


def predict(query: Query, begin: int) -> Prediction:
    return Prediction(id=query.id, span=(begin, begin + 40), score=0.5, boxes=[(begin, *BOX)])


def grey(path: str, numbers: Sequence[int]) -> list[np.ndarray]:
    return [np.full((90, 160, 3), 128, np.uint8) for _ in numbers]


class Page(html.parser.HTMLParser):
    """Collects the tags, the links to files and to anchors, and the visible text of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value for name, value in attributes if name in ("src", "href") and value and not value.startswith("#")]

    def handle_data(self, data: str) -> None:
        self.text += data


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
        path.write_text(f"step\t{path.stem}\n" + "".join(f"{step}\t{value}\n" for step, value in enumerate(values)))
    (folder / "config.yaml").write_text(f"train: {EVIL}\n")
    return folder


def write(run: Path, out: Path, queries: list[Query], tracks: Tracks, predictions: list[Prediction], strips=grey, **more: object) -> Page:
    scores = score(queries, tracks, predictions)
    metrics = summarise(scores) | {"baseline_m_vIoU": 0.123}
    return Page(write_report(run, out, queries, tracks, predictions, scores, metrics, strips, **more))


def test_the_page_holds_everything_and_opens_offline(run: Path, tmp_path: Path) -> None:
    queries, tracks = make_queries(12, form="declarative", tags=("look-alike",))
    seen: list[tuple[int, int]] = []
    page = write(
        run,
        tmp_path / "out",
        queries,
        tracks,
        [predict(q, 20 + 4 * i) for i, q in enumerate(queries[:-1])],
        progress=lambda *a: seen.append(a),
    )
    assert len(page.sources) == 12
    for source in page.sources:
        with Image.open(tmp_path / "out" / source) as picture:
            assert picture.format == "JPEG"
    for text in (
        "shapes",
        "12.3",
        "declarative",
        "look-alike",
        "train/loss",
        "validation/m_vIoU",
        "sentence 7",
        "1 more curves",
        "no prediction",
    ):
        assert text in page.text
    assert page.tags.count("tr") == 13 + 3 + 2 + 2  # queries, compared, by form, by tag; each with its head
    assert (seen[0], seen[-1]) == ((0, 12), (12, 12))


def test_whatever_the_data_says_is_text(run: Path, tmp_path: Path) -> None:
    queries, tracks = make_queries(3, text=EVIL, path=f"{EVIL}.mp4", tags=(EVIL,))
    evil = [query.model_copy(update={"id": f"{EVIL}/../../{number}"}) for number, query in enumerate(queries)]
    page = write(run, tmp_path / "out", evil, tracks, [predict(query, 20) for query in evil])
    assert page.tags.count("script") == 1
    assert EVIL in page.text
    assert "<script>alert" not in (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert sorted(path.name for path in (tmp_path / "out" / "strips").iterdir()) == ["000.jpg", "001.jpg", "002.jpg"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["index.html", "strips"]


def test_a_video_that_cannot_be_read_leaves_a_note(run: Path, tmp_path: Path) -> None:
    def broken(path: str, numbers: Sequence[int]) -> list[np.ndarray]:
        raise VideoError("open", "missing", f"{path} does not exist")

    queries, tracks = make_queries(2)
    page = write(run, tmp_path / "out", queries, tracks, [], strips=broken)
    assert "No picture: missing (open): v0.mp4 does not exist" in page.text
    assert page.sources == []


def test_old_pictures_do_not_stay(run: Path, tmp_path: Path) -> None:
    queries, tracks = make_queries(3)
    write(run, tmp_path / "out", queries, tracks, [])
    write(run, tmp_path / "out", queries, tracks, [], strip_count=1)
    assert [path.name for path in (tmp_path / "out" / "strips").iterdir()] == ["000.jpg"]


def test_a_bare_run_without_boxes_or_curves_has_a_page(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    queries, tracks = make_queries(2, truth=Truth(span=(20, 60)))
    page = write(tmp_path / "run", tmp_path / "out", queries, tracks, [predict(queries[0], 20)])
    assert "This run has no curves" in page.text
    assert "0 with boxes" in page.text


def test_pictures_spread_over_the_range_and_show_sure_failures() -> None:
    scores = [Score(id=str(i), vIoU=i / 100, tIoU=0.5, sIoU=0.5) for i in range(101)]
    scores += [Score(id=f"bad{i}", vIoU=0.0, tIoU=0.0, sIoU=0.0) for i in range(5)]
    predictions = {"bad3": Prediction(id="bad3", span=(0, 1), score=0.99, boxes=[])}
    chosen = choose(scores, predictions, 12)
    assert len(chosen) == len(set(chosen)) == 12
    assert chosen[0] == "100"
    assert "bad3" in chosen
    assert sum(name.startswith("bad") or int(name) < 1 for name in chosen) >= 3
    assert choose(scores[:2], {}, 12) == ["1", "0"]
    assert choose([], {}, 12) == []


def test_strip_frames_cover_both_spans_inside_the_segment() -> None:
    (query,), _ = make_queries(1)
    numbers = strip_frames(query, predict(query, 58))
    assert len(numbers) == 8
    assert numbers == sorted(set(numbers))
    assert 0 <= numbers[0] < 20
    assert 97 < numbers[-1] < 100
    short = query.model_copy(update={"segment": (20, 22), "truth": Truth(span=(20, 21))})
    assert strip_frames(short, None) == [20, 21]


def test_boxes_are_drawn_only_where_they_hold() -> None:
    (query,), tracks = make_queries(1)
    frames = [np.zeros((90, 160, 3), np.uint8)] * 3
    shifted = Prediction(id="q0", span=(50, 80), score=1.0, boxes=[(50, 100, 30, 140, 60)])
    strip = np.asarray(draw_strip(query, tracks, shifted, [10, 30, 70], frames)).astype(int)
    width = (strip.shape[1] - 2 * 3) // 3
    parts = [strip[:, i * (width + 3) : i * (width + 3) + width] for i in range(3)]
    green = [bool(((part[..., 1] > 150) & (part[..., 0] < 100)).any()) for part in parts]
    yellow = [bool(((part[..., 0] > 200) & (part[..., 2] < 60)).any()) for part in parts]
    assert (green, yellow) == ([False, True, False], [False, False, True])


def test_curves_come_in_order_and_skip_what_is_not_a_number(run: Path) -> None:
    folder = run / "curves" / "plots" / "metrics"
    (folder / "train" / "odd.tsv").write_text("step\todd\n0\tnan\n1\t2.5\nx\ty\n3\n")
    (folder / "train" / "empty.tsv").write_text("step\tempty\n")
    assert [curve.name for curve in read_curves(folder)][:3] == ["train/loss", "train/lr", "validation/m_vIoU"]
    steps, values = read_table(folder / "train" / "odd.tsv")
    assert (steps.tolist(), values.tolist()) == ([1.0], [2.5])
    assert "train/empty" not in [curve.name for curve in read_curves(folder)]


@pytest.mark.parametrize("values", [[0.0], [5.0, 5.0], [-1e-9, 1e-9], [0.0, 1e6], [3.0] * 1000])
def test_every_curve_fits_its_axes(values: list[float]) -> None:
    curve = make_curve("x", np.arange(len(values), dtype=float), np.array(values))
    points = [tuple(map(float, point.split(","))) for point in curve.raw.split()]
    assert len(points) <= 400
    assert all(52 <= x <= 398 and 12 <= y <= 192 for x, y in points)
    assert 2 <= len(curve.y_ticks) <= 7


def test_bars_are_cut_to_the_segment() -> None:
    assert (bar((10, 30), (0, 100)).left, bar((10, 30), (0, 100)).width) == (10, 20)
    assert (bar((0, 500), (100, 200)).left, bar((0, 500), (100, 200)).width) == (0, 100)


def test_the_headline_prefers_the_metrics_file() -> None:
    scores = [Score(id="a", vIoU=0.5, tIoU=0.5, sIoU=0.5)]
    table = dict(systems({"m_vIoU": 0.7, "baseline_m_vIoU": 0.1}, scores))
    assert (table["this run"]["m_vIoU"], table["this run"]["m_tIoU"]) == (0.7, 0.5)
    assert (table["constant"]["m_vIoU"], table["constant"]["m_tIoU"]) == (0.1, None)
    assert "random" not in table


def test_the_histogram_counts_every_boxed_query() -> None:
    scores = [Score(id="a", vIoU=value, tIoU=0.5, sIoU=0.5) for value in (0.0, 0.5, 1.0, None)]
    bins = histogram(scores)
    assert sum(count for _, count, _ in bins) == 3
    assert (bins[0], bins[-1]) == (("0.00–0.05", 1, 100.0), ("0.95–1.00", 1, 100.0))


def test_a_sweep_is_shown_with_its_pictures(run: Path, tmp_path: Path) -> None:
    queries, tracks = make_queries(3)
    sweep = tmp_path / "sweep"
    sweep.mkdir()
    for name in ("table", "curves", "table-odd"):
        (sweep / f"{name}.png").write_bytes(name.encode())
    claim = {"more": "full", "less": EVIL, "metric": "m_vIoU", "source": "a paper", "seen": "yes"}
    claim |= {"difference": 0.1, "low": 0.05, "high": 0.15}
    table = {"title": EVIL, "dataset": "shapes", "split": "test", "protocol": "every-frame", "seeds": [0, 1], "steps": [3, 4]}
    table |= {"codes": ["a"], "groups": {"all": {"queries": 480, "videos": 60}}, "claims": [claim]}
    (sweep / "table.json").write_text(json.dumps(table))
    page = write(run, tmp_path / "out", queries, tracks, [], sweep=sweep)
    assert page.text.count(EVIL) >= 2
    assert "480 queries about 60 videos. 2 seeds (0, 1), 3 or 4 steps each" in page.text
    assert "The runs differ in their steps (3, 4)." in page.text
    assert "+10.0 [+5.0, +15.0]" in page.text
    assert [source for source in page.sources if "sweep" in source] == ["sweep/table.png", "sweep/curves.png", "sweep/table-odd.png"]
    assert (tmp_path / "out" / "sweep" / "table-odd.png").read_bytes() == b"table-odd"
    assert page.tags.count("script") == 1
    assert not any("sweep" in source for source in write(run, tmp_path / "out", queries, tracks, []).sources)


def test_a_sweep_that_is_not_finished(run: Path, tmp_path: Path) -> None:
    queries, tracks = make_queries(3)
    with pytest.raises(InputError, match=r"sweep holds no table\.json: let stvg-sweep --out .* finish first"):
        write(run, tmp_path / "out", queries, tracks, [], sweep=tmp_path / "sweep")
    (tmp_path / "table.json").write_text("{")
    with pytest.raises(InputError, match=r"table\.json is damaged"):
        write(run, tmp_path / "out", queries, tracks, [], sweep=tmp_path)
