"""Progress: few plain lines in a log, a bar on a terminal."""

from __future__ import annotations

import io

import pytest

from cli.console.progress import ProgressLines, format_clock, show_progress


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_lines_come_every_ten_seconds_and_at_the_end() -> None:
    stream, clock = io.StringIO(), Clock()
    lines = ProgressLines("extracting", "videos", stream, clock)
    for done in range(0, 101):
        lines(done, 100)
        clock.now += 0.25
    assert stream.getvalue().splitlines() == [
        "extracting: 0/100 videos",
        "extracting: 40/100 videos, 4/s, 0:15 left",
        "extracting: 80/100 videos, 4/s, 0:05 left",
        "extracting: 100/100 videos, 4/s, 0:25 in all",
    ]


def test_what_was_done_before_does_not_count_in_the_rate() -> None:
    stream, clock = io.StringIO(), Clock()
    lines = ProgressLines("extracting", "videos", stream, clock)
    lines(50, 100)
    clock.now += 20
    lines(60, 100)
    assert stream.getvalue().splitlines()[-1] == "extracting: 60/100 videos, 0.5/s, 1:20 left"


def test_the_last_line_is_said_once() -> None:
    stream = io.StringIO()
    with show_progress("drawing", stream=stream) as advance:
        advance(1, 1)
        advance(1, 1)
    assert stream.getvalue().count("\n") == 1


def test_a_next_part_starts_afresh() -> None:
    stream, clock = io.StringIO(), Clock()
    lines = ProgressLines("preparing", "files", stream, clock)
    for _ in range(2):
        for done in (0, 4):
            lines(done, 4)
            clock.now += 2
    assert (
        stream.getvalue().splitlines()
        == ["preparing: 0/4 files", "preparing: 4/4 files, 2/s, 0:02 in all"] * 2
    )


def test_a_terminal_gets_a_bar() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    with show_progress("extracting", unit="videos", stream=stream) as advance:
        for done in range(4):
            advance(done, 3)
    assert "extracting" in stream.getvalue()
    assert "3/3" in stream.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (3599, "59:59"), (3661, "1:01:01")]
)
def test_clock_text(seconds: float, text: str) -> None:
    assert format_clock(seconds) == text
