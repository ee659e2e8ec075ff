"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from uuid import uuid4

from pipeline.errors import InputError


class atomic_write:  # noqa: N801 - reads as a verb: `with replacing(path) as aside`
    """Context: a path beside `path` to write to; on success it is fsynced and renamed over `path`.

    An InputError says why nothing can be written there; a full disk comes through as the OSError it is.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        if self.path.is_dir():
            raise InputError(f"{self.path} is a folder: name a file to write")
        self.temporary_path = self.path.with_name(
            f".{self.path.name}.{uuid4().hex[:12]}.part"
        )  # hosts that share a folder share process ids

    def __enter__(self) -> Path:
        if self.path.exists() and not self.path.is_file():
            raise InputError(f"{self.path} is a device or a pipe: name a file to write")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.temporary_path.touch()
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise InputError(
                f"{self.path} cannot be written ({error.strerror}): name another place"
            ) from None
        return self.temporary_path

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.temporary_path.unlink(missing_ok=True)
            return
        with self.temporary_path.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(self.temporary_path, self.path)
