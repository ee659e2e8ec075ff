"""The files under a root, listed once: names that stand in annotations are only ever compared with those found."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from pipeline.datasets.parsed import DefectLog

VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".mov")


def list_files(root: Path, suffixes: tuple[str, ...]) -> list[PurePosixPath]:
    """The files below `root` with one of the suffixes in any case, as sorted paths relative to it; links to folders are followed once.

    A name that cannot be written as UTF-8 is passed over: an index could not hold it.
    """
    return sorted(
        path for path in _walk(root) if path.suffix.lower() in suffixes and _is_encodable(str(path))
    )


def _walk(root: Path) -> Iterator[PurePosixPath]:
    seen: set[tuple[int, int]] = set()
    for folder, subfolders, names in os.walk(root, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            subfolders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        subfolders.sort()
        place = PurePosixPath(os.path.relpath(folder, root))
        yield from (place / name for name in names)


def _is_encodable(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def describe_root_problem(root: Path, absent_message: str) -> str:
    """What is wrong with a root in which no annotations were found: `absent`, if it is a folder at all."""
    if not root.exists():
        return "does not exist"
    return absent_message if root.is_dir() else "is a file, and the data set's folder is wanted"


class VideoFiles:
    """The videos anywhere below `root/place`, by file name and by file name without extension (whose case does not count)."""

    def __init__(self, root: Path, subfolder: str = ".") -> None:
        self._by_name: dict[str, list[str]] = {}
        self._by_stem: dict[str, list[str]] = {}
        for path in list_files(root / subfolder, VIDEO_SUFFIXES):
            found = str(PurePosixPath(subfolder) / path)
            self._by_name.setdefault(_normalize_name(path), []).append(found)
            self._by_stem.setdefault(path.stem, []).append(found)

    def resolve_path(self, name: str, default_path: str, defects: DefectLog) -> str:
        """The path of the video called `name`, relative to the root: where it lies, else `expected`.

        A video of that name with another extension serves as well, and of two with one name the first; both are noted.
        """
        found = self._by_name.get(_normalize_name(PurePosixPath(name)))
        if found is None:
            found = self._by_stem.get(PurePosixPath(name).stem, [])
            if found:
                defects.add("video with another extension", name, f"{found[0]} is taken for it")
        if len(found) > 1:
            defects.add(
                "several videos of one name",
                name,
                f"{found[0]} is taken, {', '.join(found[1:4])} passed over",
            )
        return found[0] if found else default_path


def _normalize_name(path: PurePosixPath) -> str:
    return path.stem + path.suffix.lower()
