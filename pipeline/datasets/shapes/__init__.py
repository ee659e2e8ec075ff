"""`shapes`: the embedded data set. Textured scenes where coloured shapes move, written in VidSTG's own layout.

`scene` decides what moves how, `render` draws it, `sentences` asks about it, `make` writes it to disk.
"""
