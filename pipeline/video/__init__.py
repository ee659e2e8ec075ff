"""Video decoding: one interface over two decoders, with the same frame indices for both.

A frame index is the position of a frame in presentation order, after edit lists. It refers to the
best video stream, as FFmpeg's `av_find_best_stream` defines it. The container's rotation is applied
to the frames. Non-square pixels are not stretched.

`probe` reads the metadata and `open_frames` streams the frames. `ProcessDecoder` does both in a
process that may hang or crash. Neither decoder is imported before its first use.
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
