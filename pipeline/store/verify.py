"""Is a store what was written? Digests of all files, and the checksum of every chunk of every entry."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.store.layout import BASIS, DamageError, Place, ShardSource, Table, shard_path
from pipeline.store.manifest import Manifest, Product, ShardInfo, differing_files, files_digest
from pipeline.store.shard import open_source, read_table, shard_files

BLOCK_BYTES = 32 << 20


@dataclass(frozen=True)
class Problem:
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
        whom = f"key {self.key!r} of video {self.videos[0]!r}" if self.key is not None else f"videos {', '.join(self.videos)}"
        return f"product {self.product!r}, shard {self.shard}, {whom}: {self.detail}"


def verify_files(store: Path, manifest: Manifest) -> Iterator[Problem]:
    """The files that are not shards: the index, the tracks, and the projections of reduced products."""
    for name, detail in differing_files(store, manifest.files):
        yield Problem(None, name, None, (), f"{detail}: run stvg-extract again")
    for product, about in sorted(manifest.products.items()):
        digest = (about.provenance.get("reduction") or {}).get("basis_digest")
        for name, detail in differing_files(store / product, {BASIS: digest} if digest else {}):
            yield Problem(product, name, None, (), f"{detail}: restore it, or extract into another --store")


def verify_product(store: Path, name: str, product: Product) -> Iterator[Problem]:
    """The problems of one product, shard by shard; memory stays bounded."""
    owners: dict[str, str] = {}
    for shard, info in sorted(product.shards.items()):
        path = shard_path(store, name, shard, product.kind)
        try:
            table = read_table(path, product.kind)
            source = open_source(path, product.kind, table)
        except DamageError as damage:
            yield Problem(name, path.name, None, info.videos, str(damage))
            continue
        found = list(_damaged_entries(source, table))
        for place, detail in found:
            yield Problem(name, path.name, place.key, (place.video,), detail)
        if not found:
            yield from (Problem(name, path.name, None, info.videos, detail) for detail in _differences(path, table, info))
        for place in table.entries:
            if place.key in owners:
                yield Problem(name, path.name, place.key, (place.video,), f"it is also in shard {owners[place.key]}")
            owners[place.key] = path.name


def _damaged_entries(source: ShardSource, table: Table) -> Iterator[tuple[Place, str]]:
    """Entries whose rows or columns cannot be read, with the reason."""
    faults = _column_faults(source, table)
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


def _column_faults(source: ShardSource, table: Table) -> dict[str, str]:
    faults = {}
    for name in table.columns:
        try:
            source.column(name)
        except DamageError as damage:
            faults[name] = f"column {name!r}: {damage}"
    return faults


def _differences(path: Path, table: Table, info: ShardInfo) -> Iterator[str]:
    """What the manifest says and the shard does not bear out, though all its rows can be read."""
    rows = sum(place.end - place.begin for place in table.entries)
    if (len(table.entries), rows, {place.video for place in table.entries}) != (info.entries, info.rows, set(info.videos)):
        yield "its entries are not those of the manifest"
    elif files_digest(shard_files(path)) != info.digest:
        yield "its bytes are not those of the manifest, though every row matches its checksum"
