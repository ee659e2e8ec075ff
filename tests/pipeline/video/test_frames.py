"""Every frame number shows its own picture, whichever decoder reads, and every unusable file is
refused by name.
"""

from __future__ import annotations

import re
import subprocess
import sys
import wave
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest

from pipeline.errors import VideoError
from pipeline.video import frames as frames_module
from pipeline.video import open_frames, probe
from pipeline.video.container import demux_packets
from tests.assets.clips import FIRST_CHOICE, FOLDER, SHARED, WHOLE, clips_and_shared

REPOSITORY = Path(__file__).parents[3]
# file: frames shown (after edit lists, of the best stream), decoder
REAL = {
    "02_cups.mp4": (300, "decord"),
    "demo.mp4": (280, "decord"),
    "flipping_a_pancake.mkv": (310, "decord"),
    "nasa_13013.mp4": (390, "pyav"),
    "av1_video.mkv": (125, "pyav"),
    "discard_first_keyframe.mp4": (25, "pyav"),
    "editlist_cups.mp4": (152, "pyav"),
    "test_non_zero_start.mp4": (12, "decord"),
    "video_90.mov": (3, "decord"),
    "testsrc2_odd_height_and_width_vp9.mp4": (25, "decord"),
    "testsrc2_mpeg4.mp4": (1, "decord"),
    "unordered.mov": (4, "decord"),
    "sine_stereo_mp2.mpg": (100, "pyav"),
}
MADE = {name: (len(clip.seconds), FIRST_CHOICE[name][0]) for name, clip in WHOLE.items()}
KNOWN = REAL | MADE
REFUSED = {
    FOLDER: {
        **dict.fromkeys(("README.md", "clips.py", "facts.json", "make_assets.py"), "unreadable"),
        "cut_short.mp4": "truncated",
    },
    SHARED: {"corrupted.mp4": "damaged", "README.md": "unreadable"},
}
"""The other files of each folder."""
SAME = [
    "demo.mp4",
    "flipping_a_pancake.mkv",
    "video_90.mov",
    "unordered.mov",
    "test_non_zero_start.mp4",
]
SAME_CLIPS = [name for name, (decoder, _) in FIRST_CHOICE.items() if decoder == "decord"]
UNEVEN = np.cumsum([0, *[20, 40, 100, 33] * 10])[:40].tolist()


Numbers = Callable[..., list[tuple[int, int]]]


@pytest.fixture
def read_frame_numbers(read_number: Callable[[np.ndarray], int]) -> Numbers:
    """Of each wanted frame (default: all): its number, and the number painted on its picture."""

    def read(
        path: Path, wanted: Any = None, decoder: Any = "auto", turned: int = 0
    ) -> list[tuple[int, int]]:
        facts = probe(path)
        with open_frames(
            path, facts, range(facts.frame_count) if wanted is None else wanted, decoder
        ) as reader:
            return [(number, read_number(np.rot90(picture, -turned))) for number, picture in reader]

    return read


def same(wanted: Any) -> list[tuple[int, int]]:
    return [(number, number) for number in wanted]


def remux(
    source: Path,
    target: Path,
    *,
    first: int = 0,
    shift: int = 0,
    options: dict[str, str] | None = None,
) -> Path:
    """Copy packets without decoding: from packet `first` on, `shift` frames earlier (negative times
    make an edit list).
    """
    import av

    with av.open(str(source)) as old, av.open(str(target), "w", options=options or {}) as new:
        stream = old.streams.video[0]
        copy = new.add_stream_from_template(stream)
        step = int(1 / stream.average_rate / stream.time_base)
        for packet in list(old.demux(stream))[first:]:
            if packet.dts is not None:
                packet.pts, packet.dts = packet.pts - shift * step, packet.dts - shift * step
                packet.stream = copy
                new.mux(packet)
    return target


@pytest.mark.parametrize("decoder", ["decord", "pyav"])
@pytest.mark.parametrize("name", ["plain.mp4", "plain.mkv", "plain.mov"])
def test_each_number_shows_its_picture(
    tmp_path: Path, make_video: Any, read_frame_numbers: Numbers, name: str, decoder: str
) -> None:
    path = make_video(tmp_path / name)
    facts = probe(path)
    assert (facts.frame_count, facts.size, facts.codec, facts.has_edit_list) == (
        40,
        (128, 48),
        "h264",
        False,
    )
    assert facts.fps == pytest.approx(25)
    assert facts.duration == pytest.approx(1.6)
    assert read_frame_numbers(path, decoder=decoder) == same(range(40))


