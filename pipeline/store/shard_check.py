"""Checks of existing shards before a writer continues a product."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.errors import StoreError
from pipeline.store.layout import SHARD_SUFFIXES, DamageError
from pipeline.store.manifest import Product
from pipeline.store.shard import describe_read_error, read_table


@dataclass
class ShardCheck:
    """Faults of a product's shards on disk, published or not.

    Attributes:
        mismatched_shards: Names of shards made with other settings.
        damage_messages: One message per damaged shard.
    """

    mismatched_shards: list[str] = field(default_factory=list)
    damage_messages: list[str] = field(default_factory=list)


def check_shards(store: Path, name: str, product: Product) -> ShardCheck:
    """Read the tables of all shards of a product.

    Args:
        store: Path of the store.
        name: Name of the product.
        product: Its record in the manifest.

    Returns:
        The shards with faults.

    Raises:
        StoreError: The system refuses to read a shard.
    """
    result = ShardCheck()
    expected_digest = product.digest
    suffix = SHARD_SUFFIXES[product.kind]
    for path in sorted((store / name).glob(f"[!.]*{suffix}")):
        try:
            if read_table(path, product.kind).made_from != expected_digest:
                result.mismatched_shards.append(path.stem)
        except DamageError as damage:
            result.damage_messages.append(f"{path}: {damage}")
        except OSError as error:
            raise StoreError(
                f"product {name!r}: {describe_read_error(path, error)}: its content was not checked"
            ) from None
    return result


def check_no_damage(store: Path, damage_messages: Iterable[str]) -> None:
    """Raise one error for all damaged shards.

    Args:
        store: Path of the store.
        damage_messages: One message per damaged shard.

    Raises:
        StoreError: There is a damaged shard.
    """
    lines = list(damage_messages)
    if lines:
        plural = "s" if len(lines) > 1 else ""
        raise StoreError(
            f"store {store}: {len(lines)} damaged shard{plural}. Delete the shards named here "
            "and run stvg-extract again, which makes them anew:\n" + "\n".join(lines)
        )
