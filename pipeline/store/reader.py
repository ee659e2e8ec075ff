"""Reading of stores: products by name, entries by key, rows in any order."""

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
from pipeline.store.layout import (
    DamageError,
    EntryLocation,
    ShardSource,
    ShardTable,
    get_shard_path,
)
from pipeline.store.manifest import (
    Product,
    compute_manifest_digest,
    find_changed_files,
    load_manifest,
)
from pipeline.store.quantization import SCALE_COLUMN, dequantize
from pipeline.store.shard import describe_read_error, open_source, read_table, select_active_entries
from pipeline.store.verify import SETTINGS_MISMATCH, IntegrityProblem, verify_files, verify_product

MAX_OPEN_SHARDS = 64
"""Open shards per product and process; the least recently used one is closed first."""
MAX_LISTED_VIDEOS = 5
"""Videos that an error message lists."""


class Store:
    """A store, opened read-only; it may still grow.

    Opening reads the manifest and compares the index and the tracks with it.

    Args:
        path: Path of the store.

    Attributes:
        path: As given.
        manifest: The manifest at the time of opening.
        manifest_digest: sha256 of the manifest file.
        index_path: Path of the query index; the file may be missing.
        tracks_path: Path of the ground-truth tracks; the file may be missing.

    Raises:
        StoreError: The store is missing, or one of these files is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.manifest = load_manifest(self.path)
        self.manifest_digest = compute_manifest_digest(self.path)
        self.index_path = self.path / "index.jsonl"
        self.tracks_path = self.path / "tracks.npz"

        # A missing file is an error only for those who read it.
        present = {}
        for name, digest in self.manifest.files.items():
            if (self.path / name).exists():
                present[name] = digest
        for name, detail in find_changed_files(self.path, present):
            raise StoreError(
                f"store {self.path}: {name}: {detail}: run stvg-extract again, which copies it anew"
            )

    @property
    def products(self) -> dict[str, Product]:
        """Products by name."""
        return self.manifest.products

    def open(self, product: str, allocate: Allocator = allocate_numpy) -> ProductReader:
        """Open a product.

        Args:
            product: Name of the product.
            allocate: Allocator of the memory for rows.

        Returns:
            The reader.

        Raises:
            StoreError: The store has no such product.
        """
        if product not in self.products:
            present = ", ".join(sorted(self.products)) or "none"
            raise StoreError(
                f"store {self.path} has no product {product!r} (it has {present}): "
                "run stvg-extract to add it"
            )
        return ProductReader(self.path, product, self.products[product], allocate)

    def verify(self) -> list[IntegrityProblem]:
        """Compare every digest, and the checksum of every chunk.

        Returns:
            All problems; empty if the store is intact.
        """
        problems: list[IntegrityProblem] = []
        problems.extend(verify_files(self.path, self.manifest))
        for name, product in sorted(self.products.items()):
            problems.extend(verify_product(self.path, name, product))
        return problems

    def summarize(self) -> list[ProductSummary]:
        """Summarize the products from the manifest alone.

        Returns:
            Counts and sizes of each product, in the order of names.
        """
        products = sorted(self.products.items())
        return [ProductSummary.from_product(name, product) for name, product in products]


@dataclass(frozen=True)
class ProductSummary:
    """Counts and sizes of one product.

    Attributes:
        product: Name of the product.
        shards: Number of shards.
        videos: Number of videos.
        entries: Number of entries.
        rows: Number of rows: frames, clips or tokens.
        bytes: Bytes on disk, with indices and checksums.
    """

    product: str
    shards: int
    videos: int
    entries: int
    rows: int
    bytes: int

    @classmethod
    def from_product(cls, name: str, product: Product) -> ProductSummary:
        """Summarize a product.

        Args:
            name: Name of the product.
            product: Its record in the manifest.

        Returns:
            The summary.
        """
        infos = product.shards.values()
        return cls(
            product=name,
            shards=len(infos),
            videos=len(product.videos),
            entries=sum(info.entries for info in infos),
            rows=sum(info.rows for info in infos),
            bytes=sum(info.bytes for info in infos),
        )

    @property
    def bytes_per_row(self) -> float:
        """Bytes on disk per frame, clip or token; 0 without rows."""
        return self.bytes / self.rows if self.rows else 0.0

    def __str__(self) -> str:
        return (
            f"{self.product}: {self.videos} videos, {self.entries} entries, {self.rows} rows "
            f"in {self.shards} shards, {self.bytes / 1e6:,.1f} MB, "
            f"{self.bytes_per_row:,.0f} bytes per row"
        )


class ProductReader:
    """Reader of one product's entries.

    A reader may be pickled, shared by threads, and used in a forked child. Tables are read on
    first use. Each process opens a shard's files when it first reads a row of the shard.

    Args:
        store: Path of the store.
        name: Name of the product.
        product: Its record in the manifest.
        allocate: Allocator of the memory for rows.

    Attributes:
        store: As given.
        name: As given.
        product: As given.
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
        """Return all keys, in the order of shards and of writing.

        Raises:
            StoreError: A shard is damaged.
        """
        return list(self._load_all_locations())

    def __contains__(self, key: object) -> bool:
        return key in self._load_all_locations()

    def __len__(self) -> int:
        return len(self._load_all_locations())

    def shape(self, key: str) -> tuple[int, ...]:
        """Return the shape of an entry's rows.

        Args:
            key: Key of the entry.

        Returns:
            `(n, *shape)`.

        Raises:
            StoreError: The entry is missing or its shard is damaged.
        """
        shard, location = self._find_entry(key)
        spec = self._tables[shard].arrays[location.array]
        return (location.end - location.begin, *spec.shape[1:])

    def facts(self, key: str) -> dict[str, Any]:
        """Return a copy of an entry's facts.

        Args:
            key: Key of the entry.

        Returns:
            The facts by name.

        Raises:
            StoreError: The entry is missing or its shard is damaged.
        """
        _, location = self._find_entry(key)
        return dict(location.facts)

    def columns(self, key: str) -> dict[str, np.ndarray]:
        """Return copies of an entry's columns.

        Args:
            key: Key of the entry.

        Returns:
            1-D arrays by name.

        Raises:
            StoreError: The entry is missing or its shard is damaged.
        """
        shard, location = self._find_entry(key)
        columns = {}
        with self._translate_damage(shard, key):
            for name, (begin, end) in location.columns.items():
                columns[name] = self._get_column(shard, name)[begin:end].copy()
        return columns

    def read(self, key: str, indices: np.ndarray | None = None) -> np.ndarray:
        """Read rows of an entry.

        Args:
            key: Key of the entry.
            indices: `[k]`, row indices of the entry in any order, repeats allowed. By default
                all rows.

        Returns:
            `[k, *shape]` in the order of `indices`. 8-bit rows with a scale come as float16.

        Raises:
            IndexError: An index lies outside the entry.
            StoreError: The entry is missing, or its shard is damaged or unreadable.
        """
        shard, location = self._find_entry(key)

        # All rows by default; any order and repeats otherwise.
        num_rows = location.end - location.begin
        if indices is None:
            indices = np.arange(num_rows)
        else:
            indices = np.asarray(indices, np.int64).reshape(-1)
        self._check_indices(key, indices, num_rows)

        # A scale for each row marks quantized rows.
        spec = self._tables[shard].arrays[location.array]
        scale_begin, scale_end = location.columns.get(SCALE_COLUMN, (0, 0))
        is_quantized = spec.dtype == "int8" and scale_end - scale_begin == num_rows

        # int8 rows are an intermediate result: they do not need the caller's allocator.
        pool = self._quantized_pool if is_quantized else self._buffer_pool
        out = pool.empty((len(indices), *spec.shape[1:]), np.dtype(spec.dtype))  # [k, *shape]

        # Shards are read in ascending order, each row once.
        is_ascending = bool((np.diff(indices) > 0).all())
        if is_ascending:
            rows = indices
            first_slots = np.arange(len(indices))
        else:
            rows, first_slots = np.unique(indices, return_index=True)

        scales = None
        with self._translate_damage(shard, key):
            source = self._get_source(shard)
            source.read(location.array, location.begin + rows, first_slots, out)
            if is_quantized:
                scales = self._get_column(shard, SCALE_COLUMN)[scale_begin:scale_end]

        # Repeats are copied from the first slot with the same row.
        if len(rows) < len(indices):
            repeat_slots = np.setdiff1d(np.arange(len(indices)), first_slots)
            positions = np.searchsorted(rows, indices[repeat_slots])
            out[repeat_slots] = out[first_slots[positions]]

        # 8-bit rows are restored with their scales, into the caller's memory.
        if scales is None:
            return out
        restored = self._buffer_pool.empty(out.shape, np.dtype(np.float16))
        return dequantize(out, scales[indices], restored)

    def __getstate__(self) -> tuple[Path, str, Product, Allocator]:
        return self.store, self.name, self.product, self._allocate

    def __setstate__(self, state: tuple[Path, str, Product, Allocator]) -> None:
        self.__init__(*state)  # type: ignore[misc]

    def _check_indices(self, key: str, indices: np.ndarray, num_rows: int) -> None:
        """Raise an IndexError for the first index outside `[0, num_rows)`."""
        outside = indices[(indices < 0) | (indices >= num_rows)]
        if len(outside):
            raise IndexError(
                f"product {self.name!r}, key {key!r}: row {outside[0]} does not lie in "
                f"[0, {num_rows})"
            )

    def _reset_open_files(self) -> None:
        """Start without open files: files, locks and buffers do not survive a fork, tables do."""
        self._process_id = os.getpid()
        self._mutex = threading.RLock()
        self._buffer_pool = BufferPool(self._allocate)
        self._quantized_pool = BufferPool()
        self._sources: OrderedDict[str, ShardSource] = OrderedDict()

    def _load_locations(self) -> dict[str, tuple[str, EntryLocation]]:
        """Return shard and location of every active key in a readable table.

        Damaged tables are recorded in `_damage_by_shard`.
        """
        # In a forked child, file descriptors and locks of the parent must not be used.
        if self._process_id != os.getpid():
            self._reset_open_files()

        with self._mutex:
            if self._locations is not None:
                return self._locations

            # Read every table once; a key in several shards counts in the first.
            locations: dict[str, tuple[str, EntryLocation]] = {}
            expected_digest = self.product.digest
            for shard in sorted(self.product.shards):
                try:
                    table = read_table(self._get_shard_path(shard), self.product.kind)
                    if table.made_from != expected_digest:
                        raise DamageError(SETTINGS_MISMATCH)
                except DamageError as damage:
                    self._damage_by_shard[shard] = damage
                    continue
                except OSError as error:
                    raise self._build_read_error(shard, error) from None

                self._tables[shard] = table
                for location in select_active_entries(table, self.product.shards[shard].dropped):
                    locations.setdefault(location.key, (shard, location))
            self._locations = locations
            return locations

    def _load_all_locations(self) -> dict[str, tuple[str, EntryLocation]]:
        """Return shard and location of every active key; StoreError if a table is damaged."""
        locations = self._load_locations()
        for shard, damage in self._damage_by_shard.items():
            raise self._build_damage_error(shard, damage)
        return locations

    def _find_entry(self, key: str) -> tuple[str, EntryLocation]:
        """Return shard and location of a key; StoreError if it is missing."""
        locations = self._load_locations()
        if key in locations:
            return locations[key]

        # The key may be in a damaged shard, most likely in the shard of the video with this name.
        damaged_shards = sorted(
            self._damage_by_shard, key=lambda shard: key not in self.product.shards[shard].videos
        )
        for shard in damaged_shards:
            raise self._build_damage_error(shard, self._damage_by_shard[shard], key)

        raise StoreError(
            f"store {self.store}: product {self.name!r} has no entry {key!r} "
            f"(of {len(locations)}): run stvg-extract to add it"
        )

    def _get_source(self, shard: str) -> ShardSource:
        """Return the open files of a shard."""
        # The dict is ordered by last use: the first source is the least recently used one.
        with self._mutex:
            if shard not in self._sources:
                path = self._get_shard_path(shard)
                source = open_source(path, self.product.kind, self._tables[shard])
                self._sources[shard] = source
                if len(self._sources) > MAX_OPEN_SHARDS:
                    self._sources.popitem(last=False)
            self._sources.move_to_end(shard)
            return self._sources[shard]

    def _get_column(self, shard: str, name: str) -> np.ndarray:
        """Return a column over all entries of a shard.

        The column is read once: columns are small, and all entries share one chunk.
        """
        if (shard, name) not in self._column_cache:
            self._column_cache[shard, name] = self._get_source(shard).read_column(name)
        return self._column_cache[shard, name]

    def _get_shard_path(self, shard: str) -> Path:
        """Return the path of a shard of the product."""
        return get_shard_path(self.store, self.name, shard, self.product.kind)

    @contextmanager
    def _translate_damage(self, shard: str, key: str) -> Iterator[None]:
        """Translate damage and system errors to StoreErrors."""
        try:
            yield
        except DamageError as damage:
            raise self._build_damage_error(shard, damage, key) from None
        except OSError as error:
            raise self._build_read_error(shard, error) from None

    def _build_read_error(self, shard: str, error: OSError) -> StoreError:
        """Build the error for a refusal of the system."""
        description = describe_read_error(self._get_shard_path(shard), error)
        return StoreError(f"product {self.name!r}: {description}: its content was not checked")

    def _build_damage_error(
        self, shard: str, damage: DamageError, key: str | None = None
    ) -> StoreError:
        """Build the error for damage of one entry, or of a whole shard without a key."""
        if key is not None:
            subject = f"key {key!r}"
        else:
            videos = self.product.shards[shard].videos
            ellipsis = ", …" if len(videos) > MAX_LISTED_VIDEOS else ""
            subject = f"videos {', '.join(videos[:MAX_LISTED_VIDEOS])}{ellipsis}"

        shard_name = self._get_shard_path(shard).name
        return StoreError(
            f"store {self.store}: product {self.name!r}, shard {shard_name}, {subject}: {damage}. "
            "Delete this shard and run stvg-extract again, which makes it anew"
        )
