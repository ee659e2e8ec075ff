"""The clips of `tests/assets` by every decoder: frames, times and turns as they were made."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from pipeline.errors import VideoError
from pipeline.video import ProcessDecoder, open_frames, probe
from tests.assets.clips import CLIPS, FIRST_CHOICE, FOLDER, WHOLE, Clip, number_in, picture_of

ROUTES = ("auto", "pyav", "decord", "child")
NO_TABLE = ("late_start.ts", "part2.avi", "program.mpg")
"""decord begins a transport stream a group late, and at times repeats a picture at the end of the
others (a race of its own): it is not asked for these."""
ROUTED = [(name, route) for name in WHOLE for route in ROUTES]
ROUTED = [one for one in ROUTED if one[1] != "decord" or one[0] not in NO_TABLE]
BYTES = 1 << 20
Numbers = Callable[..., list[tuple[int, int]]]


@pytest.fixture(scope="module")
def process_decoder() -> Iterator[ProcessDecoder]:
    with ProcessDecoder() as started:
        yield started


@pytest.fixture(params=WHOLE)
def clip(request: pytest.FixtureRequest) -> Clip:
    return WHOLE[request.param]


@pytest.fixture
def read_frame_numbers(process_decoder: ProcessDecoder) -> Numbers:
    """Of each wanted frame of a clip, by a route: its number, and the number in its picture."""

    def read_by(route: Any, clip: Clip, wanted: list[int]) -> list[tuple[int, int]]:
        in_child = route == "child"
        about = (clip.path, (process_decoder.probe if in_child else probe)(clip.path), wanted)
        with process_decoder.frames(*about) if in_child else open_frames(*about, route) as frames:
            return [(number, number_in(picture)) for number, picture in frames]

    return read_by


@pytest.mark.parametrize("turn", [np.flipud, np.fliplr, np.rot90, lambda one: one[..., ::-1]])
def test_a_number_is_read_only_from_an_upright_picture(turn: Callable[..., np.ndarray]) -> None:
    for number in (0, 1, 85, 170, 255):
        picture = picture_of(number, (161, 91))
        assert number_in(picture) == number
        with pytest.raises(ValueError, match=r"blocks that are|red is not on the left"):
            number_in(turn(picture))


def test_there_are_ten_clips_and_they_are_small() -> None:
    assert len(CLIPS) == 10
    assert set(FIRST_CHOICE) == set(WHOLE)
    assert sum(path.stat().st_size for path in FOLDER.iterdir() if path.is_file()) < BYTES


@pytest.mark.parametrize("where", ["here", "child"])
def test_facts_are_those_it_was_made_with(
    clip: Clip, where: str, process_decoder: ProcessDecoder
) -> None:
    facts = (process_decoder.probe if where == "child" else probe)(clip.path)
    assert facts.frame_count == len(clip.seconds)
    assert facts.pts_seconds == pytest.approx(np.array(clip.seconds), abs=1e-6)
    length = clip.seconds[-1] - clip.seconds[0]
    assert facts.fps == pytest.approx((len(clip.seconds) - 1) / length, rel=1e-5)
    assert (facts.size, facts.rotation, facts.codec) == (clip.size, clip.rotation, clip.codec)
    assert facts.has_edit_list == clip.has_edit_list
    if clip.duration:
        assert facts.duration == pytest.approx(clip.duration, abs=1e-6)
    else:
        assert facts.duration > length


@pytest.mark.parametrize(("name", "route"), ROUTED)
def test_every_frame_shows_its_picture_upright(
    name: str, route: str, read_frame_numbers: Numbers
) -> None:
    clip = WHOLE[name]
    assert read_frame_numbers(route, clip, list(range(len(clip.seconds)))) == list(
        enumerate(clip.numbers)
    )


@pytest.mark.parametrize(("name", "route"), ROUTED)
def test_any_frames_show_their_pictures(name: str, route: str, read_frame_numbers: Numbers) -> None:
    clip = WHOLE[name]
    last = len(clip.seconds) - 1
    random = np.random.default_rng(5)
    chosen = [sorted(random.choice(last, size, replace=False).tolist()) for size in (1, 4, 12)]
    for expected in [*chosen, [last], [11, 12, 13], list(range(3, last, 5))]:
        assert read_frame_numbers(route, clip, expected) == [(n, clip.numbers[n]) for n in expected]


def test_who_reads_it_and_why(clip: Clip, process_decoder: ProcessDecoder) -> None:
    facts = probe(clip.path)
    with open_frames(clip.path, facts, [0]) as here:
        assert (here.decoder, here.reason) == FIRST_CHOICE[clip.name]
    with process_decoder.frames(clip.path, facts, [0]) as there:
        assert (there.decoder, there.reason) == FIRST_CHOICE[clip.name]


@pytest.mark.parametrize("where", ["here", "child"])
@pytest.mark.parametrize("name", [name for name in CLIPS if name not in WHOLE])
def test_a_clip_cut_short_is_refused(
    name: str, where: str, process_decoder: ProcessDecoder
) -> None:
    clip = CLIPS[name]
    with pytest.raises(VideoError, match=f"{name}.*copy or download it again") as refused:
        (process_decoder.probe if where == "child" else probe)(clip.path)
    assert (refused.value.reason, refused.value.stage) == clip.refused
