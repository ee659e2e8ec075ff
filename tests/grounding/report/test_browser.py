"""The report in a real browser: headless Chromium opens it from disk. Skipped where none is
installed.
"""

from __future__ import annotations

import io
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from grounding.evaluation.ground_truth import ground_truth_for_split
from grounding.evaluation.results import RunResults
from grounding.metrics.scores import score_queries, summarize
from grounding.report.build import ReportConfig, write_report
from grounding.report.page_data import write_query_list, write_script
from grounding.structures.span_scores import ProposalScores
from grounding.visualization.attention_maps import AttentionMap, QueryAttention
from grounding.visualization.video_source import VideoSource
from pipeline.records import Prediction, Query, Truth
from pipeline.tracks import Tracks

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
EVIL = "</script><img src=x onerror=\"window.hacked=1\"> & 'quotes' <b>bold</b>"
SIZE, FRAMES, FPS = (160, 90), 60, 20.0
YELLOW, GREEN, PINK = (255, 214, 10), (46, 204, 113), (255, 95, 210)


def block(frame: int) -> tuple[int, int, int, int]:
    """Where the white block of every video lies, xyxy: it moves right by two pixels per frame."""
    return 4 + 2 * frame, 20, 34 + 2 * frame, 60


def open_block_video(path: str) -> VideoSource:
    def read(frame_indices: Sequence[int]) -> Iterator[np.ndarray]:
        for frame_index in frame_indices:
            image = np.zeros((SIZE[1], SIZE[0], 3), np.uint8)
            x1, y1, x2, y2 = block(frame_index)
            image[y1:y2, x1:x2] = 255
            yield image

    return VideoSource(path, np.arange(FRAMES + 1) / FPS, "1", read)


def make_query(number: int, **changes: Any) -> Query:
    values = {
        "id": f"q{number}",
        "video": f"v{number % 2}",
        "path": f"v{number % 2}.mp4",
        "fps": FPS,
        "frame_count": FRAMES,
        "size": SIZE,
    }
    rest = {
        "segment": (0, FRAMES),
        "text": f"block number {number}",
        "split": "test",
        "truth": Truth(span=(10, 50), track=f"v{number % 2}"),
    }
    kinds = {
        "tags": (("even", "odd")[number % 2],),
        "form": ("declarative", "interrogative")[number % 2],
    }
    return Query.model_validate({**values, **rest, **kinds, **changes})


def predict_block(query: Query, shift: float) -> Prediction:
    """Return the block at every fifth frame, `shift` pixels lower."""
    rows = [
        (frame, *(side + (shift if i % 2 else 0) for i, side in enumerate(block(frame))))
        for frame in range(0, FRAMES, 5)
    ]
    return Prediction(id=query.id, span=(12, 44), score=0.5, boxes=rows)


def make_run_results(
    folder: Path, name: str, queries: list[Query], tracks: Tracks, predictions: list[Prediction]
) -> RunResults:
    scores = score_queries(queries, tracks, predictions)
    return RunResults(
        folder,
        name,
        {prediction.id: prediction for prediction in predictions},
        {score.id: score for score in scores},
        summarize(scores),
    )


