"""Streaming a video's pictures by frame number, in increasing order, in bounded memory.

decord reads first, in sequence, never by seeking. PyAV reads where decord is known to be wrong or not to manage:
edit lists, several video streams, packets that are not pictures, containers other than MP4 and Matroska (it begins
MPEG-TS files a group late), files it cannot open, counts otherwise or unpacks wrongly, and videos whose pictures,
all decoded ahead (decord's ring has no bound), would not fit `MAX_READ_AHEAD_BYTES`. Where decord fails in the middle
PyAV goes on from there, so damage is judged by one decoder alone. Both give the same pixels (at odd sizes they interpolate colour
differently). Damage that FFmpeg
conceals (a picture patched from its neighbours) is not noticed by either.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np

from pipeline.errors import VideoError
from pipeline.video.container import (
    MAX_PIXELS,
    HeartbeatCallback,
    decode_frames,
    find_best_stream,
    format_ffmpeg_error,
    ignore_heartbeat,
    open_container,
    ticks_to_seconds,
)
from pipeline.video.metadata import VideoMetadata

MAX_READ_AHEAD_BYTES = 1 << 30
MAX_SKIP_FRAMES = 256
"""Frames decord passes over in one call, at most."""
DLPACK_CPU = (1, 0)
"""DLPack's name of the first CPU."""
DecoderName = Literal["auto", "decord", "pyav"]
IndexedFrame = tuple[int, np.ndarray]


class _DecordError(Exception):
    """decord cannot go on; the reason is the message."""


class FrameReader:
    """Iterator of `(frame number, rgb uint8 [h, w, 3])`; `decoder` and `reason` say who reads and why."""

    def __init__(
        self,
        metadata: VideoMetadata,
        frame_indices: np.ndarray,
        decoder: DecoderName,
        heartbeat: HeartbeatCallback,
    ) -> None:
        self.metadata = metadata
        self.frame_indices = frame_indices
        self._heartbeat = heartbeat
        self.decoder = "decord"
        self.reason = "first choice"
        reason = (
            "asked for"
            if decoder == "pyav"
            else ""
            if decoder == "decord"
            else _reason_for_pyav(metadata)
        )
        self._decord_reader: Any = None
        if not reason:
            try:
                self._decord_reader = _open_decord(metadata)
            except _DecordError as failure:
                reason = str(failure)
        if reason:
            self.decoder, self.reason = "pyav", reason
        self._frame_iterator = self._iterate_frames()

    def __iter__(self) -> Iterator[IndexedFrame]:
        return self

    def __next__(self) -> IndexedFrame:
        number, picture = next(self._frame_iterator)
        return number, np.array(picture, order="C")

    def iterate_views(self) -> Iterator[IndexedFrame]:
        """The same pictures without a copy: in the decoder's own memory, to be read before the next one is asked for."""
        pictures: Iterator[IndexedFrame] = self._frame_iterator
        return pictures

    def __enter__(self) -> FrameReader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop reading and give back the decoder's memory."""
        self._frame_iterator.close()
        self._decord_reader = None

    def _iterate_frames(self) -> Any:
        done = 0
        if self._decord_reader is not None:
            try:
                for picture in _read_with_decord(
                    self._decord_reader, self.metadata, self.frame_indices, self._heartbeat
                ):
                    yield picture
                    done += 1
                return
            except _DecordError as failure:
                self.decoder, self.reason, self._decord_reader = "pyav", str(failure), None
        yield from _read_with_pyav(self.metadata, self.frame_indices[done:], self._heartbeat)


def open_frames(
    path: str | Path,
    metadata: VideoMetadata,
    frame_indices: Iterable[int],
    decoder: DecoderName = "auto",
    heartbeat: HeartbeatCallback = ignore_heartbeat,
) -> FrameReader:
    """A context manager and iterator of the `wanted` (ascending) frames of the video that `facts` are about."""
    return FrameReader(
        replace(metadata, path=Path(path)),
        validate_frame_indices(path, metadata, frame_indices),
        decoder,
        heartbeat,
    )


def validate_frame_indices(
    path: str | Path, metadata: VideoMetadata, frame_indices: Iterable[int]
) -> np.ndarray:
    """The wanted frame numbers `[n]` int64; ValueError unless they ascend within the video."""
    numbers = np.asarray(
        frame_indices if isinstance(frame_indices, np.ndarray) else list(frame_indices), np.int64
    )
    if len(numbers) and (
        numbers[0] < 0 or numbers[-1] >= metadata.frame_count or (np.diff(numbers) <= 0).any()
    ):
        raise ValueError(
            f"wanted frames of {path} must ascend within [0, {metadata.frame_count}), each once"
        )
    return numbers


def _reason_for_pyav(facts: VideoMetadata) -> str:
    """Why decord is not even asked ("" if it is)."""
    if facts.decord_unsafe_reason:
        return facts.decord_unsafe_reason
    ahead = facts.frame_count * facts.size[0] * facts.size[1] * 3
    return f"decord may decode {ahead >> 20} MiB ahead" if ahead > MAX_READ_AHEAD_BYTES else ""


