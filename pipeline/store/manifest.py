"""`manifest.json`: which products a store holds, how each was made, and the digest of every shard."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from pipeline.errors import StoreError
from pipeline.io.jsonl import write_json
from pipeline.records import FORMAT
from pipeline.store.disk_errors import check_is_directory
from pipeline.store.layout import ShardKind
from pipeline.validation import StrictModel, format_first_error

MANIFEST_NAME = "manifest.json"


class ShardInfo(StrictModel):
    """One published shard: the videos that have an entry in it, and a sha256 over its files in sorted name order.

    `dropped` are the keys of entries that lie in the shard and no longer count, because their source has changed:
    `videos`, `entries` and `rows` are without them, `bytes` and `digest` are those of the files.
    """

    videos: tuple[str, ...]
    entries: int
    rows: int
    bytes: int
    digest: str
    dropped: tuple[str, ...] = ()


def origin_digest(kind: ShardKind, provenance: Mapping[str, Any]) -> str:
    """What a product's shards say they were made of: sha256 of its file format and provenance as canonical JSON."""
    canonical = json.dumps(
        {"kind": kind, "provenance": provenance},
        sort_keys=True,
        separators=(",", ":"),
        allow_nan=False,
    )
    return hashlib.sha256(canonical.encode()).hexdigest()


class Product(StrictModel):
    """One product: file format, the settings that determine its values, and its shards by name."""

    kind: ShardKind
    provenance: dict[str, Any]
    shards: dict[str, ShardInfo]

    @property
    def videos(self) -> set[str]:
        return {video for shard in self.shards.values() for video in shard.videos}

    @property
    def digest(self) -> str:
        """`made_from` of its shards."""
        return origin_digest(self.kind, self.provenance)


class Manifest(StrictModel):
    """The store's table of contents. `root` is where the videos were; it may change, `dataset` may not.

    `files` are the sha256 of `index.jsonl` and `tracks.npz`; none in a store that has not got them yet.
    """

    format: Literal[1] = 1
    dataset: str
    root: str
    files: dict[str, str]
    products: dict[str, Product] = Field(default_factory=dict)


def load_manifest(store: Path) -> Manifest:
    """Read and check `<store>/manifest.json`; every fault is a StoreError that says what to do."""
    path = Path(store) / MANIFEST_NAME
    check_is_directory(Path(store))
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise StoreError(
            f"{store} is not a feature store (it has no {MANIFEST_NAME}): run stvg-extract --store {store} first"
        ) from None
    except (OSError, ValueError) as error:
        raise StoreError(
            f"{path} cannot be read ({error}): restore it, or extract into another --store"
        ) from None
    found = document.get("format") if isinstance(document, dict) else None
    if found != FORMAT:
        raise StoreError(
            f"{path}: format {found!r} is unknown; this version reads {FORMAT}: extract into another --store"
        )
    try:
        return Manifest.model_validate(document)
    except ValidationError as error:
        raise StoreError(
            f"{path}: {format_first_error(error)}: restore it, or extract into another --store"
        ) from None


def save_manifest(store: Path, manifest: Manifest) -> None:
    """Write it atomically, keys in sorted order below the top: the same contents give the same bytes."""
    document = manifest.model_dump(mode="json")
    products = document.pop("products")
    write_json(
        Path(store) / MANIFEST_NAME,
        {**document, "products": json.loads(json.dumps(products, sort_keys=True))},
    )


def compute_manifest_digest(store: Path) -> str:
    return hashlib.sha256((Path(store) / MANIFEST_NAME).read_bytes()).hexdigest()


def find_changed_files(store: Path, digests: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Files below `store` that are not as their sha256 says, by name, each with what is wrong."""
    for name, digest in sorted(digests.items()):
        try:
            found = compute_files_digest([Path(store) / name])
        except FileNotFoundError:
            yield name, "it is missing"
        except OSError as error:
            yield name, f"it cannot be read ({error.strerror})"
        else:
            if found != digest:
                yield name, "its bytes are not those of the manifest"


def compute_files_digest(files: Iterable[Path]) -> str:
    """sha256 over the bytes of files, one after the other."""
    digest = hashlib.sha256()
    block = bytearray(1 << 20)
    for path in files:
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(block):
                digest.update(memoryview(block)[:count])
    return digest.hexdigest()
