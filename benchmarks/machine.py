"""What a measurement was made on, for the result's own page."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version


def where(*packages: str) -> str:
    """System, cores, memory, and the versions of Python and the packages named, as one sentence."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    system = f"{platform.system()}, {platform.machine()}, {os.cpu_count()} cores, {memory:.0f} GiB"
    return f"{system}, Python {platform.python_version()}, {versions}"
