"""Sequential reading of video frames by ascending frame index, in bounded memory.

decord is the first choice. It reads sequentially and never seeks. PyAV reads in these cases:

- decord is not installed. It has wheels for x86-64 Linux and Windows only.
- decord is known to be wrong: edit lists, several video streams, packets that are not frames, and
  containers other than MP4 and Matroska. decord starts MPEG-TS files one group of pictures late.
- decord cannot open the file, counts other frames than the packets, or unpacks frames wrongly.
- decord would need more than `MAX_READ_AHEAD_BYTES` if it decoded all frames ahead, because its
  buffer has no limit.

If decord fails at some frame, PyAV continues from there. One decoder alone therefore decides
whether a file is damaged. Both decoders give the same pixels, except that they interpolate chroma
differently at odd sizes. Neither detects damage that FFmpeg conceals by copying neighboring pixels.
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
"""Largest number of frames that decord skips in one call."""
DLPACK_CPU = (1, 0)
"""DLPack's device type and index of the first CPU."""
DecoderName = Literal["auto", "decord", "pyav"]
IndexedFrame = tuple[int, np.ndarray]
"""A frame index and its frame, RGB uint8 [h, w, 3]."""


class _DecordError(Exception):
    """Failure of decord that PyAV takes over; the message is the reason."""


class FrameReader:
    """Iterator of `(frame index, RGB uint8 [h, w, 3])` over one video.

    Attributes:
        metadata: Metadata of the video.
        frame_indices: `[n]` int64, ascending indices of the frames to read.
        decoder: Decoder in use: `decord` or `pyav`. It may change while frames are read.
        reason: Reason for the choice of the decoder.
    """

    def __init__(
        self,
        metadata: VideoMetadata,
        frame_indices: np.ndarray,
        decoder: DecoderName,
        heartbeat: HeartbeatCallback,
    ) -> None:
        self.metadata = metadata
        self.frame_indices = frame_indices
        self.decoder = "decord"
        self.reason = "first choice"
        self._heartbeat = heartbeat
        self._decord_reader: Any = None

        # Open decord unless there is a reason against it; its failure is such a reason too.
        if decoder == "auto":
            pyav_reason = _reason_for_pyav(metadata)
        else:
            pyav_reason = "asked for" if decoder == "pyav" else ""
        if not pyav_reason:
            try:
                self._decord_reader = _open_decord(metadata)
            except _DecordError as error:
                pyav_reason = str(error)

        if pyav_reason:
            self.decoder = "pyav"
            self.reason = pyav_reason
        self._frame_iterator = self._iterate_frames()

    def __iter__(self) -> Iterator[IndexedFrame]:
        return self

    def __next__(self) -> IndexedFrame:
        frame_index, frame = next(self._frame_iterator)
        return frame_index, np.array(frame, order="C")

    def iterate_views(self) -> Iterator[IndexedFrame]:
        """Iterate over the frames without copying them.

        Returns:
            Iterator of `(frame index, RGB uint8 [h, w, 3])`. Each frame is a view of the decoder's
            memory and is valid until the next one is requested.
        """
        views: Iterator[IndexedFrame] = self._frame_iterator
        return views

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
        """Stop reading and release the decoder's memory."""
        self._frame_iterator.close()
        self._decord_reader = None

    def _iterate_frames(self) -> Any:
        """Yield frames of decord, and of PyAV from the frame at which decord fails."""
        num_read = 0
        if self._decord_reader is not None:
            indexed_frames = _read_with_decord(
                self._decord_reader, self.metadata, self.frame_indices, self._heartbeat
            )
            try:
                for indexed_frame in indexed_frames:
                    yield indexed_frame
                    num_read += 1
                return
            except _DecordError as error:
                self.decoder = "pyav"
                self.reason = str(error)
                self._decord_reader = None

        yield from _read_with_pyav(self.metadata, self.frame_indices[num_read:], self._heartbeat)


