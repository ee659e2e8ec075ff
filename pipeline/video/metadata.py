"""What a video is, found by walking through its packets: size, frame times, whether it is whole.

Pictures are not decoded, but for the first one (which alone carries the rotation) and in files whose packets do
not say which pictures will come out (`VideoMetadata.recounted`).
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import VideoError
from pipeline.video.container import (
    MAX_PIXELS,
    HeartbeatCallback,
    decode_frames,
    demux_packets,
    find_best_stream,
    format_ffmpeg_error,
    get_frame_rotation,
    ignore_heartbeat,
    open_container,
    ticks_to_seconds,
)
from pipeline.video.corruption import check_truncation

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

DECORD_FORMATS = ("mp4", "matroska")
NO_TIMESTAMP = -(1 << 63)


@dataclass(frozen=True, eq=False)
class VideoMetadata:
    """Facts of one video. Frame n is shown from `seconds[n]` on.

    `size` is `(width, height)` as shown, after rotation; `seconds` `[n]` float64, ascending, in the container's own
    time (the first need not be 0); `fps` is the mean over them; `duration` reaches from the first frame's time to
    the last one's end; `rotation` is degrees counter-clockwise; `doubt` says why decord must not read this file
    ("" if it may); `recounted`: the frames were found by decoding them all.
    """

    path: Path
    size: tuple[int, int]
    fps: float
    pts_seconds: np.ndarray = field(repr=False)
    duration: float
    has_edit_list: bool
    codec: str
    rotation: int = 0
    decord_unsafe_reason: str = ""
    frames_counted_by_decoding: bool = False

    @property
    def frame_count(self) -> int:
        return len(self.pts_seconds)

    @property
    def edges(self) -> np.ndarray:
        """`[frame_count + 1]` seconds after the first frame: frame n is shown from `edges[n]` to `edges[n + 1]`, whatever the rate."""
        return (
            np.append(self.pts_seconds, self.pts_seconds[0] + self.duration) - self.pts_seconds[0]
        )


@dataclass
class _Packets:
    """The best stream's packets `[n]` in storage order, and how far it and all streams reach (in seconds).

    Arrays, not lists: an hour of video has 100,000 packets.
    """

    timestamps: array[int] = field(default_factory=lambda: array("q"))
    durations: array[int] = field(default_factory=lambda: array("q"))
    keyframe_flags: bytearray = field(default_factory=bytearray)
    discard_flags: bytearray = field(default_factory=bytearray)
    rotation: int | None = None
    video_end: float = 0.0
    container_end: float = 0.0
    error: str = ""

    @property
    def valid_timestamps(self) -> np.ndarray:
        """The times there are, in ticks."""
        ticks = np.array(self.timestamps, np.int64)
        return ticks[ticks != NO_TIMESTAMP]

    @property
    def has_edit_list(self) -> bool:
        """An edit list is at work: packets that are decoded but not shown, or times before 0."""
        return any(self.discard_flags) or bool((self.valid_timestamps < 0).any())


def probe(
    path: str | Path, max_pixels: int = MAX_PIXELS, heartbeat: HeartbeatCallback = ignore_heartbeat
) -> VideoMetadata:
    """The facts of a video; a VideoError (`missing`, `empty`, `unreadable`, `truncated`, `damaged`, `too-large`) if it cannot be used."""
    path = Path(path)
    with open_container(path) as container:
        stream = find_best_stream(container, path, max_pixels)
        codec = stream.codec_context.codec.canonical_name
        packets = _read_packets(container, stream, heartbeat)
        check_truncation(path, container, stream, packets.video_end, packets.container_end)
        doubt = _frame_count_unsafe_reason(packets, codec, container.format.name)
        seconds, length = (
            _decode_presentation_times(path, max_pixels, heartbeat)
            if doubt
            else _get_presentation_times(packets, stream.time_base)  # type: ignore[arg-type]
        )
        _check_readable(path, packets, seconds)
        fps = _compute_fps(seconds, stream)
        length = length or 1 / fps
        width, height = stream.codec_context.width, stream.codec_context.height
        rotation = packets.rotation or 0
        return VideoMetadata(
            path=path,
            size=(height, width) if rotation % 180 else (width, height),
            fps=fps,
            pts_seconds=seconds,
            duration=float(seconds[-1] - seconds[0]) + length,
            has_edit_list=packets.has_edit_list,
            codec=codec,
            rotation=rotation,
            decord_unsafe_reason="edit list"
            if packets.has_edit_list
            else doubt or _container_unsafe_reason(container),
            frames_counted_by_decoding=bool(doubt),
        )


def _read_packets(
    container: InputContainer, stream: VideoStream, alive: HeartbeatCallback
) -> _Packets:
    """Read every packet once, decoding only until the first picture has come out."""
    import av

    found = _Packets()
    try:
        for packet in demux_packets(container):
            alive()
            ticks = packet.dts if packet.pts is None else packet.pts
            end = (
                ticks_to_seconds(ticks + (packet.duration or 0), packet.time_base)
                if packet.size and ticks is not None
                else 0.0
            )
            found.container_end = max(found.container_end, end)
            if packet.stream_index != stream.index:
                continue
            found.video_end = max(found.video_end, end)
            if found.rotation is None:
                found.rotation = _decode_first_rotation(packet)
            if packet.size:
                found.timestamps.append(NO_TIMESTAMP if packet.pts is None else packet.pts)
                found.durations.append(packet.duration or 0)
                found.keyframe_flags.append(packet.is_keyframe)
                found.discard_flags.append(packet.is_discard)
    except (av.FFmpegError, OSError) as error:
        found.error = format_ffmpeg_error(error)
    return found


def _decode_first_rotation(packet: Any) -> int | None:
    """The rotation of the first picture that comes out on a packet; None where none does (a damaged packet gives none)."""
    import av

    try:
        return next((get_frame_rotation(frame) for frame in packet.decode()), None)
    except (av.FFmpegError, OSError, ValueError):
        return None


def _frame_count_unsafe_reason(packets: _Packets, codec: str, container_format: str) -> str:
    """Why packets and pictures may not be one to one ("" where they are, or where there are none)."""
    known = packets.valid_timestamps
    if len(known) < len(packets.timestamps):
        return "packets without timestamps"
    if not len(known):
        return ""
    if len(np.unique(known)) < len(known):
        return "repeated timestamps"
    if not packets.keyframe_flags[0]:
        return "does not begin with a key frame"
    if known.min() < known[0]:
        return "begins with pictures of a missing group"
    return (
        "may hold packets without a picture" if codec == "vp8" or container_format == "avi" else ""
    )


def _container_unsafe_reason(container: InputContainer) -> str:
    """Why decord may read other pictures than these: it was right on MP4 and Matroska, and began a group late on MPEG-TS."""
    if not any(name in DECORD_FORMATS for name in container.format.name.split(",")):
        return f"{container.format.name} container"
    return "several video streams" if len(container.streams.video) > 1 else ""


def _get_presentation_times(packets: _Packets, base: Fraction) -> tuple[np.ndarray, float]:
    """Ascending times `[n]` of the packets that are shown, and the last one's length in seconds (0 if unknown)."""
    shown = np.array(packets.discard_flags, np.uint8) == 0
    ticks, lengths = packets.valid_timestamps[shown], np.array(packets.durations, np.int64)[shown]
    order = np.argsort(ticks)
    return ticks_to_seconds(ticks[order], base), ticks_to_seconds(
        int(lengths[order[-1]]), base
    ) if len(order) else 0.0


