"""The feature store: sharded products on disk.

`stvg-extract` writes a store once; training reads it in random order. The import is light: zarr
and h5py are imported by the methods that need them.
"""

from pipeline.store.builder import ShardBuilder as ShardBuilder
from pipeline.store.builder import write_shard as write_shard
from pipeline.store.layout import Entry as Entry
from pipeline.store.layout import ShardKind as ShardKind
from pipeline.store.lock import StoreLock as StoreLock
from pipeline.store.manifest import Manifest as Manifest
from pipeline.store.manifest import Product as Product
from pipeline.store.manifest import ShardInfo as ShardInfo
from pipeline.store.manifest import compute_origin_digest as compute_origin_digest
from pipeline.store.reader import ProductReader as ProductReader
from pipeline.store.reader import ProductSummary as ProductSummary
from pipeline.store.reader import Store as Store
from pipeline.store.shard import has_origin as has_origin
from pipeline.store.shard import read_shard_info as read_shard_info
from pipeline.store.shard_plan import Shard as Shard
from pipeline.store.shard_plan import plan_shards as plan_shards
from pipeline.store.verify import IntegrityProblem as IntegrityProblem
from pipeline.store.writer import ProductMismatchError as ProductMismatchError
from pipeline.store.writer import StoreWriter as StoreWriter

__all__ = [
    "ProductSummary",
    "Entry",
    "ShardKind",
    "Manifest",
    "ProductMismatchError",
    "IntegrityProblem",
    "Product",
    "ProductReader",
    "Shard",
    "ShardBuilder",
    "ShardInfo",
    "Store",
    "StoreLock",
    "StoreWriter",
    "has_origin",
    "compute_origin_digest",
    "plan_shards",
    "read_shard_info",
    "write_shard",
]