def open_frames(
    path: str | Path,
    metadata: VideoMetadata,
    frame_indices: Iterable[int],
    decoder: DecoderName = "auto",
    heartbeat: HeartbeatCallback = ignore_heartbeat,
) -> FrameReader:
    """Open a video to read some of its frames.

    Args:
        path: Video file.
        metadata: Its metadata, from `probe`.
        frame_indices: Strictly increasing indices of the frames to read.
        decoder: `auto` chooses; `decord` falls back to PyAV where decord fails.
        heartbeat: Called repeatedly while no frame comes out.

    Returns:
        A reader, which is an iterator and a context manager.

    Raises:
        ValueError: The frame indices are not strictly increasing within the video.
    """
    checked_indices = validate_frame_indices(path, metadata, frame_indices)
    return FrameReader(replace(metadata, path=Path(path)), checked_indices, decoder, heartbeat)


def validate_frame_indices(
    path: str | Path, metadata: VideoMetadata, frame_indices: Iterable[int]
) -> np.ndarray:
    """Check frame indices and convert them to an array.

    Args:
        path: Video file, for the error message.
        metadata: Its metadata.
        frame_indices: Indices of the frames to read.

    Returns:
        The indices, `[n]` int64.

    Raises:
        ValueError: The indices are not strictly increasing within the video.
    """
    if not isinstance(frame_indices, np.ndarray):
        frame_indices = list(frame_indices)
    indices = np.asarray(frame_indices, np.int64)
    if not len(indices):
        return indices

    is_inside = indices[0] >= 0 and indices[-1] < metadata.frame_count
    if not is_inside or (np.diff(indices) <= 0).any():
        raise ValueError(
            f"frame indices of {path} must be strictly increasing within "
            f"[0, {metadata.frame_count})"
        )
    return indices


def is_decord_installed() -> bool:
    """Check for decord without importing it.

    Returns:
        True if Python finds the package.
    """
    try:
        return find_spec("decord") is not None
    except (ImportError, ValueError):
        return False


def _reason_for_pyav(metadata: VideoMetadata) -> str:
    """Return why decord must not be tried, or ""."""
    if metadata.decord_unsafe_reason:
        return metadata.decord_unsafe_reason

    width, height = metadata.size
    read_ahead_bytes = metadata.frame_count * width * height * 3
    if read_ahead_bytes > MAX_READ_AHEAD_BYTES:
        return f"decord may decode {read_ahead_bytes >> 20} MiB ahead"
    return ""


def _open_decord(metadata: VideoMetadata) -> Any:
    """Open decord's reader and check that it counts the frames of the metadata."""
    try:
        import decord
    except (ImportError, OSError):  # OSError: a library that decord links to is missing
        raise _DecordError("decord is not installed") from None

    decord.logging.set_level(decord.logging.QUIET)
    try:
        reader = decord.VideoReader(str(metadata.path), ctx=decord.cpu(0), num_threads=1)
    except (decord.DECORDError, RuntimeError, OSError):
        raise _DecordError("decord cannot open it") from None

    if len(reader) != metadata.frame_count:
        raise _DecordError(
            f"decord counts {len(reader)} frames, the packets {metadata.frame_count}"
        )
    return reader


def _read_with_decord(
    reader: Any, metadata: VideoMetadata, frame_indices: np.ndarray, heartbeat: HeartbeatCallback
) -> Iterator[IndexedFrame]:
    """Yield frames of decord as views; raise _DecordError where it fails."""
    import decord

    width, height = metadata.size
    key_indices = np.asarray(reader.get_key_indices(), np.int64)
    position = 0
    for frame_index in frame_indices.tolist():
        try:
            _skip_to_frame(reader, key_indices, position, frame_index, heartbeat)
            frame = np.from_dlpack(_DlpackArray(reader.next()))
        except (decord.DECORDError, RuntimeError, StopIteration):
            raise _DecordError(f"decord fails before frame {frame_index}") from None

        if frame.shape != (height, width, 3):
            raise _DecordError(
                f"decord gives an array of shape {frame.shape} at frame {frame_index}"
            )
        position = frame_index + 1
        yield frame_index, frame


