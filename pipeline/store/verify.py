"""Is a store what was written? Digests of all files, and the checksum of every chunk of every entry."""

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
    shard_path,
)
from pipeline.store.manifest import (
    Manifest,
    Product,
    ShardInfo,
    compute_files_digest,
    find_changed_files,
)
from pipeline.store.shard import (
    active_entries,
    count_entries,
    describe_read_error,
    list_shard_files,
    open_source,
    read_table,
)

BLOCK_BYTES = 32 << 20
SETTINGS_MISMATCH = "it was made with other settings than the manifest says"


@dataclass(frozen=True)
class IntegrityProblem:
    """One thing wrong with a store: the shard's file, and the key it hits, or None where it hits all `videos`.

    Where a file of the whole store or product is hit, `shard` is its name and `videos` is empty; the store's own have
    no product.
    """

    product: str | None
    shard: str
    key: str | None
    videos: tuple[str, ...]
    detail: str

    def __str__(self) -> str:
        if not self.videos:
            return f"{self.product + '/' if self.product else ''}{self.shard}: {self.detail}"
        whom = (
            f"key {self.key!r} of video {self.videos[0]!r}"
            if self.key is not None
            else f"videos {', '.join(self.videos)}"
        )
        return f"product {self.product!r}, shard {self.shard}, {whom}: {self.detail}"


def verify_files(store: Path, manifest: Manifest) -> Iterator[IntegrityProblem]:
    """The files that are not shards: the index, the tracks, and the projections of reduced products."""
    for name, detail in find_changed_files(store, manifest.files):
        yield IntegrityProblem(None, name, None, (), f"{detail}: run stvg-extract again")
    for product, about in sorted(manifest.products.items()):
        digest = (about.provenance.get("reduction") or {}).get("basis_digest")
        for name, detail in find_changed_files(
            store / product, {PROJECTION_FILE: digest} if digest else {}
        ):
            yield IntegrityProblem(
                product, name, None, (), f"{detail}: restore it, or extract into another --store"
            )


def verify_product(store: Path, name: str, product: Product) -> Iterator[IntegrityProblem]:
    """The problems of one product, shard by shard; memory stays bounded."""
    owners: dict[str, str] = {}
    for shard, info in sorted(product.shards.items()):
        path = shard_path(store, name, shard, product.kind)
        try:
            for place, detail in _verify_shard(path, product, info, owners):
                videos = info.videos if place is None else (place.video,)
                yield IntegrityProblem(
                    name, path.name, place.key if place else None, videos, detail
                )
        except DamageError as damage:
            yield IntegrityProblem(name, path.name, None, info.videos, str(damage))
        except OSError as error:
            yield IntegrityProblem(
                name,
                path.name,
                None,
                info.videos,
                f"{describe_read_error(path, error)}: the rest of it was not judged",
            )


def _verify_shard(
    path: Path, product: Product, info: ShardInfo, owners: dict[str, str]
) -> Iterator[tuple[EntryLocation | None, str]]:
    """What is wrong with a shard, each with the entry it hits or None; `owners` are the shards of the keys seen until now."""
    table = read_table(path, product.kind)
    if table.made_from != product.digest:
        raise DamageError(SETTINGS_MISMATCH)
    found = False
    for place, detail in _find_damaged_entries(open_source(path, product.kind, table), table):
        found = True
        yield place, detail
    if not found:
        yield from ((None, detail) for detail in _compare_with_manifest(path, table, info))
    for place in active_entries(table, info.dropped):
        if place.key in owners:
            yield place, f"it is also in shard {owners[place.key]}"
        owners[place.key] = path.name


def _find_damaged_entries(
    source: ShardSource, table: ShardTable
) -> Iterator[tuple[EntryLocation, str]]:
    """Entries whose rows or columns cannot be read, with the reason."""
    faults = _find_damaged_columns(source, table)
    for place in table.entries:
        for column in place.columns:
            if column in faults:
                yield place, faults[column]
        spec = table.arrays[place.array]
        step = max(1, BLOCK_BYTES // spec.chunk_bytes)
        try:
            for begin in range(place.begin, place.end, step):
                rows = np.arange(begin, min(begin + step, place.end))
                out = np.empty((len(rows), *spec.shape[1:]), spec.dtype)
                source.read(place.array, rows, np.arange(len(rows)), out)
        except DamageError as damage:
            yield place, str(damage)


def _find_damaged_columns(source: ShardSource, table: ShardTable) -> dict[str, str]:
    faults = {}
    for name in table.columns:
        try:
            source.read_column(name)
        except DamageError as damage:
            faults[name] = f"column {name!r}: {damage}"
    return faults


def _compare_with_manifest(path: Path, table: ShardTable, info: ShardInfo) -> Iterator[str]:
    """What the manifest says and the shard does not bear out, though all its rows can be read."""
    unknown = set(info.dropped) - {place.key for place in table.entries}
    if unknown or count_entries(active_entries(table, info.dropped)) != (
        tuple(sorted(info.videos)),
        info.entries,
        info.rows,
    ):
        yield "its entries are not those of the manifest"
    elif compute_files_digest(list_shard_files(path)) != info.digest:
        yield "its bytes are not those of the manifest, though every row matches its checksum"
