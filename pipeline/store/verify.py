"""Verification of a store: digests of all files, and the checksum of every chunk."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.store.layout import (
    PROJECTION_FILE,
    DamageError,
    EntryLocation,
    ShardSource,
    ShardTable,
    get_shard_path,
)
from pipeline.store.manifest import (
    Manifest,
    Product,
    ShardInfo,
    compute_files_digest,
    find_changed_files,
)
from pipeline.store.shard import (
    count_entries,
    describe_read_error,
    list_shard_files,
    open_source,
    read_table,
    select_active_entries,
)

BLOCK_BYTES = 32 << 20
"""Bytes of rows that are verified at a time."""
SETTINGS_MISMATCH = "it was made with other settings than the manifest says"


@dataclass(frozen=True)
class IntegrityProblem:
    """One fault of a store.

    Attributes:
        product: Name of the product; None for files of the whole store.
        shard: File name of the shard, or of another damaged file.
        key: Key of the damaged entry; None if all `videos` are affected.
        videos: Affected videos; empty for files other than shards.
        detail: The fault.
    """

    product: str | None
    shard: str
    key: str | None
    videos: tuple[str, ...]
    detail: str

    def __str__(self) -> str:
        if not self.videos:
            prefix = f"{self.product}/" if self.product else ""
            return f"{prefix}{self.shard}: {self.detail}"

        if self.key is not None:
            subject = f"key {self.key!r} of video {self.videos[0]!r}"
        else:
            subject = f"videos {', '.join(self.videos)}"
        return f"product {self.product!r}, shard {self.shard}, {subject}: {self.detail}"


def verify_files(store: Path, manifest: Manifest) -> Iterator[IntegrityProblem]:
    """Verify the index, the tracks, and the projections of reduced products.

    Args:
        store: Path of the store.
        manifest: Its manifest.

    Yields:
        One problem per changed file.
    """
    for name, detail in find_changed_files(store, manifest.files):
        yield IntegrityProblem(None, name, None, (), f"{detail}: run stvg-extract again")

    for product_name, product in sorted(manifest.products.items()):
        digest = (product.provenance.get("reduction") or {}).get("basis_digest")
        digests = {PROJECTION_FILE: digest} if digest else {}
        for name, detail in find_changed_files(store / product_name, digests):
            message = f"{detail}: restore it, or extract into another --store"
            yield IntegrityProblem(product_name, name, None, (), message)


def verify_product(store: Path, name: str, product: Product) -> Iterator[IntegrityProblem]:
    """Verify the shards of a product, one after the other, in bounded memory.

    Args:
        store: Path of the store.
        name: Name of the product.
        product: Its record in the manifest.

    Yields:
        The problems of all shards.
    """
    # A fault of one shard does not end the verification of the others.
    shard_by_key: dict[str, str] = {}
    for shard_name, info in sorted(product.shards.items()):
        path = get_shard_path(store, name, shard_name, product.kind)
        try:
            for location, detail in _verify_shard(path, product, info, shard_by_key):
                if location is None:
                    yield IntegrityProblem(name, path.name, None, info.videos, detail)
                else:
                    videos = (location.video,)
                    yield IntegrityProblem(name, path.name, location.key, videos, detail)
        except DamageError as damage:
            yield IntegrityProblem(name, path.name, None, info.videos, str(damage))
        except OSError as error:
            detail = f"{describe_read_error(path, error)}: the rest of it was not checked"
            yield IntegrityProblem(name, path.name, None, info.videos, detail)


def _verify_shard(
    path: Path, product: Product, info: ShardInfo, shard_by_key: dict[str, str]
) -> Iterator[tuple[EntryLocation | None, str]]:
    """Yield the faults of a shard, each with the damaged entry, or None for the whole shard.

    `shard_by_key` holds the shards of all keys of earlier shards; the shard's keys are added.
    """
    table = read_table(path, product.kind)
    if table.made_from != product.digest:
        raise DamageError(SETTINGS_MISMATCH)

    source = open_source(path, product.kind, table)
    is_damaged = False
    for location, detail in _find_damaged_entries(source, table):
        is_damaged = True
        yield location, detail

    # Damaged entries explain a wrong digest: the manifest is compared only without them.
    if not is_damaged:
        for detail in _compare_with_manifest(path, table, info):
            yield None, detail

    # Active keys must be unique in the product.
    for location in select_active_entries(table, info.dropped):
        if location.key in shard_by_key:
            yield location, f"it is also in shard {shard_by_key[location.key]}"
        shard_by_key[location.key] = path.name


def _find_damaged_entries(
    source: ShardSource, table: ShardTable
) -> Iterator[tuple[EntryLocation, str]]:
    """Yield the entries with unreadable rows or columns, and the faults."""
    column_faults = _find_damaged_columns(source, table)
    for location in table.entries:
        for column in location.columns:
            if column in column_faults:
                yield location, column_faults[column]

        try:
            _read_all_rows(source, table, location)
        except DamageError as damage:
            yield location, str(damage)


def _read_all_rows(source: ShardSource, table: ShardTable, location: EntryLocation) -> None:
    """Read the rows of an entry block by block, for their checksums."""
    spec = table.arrays[location.array]
    step = max(1, BLOCK_BYTES // spec.chunk_bytes)
    for begin in range(location.begin, location.end, step):
        rows = np.arange(begin, min(begin + step, location.end))
        out = np.empty((len(rows), *spec.shape[1:]), spec.dtype)  # [k, *shape]
        source.read(location.array, rows, np.arange(len(rows)), out)


def _find_damaged_columns(source: ShardSource, table: ShardTable) -> dict[str, str]:
    """Return the faults of unreadable columns by name."""
    faults = {}
    for name in table.columns:
        try:
            source.read_column(name)
        except DamageError as damage:
            faults[name] = f"column {name!r}: {damage}"
    return faults


def _compare_with_manifest(path: Path, table: ShardTable, info: ShardInfo) -> Iterator[str]:
    """Yield the differences between a readable shard and its record in the manifest."""
    keys = {location.key for location in table.entries}
    unknown_keys = set(info.dropped) - keys
    counts = count_entries(select_active_entries(table, info.dropped))
    expected_counts = (tuple(sorted(info.videos)), info.entries, info.rows)

    # Counts first: they need no read of the files.
    if unknown_keys or counts != expected_counts:
        yield "its entries are not those of the manifest"
    elif compute_files_digest(list_shard_files(path)) != info.digest:
        yield "its bytes are not those of the manifest, though every row matches its checksum"
