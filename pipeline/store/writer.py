"""The writer side: holds the store's lock, owns its manifest, and decides what is already there."""

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
from pipeline.store.layout import PROJECTION_FILE, SHARD_SUFFIXES, ShardKind, shard_path
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
    active_entries,
    count_entries,
    read_shard_info,
    read_valid_table,
    remove_atomically,
    remove_path,
)
from pipeline.store.shard_check import check_no_damage, check_shards

SAVE_INTERVAL_SECONDS = 2.0
"""Seconds between two writes of a growing manifest: it grows with the shards, so one write per shard would cost their square."""


class ProductMismatchError(StoreError):
    """What lies there was made with other settings, or nobody knows with which."""


class StoreWriter:
    """Context: the one process that may change a store. Opening it removes what dead runs left half written.

    Shards themselves are written by `write_shard`, in any process; this one puts them into the manifest. What was
    published is in memory at once, on disk some seconds later (`flush`), on leaving, and before anything is deleted. A
    shard that a killed run had not listed yet lies on disk whole, and the next run adopts it: nothing is lost.
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
            if (
                value is None
            ):  # else that tells what went wrong, and the next run adopts what is not listed
                raise
        finally:
            self._lock.__exit__(kind, value, trace)

    def flush(self) -> None:
        """Bring the manifest on disk up to date, for whoever opens the store while it grows."""
        if self._has_unsaved_changes:
            self._save(self._manifest)

    def open_product(
        self,
        name: str,
        kind: ShardKind,
        provenance: Mapping[str, Any],
        projection: bytes | None = None,
    ) -> None:
        """Begin a product, or go on with one that was made by the same settings; otherwise an ProductMismatchError says what differs.

        Shards deleted from disk are forgotten, so deleting a shard or a product's folder is how to have it made anew.
        `basis` is the projection its rows go through, whose digest the provenance holds; it is kept beside the shards.
        """
        asked: dict[str, Any] = json.loads(json.dumps(provenance, sort_keys=True))
        folder = self.path / name
        known = self._manifest.products.get(name)
        if known is not None and not folder.is_dir():
            known = None
        if known is None:
            if folder.is_dir() and any(path.name != PROJECTION_FILE for path in folder.iterdir()):
                raise ProductMismatchError(
                    f"{folder} holds shards that {MANIFEST_NAME} does not know: delete the folder, or extract into another --store"
                )
            self._write_projection(folder, projection)
            self._save_product(name, Product(kind=kind, provenance=asked, shards={}))
            return
        found = list(
            describe_differences({"kind": known.kind, **known.provenance}, {"kind": kind, **asked})
        )
        if found:
            raise ProductMismatchError(
                f"store {self.path}: product {name!r} was made with other settings: {'; '.join(found)}. "
                f"Extract into another --store, or delete {folder} to have the product made anew"
            )
        self._write_projection(folder, projection)
        self._unchecked_products.add(name)
        shards = {
            shard: info
            for shard, info in known.shards.items()
            if shard_path(self.path, name, shard, kind).exists()
        }
        if shards != known.shards:
            self._save_product(name, known.model_copy(update={"shards": shards}))

    def remove_partial_files(self) -> None:
        """Delete what processes that were killed left half written; to be called while no worker writes."""
        for leftover in [*self.path.glob(".*.part"), *self.path.glob("*/.*.part")]:
            remove_path(leftover)

    @property
    def products(self) -> dict[str, Product]:
        """What the store holds at this moment, by product."""
        return self._manifest.products

    def get_provenance(self, product: str) -> dict[str, Any]:
        """What a product of this store was made of; {} if it has none."""
        known = self._manifest.products.get(product)
        return (
            dict(known.provenance) if known is not None and (self.path / product).is_dir() else {}
        )

    def get_completed_videos(self, product: str) -> set[str]:
        """The videos that have an entry in a published shard."""
        return self._get_product(product).videos

    def drop_product(self, name: str) -> None:
        """Delete a product with all its shards, whatever it was made of."""
        self.flush()
        self._unchecked_products.discard(name)
        remove_atomically(self.path / name)
        products = {
            other: product for other, product in self._manifest.products.items() if other != name
        }
        self._save(self._manifest.model_copy(update={"products": products}))

    def drop_shards(self, product: str, shard_names: Iterable[str]) -> None:
        """Delete shards of a product, then forget them: one that is on disk and not listed would be adopted again."""
        known, gone = self._get_product(product), set(shard_names)
        if not gone:
            return
        self.flush()
        for name in sorted(gone):
            remove_atomically(shard_path(self.path, product, name, known.kind))
        self._save_product(
            product,
            known.model_copy(
                update={"shards": {n: i for n, i in known.shards.items() if n not in gone}}
            ),
        )

    def drop_entries(self, product: str, keys: Iterable[str]) -> None:
        """Let entries of published shards no longer count, though they lie there; a shard without any other is deleted."""
        known, gone = self._get_product(product), set(keys)
        left: dict[str, ShardInfo] = {}
        for name, info in known.shards.items() if gone else ():
            table = read_valid_table(
                shard_path(self.path, product, name, known.kind), product, known.kind
            )
            hit = gone & {place.key for place in active_entries(table, info.dropped)}
            if hit:
                dropped = tuple(sorted({*info.dropped, *hit}))
                videos, entries, rows = count_entries(active_entries(table, dropped))
                left[name] = info.model_copy(
                    update={"videos": videos, "entries": entries, "rows": rows, "dropped": dropped}
                )
        self.drop_shards(product, [name for name, info in left.items() if not info.entries])
        left = {name: info for name, info in left.items() if info.entries}
        if left:
            known = self._get_product(product)
            self._save_product(
                product, known.model_copy(update={"shards": {**known.shards, **left}})
            )

    def publish_shard(self, product: str, shard_name: str, info: ShardInfo) -> None:
        """Put a shard into the manifest; one without entries is not written, so there is nothing to put.

        Of one that is listed with the same bytes, what was dropped stays dropped.
        """
        known = self._get_product(product)
        listed = known.shards.get(shard_name)
        if info.entries == 0 or (listed is not None and listed.digest == info.digest):
            return
        self._manifest = self._with_product(
            product, known.model_copy(update={"shards": {**known.shards, shard_name: info}})
        )
        self._has_unsaved_changes = True
        if time.monotonic() - self._last_save_time >= SAVE_INTERVAL_SECONDS:
            self.flush()

    def adopt_shard(self, product: str, shard_name: str) -> ShardInfo | None:
        """Publish a complete shard that a killed run left on disk; None where there is none, so it must be made.

        One that was made with other settings (by a worker of a dead run) is deleted. The first call looks at all shards
        of the products opened, and names those that are damaged in one StoreError.
        """
        self._check_opened_products()
        known = self._get_product(product)
        if shard_name in known.shards:
            return known.shards[shard_name]
        path = shard_path(self.path, product, shard_name, known.kind)
        if not path.exists():
            return None
        if read_valid_table(path, product, known.kind).made_from != known.digest:
            remove_atomically(path)
            return None
        info = read_shard_info(path, product, known.kind)
        self.publish_shard(product, shard_name, info)
        return info

    def remove_orphans(self, product: str) -> list[str]:
        """Delete what lies among the shards and the manifest does not list (left by a killed run with another plan): their names.

        To be called after the plan's shards have been adopted and while no worker writes.
        """
        self.flush()
        known = self._get_product(product)
        listed = {
            PROJECTION_FILE,
            *(f"{name}{SHARD_SUFFIXES[known.kind]}" for name in known.shards),
        }
        unlisted = sorted(
            path for path in (self.path / product).iterdir() if path.name not in listed
        )
        for path in unlisted:
            remove_atomically(path)
        return [path.name for path in unlisted]

    def set_index(self, index_path: Path, tracks_path: Path) -> None:
        """Copy the query index and its boxes into the store; the manifest gets their digests."""
        digests = {}
        for source, name in ((index_path, "index.jsonl"), (tracks_path, "tracks.npz")):
            if not Path(source).is_file():
                raise StoreError(f"{source} does not exist: run stvg-prepare first")
            with translate_disk_full(self.path), atomic_write(self.path / name) as aside:
                shutil.copyfile(source, aside)
            digests[name] = compute_files_digest([self.path / name])
        if digests != self._manifest.files:
            self._save(self._manifest.model_copy(update={"files": digests}))

    def write_failures(self, failures: Iterable[Failure]) -> None:
        """Replace the ledger: current failures only, one per video, in the videos' order."""
        by_video = {failure.video: failure for failure in failures}
        with translate_disk_full(self.path):
            write_jsonl(
                self.path / "failures.jsonl", [by_video[video] for video in sorted(by_video)]
            )

    def read_failures(self) -> list[Failure]:
        path = self.path / "failures.jsonl"
        return list(read_jsonl(path, Failure)) if path.exists() else []

    def _open_manifest(self) -> None:
        """Under the lock: clear leftovers, then read the manifest or write the first one."""
        self.remove_partial_files()
        if not (self.path / MANIFEST_NAME).exists():
            return self._save(self._manifest)
        found = load_manifest(self.path)
        if found.dataset != self._manifest.dataset:
            raise StoreError(
                f"store {self.path} holds dataset {found.dataset!r}, not {self._manifest.dataset!r}: extract into another --store"
            )
        given, self._manifest = self._manifest, found
        if given.root != found.root:
            self._save(found.model_copy(update={"root": given.root}))

    def _get_product(self, name: str) -> Product:
        try:
            return self._manifest.products[name]
        except KeyError:
            raise ValueError(f"product {name!r} has not been opened") from None

    def _check_opened_products(self) -> None:
        """Once: delete shards that were made with other settings, refuse damaged ones."""
        damaged = []
        for product in sorted(self._unchecked_products):
            found = check_shards(self.path, product, self._get_product(product))
            self.drop_shards(product, found.mismatched_shards)
            damaged += found.damage_messages
        check_no_damage(self.path, damaged)
        self._unchecked_products.clear()

    def _write_projection(self, folder: Path, basis: bytes | None) -> None:
        """Make the product's folder, with its projection; written before the manifest tells of it, and only if it differs."""
        with translate_disk_full(self.path):
            folder.mkdir(exist_ok=True)
            path = folder / PROJECTION_FILE
            if basis is not None and not (path.exists() and path.read_bytes() == basis):
                with atomic_write(path) as aside:
                    aside.write_bytes(basis)

    def _save_product(self, name: str, product: Product) -> None:
        self._save(self._with_product(name, product))

    def _with_product(self, name: str, product: Product) -> Manifest:
        return self._manifest.model_copy(
            update={"products": {**self._manifest.products, name: product}}
        )

    def _save(self, manifest: Manifest) -> None:
        with translate_disk_full(self.path):
            save_manifest(self.path, manifest)
        self._manifest = manifest
        self._last_save_time, self._has_unsaved_changes = time.monotonic(), False


def describe_differences(stored: Any, requested: Any, field: str = "") -> Iterator[str]:
    """One phrase per field that differs, nested ones by their dotted name."""
    if isinstance(stored, dict) and isinstance(requested, dict):
        for name in sorted({*stored, *requested}):
            yield from describe_differences(
                stored.get(name), requested.get(name), f"{field}.{name}" if field else name
            )
    elif stored != requested:
        yield f"{field} is {_truncate_json(stored)} in the store, {_truncate_json(requested)} was asked for"


def _truncate_json(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."
