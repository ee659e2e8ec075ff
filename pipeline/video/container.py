"""Opening a video file with PyAV, and every way in which that can fail said in the user's terms."""

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
HeartbeatCallback = Callable[[], None]
"""Called now and then while a decoder works without giving anything."""


def ignore_heartbeat() -> None:
    """For callers whom nobody waits for."""


def open_container(path: Path) -> InputContainer:
    """The file opened by PyAV (close it); a VideoError `missing`, `empty`, `unreadable` or `truncated` says why not."""
    import av

    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        if isinstance(error, FileNotFoundError):
            raise VideoError(
                "open", "missing", f"{path} does not exist; put the video there or correct its path"
            ) from None
        detail = f"{path} cannot be reached ({format_ffmpeg_error(error)}); correct its path or its permissions"
        raise VideoError("open", "missing", detail) from None
    if not stat.S_ISREG(status.st_mode):
        raise VideoError("open", "unreadable", f"{path} is not a file; name a video file")
    if status.st_size == 0:
        raise VideoError("open", "empty", f"{path} has zero bytes; copy or download it again")
    try:
        return av.open(
            str(path), options={"max_pixels": str(2 * MAX_PIXELS)}
        )  # opening decodes a picture where the header says little
    except (av.FFmpegError, OSError, ValueError) as error:
        short = describe_truncation(path)
        if short:
            raise VideoError(
                "open", "truncated", f"{path}: {short}; copy or download it again"
            ) from None
        raise VideoError(
            "open",
            "unreadable",
            f"{path} is not a video FFmpeg can open ({format_ffmpeg_error(error)}); replace it",
        ) from None


def find_best_stream(container: InputContainer, path: Path, max_pixels: int) -> VideoStream:
    """The stream that counts as the video, set to decode on one thread; a VideoError if none, or if its pictures are too large."""
    stream = container.streams.best("video")
    context = getattr(stream, "codec_context", None)
    if stream is None or context is None:
        raise VideoError(
            "open", "unreadable", f"{path} has no video stream FFmpeg can decode; replace it"
        )
    width, height = context.width, context.height
    if width * height > max_pixels:
        detail = f"{path} is {width}x{height}, more than {max_pixels} pixels a picture; scale it down (ffmpeg -vf scale=1920:-2)"
        raise VideoError("open", "too-large", detail)
    if width <= 0 or height <= 0:
        raise VideoError(
            "open", "unreadable", f"{path}: its video stream has no picture size; convert it again"
        )
    context.thread_count = 1
    context.options = {
        "max_pixels": str(2 * max_pixels)
    }  # twice: FFmpeg counts the coded size, rounded up to its blocks
    return stream  # type: ignore[return-value]


def demux_packets(container: InputContainer, *streams: VideoStream) -> Iterator[Any]:
    """The packets of these streams (default: of all), those that flush the decoders last."""
    with suppress(
        IndexError
    ):  # PyAV may raise it behind the last packet, where the file holds streams its header did not announce
        yield from container.demux(*streams)


def decode_frames(
    container: InputContainer, stream: VideoStream, path: Path, heartbeat: HeartbeatCallback
) -> Generator[Any, None, None]:
    """The pictures one after another; an error while decoding becomes a VideoError `damaged` (`truncated` if the file is cut)."""
    import av

    count = 0
    try:
        for packet in demux_packets(container, stream):
            heartbeat()
            for frame in packet.decode():
                yield frame
                count += 1
    except (av.FFmpegError, OSError, ValueError) as error:
        short = describe_truncation(path)
        detail = f"{path}: decoding fails after {count} frames ({short or format_ffmpeg_error(error)}); copy, download or convert it again"
        raise VideoError("decode", "truncated" if short else "damaged", detail) from None


def ticks_to_seconds(ticks: Any, time_base: Fraction) -> Any:
    """Timestamps in units of `base` as seconds; the same double for an array and for each of its members."""
    return ticks * time_base.numerator / time_base.denominator


def get_frame_rotation(frame: Any) -> int:
    """A picture's rotation in degrees counter-clockwise: 0, 90, 180 or 270."""
    return round(frame.rotation / 90) * 90 % 360


def format_ffmpeg_error(error: Exception) -> str:
    """FFmpeg's own words for an error, without the path and the number."""
    return getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