def _decode_presentation_times(
    path: Path, max_pixels: int, alive: HeartbeatCallback
) -> tuple[np.ndarray, float]:
    """Times `[n]` of the pictures that really come out, by decoding them all; one without a time follows its neighbour."""
    times: array[float] = array("d")
    with open_container(path) as container:
        stream = find_best_stream(container, path, max_pixels)
        step = 1 / float(stream.average_rate or 25)
        for frame in decode_frames(container, stream, path, alive):
            after = times[-1] + step if times else 0.0
            times.append(
                after if frame.pts is None else ticks_to_seconds(frame.pts, frame.time_base)
            )
    return np.maximum.accumulate(np.array(times, np.float64)), step


def _compute_fps(seconds: np.ndarray, stream: VideoStream) -> float:
    """Mean frames per second over the video; the container's word where there is nothing to measure."""
    if len(seconds) > 1 and seconds[-1] > seconds[0]:
        return float((len(seconds) - 1) / (seconds[-1] - seconds[0]))
    return float(stream.average_rate or stream.guessed_rate or 1)


def _check_readable(path: Path, packets: _Packets, seconds: np.ndarray) -> None:
    """VideoError for a file without a picture, or whose packets cannot all be read."""
    if packets.error:
        raise VideoError(
            "open",
            "damaged",
            f"{path}: its packets cannot all be read ({packets.error}); copy or convert it again",
        )
    if not packets.timestamps:
        raise VideoError(
            "open", "unreadable", f"{path} has a video stream without a picture; replace it"
        )
    if packets.rotation is None or not len(seconds):
        raise VideoError(
            "decode",
            "damaged",
            f"{path}: no picture of it can be decoded; copy, download or convert it again",
        )
