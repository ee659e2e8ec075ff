"""Right frames, proved: thousands of requests of any ascending frames, of every kind of file, by
every decoder, in any order.

Made videos carry their number in every picture. In real ones a picture is the right one where no
picture of a plain decode from beginning to end is nearer to it than the one of its number.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from pipeline.errors import VideoError
from pipeline.video import ProcessDecoder, VideoMetadata, open_frames, probe
from tests.assets.clips import FOLDER, SHARED, WHOLE, clips_and_shared

FRAMES = 60
EDITED = {"avoid_negative_ts": "disabled", "use_editlist": "1"}
UNEVEN = np.cumsum([0, *[20, 40, 100, 33] * FRAMES])[:FRAMES].tolist()
GROUPS = "keyint=12:min-keyint=12:bframes=3:b-adapt=0:scenecut=0"
H265 = f"log-level=none:{GROUPS}"
# name: what `make_video` is told
PLAIN: dict[str, dict[str, Any]] = {
    "plain.mp4": {},
    "plain.mkv": {},
    "plain.mov": {},
    "plain.ts": {},
    "plain.avi": {},
    "table_first.mp4": {"container": {"movflags": "faststart"}},
    "fragments.mp4": {"container": {"movflags": "frag_keyframe+empty_moov"}},
    "no_b_frames.mp4": {"settings": {"bf": "0", "g": "12"}},
    "pyramid.mkv": {"settings": {"x264-params": f"{GROUPS}:b-pyramid=normal:ref=4"}},
    "open_group.mp4": {"settings": {"x264-params": f"open-gop=1:{GROUPS}"}},
    "open_group.mkv": {"settings": {"x264-params": f"open-gop=1:{GROUPS}"}},
    "refresh.mp4": {"settings": {"x264-params": f"intra-refresh=1:{GROUPS}"}},
    "one_group.mp4": {"settings": {"g": "1000", "bf": "2", "sc_threshold": "0"}},
    "uneven.mp4": {"milliseconds": UNEVEN},
    "uneven.mkv": {"milliseconds": UNEVEN},
    "edited.mp4": {
        "milliseconds": [40 * (number - 7) for number in range(FRAMES)],
        "container": EDITED,
    },
    "late.mp4": {"milliseconds": [1200 + 40 * number for number in range(FRAMES)]},
    "late.mkv": {"milliseconds": [1200 + 40 * number for number in range(FRAMES)]},
    "turned90.mp4": {"rotation": 90},
    "turned180.mp4": {"rotation": 180},
    "turned270.mov": {"rotation": 270},
    "hevc.mp4": {"codec": "libx265", "settings": {"x265-params": f"open-gop=0:{H265}"}},
    "hevc_open_group.mkv": {"codec": "libx265", "settings": {"x265-params": f"open-gop=1:{H265}"}},
    "part2.avi": {"codec": "mpeg4", "settings": {"g": "12", "bf": "2"}},
    "part2.mkv": {"codec": "mpeg4", "settings": {"g": "12", "bf": "2"}},
    "part2.mp4": {"codec": "mpeg4", "settings": {"g": "12", "bf": "0"}},
    "mpeg2.mpg": {"codec": "mpeg2video", "settings": {"g": "12", "bf": "2"}},
    "vp8.webm": {
        "codec": "libvpx",
        "settings": {"g": "12", "auto-alt-ref": "1", "lag-in-frames": "16"},
    },
    "vp9.webm": {
        "codec": "libvpx-vp9",
        "settings": {"g": "12", "auto-alt-ref": "1", "lag-in-frames": "16", "cpu-used": "8"},
    },
    "motion_jpeg.avi": {"codec": "mjpeg", "settings": {"strict": "unofficial"}},
}
# name: codec, its settings, sizes (width, height) of its streams, which of them is marked as
# default: the best
SIZED: dict[str, tuple[str, dict[str, str], list[tuple[int, int]], int]] = {
    "odd.mkv": ("libvpx-vp9", {"g": "12", "cpu-used": "8"}, [(131, 51)], 0),
    "odd_part2.mkv": ("mpeg4", {"g": "12"}, [(133, 49)], 0),
    "av1.mp4": ("libsvtav1", {"g": "12", "preset": "12"}, [(128, 64)], 0),
    "two_streams.mp4": ("libx264", {"bf": "2", "g": "12"}, [(128, 48), (256, 96)], 1),
    "two_streams.mkv": ("libx264", {"bf": "2", "g": "12"}, [(256, 96), (128, 48)], 1),
}
REFUSED = {
    FOLDER: {"cut_short.mp4": "truncated", "README.md": "unreadable"},
    SHARED: {"corrupted.mp4": "damaged", "README.md": "unreadable"},
}
Request = tuple["Case", Literal["auto", "pyav", "child"], np.ndarray]


@dataclass(frozen=True, eq=False)
class Case:
    """A file, and how many of these numbers and pictures, read from it, are wrong."""

    path: Path
    facts: VideoMetadata
    wrong: Callable[[list[tuple[int, np.ndarray]]], int]


def write_sized(path: Path, pictures: list[np.ndarray]) -> Path:
    """The pictures on larger ones, in each stream; all streams but the best show them backwards."""
    import av

    codec, settings, sizes, best = SIZED[path.name]
    with av.open(str(path), "w") as container:
        streams = [container.add_stream(codec, rate=25, options=settings) for _ in sizes]
        for stream, (width, height) in zip(streams, sizes, strict=True):
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            stream.codec_context.thread_count = 1
            stream.disposition = av.stream.Disposition(stream is streams[best])
        for number, picture in enumerate(pictures):
            for stream in streams:
                displayed = picture if stream is streams[best] else pictures[-1 - number]
                room = (
                    (0, stream.height - displayed.shape[0]),
                    (0, stream.width - displayed.shape[1]),
                    (0, 0),
                )
                frame = av.VideoFrame.from_ndarray(
                    np.pad(displayed, room, constant_values=96), format="rgb24"
                )
                frame.pts = number
                container.mux(stream.encode(frame))
        for stream in streams:
            container.mux(stream.encode(None))
    return path


def has_encoder(codec: str) -> bool:
    import av

    try:
        av.codec.Codec(codec, "w")
    except av.codec.codec.UnknownCodecError:
        return False
    return True


def read_all(child: ProcessDecoder, path: Path) -> None:
    """Read every frame of a file."""
    facts = child.probe(path)
    list(child.frames(path, facts, range(facts.frame_count)))


def readable(folder: Path) -> list[Path]:
    """The videos of a folder that are not refused; none where there is no such folder."""
    if folder == FOLDER:
        return [clip.path for clip in WHOLE.values()]
    result = sorted(folder.iterdir()) if folder.is_dir() else []
    return [path for path in result if path.name not in REFUSED[folder]]


@pytest.fixture
def generated_cases(
    tmp_path: Path, make_video: Any, read_number: Callable[[np.ndarray], int]
) -> list[Case]:
    """Every made file this PyAV can encode."""
    paths = [
        make_video(tmp_path / name, FRAMES, **options)
        for name, options in PLAIN.items()
        if has_encoder(options.get("codec", "libx264"))
    ]
    with open_frames(paths[0], probe(paths[0]), range(FRAMES)) as reader:
        pictures = [picture for _, picture in reader]
    paths += [
        write_sized(tmp_path / name, pictures)
        for name, (codec, *_) in SIZED.items()
        if has_encoder(codec)
    ]

    def case(path: Path) -> Case:
        facts = probe(path)
        first = 7 if path.name == "edited.mp4" else 0
        assert facts.frame_count == FRAMES - first, path.name

        def wrong(read: list[tuple[int, np.ndarray]]) -> int:
            return sum(
                read_number(np.rot90(picture, -facts.rotation // 90)[:, :128]) != number + first
                for number, picture in read
            )

        return Case(path, facts, wrong)

    return [case(path) for path in paths]


def real_case(path: Path) -> Case:
    """A real file, with the pictures of a plain decode as what they must be."""
    import av

    with av.open(str(path)) as container:
        frames = container.decode(container.streams.best("video"))
        marks = np.stack(
            [
                mark(np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90) % 4))
                for frame in frames
            ]
        )

    def wrong(read: list[tuple[int, np.ndarray]]) -> int:
        far = [np.abs(marks - mark(picture)).mean(1) for _, picture in read]
        return sum(
            bool(distances[number] > distances.min())
            for (number, _), distances in zip(read, far, strict=True)
        )

    facts = probe(path)
    assert facts.frame_count == len(marks)
    return Case(path, facts, wrong)


def mark(picture: np.ndarray) -> np.ndarray:
    """Every fourth pixel of every fourth row, `[n]` int16."""
    return picture[::4, ::4].astype(np.int16).ravel()


def subsets(case: Case, random: np.random.Generator) -> Iterator[np.ndarray]:
    """Ascending choices of the video's frames: few or many, from all of it or a part of it."""
    while True:
        first, last = np.sort(random.integers(0, case.facts.frame_count, 2))
        size = min(int(random.integers(1, 25)), last - first + 1)
        yield first + np.sort(random.choice(last - first + 1, size, replace=False))


