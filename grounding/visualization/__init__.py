"""Drawing: tubes, strips of frames, curves, figures, attention maps, MP4 files."""