@pytest.mark.parametrize("decoder", ["decord", "pyav"])
@pytest.mark.parametrize("settings", ["open-gop=0", "open-gop=1", "intra-refresh=1"])
def test_any_ascending_choice_of_frames(
    tmp_path: Path, make_video: Any, read_frame_numbers: Numbers, settings: str, decoder: str
) -> None:
    """Also across key frames (0, 12, 24, 36), where decord's own skip would seek and go wrong
    unless groups are closed.
    """
    settings += ":keyint=12:min-keyint=12:bframes=3:b-adapt=0:scenecut=0"
    path = make_video(tmp_path / "plain.mp4", settings={"x264-params": settings})
    random = np.random.default_rng(3)
    choices = [
        np.sort(random.choice(40, size=size, replace=False)).tolist() for size in (1, 2, 5, 9, 20)
    ]
    for expected in [*choices, [39], [12], [11, 12, 13, 36], list(range(5, 40, 6)), []]:
        assert read_frame_numbers(path, expected, decoder) == same(expected)


@pytest.mark.parametrize("decoder", ["decord", "pyav"])
@pytest.mark.parametrize("name", ["uneven.mp4", "uneven.mkv"])
def test_variable_rate_goes_by_timestamps(
    tmp_path: Path, make_video: Any, read_frame_numbers: Numbers, name: str, decoder: str
) -> None:
    path = make_video(tmp_path / name, milliseconds=UNEVEN)
    assert probe(path).pts_seconds * 1000 == pytest.approx(np.array(UNEVEN), abs=0.6)
    assert read_frame_numbers(path, decoder=decoder) == same(range(40))


def test_an_edit_list_hides_frames(
    tmp_path: Path, make_video: Any, read_frame_numbers: Numbers
) -> None:
    options = {"avoid_negative_ts": "disabled", "use_editlist": "1"}
    path = remux(
        make_video(tmp_path / "whole.mp4"), tmp_path / "edited.mp4", shift=7, options=options
    )
    facts = probe(path)
    assert facts.has_edit_list
    assert facts.pts_seconds[0] == 0
    assert read_frame_numbers(path) == [(n, n + 7) for n in range(33)]
    with open_frames(path, facts, [0]) as reader:
        assert (reader.decoder, reader.reason) == ("pyav", "edit list")
    with open_frames(path, replace(facts, decord_unsafe_reason=""), [0]) as reader:
        assert (reader.decoder, reader.reason) == (
            "pyav",
            "decord counts 40 frames, the packets 33",
        )


@pytest.mark.parametrize("name", ["headless.mkv", "headless.mp4"])
def test_a_video_without_its_first_key_frame_begins_at_the_next(
    tmp_path: Path, make_video: Any, read_frame_numbers: Numbers, name: str
) -> None:
    path = remux(make_video(tmp_path / "whole.mp4"), tmp_path / name, first=5)
    assert probe(path).frames_counted_by_decoding
    assert read_frame_numbers(path) == [(n, n + 12) for n in range(28)]


def test_a_start_later_than_zero(
    tmp_path: Path, make_video: Any, read_frame_numbers: Numbers
) -> None:
    path = remux(make_video(tmp_path / "whole.mp4"), tmp_path / "late.mkv", shift=-30)
    assert probe(path).pts_seconds[0] == pytest.approx(1.2)
    assert read_frame_numbers(path) == same(range(40))