def requests(
    cases: list[Case], routes: dict[Any, int], random: np.random.Generator
) -> list[Request]:
    """`routes` says how many requests of each file go which way; all in one random order."""
    result = [
        (case, route, expected)
        for case in cases
        for route, count in routes.items()
        for expected, _ in zip(subsets(case, random), range(count), strict=False)
    ]
    return [result[place] for place in random.permutation(len(result))]


def check(asked: list[Request]) -> Counter[str]:
    """Serve all requests and count who did; fails with every request that was not served rightly."""
    served: Counter[str] = Counter()
    faults = []
    with ProcessDecoder() as child:
        for case, route, expected in asked:
            about = (case.path, case.facts, expected)
            with child.frames(*about) if route == "child" else open_frames(*about, route) as stream:
                read = list(stream)
            served[f"{route} {stream.decoder}"] += 1
            wrong = case.wrong(read)
            if [number for number, _ in read] != expected.tolist() or wrong:
                faults.append(
                    f"{case.path.name} by {route} ({stream.decoder}, {stream.reason}): {wrong} of {expected.tolist()} are wrong"
                )
    assert not faults
    return served


def test_two_thousand_requests_of_made_videos(generated_cases: list[Case]) -> None:
    routes = {"auto": 30, "pyav": 16, "child": 12}
    served = check(requests(generated_cases, routes, np.random.default_rng(0)))
    assert sum(served.values()) >= 2000
    assert (
        min(
            served["auto decord"],
            served["child decord"],
            served["auto pyav"],
            served["pyav pyav"],
            served["child pyav"],
        )
        >= 100
    )


