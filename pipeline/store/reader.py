"""The reader side: a store's products by name, a product's entries by key, an entry's rows in any order."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import StoreError
from pipeline.store.buffer_pool import Allocator, BufferPool, allocate_numpy
from pipeline.store.layout import DamageError, EntryLocation, ShardSource, ShardTable, shard_path
from pipeline.store.manifest import (
    Product,
    compute_manifest_digest,
    find_changed_files,
    load_manifest,
)
from pipeline.store.quantization import SCALE_COLUMN, dequantize
from pipeline.store.shard import active_entries, describe_read_error, open_source, read_table
from pipeline.store.verify import SETTINGS_MISMATCH, IntegrityProblem, verify_files, verify_product

MAX_OPEN_SHARDS = 64  # per product and process; the one used longest ago is closed first


class Store:
    """A finished (or growing) store, read-only. Opening reads its manifest and compares the index and the tracks with it."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.manifest = load_manifest(self.path)
        self.manifest_digest = compute_manifest_digest(self.path)
        self.index_path = self.path / "index.jsonl"
        self.tracks_path = self.path / "tracks.npz"
        present = {
            name: digest
            for name, digest in self.manifest.files.items()
            if (self.path / name).exists()
        }
        for name, detail in find_changed_files(
            self.path, present
        ):  # a missing one is an error to those who ask for it
            raise StoreError(
                f"store {self.path}: {name}: {detail}: run stvg-extract again, which copies it anew"
            )

    @property
    def products(self) -> dict[str, Product]:
        return self.manifest.products

    def open(self, product: str, allocate: Allocator = allocate_numpy) -> ProductReader:
        """A product, whose rows are read into memory that `allocate` gives."""
        if product not in self.products:
            present = ", ".join(sorted(self.products)) or "none"
            raise StoreError(
                f"store {self.path} has no product {product!r} (it has {present}): run stvg-extract to add it"
            )
        return ProductReader(self.path, product, self.products[product], allocate)

    def verify(self) -> list[IntegrityProblem]:
        """Compare every digest and every chunk's checksum; the problems found, none if the store is intact."""
        shards = (
            problem
            for name, product in sorted(self.products.items())
            for problem in verify_product(self.path, name, product)
        )
        return [*verify_files(self.path, self.manifest), *shards]

    def summarize(self) -> list[ProductSummary]:
        """Counts and sizes by product, from the manifest alone."""
        return [
            ProductSummary.from_product(name, product)
            for name, product in sorted(self.products.items())
        ]


@dataclass(frozen=True)
class ProductSummary:
    """What a store holds of one product; `bytes` are those on disk, indices and checksums included."""

    product: str
    shards: int
    videos: int
    entries: int
    rows: int
    bytes: int

    @classmethod
    def from_product(cls, name: str, product: Product) -> ProductSummary:
        infos = product.shards.values()
        entries, rows, size = (
            sum(getattr(info, field) for info in infos) for field in ("entries", "rows", "bytes")
        )
        return cls(name, len(infos), len(product.videos), entries, rows, size)

    @property
    def bytes_per_row(self) -> float:
        """Bytes of a frame, clip or token; 0 where there is none."""
        return self.bytes / self.rows if self.rows else 0.0

    def __str__(self) -> str:
        return (
            f"{self.product}: {self.videos} videos, {self.entries} entries, {self.rows} rows in {self.shards} shards, "
            f"{self.bytes / 1e6:,.1f} MB, {self.bytes_per_row:,.0f} bytes per row"
        )


