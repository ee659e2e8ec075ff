"""Streaming a video's pictures by frame number, in increasing order, in bounded memory.

decord reads first, in sequence, never by seeking. PyAV reads where decord is known to be wrong or not to manage:
edit lists, several video streams, packets that are not pictures, containers other than MP4 and Matroska (it begins
MPEG-TS files a group late), files it cannot open, counts otherwise or unpacks wrongly, and videos whose pictures,
all decoded ahead (decord's ring has no bound), would not fit `READ_AHEAD_BYTES`. Where decord fails in the middle
PyAV goes on from there, so damage is judged by one decoder alone. Both give the same pixels (at odd sizes they interpolate colour
differently). Damage that FFmpeg
conceals (a picture patched from its neighbours) is not noticed by either.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np

from pipeline.errors import VideoError
from pipeline.video.container import MAX_PIXELS, Alive, best_stream, decoded, error_text, open_container, ticks_to_seconds, unheard
from pipeline.video.metadata import VideoFacts

READ_AHEAD_BYTES = 1 << 30
SKIP = 256
"""Frames decord passes over in one call, at most."""
CPU = (1, 0)
"""DLPack's name of the first CPU."""
Decoder = Literal["auto", "decord", "pyav"]
Picture = tuple[int, np.ndarray]


class _DecordError(Exception):
    """decord cannot go on; the reason is the message."""


class FrameReader:
    """Iterator of `(frame number, rgb uint8 [h, w, 3])`; `decoder` and `reason` say who reads and why."""

    def __init__(self, facts: VideoFacts, wanted: np.ndarray, decoder: Decoder, alive: Alive) -> None:
        self.facts = facts
        self.wanted = wanted
        self._alive = alive
        self.decoder = "decord"
        self.reason = "first choice"
        reason = "asked for" if decoder == "pyav" else "" if decoder == "decord" else _reason_for_pyav(facts)
        self._video: Any = None
        if not reason:
            try:
                self._video = _open_decord(facts)
            except _DecordError as failure:
                reason = str(failure)
        if reason:
            self.decoder, self.reason = "pyav", reason
        self._pictures = self._read()

    def __iter__(self) -> Iterator[Picture]:
        return self

    def __next__(self) -> Picture:
        number, picture = next(self._pictures)
        return number, np.array(picture, order="C")

    def borrowed(self) -> Iterator[Picture]:
        """The same pictures without a copy: in the decoder's own memory, to be read before the next one is asked for."""
        pictures: Iterator[Picture] = self._pictures
        return pictures

    def __enter__(self) -> FrameReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Stop reading and give back the decoder's memory."""
        self._pictures.close()
        self._video = None

    def _read(self) -> Any:
        done = 0
        if self._video is not None:
            try:
                for picture in _decord_pictures(self._video, self.facts, self.wanted, self._alive):
                    yield picture
                    done += 1
                return
            except _DecordError as failure:
                self.decoder, self.reason, self._video = "pyav", str(failure), None
        yield from _pyav_pictures(self.facts, self.wanted[done:], self._alive)


def open_frames(
    path: str | Path, facts: VideoFacts, wanted: Iterable[int], decoder: Decoder = "auto", alive: Alive = unheard
) -> FrameReader:
    """A context manager and iterator of the `wanted` (ascending) frames of the video that `facts` are about."""
    return FrameReader(replace(facts, path=Path(path)), ascending(path, facts, wanted), decoder, alive)


def ascending(path: str | Path, facts: VideoFacts, wanted: Iterable[int]) -> np.ndarray:
    """The wanted frame numbers `[n]` int64; ValueError unless they ascend within the video."""
    numbers = np.asarray(wanted if isinstance(wanted, np.ndarray) else list(wanted), np.int64)
    if len(numbers) and (numbers[0] < 0 or numbers[-1] >= facts.frame_count or (np.diff(numbers) <= 0).any()):
        raise ValueError(f"wanted frames of {path} must ascend within [0, {facts.frame_count}), each once")
    return numbers


def _reason_for_pyav(facts: VideoFacts) -> str:
    """Why decord is not even asked ("" if it is)."""
    if facts.doubt:
        return facts.doubt
    ahead = facts.frame_count * facts.size[0] * facts.size[1] * 3
    return f"decord may decode {ahead >> 20} MiB ahead" if ahead > READ_AHEAD_BYTES else ""