class _DlpackArray:
    """Adapter of decord's array to the protocol by which NumPy takes arrays without a copy."""

    def __init__(self, array: Any) -> None:
        self._array = array

    def __dlpack__(self, **options: Any) -> Any:
        return self._array.to_dlpack()

    def __dlpack_device__(self) -> tuple[int, int]:
        return DLPACK_CPU


def _skip_to_frame(
    reader: Any,
    key_indices: np.ndarray,
    position: int,
    frame_index: int,
    heartbeat: HeartbeatCallback,
) -> None:
    """Advance decord from frame `position` to `frame_index` without a seek.

    decord seeks if a skip reaches a key frame, so key frames are read instead.
    """
    while position < frame_index:
        heartbeat()

        # Skip to the last frame before the next key frame.
        next_keys = key_indices[key_indices > position]
        stop = min(frame_index, position + MAX_SKIP_FRAMES)
        if len(next_keys):
            stop = min(stop, int(next_keys[0]) - 1)

        if stop > position:
            reader.skip_frames(stop - position)
            position = stop
        else:
            reader.next()
            position += 1


def _read_with_pyav(
    metadata: VideoMetadata, frame_indices: np.ndarray, heartbeat: HeartbeatCallback
) -> Iterator[IndexedFrame]:
    """Yield frames of PyAV, found by timestamp, or by count if the metadata was counted."""
    if not len(frame_indices):
        return
    remaining = iter(frame_indices.tolist())
    target = next(remaining)

    path = metadata.path
    width, height = metadata.size
    with open_container(path) as container:
        # A size that `probe` accepted under a higher limit is accepted here too.
        stream = find_best_stream(container, path, max(MAX_PIXELS, width * height))
        with closing(decode_frames(container, stream, path, heartbeat)) as frames:
            for frame, frame_index in _enumerate_frames(frames, metadata):
                if frame_index > target:
                    break
                if frame_index == target:
                    yield frame_index, _convert_to_rgb(frame, metadata)
                    target = next(remaining, -1)
                    if target < 0:
                        return
    raise _missing_frame_error(metadata, target)


def _enumerate_frames(frames: Iterable[Any], metadata: VideoMetadata) -> Iterator[tuple[Any, int]]:
    """Yield each frame with its index, without frames that no packet announced."""
    for count, frame in enumerate(frames):
        if metadata.frames_counted_by_decoding:
            yield frame, count
        elif frame.pts is not None:
            seconds = ticks_to_seconds(frame.pts, frame.time_base)
            frame_index = int(np.searchsorted(metadata.pts_seconds, seconds))
            is_inside = frame_index < metadata.frame_count
            if is_inside and metadata.pts_seconds[frame_index] == seconds:
                yield frame, frame_index


def _convert_to_rgb(frame: Any, metadata: VideoMetadata) -> np.ndarray:
    """Return a PyAV frame as RGB uint8 `[h, w, 3]`, with the size and rotation of the metadata."""
    import av

    # The metadata's size holds after the rotation, which is applied last.
    width, height = metadata.size
    if metadata.rotation % 180:
        width, height = height, width

    try:
        plane = frame.reformat(width, height, "rgb24", threads=1).planes[0]
    except (av.FFmpegError, OSError, ValueError) as error:
        cause = format_ffmpeg_error(error)
        detail = f"{metadata.path}: a frame cannot be converted to RGB ({cause}); convert it again"
        raise VideoError("decode", "damaged", detail) from None

    # Rows may be padded: the view skips the padding.
    strides = (plane.line_size, 3, 1)
    image: np.ndarray = np.ndarray((height, width, 3), np.uint8, plane, strides=strides)
    return np.rot90(image, metadata.rotation // 90)


def _missing_frame_error(metadata: VideoMetadata, frame_index: int) -> VideoError:
    """Return the error for a packet that gives no frame."""
    seconds = metadata.pts_seconds[frame_index]
    detail = (
        f"{metadata.path}: frame {frame_index} of {metadata.frame_count} (at {seconds:.2f} s) "
        "has a packet but cannot be decoded; copy, download or convert it again"
    )
    return VideoError("decode", "damaged", detail)
