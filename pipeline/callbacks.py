"""Callback types for work that takes long."""

from __future__ import annotations

from collections.abc import Callable

ProgressCallback = Callable[[int, int], None]
"""Called as `progress(done, total)` after each finished unit of work: videos, steps or frames.

`total` is the number of units in all, and `done <= total`.
"""

MessageCallback = Callable[[str], None]
"""Called as `on_message(line)` with one line of text for the user."""
