"""Detection of truncated video files.

A file that is cut short often decodes without an error. Its last timestamp and its size are
therefore compared with the values that its header declares.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import VideoError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

MICROSECONDS_PER_SECOND = 1_000_000
BOX_SIZE_64BIT = 1
"""Size field of an MP4 box whose size follows as a 64-bit integer."""
BOX_SIZE_TO_FILE_END = 0
"""Size field of an MP4 box that extends to the end of the file."""


def check_truncation(
    path: Path,
    container: InputContainer,
    stream: VideoStream,
    video_end: float,
    container_end: float,
) -> None:
    """Raise a VideoError if the packets end well before the declared duration.

    The stream's declared duration is compared with `video_end`. If the stream declares none, the
    container's duration is compared with `container_end`, because audio may outlast the frames.

    Args:
        path: Video file.
        container: Its open container.
        stream: Its best video stream.
        video_end: End of the stream's last packet, seconds in container time.
        container_end: End of the last packet of any stream, seconds in container time.

    Raises:
        VideoError: `truncated`. More than max(0.5 s, 2 %) of the declared duration is missing.
    """
    # Compare the durations of the stream, or of the container as the second choice.
    declared = get_declared_duration(stream)
    if declared is not None:
        end = video_end
        start = float((stream.start_time or 0) * (stream.time_base or 0))
    elif container.duration:
        declared = container.duration / MICROSECONDS_PER_SECOND
        end = max(container_end, video_end)
        start = (container.start_time or 0) / MICROSECONDS_PER_SECOND
    else:
        return

    # Matroska counts durations from time 0, other containers from their first timestamp.
    if "matroska" not in container.format.name:
        end -= start

    if declared - end > max(0.5, 0.02 * declared):
        detail = (
            f"{path} declares {declared:.2f} s but its packets end at {end:.2f} s; "
            "copy or download it again"
        )
        raise VideoError("open", "truncated", detail)


def get_declared_duration(stream: VideoStream) -> float | None:
    """Return the duration that a video stream declares.

    Args:
        stream: Video stream.

    Returns:
        Seconds, from the stream's header or from the DURATION tag of Matroska files. None if
        neither is present.
    """
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)

    tag = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", stream.metadata.get("DURATION", "").strip())
    if tag is None:
        return None
    return int(tag[1]) * 3600 + int(tag[2]) * 60 + float(tag[3])


def describe_truncation(path: Path) -> str:
    """Describe the part that is missing at the end of an MP4 or MOV file.

    Only the file's top-level boxes are read (ISO/IEC 14496-12).

    Args:
        path: File.

    Returns:
        The description, or "" for a complete file and for other formats.
    """
    file_size = path.stat().st_size
    offset = 0
    box_types: list[bytes] = []

    # Walk from box to box by their declared sizes.
    with path.open("rb") as file:
        while offset + 8 <= file_size:
            file.seek(offset)
            header = file.read(16)
            box_size = int.from_bytes(header[:4], "big")
            if box_size == BOX_SIZE_64BIT:
                box_size = int.from_bytes(header[8:16], "big")
            elif box_size == BOX_SIZE_TO_FILE_END:
                box_size = file_size - offset

            box_types.append(header[4:8])
            if box_types[0] != b"ftyp" or box_size < 8:
                return ""
            offset += box_size

    if box_types and offset > file_size:
        return f"the file ends {offset - file_size} bytes before the end of its last box"
    if box_types and b"moov" not in box_types:
        return "the file ends before its table of contents (moov)"
    return ""
