"""Writing of stores: the writer holds the store's lock and owns its manifest."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from pipeline.errors import StoreError
from pipeline.io.atomic import atomic_write
from pipeline.io.jsonl import read_jsonl, write_jsonl
from pipeline.records import Failure
from pipeline.store.disk_errors import translate_disk_full
from pipeline.store.layout import PROJECTION_FILE, SHARD_SUFFIXES, ShardKind, get_shard_path
from pipeline.store.lock import StoreLock
from pipeline.store.manifest import (
    MANIFEST_NAME,
    Manifest,
    Product,
    ShardInfo,
    compute_files_digest,
    load_manifest,
    save_manifest,
)
from pipeline.store.shard import (
    count_entries,
    read_shard_info,
    read_valid_table,
    remove_atomically,
    remove_path,
    select_active_entries,
)
from pipeline.store.shard_check import check_no_damage, check_shards

SAVE_INTERVAL_SECONDS = 2.0
"""Seconds between two writes of a growing manifest.

The manifest grows with the shards: one write per shard would cost the square of their number.
"""
MAX_VALUE_LENGTH = 80
"""Characters of a setting's value in an error message."""


class ProductMismatchError(StoreError):
    """The stored product was made with other, or with unknown, settings."""


class StoreWriter:
    """Context manager of the one process that may change a store.

    Opening a store removes the partial files of killed runs. `write_shard` writes shards, in any
    process; the writer adds them to the manifest. A published shard is in memory at once. It is
    on disk some seconds later (`flush`), on leaving the context, and before anything is deleted.
    A killed run may leave complete shards that its manifest does not list: the next run adopts
    them, and nothing is lost.

    Args:
        path: Path of the store; it is created on entry.
        dataset: Name of the data set.
        root: Folder of the videos.

    Attributes:
        path: As given.

    Raises:
        StoreError: On entry, if the store is locked, damaged, or of another data set.
    """

    def __init__(self, path: Path, dataset: str, root: str) -> None:
        self.path = Path(path)
        self._lock = StoreLock(self.path)
        self._manifest = Manifest(dataset=dataset, root=root, files={})
        self._last_save_time = 0.0
        self._has_unsaved_changes = False
        self._unchecked_products: set[str] = set()

    def __enter__(self) -> StoreWriter:
        self._lock.__enter__()
        # `__exit__` does not run if `__enter__` fails: release the lock here.
        try:
            self._open_manifest()
        except BaseException:
            self._lock.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.flush()
        except (OSError, StoreError):
            # An exception of the context explains more, and the next run adopts the shards.
            if value is None:
                raise
        finally:
            self._lock.__exit__(kind, value, trace)

    def flush(self) -> None:
        """Write the manifest to disk, for readers of a growing store."""
        if self._has_unsaved_changes:
            self._save(self._manifest)

    def open_product(
        self,
        name: str,
        kind: ShardKind,
        provenance: Mapping[str, Any],
        projection: bytes | None = None,
    ) -> None:
        """Begin a product, or continue it if its settings are equal.

        Shards deleted from disk are removed from the manifest. To make a shard or a product
        anew, it is therefore enough to delete its files.

        Args:
            name: Name of the product.
            kind: File format of the shards.
            provenance: Settings of the product, JSON values.
            projection: Content of the projection file of a reduced product. The provenance has
                its digest; the file is kept beside the shards.

        Raises:
            ProductMismatchError: The product exists with other settings, or its folder has
                shards and the manifest no record. The message names the differences.
        """
        # Settings are compared in their JSON form: tuples become lists.
        requested: dict[str, Any] = json.loads(json.dumps(provenance, sort_keys=True))
        folder = self.path / name

        # A product is new without a record, or if its folder was deleted.
        stored = self._manifest.products.get(name)
        if stored is None or not folder.is_dir():
            self._check_no_shards(folder)
            self._write_projection(folder, projection)
            self._save_product(name, Product(kind=kind, provenance=requested, shards={}))
            return

        # An existing product is continued only with equal settings.
        stored_settings = {"kind": stored.kind, **stored.provenance}
        requested_settings = {"kind": kind, **requested}
        differences = list(describe_differences(stored_settings, requested_settings))
        if differences:
            raise ProductMismatchError(
                f"store {self.path}: product {name!r} was made with other settings: "
                f"{'; '.join(differences)}. "
                f"Extract into another --store, or delete {folder} to have the product made anew"
            )

        self._write_projection(folder, projection)
        self._unchecked_products.add(name)

        # Forget shards that were deleted from disk.
        shards = {}
        for shard_name, info in stored.shards.items():
            if get_shard_path(self.path, name, shard_name, kind).exists():
                shards[shard_name] = info
        if shards != stored.shards:
            self._save_product(name, stored.model_copy(update={"shards": shards}))

    def remove_partial_files(self) -> None:
        """Delete the partial files of killed processes. No worker may write meanwhile."""
        for path in [*self.path.glob(".*.part"), *self.path.glob("*/.*.part")]:
            remove_path(path)

    @property
    def products(self) -> dict[str, Product]:
        """Products by name, with all shards published so far."""
        return self._manifest.products

    def get_provenance(self, product: str) -> dict[str, Any]:
        """Return the settings of a product.

        Args:
            product: Name of the product.

        Returns:
            The settings; {} if the store has no such product.
        """
        stored = self._manifest.products.get(product)
        if stored is None or not (self.path / product).is_dir():
            return {}
        return dict(stored.provenance)

    def get_completed_videos(self, product: str) -> set[str]:
        """Return the videos with an entry in a published shard.

        Args:
            product: Name of an opened product.

        Returns:
            Identifiers of the videos.
        """
        return self._get_product(product).videos

    def drop_product(self, name: str) -> None:
        """Delete a product with all its shards, whatever its settings.

        Args:
            name: Name of the product.
        """
        self.flush()
        self._unchecked_products.discard(name)
        remove_atomically(self.path / name)

        products = dict(self._manifest.products)
        products.pop(name, None)
        self._save(self._manifest.model_copy(update={"products": products}))

    def drop_shards(self, product: str, shard_names: Iterable[str]) -> None:
        """Delete shards of a product.

        The files are deleted before the manifest is saved: a shard on disk without a record
        would be adopted again.

        Args:
            product: Name of an opened product.
            shard_names: Names of the shards.
        """
        stored = self._get_product(product)
        dropped_names = set(shard_names)
        if not dropped_names:
            return

        self.flush()
        for name in sorted(dropped_names):
            remove_atomically(get_shard_path(self.path, product, name, stored.kind))

        shards = {}
        for name, info in stored.shards.items():
            if name not in dropped_names:
                shards[name] = info
        self._save_product(product, stored.model_copy(update={"shards": shards}))

    def drop_entries(self, product: str, keys: Iterable[str]) -> None:
        """Mark entries of published shards as dropped; their bytes stay.

        A shard without any other entry is deleted.

        Args:
            product: Name of an opened product.
            keys: Keys of the entries.

        Raises:
            StoreError: A shard's table is damaged or cannot be read.
        """
        stored = self._get_product(product)
        dropped_keys = set(keys)
        if not dropped_keys:
            return

        # New records of the shards that contain such an entry.
        changed: dict[str, ShardInfo] = {}
        for name, info in stored.shards.items():
            path = get_shard_path(self.path, product, name, stored.kind)
            table = read_valid_table(path, product, stored.kind)
            shard_keys = {location.key for location in select_active_entries(table, info.dropped)}
            newly_dropped = dropped_keys & shard_keys
            if newly_dropped:
                dropped = tuple(sorted({*info.dropped, *newly_dropped}))
                videos, entries, rows = count_entries(select_active_entries(table, dropped))
                changed[name] = info.model_copy(
                    update={"videos": videos, "entries": entries, "rows": rows, "dropped": dropped}
                )

        # Shards without any other entry are deleted, the records of the others replaced.
        empty_names = [name for name, info in changed.items() if not info.entries]
        self.drop_shards(product, empty_names)
        for name in empty_names:
            del changed[name]

        if changed:
            stored = self._get_product(product)
            shards = {**stored.shards, **changed}
            self._save_product(product, stored.model_copy(update={"shards": shards}))

    def publish_shard(self, product: str, shard_name: str, info: ShardInfo) -> None:
        """Add a complete shard to the manifest.

        An empty shard is ignored: it has no file. A shard that is listed with the same digest
        keeps its record, and so its dropped entries.

        Args:
            product: Name of an opened product.
            shard_name: Name of the shard.
            info: Record of the shard, as from `write_shard`.
        """
        stored = self._get_product(product)
        listed = stored.shards.get(shard_name)
        is_unchanged = listed is not None and listed.digest == info.digest
        if info.entries == 0 or is_unchanged:
            return

        # In memory at once, on disk at intervals.
        shards = {**stored.shards, shard_name: info}
        self._manifest = self._with_product(product, stored.model_copy(update={"shards": shards}))
        self._has_unsaved_changes = True
        if time.monotonic() - self._last_save_time >= SAVE_INTERVAL_SECONDS:
            self.flush()

    def adopt_shard(self, product: str, shard_name: str) -> ShardInfo | None:
        """Publish a complete shard that a killed run left on disk.

        A shard made with other settings, by a worker of a dead run, is deleted. The first call
        checks all shards of the opened products.

        Args:
            product: Name of an opened product.
            shard_name: Name of the shard.

        Returns:
            The shard's record; None if there is no such shard, so that it must be made.

        Raises:
            StoreError: Shards are damaged; the message names all of them.
        """
        self._check_opened_products()
        stored = self._get_product(product)
        if shard_name in stored.shards:
            return stored.shards[shard_name]

        # A shard that is not listed is adopted only if it was made with the product's settings.
        path = get_shard_path(self.path, product, shard_name, stored.kind)
        if not path.exists():
            return None
        if read_valid_table(path, product, stored.kind).made_from != stored.digest:
            remove_atomically(path)
            return None

        info = read_shard_info(path, product, stored.kind)
        self.publish_shard(product, shard_name, info)
        return info

    def remove_orphans(self, product: str) -> list[str]:
        """Delete files among the shards that the manifest does not list.

        A killed run with another plan leaves such files. The shards of the plan must be adopted
        first, and no worker may write meanwhile.

        Args:
            product: Name of an opened product.

        Returns:
            Names of the deleted files.
        """
        self.flush()
        stored = self._get_product(product)
        suffix = SHARD_SUFFIXES[stored.kind]
        listed = {PROJECTION_FILE}
        listed.update(f"{name}{suffix}" for name in stored.shards)

        paths = sorted((self.path / product).iterdir())
        orphans = [path for path in paths if path.name not in listed]
        for path in orphans:
            remove_atomically(path)
        return [path.name for path in orphans]

    def set_index(self, index_path: Path, tracks_path: Path) -> None:
        """Copy the query index and its tracks into the store, and record their digests.

        Args:
            index_path: The query index.
            tracks_path: The ground-truth tracks.

        Raises:
            StoreError: A file is missing, or the disk is full.
        """
        digests = {}
        for source, name in ((index_path, "index.jsonl"), (tracks_path, "tracks.npz")):
            if not Path(source).is_file():
                raise StoreError(f"{source} does not exist: run stvg-prepare first")

            target = self.path / name
            with translate_disk_full(self.path), atomic_write(target) as temporary_path:
                shutil.copyfile(source, temporary_path)
            digests[name] = compute_files_digest([target])

        if digests != self._manifest.files:
            self._save(self._manifest.model_copy(update={"files": digests}))

    def write_failures(self, failures: Iterable[Failure]) -> None:
        """Replace the failure ledger.

        Args:
            failures: Current failures; of several per video the last one is written.
        """
        by_video = {failure.video: failure for failure in failures}
        sorted_failures = [by_video[video] for video in sorted(by_video)]
        with translate_disk_full(self.path):
            write_jsonl(self.path / "failures.jsonl", sorted_failures)

    def read_failures(self) -> list[Failure]:
        """Read the failure ledger.

        Returns:
            The failures of the last run; empty without a ledger.
        """
        path = self.path / "failures.jsonl"
        return list(read_jsonl(path, Failure)) if path.exists() else []

    def _open_manifest(self) -> None:
        """Remove partial files, then read the manifest or write the first one, under the lock."""
        self.remove_partial_files()
        if not (self.path / MANIFEST_NAME).exists():
            self._save(self._manifest)
            return

        # The data set of a store is fixed; the folder of its videos may move.
        requested = self._manifest
        stored = load_manifest(self.path)
        if stored.dataset != requested.dataset:
            raise StoreError(
                f"store {self.path} holds dataset {stored.dataset!r}, not {requested.dataset!r}: "
                "extract into another --store"
            )

        self._manifest = stored
        if requested.root != stored.root:
            self._save(stored.model_copy(update={"root": requested.root}))

    def _check_no_shards(self, folder: Path) -> None:
        """Raise a ProductMismatchError if a folder without a record holds shards."""
        if not folder.is_dir():
            return
        if any(path.name != PROJECTION_FILE for path in folder.iterdir()):
            raise ProductMismatchError(
                f"{folder} holds shards that {MANIFEST_NAME} does not list: "
                "delete the folder, or extract into another --store"
            )

    def _get_product(self, name: str) -> Product:
        """Return an opened product."""
        try:
            return self._manifest.products[name]
        except KeyError:
            raise ValueError(f"product {name!r} has not been opened") from None

    def _check_opened_products(self) -> None:
        """Delete shards with other settings and report damaged ones, once per product."""
        damage_messages = []
        for product in sorted(self._unchecked_products):
            result = check_shards(self.path, product, self._get_product(product))
            self.drop_shards(product, result.mismatched_shards)
            damage_messages.extend(result.damage_messages)

        check_no_damage(self.path, damage_messages)
        self._unchecked_products.clear()

    def _write_projection(self, folder: Path, projection: bytes | None) -> None:
        """Create the product's folder, and its projection if the content differs.

        Both exist before the manifest lists the product.
        """
        with translate_disk_full(self.path):
            folder.mkdir(exist_ok=True)
            if projection is None:
                return

            path = folder / PROJECTION_FILE
            if path.exists() and path.read_bytes() == projection:
                return
            with atomic_write(path) as temporary_path:
                temporary_path.write_bytes(projection)

    def _save_product(self, name: str, product: Product) -> None:
        """Replace a product's record and save the manifest."""
        self._save(self._with_product(name, product))

    def _with_product(self, name: str, product: Product) -> Manifest:
        """Return the manifest with a product's record replaced."""
        products = {**self._manifest.products, name: product}
        return self._manifest.model_copy(update={"products": products})

    def _save(self, manifest: Manifest) -> None:
        """Save a manifest and continue with it."""
        with translate_disk_full(self.path):
            save_manifest(self.path, manifest)
        self._manifest = manifest
        self._last_save_time = time.monotonic()
        self._has_unsaved_changes = False


def describe_differences(stored: Any, requested: Any, field: str = "") -> Iterator[str]:
    """Describe the differences between stored and requested settings.

    Args:
        stored: JSON value of the store.
        requested: JSON value of the request.
        field: Dotted name of the values; empty at the top.

    Yields:
        One phrase per field that differs, nested fields by their dotted names.
    """
    if isinstance(stored, dict) and isinstance(requested, dict):
        for name in sorted({*stored, *requested}):
            nested_field = f"{field}.{name}" if field else name
            yield from describe_differences(stored.get(name), requested.get(name), nested_field)
    elif stored != requested:
        yield (
            f"{field} is {_truncate_json(stored)} in the store, "
            f"{_truncate_json(requested)} was asked for"
        )


def _truncate_json(value: Any) -> str:
    """Format a JSON value in at most MAX_VALUE_LENGTH characters."""
    text = json.dumps(value, ensure_ascii=False)
    if len(text) <= MAX_VALUE_LENGTH:
        return text
    return text[: MAX_VALUE_LENGTH - 3] + "..."
