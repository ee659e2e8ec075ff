"""Is a video file whole? A file cut short often decodes without complaint, so its end is held against what it declares."""

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
BOX_SIZE_TO_FILE_END = 0


def check_truncation(
    path: Path,
    container: InputContainer,
    stream: VideoStream,
    video_end: float,
    container_end: float,
) -> None:
    """VideoError `truncated` where the packets end more than max(0.5 s, 2 %) before the declared duration.

    The stream's own duration is held against `video_end`; without one the container's is held against `container_end`
    (audio may run longer than the pictures). Both ends are seconds in the container's time.
    """
    declared = get_declared_duration(stream)
    end, start = video_end, float((stream.start_time or 0) * (stream.time_base or 0))
    if declared is None:
        if not container.duration:
            return
        declared, end, start = (
            container.duration / MICROSECONDS_PER_SECOND,
            max(container_end, video_end),
            (container.start_time or 0) / MICROSECONDS_PER_SECOND,
        )
    if (
        "matroska" not in container.format.name
    ):  # Matroska counts its durations from time 0, the others from their start
        end -= start
    if declared - end > max(0.5, 0.02 * declared):
        detail = f"{path} declares {declared:.2f} s but its packets end at {end:.2f} s; copy or download it again"
        raise VideoError("open", "truncated", detail)


def get_declared_duration(stream: VideoStream) -> float | None:
    """The stream's own duration: its header's, or the DURATION tag Matroska writers leave; None where there is neither."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    tag = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", stream.metadata.get("DURATION", "").strip())
    return int(tag[1]) * 3600 + int(tag[2]) * 60 + float(tag[3]) if tag else None


def describe_truncation(path: Path) -> str:
    """What is missing at the end of an MP4 or MOV file, judged by its boxes alone ("" for a whole or another file)."""
    size, offset, kinds = path.stat().st_size, 0, []
    with path.open("rb") as file:
        while offset + 8 <= size:
            file.seek(offset)
            head = file.read(16)
            length, kind = int.from_bytes(head[:4], "big"), head[4:8]
            if length == BOX_SIZE_64BIT:
                length = int.from_bytes(head[8:16], "big")
            elif length == BOX_SIZE_TO_FILE_END:
                length = size - offset
            kinds.append(kind)
            if kinds[0] != b"ftyp" or length < 8:
                return ""
            offset += length
    if kinds and offset > size:
        return f"the file ends {offset - size} bytes before its last part does"
    if kinds and b"moov" not in kinds:
        return "the file ends before its table of contents (moov)"
    return ""
