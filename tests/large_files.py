"""Refuse large files in commits: `python -m tests.large_files FILE ...`."""

from __future__ import annotations

import sys
from pathlib import Path

MAX_BYTES = 1 << 20
"""Data, weights and videos do not belong into the repository."""
ALLOWED = ("pipeline/encoders/tiny/", "tests/assets/")
"""Folders of small weights and clips that were made for the project; each file stays under 4 MiB.
"""


def find_large_files(paths: list[str]) -> list[str]:
    """Return the files that are too large to be committed."""
    large = []
    for path in paths:
        limit = 4 * MAX_BYTES if path.startswith(ALLOWED) else MAX_BYTES
        if Path(path).is_file() and Path(path).stat().st_size > limit:
            large.append(path)
    return large


def main() -> None:
    """Print the files that are too large and exit with 1 if there is one."""
    large = find_large_files(sys.argv[1:])
    for path in large:
        print(f"{path}: {Path(path).stat().st_size:,} bytes are too large for the repository")
    sys.exit(bool(large))


if __name__ == "__main__":
    main()
