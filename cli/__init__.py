"""Command-line programs.

Each command is one thin file: it parses options, builds a config, calls one library function and
turns errors into exit codes.
"""
