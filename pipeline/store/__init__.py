"""The feature store: sharded products on disk, written once by `stvg-extract`, read at random by training.

Importing it stays light: zarr and h5py are imported by the methods that need them.
"""

from pipeline.store.builder import ShardBuilder as ShardBuilder
from pipeline.store.builder import write_shard as write_shard
from pipeline.store.layout import Entry as Entry
from pipeline.store.layout import Kind as Kind
from pipeline.store.lock import StoreLock as StoreLock
from pipeline.store.manifest import Manifest as Manifest
from pipeline.store.manifest import Product as Product
from pipeline.store.manifest import ShardInfo as ShardInfo
from pipeline.store.manifest import made_from as made_from
from pipeline.store.reader import Contents as Contents
from pipeline.store.reader import ProductReader as ProductReader
from pipeline.store.reader import Store as Store
from pipeline.store.shard import is_made_from as is_made_from
from pipeline.store.shard import shard_info as shard_info
from pipeline.store.shard_plan import Shard as Shard
from pipeline.store.shard_plan import plan_shards as plan_shards
from pipeline.store.verify import Problem as Problem
from pipeline.store.writer import OtherProductError as OtherProductError
from pipeline.store.writer import StoreWriter as StoreWriter

__all__ = [
    "Contents",
    "Entry",
    "Kind",
    "Manifest",
    "OtherProductError",
    "Problem",
    "Product",
    "ProductReader",
    "Shard",
    "ShardBuilder",
    "ShardInfo",
    "Store",
    "StoreLock",
    "StoreWriter",
    "is_made_from",
    "made_from",
    "plan_shards",
    "shard_info",
    "write_shard",
]
