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
from pipeline.store.buffer_pool import Allocate, Recycler, fresh
from pipeline.store.layout import DamageError, Place, ShardSource, Table, shard_path
from pipeline.store.manifest import Product, differing_files, load_manifest, manifest_digest
from pipeline.store.quantization import SCALE, restore
from pipeline.store.shard import counting, open_source, read_table, unreadable
from pipeline.store.verify import OTHER_SETTINGS, Problem, verify_files, verify_product

OPEN_SHARDS = 64  # per product and process; the one used longest ago is closed first


class Store:
    """A finished (or growing) store, read-only. Opening reads its manifest and compares the index and the tracks with it."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.manifest = load_manifest(self.path)
        self.manifest_digest = manifest_digest(self.path)
        self.index_path = self.path / "index.jsonl"
        self.tracks_path = self.path / "tracks.npz"
        present = {name: digest for name, digest in self.manifest.files.items() if (self.path / name).exists()}
        for name, detail in differing_files(self.path, present):  # a missing one is an error to those who ask for it
            raise StoreError(f"store {self.path}: {name}: {detail}: run stvg-extract again, which copies it anew")

    @property
    def products(self) -> dict[str, Product]:
        return self.manifest.products

    def open(self, product: str, allocate: Allocate = fresh) -> ProductReader:
        """A product, whose rows are read into memory that `allocate` gives."""
        if product not in self.products:
            present = ", ".join(sorted(self.products)) or "none"
            raise StoreError(f"store {self.path} has no product {product!r} (it has {present}): run stvg-extract to add it")
        return ProductReader(self.path, product, self.products[product], allocate)

    def verify(self) -> list[Problem]:
        """Compare every digest and every chunk's checksum; the problems found, none if the store is intact."""
        shards = (problem for name, product in sorted(self.products.items()) for problem in verify_product(self.path, name, product))
        return [*verify_files(self.path, self.manifest), *shards]

    def summary(self) -> list[Contents]:
        """Counts and sizes by product, from the manifest alone."""
        return [Contents.of(name, product) for name, product in sorted(self.products.items())]


