"""A full disk, or a file where the store should be, is the user's to mend, so it is told in words."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import StoreError

DISK_FULL_ERRNOS = {errno.ENOSPC, errno.EDQUOT}


def check_is_directory(store: Path) -> None:
    """StoreError where the store's path, or a folder above it, is a file."""
    for path in (store, *store.parents):
        if path.exists() and not path.is_dir():
            raise StoreError(
                f"store {store} cannot be: {path} is a file, not a folder. Name another --store"
            )


@contextmanager
def translate_disk_full(folder: Path) -> Iterator[None]:
    """Turn "no space left" (or "quota used up") while writing into `folder` into a StoreError; other errors pass."""
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_FULL_ERRNOS:
            raise
        free = shutil.disk_usage(
            next(path for path in (folder, *folder.absolute().parents) if path.exists())
        ).free
        raise StoreError(
            f"the disk of {folder} is full ({free / 2**20:.1f} MiB were free, {error.strerror or error}): what was being written is "
            "dropped, everything finished before it is kept. Make room and run stvg-extract again: it goes on from there"
        ) from None
