"""Translation of errors that the user can fix, a full disk or a file in the way, to StoreErrors."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import StoreError

DISK_FULL_ERRNOS = {errno.ENOSPC, errno.EDQUOT}


def check_is_directory(store: Path) -> None:
    """Check that a store's path can be a directory.

    Args:
        store: Path of the store; it need not exist.

    Raises:
        StoreError: The path, or one of its parents, is a file.
    """
    for path in (store, *store.parents):
        if path.exists() and not path.is_dir():
            raise StoreError(
                f"{store} cannot be a store: {path} is a file, not a directory. "
                "Choose another path with --store"
            )


@contextmanager
def translate_disk_full(folder: Path) -> Iterator[None]:
    """Translate "no space left" and "quota exceeded" to a StoreError; other errors pass.

    Args:
        folder: Folder that the context writes to; it need not exist.

    Yields:
        Nothing.

    Raises:
        StoreError: The disk is full.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_FULL_ERRNOS:
            raise

        # The free space of the file system, asked of the nearest existing folder.
        candidates = (folder, *folder.absolute().parents)
        existing_folder = next(path for path in candidates if path.exists())
        free_mib = shutil.disk_usage(existing_folder).free / 2**20
        raise StoreError(
            f"the disk of {folder} is full ({free_mib:.1f} MiB were free, "
            f"{error.strerror or error}): the file being written is dropped, all finished files "
            "are kept. Make room and run stvg-extract again: it goes on from there"
        ) from None
