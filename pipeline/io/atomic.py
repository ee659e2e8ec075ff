"""Atomic file replacement: a file appears complete or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from uuid import uuid4

from pipeline.errors import InputError


class atomic_write:  # noqa: N801 - reads as a verb: `with atomic_write(path) as temporary_path`
    """Context manager that replaces a file atomically.

    The context yields a temporary path in the directory of `path`. On success the temporary file
    is fsynced and renamed over `path`; on an exception it is deleted.

    Args:
        path: The file to write. Missing parent directories are created.

    Raises:
        InputError: Nothing can be written at `path`. A full disk stays an OSError.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        if self.path.is_dir():
            raise InputError(f"{self.path} is a folder: give a file to write")

        # Random, because hosts that share a folder also share process ids.
        name = f".{self.path.name}.{uuid4().hex[:12]}.part"
        self.temporary_path = self.path.with_name(name)

    def __enter__(self) -> Path:
        if self.path.exists() and not self.path.is_file():
            raise InputError(f"{self.path} is a device or a pipe: give a file to write")

        # Create the temporary file now, so that a caller fails before its work is done.
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.temporary_path.touch()
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise InputError(
                f"{self.path} cannot be written ({error.strerror}): choose another path"
            ) from None
        return self.temporary_path

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.temporary_path.unlink(missing_ok=True)
            return

        # The content must be on disk before the name points to it.
        with self.temporary_path.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(self.temporary_path, self.path)