class ProductReader:
    """The entries of one product. It may be pickled, shared by threads, and used in a forked child.

    Tables are read on first use; files are opened when a row of theirs is asked for, by each process for itself. Rows are read into
    memory that `allocate` gives.
    """

    def __init__(
        self, store: Path, name: str, product: Product, allocate: Allocator = allocate_numpy
    ) -> None:
        self.store = Path(store)
        self.name = name
        self.product = product
        self._allocate = allocate
        self._tables: dict[str, ShardTable] = {}
        self._damage_by_shard: dict[str, DamageError] = {}
        self._locations: dict[str, tuple[str, EntryLocation]] | None = None
        self._column_cache: dict[tuple[str, str], np.ndarray] = {}
        self._reset_open_files()

    def keys(self) -> list[str]:
        """All keys, in the order of shards and of writing."""
        return list(self._load_all_locations())

    def __contains__(self, key: object) -> bool:
        return key in self._load_all_locations()

    def __len__(self) -> int:
        return len(self._load_all_locations())

    def shape(self, key: str) -> tuple[int, ...]:
        """`[n, *shape]` of an entry's rows."""
        shard, place = self._find_entry(key)
        return (place.end - place.begin, *self._tables[shard].arrays[place.array].shape[1:])

    def facts(self, key: str) -> dict[str, Any]:
        return dict(self._find_entry(key)[1].facts)

    def columns(self, key: str) -> dict[str, np.ndarray]:
        """The entry's columns, each 1-D; they are the caller's own."""
        shard, place = self._find_entry(key)
        with self._translate_damage(shard, key):
            return {
                name: self._get_column(shard, name)[begin:end].copy()
                for name, (begin, end) in place.columns.items()
            }

    def read(self, key: str, indices: np.ndarray | None = None) -> np.ndarray:
        """Rows `[len(indices), *shape]` in the asked order, repeats allowed; all rows without `indices`.

        Rows stored in eight bits with a scale come as float16.
        """
        shard, place = self._find_entry(key)
        count = place.end - place.begin
        wanted = np.arange(count) if indices is None else np.asarray(indices, np.int64).reshape(-1)
        for outside in wanted[(wanted < 0) | (wanted >= count)][:1]:
            raise IndexError(
                f"product {self.name!r}, key {key!r}: row {outside} does not lie in [0, {count})"
            )
        spec = self._tables[shard].arrays[place.array]
        begin, end = place.columns.get(SCALE_COLUMN, (0, 0))
        scaled = spec.dtype == "int8" and end - begin == count
        out = (self._quantized_pool if scaled else self._buffer_pool).empty(
            (len(wanted), *spec.shape[1:]), np.dtype(spec.dtype)
        )
        ascending = bool((np.diff(wanted) > 0).all())
        rows, first = (
            (wanted, np.arange(len(wanted))) if ascending else np.unique(wanted, return_index=True)
        )
        with self._translate_damage(shard, key):
            self._get_source(shard).read(place.array, place.begin + rows, first, out)
            scales = self._get_column(shard, SCALE_COLUMN)[begin:end] if scaled else None
        if len(rows) < len(wanted):
            repeats = np.setdiff1d(np.arange(len(wanted)), first)
            out[repeats] = out[first[np.searchsorted(rows, wanted[repeats])]]
        return (
            out
            if scales is None
            else dequantize(
                out, scales[wanted], self._buffer_pool.empty(out.shape, np.dtype(np.float16))
            )
        )

    def __getstate__(self) -> tuple[Path, str, Product, Allocator]:
        return self.store, self.name, self.product, self._allocate

    def __setstate__(self, state: tuple[Path, str, Product, Allocator]) -> None:
        self.__init__(*state)  # type: ignore[misc]

    def _reset_open_files(self) -> None:
        """Start without open files, as a process must: neither files nor locks cross a fork; tables may."""
        self._process_id = os.getpid()
        self._mutex = threading.RLock()
        self._buffer_pool, self._quantized_pool = BufferPool(self._allocate), BufferPool()
        self._sources: OrderedDict[str, ShardSource] = OrderedDict()

    def _load_locations(self) -> dict[str, tuple[str, EntryLocation]]:
        """Shard and place of every key that counts in a readable table; unreadable ones are noted in `_damage_by_shard`."""
        if self._process_id != os.getpid():
            self._reset_open_files()
        with self._mutex:
            if self._locations is None:
                places: dict[str, tuple[str, EntryLocation]] = {}
                made_from = self.product.digest
                for shard in sorted(self.product.shards):
                    try:
                        table = read_table(self._get_shard_path(shard), self.product.kind)
                        if table.made_from != made_from:
                            raise DamageError(SETTINGS_MISMATCH)
                    except DamageError as damage:
                        self._damage_by_shard[shard] = damage
                        continue
                    except OSError as error:
                        raise self._build_read_error(shard, error) from None
                    self._tables[shard] = table
                    for place in active_entries(table, self.product.shards[shard].dropped):
                        places.setdefault(place.key, (shard, place))
                self._locations = places
            return self._locations

    def _load_all_locations(self) -> dict[str, tuple[str, EntryLocation]]:
        places = self._load_locations()
        for shard, damage in self._damage_by_shard.items():
            raise self._build_damage_error(shard, damage)
        return places

    def _find_entry(self, key: str) -> tuple[str, EntryLocation]:
        places = self._load_locations()
        if key in places:
            return places[key]
        for shard in sorted(
            self._damage_by_shard, key=lambda shard: key not in self.product.shards[shard].videos
        ):
            raise self._build_damage_error(shard, self._damage_by_shard[shard], key)
        raise StoreError(
            f"store {self.store}: product {self.name!r} has no entry {key!r} (of {len(places)}): run stvg-extract to add it"
        )

    def _get_source(self, shard: str) -> ShardSource:
        """The shard's open files."""
        with self._mutex:
            if shard not in self._sources:
                self._sources[shard] = open_source(
                    self._get_shard_path(shard), self.product.kind, self._tables[shard]
                )
                if len(self._sources) > MAX_OPEN_SHARDS:
                    self._sources.popitem(last=False)
            self._sources.move_to_end(shard)
            return self._sources[shard]

    def _get_column(self, shard: str, name: str) -> np.ndarray:
        """A column of a whole shard, read once: columns are small, and entries share a chunk."""
        if (shard, name) not in self._column_cache:
            self._column_cache[shard, name] = self._get_source(shard).read_column(name)
        return self._column_cache[shard, name]

    def _get_shard_path(self, shard: str) -> Path:
        return shard_path(self.store, self.name, shard, self.product.kind)

    @contextmanager
    def _translate_damage(self, shard: str, key: str) -> Iterator[None]:
        try:
            yield
        except DamageError as damage:
            raise self._build_damage_error(shard, damage, key) from None
        except OSError as error:
            raise self._build_read_error(shard, error) from None

    def _build_read_error(self, shard: str, error: OSError) -> StoreError:
        return StoreError(
            f"product {self.name!r}: {describe_read_error(self._get_shard_path(shard), error)}: nothing in it was judged"
        )

    def _build_damage_error(
        self, shard: str, damage: DamageError, key: str | None = None
    ) -> StoreError:
        """Names product, shard file, and the key (or, where the whole shard is hit, its videos)."""
        videos = self.product.shards[shard].videos
        whom = (
            f"key {key!r}"
            if key is not None
            else f"videos {', '.join(videos[:5])}{', …' if len(videos) > 5 else ''}"
        )
        return StoreError(
            f"store {self.store}: product {self.name!r}, shard {self._get_shard_path(shard).name}, {whom}: {damage}. "
            "Delete this shard and run stvg-extract again to have it made anew"
        )
