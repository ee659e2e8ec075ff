"""`manifest.json`: a store's products, their settings, and the digest of every shard."""

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
    """One published shard.

    Attributes:
        videos: Videos with an entry in the shard, without dropped entries.
        entries: Number of entries, without dropped ones.
        rows: Number of rows, without those of dropped entries.
        bytes: Bytes of the shard's files.
        digest: sha256 over the shard's files, in the order of their names.
        dropped: Keys of entries that lie in the shard but are no longer valid, because their
            source has changed.
    """

    videos: tuple[str, ...]
    entries: int
    rows: int
    bytes: int
    digest: str
    dropped: tuple[str, ...] = ()


def compute_origin_digest(kind: ShardKind, provenance: Mapping[str, Any]) -> str:
    """Compute the digest of the settings that a product's shards were made with.

    Args:
        kind: File format of the shards.
        provenance: Settings of the product, JSON values.

    Returns:
        sha256 of file format and provenance as canonical JSON: `made_from` of the shards.
    """
    canonical = json.dumps(
        {"kind": kind, "provenance": provenance},
        sort_keys=True,
        separators=(",", ":"),
        allow_nan=False,
    )
    return hashlib.sha256(canonical.encode()).hexdigest()


class Product(StrictModel):
    """One product of a store.

    Attributes:
        kind: File format of the shards.
        provenance: The settings that determine the product's values.
        shards: Published shards by name.
    """

    kind: ShardKind
    provenance: dict[str, Any]
    shards: dict[str, ShardInfo]

    @property
    def videos(self) -> set[str]:
        """Videos with an entry in a published shard."""
        videos: set[str] = set()
        for info in self.shards.values():
            videos.update(info.videos)
        return videos

    @property
    def digest(self) -> str:
        """`made_from` of the product's shards."""
        return compute_origin_digest(self.kind, self.provenance)


class Manifest(StrictModel):
    """The store's table of contents.

    Attributes:
        format: Version of the manifest.
        dataset: Name of the data set; it never changes.
        root: Folder of the videos; it may change.
        files: sha256 of `index.jsonl` and `tracks.npz`; empty in a store without them.
        products: Products by name.
    """

    format: Literal[1] = 1
    dataset: str
    root: str
    files: dict[str, str]
    products: dict[str, Product] = Field(default_factory=dict)


def load_manifest(store: Path) -> Manifest:
    """Read and validate the manifest of a store.

    Args:
        store: Path of the store.

    Returns:
        The manifest.

    Raises:
        StoreError: The store or its manifest is missing, unreadable, invalid, or of an unknown
            format. The message names the next step.
    """
    # Each fault has its own message, with the next step.
    path = Path(store) / MANIFEST_NAME
    check_is_directory(Path(store))
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise StoreError(
            f"{store} is not a feature store (it has no {MANIFEST_NAME}): "
            f"run stvg-extract --store {store} first"
        ) from None
    except (OSError, ValueError) as error:
        raise StoreError(
            f"{path} cannot be read ({error}): restore it, or extract into another --store"
        ) from None

    # An unknown format may fail validation in any way: report the format first.
    file_format = document.get("format") if isinstance(document, dict) else None
    if file_format != FORMAT:
        raise StoreError(
            f"{path}: format {file_format!r} is unknown; this version reads {FORMAT}: "
            "extract into another --store"
        )

    try:
        return Manifest.model_validate(document)
    except ValidationError as error:
        raise StoreError(
            f"{path}: {format_first_error(error)}: restore it, or extract into another --store"
        ) from None


def save_manifest(store: Path, manifest: Manifest) -> None:
    """Write the manifest of a store, atomically.

    Keys below the top level are sorted, so that equal contents give equal bytes.

    Args:
        store: Path of the store.
        manifest: The manifest.
    """
    document = manifest.model_dump(mode="json")
    products = document.pop("products")
    sorted_products = json.loads(json.dumps(products, sort_keys=True))
    write_json(Path(store) / MANIFEST_NAME, {**document, "products": sorted_products})


def compute_manifest_digest(store: Path) -> str:
    """Compute the sha256 of a store's manifest file.

    Args:
        store: Path of the store.

    Returns:
        The digest in hexadecimal.
    """
    return hashlib.sha256((Path(store) / MANIFEST_NAME).read_bytes()).hexdigest()


def find_changed_files(store: Path, digests: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Find files whose bytes differ from their digests.

    Args:
        store: Folder of the files.
        digests: Expected sha256 by file name.

    Yields:
        Name and fault of each changed, missing or unreadable file, in the order of names.
    """
    for name, expected_digest in sorted(digests.items()):
        try:
            digest = compute_files_digest([Path(store) / name])
        except FileNotFoundError:
            yield name, "it is missing"
        except OSError as error:
            yield name, f"it cannot be read ({error.strerror})"
        else:
            if digest != expected_digest:
                yield name, "its bytes are not those of the manifest"


def compute_files_digest(files: Iterable[Path]) -> str:
    """Compute one sha256 over the bytes of several files, one after the other.

    Args:
        files: Paths of the files.

    Returns:
        The digest in hexadecimal.
    """
    digest = hashlib.sha256()
    # Unbuffered reads into one block: no allocation per block.
    block = bytearray(1 << 20)
    for path in files:
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(block):
                digest.update(memoryview(block)[:count])
    return digest.hexdigest()