def _open_decord(facts: VideoFacts) -> Any:
    """decord's reader, if it sees the same video as the probe did."""
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    try:
        video = decord.VideoReader(str(facts.path), ctx=decord.cpu(0), num_threads=1)
    except (decord.DECORDError, RuntimeError, OSError):
        raise _DecordError("decord cannot open it") from None
    if len(video) != facts.frame_count:
        raise _DecordError(f"decord counts {len(video)} frames, the packets {facts.frame_count}")
    return video


def _decord_pictures(video: Any, facts: VideoFacts, wanted: np.ndarray, alive: Alive) -> Iterator[Picture]:
    import decord

    keys = np.asarray(video.get_key_indices(), np.int64)
    shape = (facts.size[1], facts.size[0], 3)
    place = 0
    for number in wanted.tolist():
        try:
            _advance(video, keys, place, number, alive)
            picture = np.from_dlpack(_Exported(video.next()))
        except (decord.DECORDError, RuntimeError, StopIteration):
            raise _DecordError(f"decord fails before frame {number}") from None
        if picture.shape != shape:
            raise _DecordError(f"decord gives an array of shape {picture.shape} at frame {number}")
        place = number + 1
        yield number, picture


class _Exported:
    """decord's array in the form NumPy takes arrays over, without a copy."""

    def __init__(self, array: Any) -> None:
        self._array = array

    def __dlpack__(self, **options: Any) -> Any:
        return self._array.to_dlpack()

    def __dlpack_device__(self) -> tuple[int, int]:
        return CPU


def _advance(video: Any, keys: np.ndarray, place: int, number: int, alive: Alive) -> None:
    """Move from frame `place` to `number` without a seek: decord seeks in a skip that reaches a key frame, so those are read."""
    while place < number:
        alive()
        later = keys[keys > place]
        stop = min(number, place + SKIP, int(later[0]) - 1 if len(later) else number)
        if stop > place:
            video.skip_frames(stop - place)
            place = stop
        else:
            video.next()
            place += 1


def _pyav_pictures(facts: VideoFacts, wanted: np.ndarray, alive: Alive) -> Iterator[Picture]:
    """The wanted pictures by timestamp (by count where the facts themselves were counted)."""
    if not len(wanted):
        return
    targets = iter(wanted.tolist())
    target = next(targets)
    with open_container(facts.path) as container:
        stream = best_stream(container, facts.path, max(MAX_PIXELS, facts.size[0] * facts.size[1]))
        with closing(decoded(container, stream, facts.path, alive)) as frames:
            for frame, number in _numbered(frames, facts):
                if number > target:
                    break
                if number == target:
                    yield number, _upright(frame, facts)
                    target = next(targets, -1)
                    if target < 0:
                        return
    raise _no_picture(facts, target)


def _numbered(frames: Iterable[Any], facts: VideoFacts) -> Iterator[tuple[Any, int]]:
    """Each picture with its frame number; pictures the packets did not announce are passed over."""
    for count, frame in enumerate(frames):
        if facts.recounted:
            yield frame, count
        elif frame.pts is not None:
            time = ticks_to_seconds(frame.pts, frame.time_base)
            number = int(np.searchsorted(facts.seconds, time))
            if number < facts.frame_count and facts.seconds[number] == time:
                yield frame, number


def _upright(frame: Any, facts: VideoFacts) -> np.ndarray:
    """RGB `[h, w, 3]` of the size and the rotation the facts state."""
    import av

    width, height = facts.size if facts.rotation % 180 == 0 else facts.size[::-1]
    try:
        plane = frame.reformat(width, height, "rgb24", threads=1).planes[0]
    except (av.FFmpegError, OSError, ValueError) as error:
        detail = f"{facts.path}: a picture cannot be turned into RGB ({error_text(error)}); convert it again"
        raise VideoError("decode", "damaged", detail) from None
    picture: np.ndarray = np.ndarray((height, width, 3), np.uint8, plane, strides=(plane.line_size, 3, 1))
    return np.rot90(picture, facts.rotation // 90)


def _no_picture(facts: VideoFacts, number: int) -> VideoError:
    detail = (
        f"{facts.path}: frame {number} of {facts.frame_count} (at {facts.seconds[number]:.2f} s) has a packet but no picture;"
        " copy, download or convert it again"
    )
    return VideoError("decode", "damaged", detail)
