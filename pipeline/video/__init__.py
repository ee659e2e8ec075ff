"""Reading videos: one interface over two decoders, the same frame numbers whichever of them reads.

A frame's number is its place in presentation order after edit lists, in the best video stream (the one FFmpeg's
`av_find_best_stream` names); pictures have the container's rotation applied and are not stretched for non-square
pixels. `probe` finds the facts, `open_frames` streams the pictures; `ProcessDecoder` does both in a process that may hang or
crash. Neither decoder is imported before it is used.
"""

from pipeline.video.container import MAX_PIXELS
from pipeline.video.frames import FrameReader, is_decord_installed, open_frames
from pipeline.video.metadata import VideoMetadata, probe
from pipeline.video.process_decoder import FrameStream, ProcessDecoder

__all__ = [
    "MAX_PIXELS",
    "ProcessDecoder",
    "FrameReader",
    "FrameStream",
    "VideoMetadata",
    "is_decord_installed",
    "open_frames",
    "probe",
]
