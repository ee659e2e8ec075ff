"""Search for files below a data set's root.

Each folder is listed once. Names in annotations are only compared with the listed names and never
opened as paths.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from pipeline.datasets.parsed import DefectLog

VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".mov")


def list_files(root: Path, suffixes: tuple[str, ...]) -> list[PurePosixPath]:
    """List the files below a folder that have one of the suffixes.

    Links to folders are followed once. Names that UTF-8 cannot encode are skipped, because an
    index cannot hold them.

    Args:
        root: The folder.
        suffixes: Suffixes in lower case, with the dot; files may have them in any case.

    Returns:
        Sorted paths relative to `root`.
    """
    paths = []
    for path in _walk(root):
        if path.suffix.lower() in suffixes and _is_encodable(str(path)):
            paths.append(path)
    return sorted(paths)


def _walk(root: Path) -> Iterator[PurePosixPath]:
    """Yield the paths of all files below the root, relative to it."""
    visited: set[tuple[int, int]] = set()
    for folder, subfolders, names in os.walk(root, followlinks=True):
        # A link may lead back to a folder that is already listed: skip by device and inode.
        status = os.stat(folder)
        folder_key = (status.st_dev, status.st_ino)
        if folder_key in visited:
            subfolders.clear()
            continue
        visited.add(folder_key)

        # os.walk visits the subfolders in the order of this list.
        subfolders.sort()
        relative_folder = PurePosixPath(os.path.relpath(folder, root))
        for name in names:
            yield relative_folder / name


def _is_encodable(path: str) -> bool:
    """Return True if UTF-8 can encode the path."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def describe_root_problem(root: Path, absent_message: str) -> str:
    """Describe why no annotations were found below a root.

    Args:
        root: The root that was searched.
        absent_message: Description for a root that is a folder.

    Returns:
        The predicate of a sentence whose subject is the root.
    """
    if not root.exists():
        return "does not exist"
    if root.is_dir():
        return absent_message
    return "is a file; the data set's folder is expected"


class VideoFiles:
    """All videos below a folder, by file name and by stem (file name without suffix).

    The case of a suffix does not count.

    Args:
        root: Root of the data set.
        subfolder: Folder to search, relative to the root.
    """

    def __init__(self, root: Path, subfolder: str = ".") -> None:
        self._by_name: dict[str, list[str]] = {}
        self._by_stem: dict[str, list[str]] = {}
        for relative_path in list_files(root / subfolder, VIDEO_SUFFIXES):
            path = str(PurePosixPath(subfolder) / relative_path)
            self._by_name.setdefault(_normalize_name(relative_path), []).append(path)
            self._by_stem.setdefault(relative_path.stem, []).append(path)

    def resolve_path(self, name: str, default_path: str, defects: DefectLog) -> str:
        """Return the path of a video.

        A video of the same stem with another suffix is accepted. Of several videos with one name
        the first is used. Both cases are logged.

        Args:
            name: File name of the video.
            default_path: Path to return if there is no such video.
            defects: Log of defects.

        Returns:
            The path relative to the root.
        """
        matches = self._by_name.get(_normalize_name(PurePosixPath(name)))

        # Without a video of this name, one with another suffix serves as well.
        if matches is None:
            matches = self._by_stem.get(PurePosixPath(name).stem, [])
            if matches:
                defects.add("video with another extension", name, f"{matches[0]} is used instead")

        if len(matches) > 1:
            detail = f"{matches[0]} is used, {', '.join(matches[1:4])} ignored"
            defects.add("several videos of one name", name, detail)

        return matches[0] if matches else default_path


def _normalize_name(path: PurePosixPath) -> str:
    """Return the file name with its suffix in lower case."""
    return path.stem + path.suffix.lower()