class FakeRecorder:
    """Stand-in for a model: A is hot in the cell of the block, the proposal map in one cell."""

    def __init__(self, queries: list[Query]) -> None:
        self.dataset = SimpleNamespace(queries=queries)

    def record(self, query: Query) -> QueryAttention:
        frames = np.arange(0, FRAMES, 4)
        weights = np.zeros((2, len(frames), 3, 6), np.float32)
        weights[:, np.arange(len(frames)), 1, np.minimum(frames // 10, 5)] = 1
        scores = np.zeros((8, 8))
        scores[1, 6] = 0.9
        return QueryAttention(
            query,
            frames,
            (AttentionMap("guidance", weights),),
            ProposalScores(query.segment, scores, 1),
        )


def write(folder: Path, runs: int) -> Path:
    queries = [make_query(number) for number in range(6)]
    queries.append(make_query(6, id=EVIL, text=EVIL, path=f"{EVIL}.mp4", tags=(EVIL,)))
    queries.append(make_query(7, path="broken.mp4", video="broken"))
    tracks = Tracks()
    for video in ("v0", "v1"):
        tracks.add(video, np.arange(FRAMES), np.array([block(frame) for frame in range(FRAMES)]))
    names = ["first", EVIL][:runs]
    extra_shifts = [
        4 * max(0, number - 3) for number in range(len(queries))
    ]  # from the fifth query on ever worse
    run_results = [
        make_run_results(
            folder,
            name,
            queries,
            tracks,
            [
                predict_block(query, 6 + 9 * run + extra_shift)
                for query, extra_shift in zip(queries, extra_shifts, strict=True)
            ],
        )
        for run, name in enumerate(names)
    ]

    def open_video(path: str) -> VideoSource:
        video = open_block_video(path)
        return (
            video
            if path != "broken.mp4"
            else VideoSource(path, video.frame_edges[:20], "1", video.decode_frames)
        )

    return write_report(
        folder / f"report{runs}",
        ground_truth_for_split(queries, tracks, "test"),
        run_results,
        open_video,
        ReportConfig(),
        [FakeRecorder(queries)] * runs,
    )


@dataclass
class Opened:
    """A page with what went wrong on it, and what it asked for."""

    page: Any
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def go(self, view: str) -> None:
        self.page.goto(re.sub("#.*", "", self.page.url) + f"#{view}")

    def query(self, number: int) -> None:
        """Show a query by its place in the list, its video ready."""
        self.go(f"queries/{number}")
        self.page.wait_for_function(
            f"stvg.player && stvg.list.selected.at === {number}"
            " && stvg.player.video.readyState >= 2"
        )

    def seek(self, frame: int) -> np.ndarray:
        """The screen at a frame, RGB `[h, w, 3]`."""
        self.page.evaluate("frame => stvg.player.seek(frame)", frame)
        self.page.wait_for_function("!stvg.player.video.seeking")
        self.page.wait_for_timeout(150)
        return self.screen()

    def screen(self) -> np.ndarray:
        return np.asarray(
            Image.open(io.BytesIO(self.page.locator(".screen").screenshot())).convert("RGB")
        ).astype(int)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory, browser: Any) -> dict[int, Path]:
    folder = tmp_path_factory.mktemp("reports")
    return {runs: write(folder, runs) for runs in (1, 2)}


@pytest.fixture
def report_page(browser: Any, reports: dict[int, Path]) -> Iterator[Opened]:
    """The report of one run. At the end nothing may have failed, and nothing been asked for but
    files beside the page.
    """
    yield from open_page(browser, reports[1])


@pytest.fixture
def comparison_page(browser: Any, reports: dict[int, Path]) -> Iterator[Opened]:
    """The report of two runs, held to the same."""
    yield from open_page(browser, reports[2])


def open_page(browser: Any, index: Path) -> Iterator[Opened]:
    opened = Opened(browser.new_page(viewport={"width": 1500, "height": 900}))
    opened.page.set_default_timeout(120_000)
    opened.page.on(
        "console",
        lambda message: (
            opened.errors.append(message.text) if message.type in ("error", "warning") else None
        ),
    )
    opened.page.on("pageerror", lambda error: opened.errors.append(str(error)))
    opened.page.on("request", lambda request: opened.requests.append(request.url))
    opened.page.goto(index.as_uri())
    yield opened
    hacked = opened.page.evaluate("window.hacked")
    opened.page.close()
    assert hacked is None
    assert opened.errors == []
    beside = index.parent.as_uri()
    assert [url for url in opened.requests if not url.startswith((beside, "data:", "blob:"))] == []


def drawn_box(screen: np.ndarray, color: tuple[int, int, int]) -> tuple[float, ...]:
    """The outline of one color, xyxy in pixels of the video."""
    rows, columns = np.nonzero((np.abs(screen - color) < 40).all(-1))
    assert len(rows) > 100, f"nothing of color {color} is drawn"
    scale = screen.shape[1] / SIZE[0]
    return tuple(
        float(edge) / scale
        for edge in (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    )


def white_block(screen: np.ndarray) -> tuple[float, float]:
    """Where the video itself shows the block: left and right edge in pixels of the video, along a
    row that no box crosses.
    """
    row = screen[int(screen.shape[0] * 40 / SIZE[1])]
    lit = np.nonzero((row[3:-3] > 215).all(-1))[0] + 3  # at its very edges the page shines through
    return lit.min() * SIZE[0] / screen.shape[1], (lit.max() + 1) * SIZE[0] / screen.shape[1]


def test_every_view_opens_from_disk(report_page: Opened) -> None:
    page = report_page.page
    for view in ("summary", "gallery", "queries", "training"):
        report_page.go(view)
        assert page.locator(f"#view-{view}").is_visible()
        assert page.locator(".view:visible").count() == 1
    report_page.go("gallery")
    page.wait_for_function(
        "[...document.querySelectorAll('.strip img')].slice(0, 2)"
        ".every(image => image.naturalWidth > 0)"
    )
    page.locator(".strip a").first.click()
    page.wait_for_selector("#detail h2")


def test_a_query_is_searched_and_its_video_plays(report_page: Opened) -> None:
    report_page.go("queries")
    page = report_page.page
    assert page.locator("#shown").text_content() == "8 of 8"
    page.fill("#search", "BLOCK 3")
    assert page.locator("#queries tbody tr").count() == 1
    page.locator("#queries tbody tr").click()
    page.wait_for_function("stvg.player && stvg.player.video.readyState >= 2")
    assert page.locator("#detail h2").text_content() == "block number 3"
    page.click(".play")
    page.wait_for_function("stvg.player.frame > 20")
    page.evaluate("stvg.player.video.pause()")
    page.wait_for_timeout(500)
    assert white_block(report_page.screen())[0] == pytest.approx(
        block(page.evaluate("stvg.player.frame"))[0], abs=1.5
    )


def test_keys_step_after_a_button_was_pressed_and_leave_the_search_alone(
    report_page: Opened,
) -> None:
    report_page.query(2)
    page, before = report_page.page, report_page.page.evaluate("stvg.player.frame")
    page.get_by_text("+1", exact=True).click()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("stvg.player.frame") == before + 2
    page.focus("#search")
    page.keyboard.press("ArrowRight")
    page.keyboard.type(" ")
    assert (page.evaluate("stvg.player.frame"), page.evaluate("stvg.player.video.paused")) == (
        before + 2,
        True,
    )


@pytest.mark.parametrize("frame", [12, 25, 33, 43])
def test_boxes_are_drawn_where_they_are_and_in_step(report_page: Opened, frame: int) -> None:
    """The video shows its block, the truth lies around it, the prediction (between its samples too)
    six pixels lower.
    """
    report_page.query(2)
    screen = report_page.seek(frame)
    x1, y1, x2, y2 = block(frame)
    assert white_block(screen) == (pytest.approx(x1, abs=1.5), pytest.approx(x2, abs=1.5))
    assert drawn_box(screen, YELLOW) == tuple(
        pytest.approx(edge, abs=1) for edge in (x1, y1 + 6, x2, y2 + 6)
    )
    report_page.page.get_by_label("first").uncheck()
    assert drawn_box(report_page.screen(), GREEN) == tuple(
        pytest.approx(edge, abs=1) for edge in (x1, y1, x2, y2)
    )


def test_a_frame_that_was_shown_before_a_seek_does_not_undo_it(report_page: Opened) -> None:
    """Browsers may tell of the video's first frame when the view already seeks the event: its boxes
    would stay at frame 0.
    """
    report_page.page.evaluate("""() => {
        const ask = HTMLVideoElement.prototype.requestVideoFrameCallback;
        HTMLVideoElement.prototype.requestVideoFrameCallback = function (tell) {
            window.tell = tell;
            return ask.call(this, tell);
        };
    }""")
    report_page.query(2)
    messages = report_page.page.evaluate("""() => {
        stvg.player.seek(33);
        const {seeking} = stvg.player.video;
        window.tell(0, {mediaTime: 0});
        return [seeking, stvg.player.frame];
    }""")
    assert messages == [True, 33]


def test_a_box_is_drawn_only_inside_its_span(report_page: Opened) -> None:
    report_page.query(2)
    for frame, drawing in (
        (11, (True, False)),
        (44, (True, False)),
        (9, (False, False)),
        (49, (True, False)),
        (50, (False, False)),
    ):
        screen = report_page.seek(frame)
        assert (
            tuple(
                bool((np.abs(screen - color) < 40).all(-1).sum() > 50) for color in (GREEN, YELLOW)
            )
            == drawing
        ), frame


def test_heat_lies_over_the_object(report_page: Opened) -> None:
    report_page.query(2)
    cold = report_page.seek(0)
    report_page.page.get_by_label("Heat").select_option("0")
    warm = report_page.screen()
    changed = np.abs(warm - cold).sum(-1)
    rows, columns = changed.shape
    hot, elsewhere = changed[rows // 2, columns // 12], changed[rows // 2, columns * 9 // 10]
    assert hot > 2 * elsewhere
    assert report_page.page.locator(".lanes canvas").count() == 2


def test_the_proposal_map_says_what_lies_under_the_pointer(report_page: Opened) -> None:
    report_page.query(2)
    canvas = report_page.page.locator(".map canvas")
    box = canvas.bounding_box()
    cell = {"x": box["width"] * 6.5 / 8, "y": box["height"] * 1.5 / 8}
    canvas.hover(position=cell)
    assert report_page.page.locator(".map p").text_content() == "frames [8, 53): 0.900"
    canvas.click(position=cell)
    report_page.page.wait_for_function("stvg.player.frame === 8")


def test_what_the_data_says_is_text(report_page: Opened) -> None:
    report_page.go("queries")
    report_page.page.fill("#search", "onerror")
    report_page.page.locator("#queries tbody tr").click()
    report_page.page.wait_for_function("stvg.player && stvg.player.video.readyState >= 2")
    assert report_page.page.locator("#detail h2").text_content() == EVIL
    assert report_page.page.locator("main b", has_text=re.compile("^bold$")).count() == 0


def test_a_video_that_cannot_be_read_is_said_to_be(report_page: Opened) -> None:
    report_page.go("queries")
    report_page.page.fill("#search", "broken")
    report_page.page.locator("#queries tbody tr").click()
    report_page.page.wait_for_selector("#detail .trouble")
    assert (
        "broken.mp4 has 19 frames, but the index has more"
        in report_page.page.locator("#detail .trouble").text_content()
    )
    assert report_page.page.locator(".lane i").count() == 2


def test_queries_are_sorted_and_filtered(report_page: Opened) -> None:
    report_page.go("queries")
    page = report_page.page
    page.locator("#queries th button", has_text="query").click()
    texts = page.locator("#queries tbody td:first-child a").all_text_contents()
    assert texts == sorted(texts, key=str.lower) or texts[1:] == [
        f"block number {n}" for n in (0, 1, 2, 3, 4, 5, 7)
    ]
    read_scores = (
        "[...document.querySelectorAll('#queries tbody tr')]"
        ".map(row => stvg.queries[row.dataset.at].scores[0][0])"
    )
    page.locator("#queries th button", has_text="vIoU").click()
    falling = page.evaluate(read_scores)
    assert falling == sorted(falling, reverse=True)
    assert len(set(falling)) > 2
    page.locator("#queries th button", has_text="vIoU").click()
    assert page.evaluate(read_scores) == falling[::-1]
    page.get_by_label("Tag").select_option("odd")
    assert page.locator("#shown").text_content() == "4 of 8"
    page.get_by_label("Form").select_option("declarative")
    assert page.locator("#shown").text_content() == "0 of 8"
    page.get_by_label("Tag").select_option("")
    assert page.locator("#shown").text_content() == "4 of 8"


def test_a_query_left_while_its_maps_are_decoded_does_not_come_back(report_page: Opened) -> None:
    """Of a first query what was seen is at hand; a second one's takes long, and the first is chosen
    again meanwhile.
    """
    report_page.query(2)
    page = report_page.page
    page.evaluate("""() => {
        const decoded = stvg.maps.decoded;
        stvg.maps.decoded = map => new Promise(
            done => setTimeout(() => decoded(map).then(done), 600));
    }""")
    report_page.go("queries/3")
    page.wait_for_function("stvg.list.selected.at === 3")
    report_page.go("queries/2")
    page.wait_for_function("stvg.player && stvg.list.selected.at === 2")
    page.wait_for_timeout(1500)
    assert page.locator("#detail h2").text_content() == page.evaluate("stvg.queries[2].text")
    assert page.locator("#detail video").count() == 1
    assert page.evaluate("stvg.player.video === document.querySelector('#detail video')")


def test_two_runs_stand_side_by_side(comparison_page: Opened) -> None:
    """The second run's box is fifteen pixels lower than the truth, in pink; the first one's six."""
    comparison_page.query(2)
    screen = comparison_page.seek(25)
    x1, y1, x2, y2 = block(25)
    assert drawn_box(screen, YELLOW) == tuple(
        pytest.approx(edge, abs=1) for edge in (x1, y1 + 6, x2, y2 + 6)
    )
    assert drawn_box(screen, PINK) == tuple(
        pytest.approx(edge, abs=1) for edge in (x1, y1 + 15, x2, y2 + 15)
    )
    rows = comparison_page.page.locator(".side table").first.locator("tbody tr")
    score, other_score, gain = (
        float(rows.nth(place).locator("td").first.text_content().replace("−", "-"))
        for place in range(3)
    )
    assert gain == pytest.approx(score - other_score, abs=0.0011)
    assert gain > 0.1
    assert comparison_page.page.locator(".map canvas").count() == 2


@pytest.fixture
def long_list_page(browser: Any, reports: dict[int, Path], tmp_path: Path) -> Iterator[Opened]:
    """The list of 2,000 queries, held to the same; every tenth sentence is long."""
    folder = shutil.copytree(reports[1].parent, tmp_path / "many")
    row = {
        "path": "p",
        "video": 0,
        "form": "",
        "tags": [],
        "segment": [0, 60],
        "truth": None,
        "spans": [None],
        "scores": [[0.5, 0.5, 0.5]],
    }
    rows = [
        {
            **row,
            "id": f"q{number}",
            "text": f"sentence {number}" + " and so on" * (number % 10 == 0) * 40,
        }
        for number in range(2000)
    ]
    write_query_list(folder, ["first"], rows, [{"trouble": "none"}])
    for number in (1500, 1501):
        write_script(
            folder / "queries" / f"{number}.js",
            "take",
            number,
            {"size": SIZE, "truth": [], "answers": [None], "seen": [None]},
        )
    for opened in open_page(browser, folder / "index.html"):
        opened.go("queries")
        yield opened


def test_thousands_of_queries_open_with_few_rows(long_list_page: Opened) -> None:
    page = long_list_page.page
    assert page.locator("#shown").text_content() == "2000 of 2000"
    assert page.locator("#queries tbody tr").count() < 300
    page.fill("#search", "sentence 1999")
    assert page.locator("#queries tbody tr").count() == 1
    page.fill("#search", "zebra")
    assert page.locator("#none").is_visible()
    page.fill("#search", "")
    assert page.locator("#none").is_hidden()


def test_every_row_is_reached_by_scrolling(long_list_page: Opened) -> None:
    """Page by page no row is left out; by one long pull of the bar the last one is reached, and the
    first one again.
    """
    page = long_list_page.page
    recorded: list[int] = []
    for _ in range(30):
        recorded += (rows := in_view(page))
        page.evaluate("document.querySelector('.rows').scrollTop += 400")
        page.wait_for_timeout(60)
        assert rows == list(range(rows[0], rows[-1] + 1))
    assert sorted(set(recorded)) == list(range(max(recorded) + 1))
    assert max(recorded) > 130
    for pull, end in (("1e9", 1999), ("0", 0)):
        page.evaluate(f"document.querySelector('.rows').scrollTop = {pull}")
        page.wait_for_timeout(200)
        assert end in in_view(page)
        assert page.locator("#queries tbody tr").count() < 300


def test_a_query_far_down_is_shown_in_the_list_and_left_by_the_arrows(
    long_list_page: Opened,
) -> None:
    long_list_page.go("queries/1500")
    long_list_page.page.wait_for_function("stvg.list.selected?.at === 1500")
    assert 1500 in in_view(long_list_page.page)
    long_list_page.page.keyboard.press("ArrowDown")
    long_list_page.page.wait_for_function("stvg.list.selected?.at === 1501")
    assert long_list_page.page.locator("tr[aria-selected]").get_attribute("data-at") == "1501"


def in_view(page: Any) -> list[int]:
    """Return the queries whose rows are in the list's pane, from its top."""
    return page.evaluate("""() => {
      const pane = document.querySelector(".rows").getBoundingClientRect();
      const head = document.querySelector("#queries th").offsetHeight;
      const inside = row => {
        const at = row.getBoundingClientRect();
        return at.bottom > pane.top + head && at.top < pane.bottom;
      };
      const rows = [...document.querySelectorAll("#queries tbody tr")];
      return rows.filter(inside).map(row => Number(row.dataset.at));
    }""")