@dataclass(frozen=True)
class Contents:
    """What a store holds of one product; `bytes` are those on disk, indices and checksums included."""

    product: str
    shards: int
    videos: int
    entries: int
    rows: int
    bytes: int

    @classmethod
    def of(cls, name: str, product: Product) -> Contents:
        infos = product.shards.values()
        entries, rows, size = (sum(getattr(info, field) for info in infos) for field in ("entries", "rows", "bytes"))
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

    def __init__(self, store: Path, name: str, product: Product, allocate: Allocate = fresh) -> None:
        self.store = Path(store)
        self.name = name
        self.product = product
        self._allocate = allocate
        self._tables: dict[str, Table] = {}
        self._damaged: dict[str, DamageError] = {}
        self._places: dict[str, tuple[str, Place]] | None = None
        self._columns: dict[tuple[str, str], np.ndarray] = {}
        self._close()

    def keys(self) -> list[str]:
        """All keys, in the order of shards and of writing."""
        return list(self._all())

    def __contains__(self, key: object) -> bool:
        return key in self._all()

    def __len__(self) -> int:
        return len(self._all())

    def shape(self, key: str) -> tuple[int, ...]:
        """`[n, *shape]` of an entry's rows."""
        shard, place = self._find(key)
        return (place.end - place.begin, *self._tables[shard].arrays[place.array].shape[1:])

    def facts(self, key: str) -> dict[str, Any]:
        return dict(self._find(key)[1].facts)

    def columns(self, key: str) -> dict[str, np.ndarray]:
        """The entry's columns, each 1-D; they are the caller's own."""
        shard, place = self._find(key)
        with self._damage_of(shard, key):
            return {name: self._column(shard, name)[begin:end].copy() for name, (begin, end) in place.columns.items()}

    def read(self, key: str, indices: np.ndarray | None = None) -> np.ndarray:
        """Rows `[len(indices), *shape]` in the asked order, repeats allowed; all rows without `indices`.

        Rows stored in eight bits with a scale come as float16.
        """
        shard, place = self._find(key)
        count = place.end - place.begin
        wanted = np.arange(count) if indices is None else np.asarray(indices, np.int64).reshape(-1)
        for outside in wanted[(wanted < 0) | (wanted >= count)][:1]:
            raise IndexError(f"product {self.name!r}, key {key!r}: row {outside} does not lie in [0, {count})")
        spec = self._tables[shard].arrays[place.array]
        begin, end = place.columns.get(SCALE, (0, 0))
        scaled = spec.dtype == "int8" and end - begin == count
        out = (self._in_between if scaled else self._memory).empty((len(wanted), *spec.shape[1:]), np.dtype(spec.dtype))
        ascending = bool((np.diff(wanted) > 0).all())
        rows, first = (wanted, np.arange(len(wanted))) if ascending else np.unique(wanted, return_index=True)
        with self._damage_of(shard, key):
            self._source(shard).read(place.array, place.begin + rows, first, out)
            scales = self._column(shard, SCALE)[begin:end] if scaled else None
        if len(rows) < len(wanted):
            repeats = np.setdiff1d(np.arange(len(wanted)), first)
            out[repeats] = out[first[np.searchsorted(rows, wanted[repeats])]]
        return out if scales is None else restore(out, scales[wanted], self._memory.empty(out.shape, np.dtype(np.float16)))

    def __getstate__(self) -> tuple[Path, str, Product, Allocate]:
        return self.store, self.name, self.product, self._allocate

    def __setstate__(self, state: tuple[Path, str, Product, Allocate]) -> None:
        self.__init__(*state)  # type: ignore[misc]

    def _close(self) -> None:
        """Start without open files, as a process must: neither files nor locks cross a fork; tables may."""
        self._process = os.getpid()
        self._mutex = threading.RLock()
        self._memory, self._in_between = Recycler(self._allocate), Recycler()
        self._sources: OrderedDict[str, ShardSource] = OrderedDict()

    def _index(self) -> dict[str, tuple[str, Place]]:
        """Shard and place of every key that counts in a readable table; unreadable ones are noted in `_damaged`."""
        if self._process != os.getpid():
            self._close()
        with self._mutex:
            if self._places is None:
                places: dict[str, tuple[str, Place]] = {}
                made_from = self.product.digest
                for shard in sorted(self.product.shards):
                    try:
                        table = read_table(self._path(shard), self.product.kind)
                        if table.made_from != made_from:
                            raise DamageError(OTHER_SETTINGS)
                    except DamageError as damage:
                        self._damaged[shard] = damage
                        continue
                    except OSError as error:
                        raise self._unreadable(shard, error) from None
                    self._tables[shard] = table
                    for place in counting(table, self.product.shards[shard].dropped):
                        places.setdefault(place.key, (shard, place))
                self._places = places
            return self._places

    def _all(self) -> dict[str, tuple[str, Place]]:
        places = self._index()
        for shard, damage in self._damaged.items():
            raise self._error(shard, damage)
        return places

    def _find(self, key: str) -> tuple[str, Place]:
        places = self._index()
        if key in places:
            return places[key]
        for shard in sorted(self._damaged, key=lambda shard: key not in self.product.shards[shard].videos):
            raise self._error(shard, self._damaged[shard], key)
        raise StoreError(f"store {self.store}: product {self.name!r} has no entry {key!r} (of {len(places)}): run stvg-extract to add it")

    def _source(self, shard: str) -> ShardSource:
        """The shard's open files."""
        with self._mutex:
            if shard not in self._sources:
                self._sources[shard] = open_source(self._path(shard), self.product.kind, self._tables[shard])
                if len(self._sources) > OPEN_SHARDS:
                    self._sources.popitem(last=False)
            self._sources.move_to_end(shard)
            return self._sources[shard]

    def _column(self, shard: str, name: str) -> np.ndarray:
        """A column of a whole shard, read once: columns are small, and entries share a chunk."""
        if (shard, name) not in self._columns:
            self._columns[shard, name] = self._source(shard).column(name)
        return self._columns[shard, name]

    def _path(self, shard: str) -> Path:
        return shard_path(self.store, self.name, shard, self.product.kind)

    @contextmanager
    def _damage_of(self, shard: str, key: str) -> Iterator[None]:
        try:
            yield
        except DamageError as damage:
            raise self._error(shard, damage, key) from None
        except OSError as error:
            raise self._unreadable(shard, error) from None

    def _unreadable(self, shard: str, error: OSError) -> StoreError:
        return StoreError(f"product {self.name!r}: {unreadable(self._path(shard), error)}: nothing in it was judged")

    def _error(self, shard: str, damage: DamageError, key: str | None = None) -> StoreError:
        """Names product, shard file, and the key (or, where the whole shard is hit, its videos)."""
        videos = self.product.shards[shard].videos
        whom = f"key {key!r}" if key is not None else f"videos {', '.join(videos[:5])}{', …' if len(videos) > 5 else ''}"
        return StoreError(
            f"store {self.store}: product {self.name!r}, shard {self._path(shard).name}, {whom}: {damage}. "
            "Delete this shard and run stvg-extract again to have it made anew"
        )