def test_other_containers_are_read_by_pyav(
    tmp_path: Path, make_video: Any, read_frame_numbers: Numbers
) -> None:
    """decord begins an MPEG-TS file one group of pictures late."""
    for name in ("plain.ts", "plain.avi"):
        path = make_video(tmp_path / name)
        assert read_frame_numbers(path) == same(range(40))
        with open_frames(path, probe(path), [0]) as reader:
            assert reader.decoder == "pyav"


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_rotation_is_applied(
    tmp_path: Path, make_video: Any, read_frame_numbers: Numbers, rotation: int
) -> None:
    path = make_video(tmp_path / "turned.mp4", rotation=rotation)
    facts = probe(path)
    assert facts.rotation == rotation
    assert facts.size == ((128, 48) if rotation == 180 else (48, 128))
    for decoder in ("auto", "pyav"):
        assert read_frame_numbers(path, decoder=decoder, turned=rotation // 90) == same(range(40))


@pytest.mark.parametrize("decoder", ["decord", "pyav"])
@pytest.mark.parametrize("rotation", [0, 90])
def test_pictures_are_the_callers_own_or_borrowed(
    tmp_path: Path, make_video: Any, rotation: int, decoder: Any
) -> None:
    path = make_video(tmp_path / "plain.mp4", rotation=rotation)
    facts = probe(path)
    with open_frames(path, facts, range(40), decoder) as reader:
        own = [picture for _, picture in reader]
    assert all(
        picture.flags.owndata and picture.flags.c_contiguous and picture.flags.writeable
        for picture in own
    )
    with open_frames(path, facts, range(40), decoder) as reader:
        for (number, picture), kept in zip(reader.iterate_views(), own, strict=True):
            assert not picture.flags.owndata
            assert np.array_equal(picture, kept), number


def test_pyav_goes_on_where_decord_fails(
    tmp_path: Path, make_video: Any, read_frame_numbers: Numbers, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_video(tmp_path / "plain.mp4")
    opened = frames_module._open_decord

    class Failing:
        def __init__(self, video: Any) -> None:
            self.video, self.left = video, 6

        def __getattr__(self, name: str) -> Any:
            return getattr(self.video, name)

        def next(self) -> Any:
            self.left -= 1
            if self.left < 0:
                raise RuntimeError("lost")
            return self.video.next()

    monkeypatch.setattr(frames_module, "_open_decord", lambda facts: Failing(opened(facts)))
    facts = probe(path)
    with open_frames(path, facts, range(40)) as reader:
        assert [number for number, _ in reader] == list(range(40))
        assert (reader.decoder, reader.reason) == ("pyav", "decord fails before frame 6")
    assert read_frame_numbers(path, range(1, 40, 2)) == same(range(1, 40, 2))


def test_decord_is_not_let_to_decode_a_long_video_ahead(
    tmp_path: Path, make_video: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_video(tmp_path / "plain.mp4")
    monkeypatch.setattr(frames_module, "MAX_READ_AHEAD_BYTES", 40 * 128 * 48 * 3 - 1)
    with open_frames(path, probe(path), [0]) as reader:
        assert (reader.decoder, reader.reason) == ("pyav", "decord may decode 0 MiB ahead")


@pytest.mark.parametrize("wanted", [[3, 2], [1, 1], [-1], [40]])
def test_wanted_frames_must_ascend_within_the_video(
    tmp_path: Path, make_video: Any, wanted: list[int]
) -> None:
    path = make_video(tmp_path / "plain.mp4")
    with pytest.raises(ValueError, match=r"must be strictly increasing within \[0, 40\)"):
        open_frames(path, probe(path), wanted)


@pytest.mark.parametrize(
    ("name", "options", "share"),
    [
        ("table_first.mp4", {"container": {"movflags": "faststart"}}, 0.5),
        ("table_first.mp4", {"container": {"movflags": "faststart"}}, 0.9),
        ("table_last.mp4", {}, 0.5),
        ("table_last.mp4", {}, 0.9),
        ("cut.mkv", {}, 0.2),
        ("cut.mkv", {}, 0.8),
    ],
)
def test_a_file_cut_short_is_refused(
    tmp_path: Path, make_video: Any, cut_file: Any, name: str, options: dict[str, Any], share: float
) -> None:
    path = cut_file(make_video(tmp_path / name, 100, **options), share)
    with pytest.raises(
        VideoError, match=rf"truncated \(open\): .*{name}.*copy or download it again"
    ):
        probe(path)


def test_a_cut_that_costs_no_frames_is_accepted(
    tmp_path: Path, make_video: Any, cut_file: Any, read_frame_numbers: Numbers
) -> None:
    assert read_frame_numbers(cut_file(make_video(tmp_path / "tail.mkv", 100), 0.97)) == same(
        range(100)
    )


def test_a_file_that_breaks_off_within_its_last_frames_fails_when_read(
    tmp_path: Path, make_video: Any, cut_file: Any, read_frame_numbers: Numbers
) -> None:
    path = cut_file(
        make_video(tmp_path / "tail.mp4", 100, container={"movflags": "faststart"}), 0.99
    )
    with pytest.raises(
        VideoError,
        match=r"truncated \(decode\): .*decoding fails after \d+ frames \(the file ends \d+ bytes before",
    ):
        read_frame_numbers(path)


def test_damage_is_an_error_whichever_decoder_meets_it(
    tmp_path: Path, make_video: Any, read_frame_numbers: Numbers
) -> None:
    import av

    path = make_video(tmp_path / "damaged.mp4")
    with av.open(str(path)) as container:
        packet = list(container.demux())[20]
        start, size = packet.pos, packet.size
    content = bytearray(path.read_bytes())
    content[start : start + size] = bytes(size)
    path.write_bytes(content)
    for decoder in ("auto", "pyav"):
        with pytest.raises(
            VideoError, match=r"damaged \(decode\): .*damaged.mp4: decoding fails after \d+ frames"
        ):
            read_frame_numbers(path, decoder=decoder)


def test_a_packet_without_a_picture_is_named(tmp_path: Path, make_video: Any) -> None:
    path = make_video(tmp_path / "plain.mp4")
    facts = probe(path)
    seconds = facts.pts_seconds.copy()
    seconds[5] += 0.01
    with (
        pytest.raises(
            VideoError,
            match=r"damaged \(decode\): .*plain.mp4: frame 5 of 40 \(at 0.21 s\) has a packet but cannot be decoded",
        ),
        open_frames(path, replace(facts, pts_seconds=seconds), [5], "pyav") as reader,
    ):
        next(reader)


def test_a_picture_that_is_no_rgb_is_named(
    tmp_path: Path, make_video: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import av

    path = make_video(tmp_path / "plain.avi")
    refuse = MagicMock(side_effect=av.error.OSError(95, "Operation not supported"))
    monkeypatch.setattr(
        frames_module,
        "decode_frames",
        lambda *given: (MagicMock(pts=0, reformat=refuse) for _ in range(1)),
    )
    with pytest.raises(
        VideoError,
        match=r"damaged \(decode\): .*plain.avi: a frame cannot be converted to RGB \(Operation not supp",
    ):
        next(open_frames(path, probe(path), [0]))


def test_streams_the_header_does_not_announce_do_no_harm() -> None:
    """PyAV raises IndexError for them when it flushes, after the last packet."""

    def demux(stream: str) -> Iterator[str]:
        yield f"a packet of {stream}"
        raise IndexError

    assert list(demux_packets(SimpleNamespace(demux=demux), "video")) == ["a packet of video"]  # type: ignore[arg-type]


def test_files_that_are_no_video(tmp_path: Path) -> None:
    empty, text, sound = tmp_path / "empty.mp4", tmp_path / "text.mp4", tmp_path / "sound.wav"
    empty.touch()
    text.write_text("not a video\n" * 100)
    with wave.open(str(sound), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(16000))
    for path, message in [
        (
            tmp_path / "absent.mp4",
            r"missing \(open\): .*absent.mp4 does not exist; put the video there",
        ),
        (tmp_path / ("x" * 300), r"missing \(open\): .* cannot be reached"),
        (empty, r"empty \(open\): .*empty.mp4 has zero bytes"),
        (tmp_path, r"unreadable \(open\): .* is not a file"),
        (text, r"unreadable \(open\): .*text.mp4 is not a video FFmpeg can open"),
        (sound, r"unreadable \(open\): .*sound.wav has no video stream"),
    ]:
        with pytest.raises(VideoError, match=message):
            probe(path)


def test_too_large_a_picture_is_refused_before_decoding(tmp_path: Path, make_video: Any) -> None:
    with pytest.raises(
        VideoError,
        match=r"too-large \(open\): .*plain.mp4 is 128x48, more than 6143 pixels per frame; scale it down",
    ):
        probe(make_video(tmp_path / "plain.mp4"), max_pixels=128 * 48 - 1)


def test_importing_brings_no_decoder() -> None:
    code = "import sys, pipeline.video; sys.exit(any(name in sys.modules for name in ('av', 'decord', 'torch')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False).returncode == 0


@pytest.mark.parametrize("path", clips_and_shared(WHOLE, REAL))
def test_real_videos_are_read_whole(path: Path) -> None:
    count, decoder = KNOWN[path.name]
    facts = probe(path)
    assert facts.frame_count == count
    assert (np.diff(facts.pts_seconds) > 0).all()
    with open_frames(path, facts, range(count)) as reader:
        shapes = {picture.shape for _, picture in reader}
        assert reader.decoder == decoder
    assert shapes == {(facts.size[1], facts.size[0], 3)}


@pytest.mark.parametrize("path", clips_and_shared(SAME_CLIPS, SAME))
def test_both_decoders_show_the_same(path: Path) -> None:
    facts = probe(path)
    expected = range(0, facts.frame_count, 3)
    about = (path, facts, expected)
    with open_frames(*about, "decord") as item, open_frames(*about, "pyav") as other:
        for (number, a), (same_number, b) in zip(item, other, strict=True):
            assert number == same_number
            assert np.abs(a.astype(int) - b).mean() < 1


@pytest.mark.parametrize("folder", clips_and_shared([""], [""]))
def test_every_other_file_beside_them_is_refused_with_a_reason(folder: Path) -> None:
    reasons = {}
    for path in sorted(folder.iterdir()):
        if path.name not in KNOWN and path.name != "__pycache__":
            with pytest.raises(VideoError, match=re.escape(str(path))) as refused:
                for _ in open_frames(path, facts := probe(path), range(facts.frame_count)):
                    pass
            reasons[path.name] = refused.value.reason
    assert reasons == REFUSED[folder]