def is_decord_installed() -> bool:
    """Return True if decord can be imported, without importing it."""
    try:
        return find_spec("decord") is not None
    except (ImportError, ValueError):
        return False


def _open_decord(facts: VideoMetadata) -> Any:
    """Decord's reader, if it sees the same video as the probe did."""
    try:
        import decord
    except (ImportError, OSError):  # OSError: a library that decord links to is missing
        raise _DecordError("decord is not installed") from None

    decord.logging.set_level(decord.logging.QUIET)
    try:
        video = decord.VideoReader(str(facts.path), ctx=decord.cpu(0), num_threads=1)
    except (decord.DECORDError, RuntimeError, OSError):
        raise _DecordError("decord cannot open it") from None
    if len(video) != facts.frame_count:
        raise _DecordError(f"decord counts {len(video)} frames, the packets {facts.frame_count}")
    return video


def _read_with_decord(
    video: Any, facts: VideoMetadata, wanted: np.ndarray, alive: HeartbeatCallback
) -> Iterator[IndexedFrame]:
    import decord

    keys = np.asarray(video.get_key_indices(), np.int64)
    shape = (facts.size[1], facts.size[0], 3)
    place = 0
    for number in wanted.tolist():
        try:
            _skip_to_frame(video, keys, place, number, alive)
            picture = np.from_dlpack(_DlpackArray(video.next()))
        except (decord.DECORDError, RuntimeError, StopIteration):
            raise _DecordError(f"decord fails before frame {number}") from None
        if picture.shape != shape:
            raise _DecordError(f"decord gives an array of shape {picture.shape} at frame {number}")
        place = number + 1
        yield number, picture


class _DlpackArray:
    """decord's array in the form NumPy takes arrays over, without a copy."""

    def __init__(self, array: Any) -> None:
        self._array = array

    def __dlpack__(self, **options: Any) -> Any:
        return self._array.to_dlpack()

    def __dlpack_device__(self) -> tuple[int, int]:
        return DLPACK_CPU


def _skip_to_frame(
    video: Any, keys: np.ndarray, place: int, number: int, alive: HeartbeatCallback
) -> None:
    """Move from frame `place` to `number` without a seek: decord seeks in a skip that reaches a key frame, so those are read."""
    while place < number:
        alive()
        later = keys[keys > place]
        stop = min(number, place + MAX_SKIP_FRAMES, int(later[0]) - 1 if len(later) else number)
        if stop > place:
            video.skip_frames(stop - place)
            place = stop
        else:
            video.next()
            place += 1


def _read_with_pyav(
    facts: VideoMetadata, wanted: np.ndarray, alive: HeartbeatCallback
) -> Iterator[IndexedFrame]:
    """The wanted pictures by timestamp (by count where the facts themselves were counted)."""
    if not len(wanted):
        return
    targets = iter(wanted.tolist())
    target = next(targets)
    with open_container(facts.path) as container:
        stream = find_best_stream(
            container, facts.path, max(MAX_PIXELS, facts.size[0] * facts.size[1])
        )
        with closing(decode_frames(container, stream, facts.path, alive)) as frames:
            for frame, number in _enumerate_frames(frames, facts):
                if number > target:
                    break
                if number == target:
                    yield number, _convert_to_rgb(frame, facts)
                    target = next(targets, -1)
                    if target < 0:
                        return
    raise _missing_frame_error(facts, target)


def _enumerate_frames(frames: Iterable[Any], facts: VideoMetadata) -> Iterator[tuple[Any, int]]:
    """Each picture with its frame number; pictures the packets did not announce are passed over."""
    for count, frame in enumerate(frames):
        if facts.frames_counted_by_decoding:
            yield frame, count
        elif frame.pts is not None:
            time = ticks_to_seconds(frame.pts, frame.time_base)
            number = int(np.searchsorted(facts.pts_seconds, time))
            if number < facts.frame_count and facts.pts_seconds[number] == time:
                yield frame, number


def _convert_to_rgb(frame: Any, facts: VideoMetadata) -> np.ndarray:
    """RGB `[h, w, 3]` of the size and the rotation the facts state."""
    import av

    width, height = facts.size if facts.rotation % 180 == 0 else facts.size[::-1]
    try:
        plane = frame.reformat(width, height, "rgb24", threads=1).planes[0]
    except (av.FFmpegError, OSError, ValueError) as error:
        detail = f"{facts.path}: a picture cannot be turned into RGB ({format_ffmpeg_error(error)}); convert it again"
        raise VideoError("decode", "damaged", detail) from None
    picture: np.ndarray = np.ndarray(
        (height, width, 3), np.uint8, plane, strides=(plane.line_size, 3, 1)
    )
    return np.rot90(picture, facts.rotation // 90)


def _missing_frame_error(facts: VideoMetadata, number: int) -> VideoError:
    detail = (
        f"{facts.path}: frame {number} of {facts.frame_count} (at {facts.pts_seconds[number]:.2f} s) has a packet but no picture;"
        " copy, download or convert it again"
    )
    return VideoError("decode", "damaged", detail)
