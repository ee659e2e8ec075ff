"""What a writer must know of the shards it finds, before it goes on with a product: which are of other settings, which damaged."""

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
    """Shards on disk, listed or not: the names of those made with other settings, and what is wrong with damaged ones."""

    mismatched_shards: list[str] = field(default_factory=list)
    damage_messages: list[str] = field(default_factory=list)


def check_shards(store: Path, name: str, product: Product) -> ShardCheck:
    """Read the table of every shard of a product; a StoreError where the machine refuses."""
    found, made_from = ShardCheck(), product.digest
    for path in sorted((store / name).glob(f"[!.]*{SHARD_SUFFIXES[product.kind]}")):
        try:
            if read_table(path, product.kind).made_from != made_from:
                found.mismatched_shards.append(path.stem)
        except DamageError as damage:
            found.damage_messages.append(f"{path}: {damage}")
        except OSError as error:
            raise StoreError(
                f"product {name!r}: {describe_read_error(path, error)}: nothing in it was judged"
            ) from None
    return found


def check_no_damage(store: Path, damage_messages: Iterable[str]) -> None:
    """One StoreError for all of them."""
    lines = list(damage_messages)
    if lines:
        raise StoreError(
            f"store {store}: {len(lines)} damaged shard{'s' * (len(lines) > 1)}. Delete what is named here and run stvg-extract "
            "again to have it made anew:\n" + "\n".join(lines)
        )