@pytest.mark.parametrize("codec", ["libx265", "libsvtav1", "libvpx-vp9"])
def test_the_proof_covers(codec: str) -> None:
    if not has_encoder(codec):
        pytest.skip(f"this PyAV cannot encode with {codec}: no such video was made")


@pytest.mark.parametrize("folder", clips_and_shared([""], [""]))
def test_real_videos(folder: Path) -> None:
    cases = [real_case(path) for path in readable(folder)]
    served = check(requests(cases, {"auto": 2, "pyav": 1, "child": 2}, np.random.default_rng(1)))
    assert (
        min(
            served["auto decord"], served["auto pyav"], served["child decord"], served["child pyav"]
        )
        >= 8
    )


@pytest.mark.parametrize("folder", clips_and_shared([""], [""]))
def test_the_other_files_are_refused_with_a_reason(folder: Path) -> None:
    with ProcessDecoder() as child:
        for name, reason in REFUSED[folder].items():
            with pytest.raises(VideoError, match=f"{reason} .*{name}"):
                read_all(child, folder / name)


@pytest.mark.soak
def test_many_requests_of_real_and_made_videos(generated_cases: list[Case]) -> None:
    real = [real_case(path) for folder in REFUSED for path in readable(folder)]
    check(requests(real, {"auto": 20, "pyav": 20, "child": 20}, np.random.default_rng(2)))
    for seed in range(3, 8):
        check(
            requests(
                generated_cases, {"auto": 60, "pyav": 40, "child": 60}, np.random.default_rng(seed)
            )
        )
