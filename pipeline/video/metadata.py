"""Metadata of a video, read from its packets: size, frame times, completeness.

Only the first frame is decoded, because it alone carries the rotation. All frames are decoded if
the packets do not tell which frames exist (`VideoMetadata.frames_counted_by_decoding`).
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
"""Containers that decord is known to read correctly."""
NO_TIMESTAMP = -(1 << 63)
"""Value in `_Packets.timestamps` of a packet without a timestamp (FFmpeg's AV_NOPTS_VALUE)."""


@dataclass(frozen=True, eq=False)
class VideoMetadata:
    """Metadata of one video. Frame n is shown from `pts_seconds[n]` on.

    Attributes:
        path: Video file.
        size: (width, height) in pixels as displayed, after rotation.
        fps: Mean frame rate over all frames.
        pts_seconds: `[n]` float64, ascending frame times in container time. The first time may
            differ from 0.
        duration: Seconds from the first frame's time to the last frame's end.
        has_edit_list: True if an edit list hides frames or shifts their times.
        codec: FFmpeg's canonical name of the codec.
        rotation: Degrees counter-clockwise: 0, 90, 180 or 270.
        decord_unsafe_reason: Reason why decord must not read this file, or "".
        frames_counted_by_decoding: True if the frame times come from decoding all frames.
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
        """Number of frames."""
        return len(self.pts_seconds)

    @property
    def edges(self) -> np.ndarray:
        """Boundaries of the frames, `[frame_count + 1]` seconds after the first frame.

        Frame n is shown from `edges[n]` to `edges[n + 1]`, also at a variable frame rate.
        """
        start = self.pts_seconds[0]
        return np.append(self.pts_seconds, start + self.duration) - start


@dataclass
class _Packets:
    """Packets `[n]` of the best video stream, in storage order.

    Arrays are used because an hour of video has 100,000 packets.

    Attributes:
        timestamps: Presentation times in ticks, `NO_TIMESTAMP` where absent.
        durations: Durations in ticks, 0 where unknown.
        keyframe_flags: 1 for key frames.
        discard_flags: 1 for packets that are decoded but not shown.
        rotation: Rotation of the first decoded frame; None until a frame is decoded.
        video_end: End of the video stream in seconds.
        container_end: End of all streams in seconds.
        error: FFmpeg's error that ended the reading, or "".
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
        """Timestamps in ticks, without the absent ones."""
        ticks = np.array(self.timestamps, np.int64)
        return ticks[ticks != NO_TIMESTAMP]

    @property
    def has_edit_list(self) -> bool:
        """True for packets that are decoded but not shown, or for times before 0."""
        return any(self.discard_flags) or bool((self.valid_timestamps < 0).any())


def probe(
    path: str | Path, max_pixels: int = MAX_PIXELS, heartbeat: HeartbeatCallback = ignore_heartbeat
) -> VideoMetadata:
    """Read the metadata of a video.

    Args:
        path: Video file.
        max_pixels: Largest accepted frame, in pixels.
        heartbeat: Called once per packet.

    Returns:
        The metadata.

    Raises:
        VideoError: The video cannot be used: it is `missing`, `empty`, `unreadable`, `truncated`,
            `damaged` or `too-large`.
    """
    path = Path(path)
    with open_container(path) as container:
        # Read all packets and check that the file is complete.
        stream = find_best_stream(container, path, max_pixels)
        codec = stream.codec_context.codec.canonical_name
        packets = _read_packets(container, stream, heartbeat)
        check_truncation(path, container, stream, packets.video_end, packets.container_end)

        # Derive the frame times from the packets, or by decoding where packets are not reliable.
        count_unsafe_reason = _frame_count_unsafe_reason(packets, codec, container.format.name)
        if count_unsafe_reason:
            pts_seconds, last_duration = _decode_presentation_times(path, max_pixels, heartbeat)
        else:
            time_base: Fraction = stream.time_base  # type: ignore[assignment]
            pts_seconds, last_duration = _get_presentation_times(packets, time_base)
        _check_readable(path, packets, pts_seconds)

        # A frame of unknown duration is shown for one mean frame interval.
        fps = _compute_fps(pts_seconds, stream)
        last_duration = last_duration or 1 / fps

        # A quarter turn swaps width and height.
        width = stream.codec_context.width
        height = stream.codec_context.height
        rotation = packets.rotation or 0

        if packets.has_edit_list:
            decord_unsafe_reason = "edit list"
        else:
            decord_unsafe_reason = count_unsafe_reason or _container_unsafe_reason(container)

        return VideoMetadata(
            path=path,
            size=(height, width) if rotation % 180 else (width, height),
            fps=fps,
            pts_seconds=pts_seconds,
            duration=float(pts_seconds[-1] - pts_seconds[0]) + last_duration,
            has_edit_list=packets.has_edit_list,
            codec=codec,
            rotation=rotation,
            decord_unsafe_reason=decord_unsafe_reason,
            frames_counted_by_decoding=bool(count_unsafe_reason),
        )


def _read_packets(
    container: InputContainer, stream: VideoStream, heartbeat: HeartbeatCallback
) -> _Packets:
    """Read every packet once; decode only until the first frame comes out."""
    import av

    packets = _Packets()
    try:
        for packet in demux_packets(container):
            heartbeat()

            # Track how far all streams reach.
            end = _get_packet_end(packet)
            packets.container_end = max(packets.container_end, end)
            if packet.stream_index != stream.index:
                continue
            packets.video_end = max(packets.video_end, end)

            if packets.rotation is None:
                packets.rotation = _decode_first_rotation(packet)

            # Packets without content only flush the decoder.
            if packet.size:
                packets.timestamps.append(NO_TIMESTAMP if packet.pts is None else packet.pts)
                packets.durations.append(packet.duration or 0)
                packets.keyframe_flags.append(packet.is_keyframe)
                packets.discard_flags.append(packet.is_discard)
    except (av.FFmpegError, OSError) as error:
        packets.error = format_ffmpeg_error(error)
    return packets


def _get_packet_end(packet: Any) -> float:
    """Return the end of a packet in seconds, or 0 if it has no content or no time."""
    ticks = packet.dts if packet.pts is None else packet.pts
    if not packet.size or ticks is None:
        return 0.0
    end: float = ticks_to_seconds(ticks + (packet.duration or 0), packet.time_base)
    return end


def _decode_first_rotation(packet: Any) -> int | None:
    """Return the rotation of a packet's first frame, or None if no frame comes out."""
    import av

    try:
        frames = packet.decode()
        return get_frame_rotation(frames[0]) if frames else None
    except (av.FFmpegError, OSError, ValueError):
        # A damaged packet gives no frame; a later packet may.
        return None


def _frame_count_unsafe_reason(packets: _Packets, codec: str, container_format: str) -> str:
    """Return why packets may not correspond one to one to frames, or "" if they do."""
    timestamps = packets.valid_timestamps  # [n] ticks
    if len(timestamps) < len(packets.timestamps):
        return "packets without timestamps"
    if not len(timestamps):
        return ""
    if len(np.unique(timestamps)) < len(timestamps):
        return "repeated timestamps"
    if not packets.keyframe_flags[0]:
        return "does not begin with a key frame"
    if timestamps.min() < timestamps[0]:
        return "begins with pictures of a missing group"
    if codec == "vp8" or container_format == "avi":
        return "may hold packets without a picture"
    return ""


def _container_unsafe_reason(container: InputContainer) -> str:
    """Return why decord may read other frames, or "".

    decord was correct on MP4 and Matroska, and started one group of pictures late on MPEG-TS.
    """
    format_names = container.format.name.split(",")
    if not any(name in DECORD_FORMATS for name in format_names):
        return f"{container.format.name} container"
    return "several video streams" if len(container.streams.video) > 1 else ""


def _get_presentation_times(packets: _Packets, time_base: Fraction) -> tuple[np.ndarray, float]:
    """Return the times `[n]` of the shown packets and the last duration in seconds (0: unknown)."""
    is_shown = np.array(packets.discard_flags, np.uint8) == 0
    ticks = packets.valid_timestamps[is_shown]
    durations = np.array(packets.durations, np.int64)[is_shown]

    order = np.argsort(ticks)
    pts_seconds = ticks_to_seconds(ticks[order], time_base)
    if not len(order):
        return pts_seconds, 0.0
    return pts_seconds, ticks_to_seconds(int(durations[order[-1]]), time_base)


def _decode_presentation_times(
    path: Path, max_pixels: int, heartbeat: HeartbeatCallback
) -> tuple[np.ndarray, float]:
    """Return the times `[n]` of all decoded frames and the nominal frame duration in seconds.

    A frame without a time follows its predecessor by the nominal duration.
    """
    times: array[float] = array("d")
    with open_container(path) as container:
        stream = find_best_stream(container, path, max_pixels)
        frame_duration = 1 / float(stream.average_rate or 25)
        for frame in decode_frames(container, stream, path, heartbeat):
            if frame.pts is not None:
                times.append(ticks_to_seconds(frame.pts, frame.time_base))
            else:
                times.append(times[-1] + frame_duration if times else 0.0)

    return np.maximum.accumulate(np.array(times, np.float64)), frame_duration


def _compute_fps(pts_seconds: np.ndarray, stream: VideoStream) -> float:
    """Return the mean frame rate, or the container's rate if there is nothing to measure."""
    if len(pts_seconds) > 1 and pts_seconds[-1] > pts_seconds[0]:
        return float((len(pts_seconds) - 1) / (pts_seconds[-1] - pts_seconds[0]))
    return float(stream.average_rate or stream.guessed_rate or 1)


def _check_readable(path: Path, packets: _Packets, pts_seconds: np.ndarray) -> None:
    """Raise a VideoError for a file without frames or with unreadable packets."""
    if packets.error:
        detail = (
            f"{path}: its packets cannot all be read ({packets.error}); copy or convert it again"
        )
        raise VideoError("open", "damaged", detail)
    if not packets.timestamps:
        detail = f"{path} has a video stream without frames; replace it"
        raise VideoError("open", "unreadable", detail)
    if packets.rotation is None or not len(pts_seconds):
        detail = f"{path}: no frame can be decoded; copy, download or convert it again"
        raise VideoError("decode", "damaged", detail)
