"""Access to a video file through PyAV, with its failures as VideoErrors."""

from __future__ import annotations

import stat
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import VideoError
from pipeline.video.corruption import describe_truncation

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

MAX_PIXELS = 4096 * 4096
"""Largest accepted frame, in pixels."""
HeartbeatCallback = Callable[[], None]
"""Function that a decoder calls repeatedly while it works without producing a frame."""


def ignore_heartbeat() -> None:
    """Do nothing. This is the heartbeat of callers without a timeout."""


def open_container(path: Path) -> InputContainer:
    """Open a video file with PyAV. The caller closes the container.

    Args:
        path: Video file.

    Returns:
        The open container.

    Raises:
        VideoError: The file is `missing`, `empty`, `unreadable` or `truncated`.
    """
    import av

    check_regular_file(path)

    # Opening decodes a frame where the header says little, so the pixel limit is needed here too.
    options = {"max_pixels": str(2 * MAX_PIXELS)}
    try:
        return av.open(str(path), options=options)
    except (av.FFmpegError, OSError, ValueError) as error:
        truncation = describe_truncation(path)
        if truncation:
            detail = f"{path}: {truncation}; copy or download it again"
            raise VideoError("open", "truncated", detail) from None

        cause = format_ffmpeg_error(error)
        detail = f"{path} is not a video FFmpeg can open ({cause}); replace it"
        raise VideoError("open", "unreadable", detail) from None


def check_regular_file(path: Path) -> None:
    """Check that a path is a regular file with content.

    Args:
        path: The path of a video.

    Raises:
        VideoError: There is no file, it is not a regular one, or it is empty.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        detail = f"{path} does not exist; put the video there or correct its path"
        raise VideoError("open", "missing", detail) from None
    except (OSError, ValueError) as error:
        cause = format_ffmpeg_error(error)
        detail = f"{path} cannot be reached ({cause}); correct its path or its permissions"
        raise VideoError("open", "missing", detail) from None

    if not stat.S_ISREG(status.st_mode):
        raise VideoError("open", "unreadable", f"{path} is not a file; give a video file")
    if status.st_size == 0:
        raise VideoError("open", "empty", f"{path} has zero bytes; copy or download it again")


def find_best_stream(container: InputContainer, path: Path, max_pixels: int) -> VideoStream:
    """Return the best video stream, configured to decode on one thread.

    Args:
        container: Open container.
        path: Its file, for error messages.
        max_pixels: Largest accepted frame, in pixels.

    Returns:
        The stream that FFmpeg's `av_find_best_stream` names.

    Raises:
        VideoError: There is no decodable video stream (`unreadable`), or its frames are
            `too-large`.
    """
    stream = container.streams.best("video")
    context = getattr(stream, "codec_context", None)
    if stream is None or context is None:
        detail = f"{path} has no video stream FFmpeg can decode; replace it"
        raise VideoError("open", "unreadable", detail)

    # Check the frame size before anything is decoded.
    width = context.width
    height = context.height
    if width * height > max_pixels:
        detail = (
            f"{path} is {width}x{height}, more than {max_pixels} pixels per frame; "
            "scale it down (ffmpeg -vf scale=1920:-2)"
        )
        raise VideoError("open", "too-large", detail)
    if width <= 0 or height <= 0:
        detail = f"{path}: its video stream has no frame size; convert it again"
        raise VideoError("open", "unreadable", detail)

    # The limit is doubled because FFmpeg counts the coded size, rounded up to whole blocks.
    context.thread_count = 1
    context.options = {"max_pixels": str(2 * max_pixels)}
    return stream  # type: ignore[return-value]


def demux_packets(container: InputContainer, *streams: VideoStream) -> Iterator[Any]:
    """Yield packets in storage order, ending with the packets that flush the decoders.

    Args:
        container: Open container.
        *streams: Streams to read. Without any, all streams are read.

    Yields:
        PyAV packets.
    """
    # PyAV may raise IndexError after the last packet, if the file holds streams that its header
    # did not announce.
    with suppress(IndexError):
        yield from container.demux(*streams)


def decode_frames(
    container: InputContainer, stream: VideoStream, path: Path, heartbeat: HeartbeatCallback
) -> Generator[Any, None, None]:
    """Yield the decoded frames of a stream in order.

    Args:
        container: Open container.
        stream: Its video stream.
        path: Its file, for error messages.
        heartbeat: Called once per packet.

    Yields:
        PyAV frames.

    Raises:
        VideoError: Decoding fails: `truncated` if the file is cut short, else `damaged`.
    """
    import av

    frame_count = 0
    try:
        for packet in demux_packets(container, stream):
            heartbeat()
            for frame in packet.decode():
                yield frame
                frame_count += 1
    except (av.FFmpegError, OSError, ValueError) as error:
        truncation = describe_truncation(path)
        cause = truncation or format_ffmpeg_error(error)
        detail = (
            f"{path}: decoding fails after {frame_count} frames ({cause}); "
            "copy, download or convert it again"
        )
        raise VideoError("decode", "truncated" if truncation else "damaged", detail) from None


def ticks_to_seconds(ticks: Any, time_base: Fraction) -> Any:
    """Convert timestamps to seconds.

    The result for an array equals the results for its elements, bit for bit.

    Args:
        ticks: Integer or integer array `[n]`, in units of `time_base`.
        time_base: Seconds per tick.

    Returns:
        Seconds: float or float64 array `[n]`.
    """
    return ticks * time_base.numerator / time_base.denominator


def get_frame_rotation(frame: Any) -> int:
    """Return the rotation of a frame.

    Args:
        frame: PyAV frame.

    Returns:
        Degrees counter-clockwise: 0, 90, 180 or 270.
    """
    return round(frame.rotation / 90) * 90 % 360


def format_ffmpeg_error(error: Exception) -> str:
    """Return FFmpeg's description of an error, without the path and the error number.

    Args:
        error: Exception from PyAV or the operating system.

    Returns:
        One line of text.
    """
    description = getattr(error, "strerror", None)
    return description or " ".join(str(error).split()) or type(error).__name__
