"""The synthetic data set `shapes`: textured scenes with moving colored shapes, in VidSTG's layout.

`scene` samples objects and motions, `render` draws frames, `sentences` writes sentences, `make`
writes the files, and `joined` builds long videos.
"""
