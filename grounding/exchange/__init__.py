"""A split's tubes in the files of tools that people look and correct with."""
