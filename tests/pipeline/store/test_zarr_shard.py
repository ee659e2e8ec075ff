"""Shards are Zarr: zarr-python reads them, and would have written the same bytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec

from pipeline.store import Entry, Store

Maker = Callable[..., Path]


def test_zarr_reads_every_entry(sample: list[Entry], shard: str, make_store: Maker) -> None:
    path = make_store("zarr", sample)
    group = zarr.open_group(path / "appearance" / f"{shard}.zarr", mode="r")
    places = {place["key"]: place for place in group.attrs["entries"]}
    for entry in sample:
        place = places[entry.key]
        np.testing.assert_array_equal(
            group[place["array"]][place["begin"] : place["end"]], entry.rows
        )
        for name, values in entry.columns.items():
            begin, end = place["columns"][name]
            np.testing.assert_array_equal(group[f"column_{name}"][begin:end], values)


def test_zarr_would_write_the_same_bytes(
    sample: list[Entry], shard: str, tmp_path: Path, make_store: Maker
) -> None:
    group = make_store("zarr", sample) / "appearance" / f"{shard}.zarr"
    rows = np.concatenate([entry.rows for entry in sample if entry.rows.shape[1:] == (2, 3, 4)])
    array = zarr.create_array(
        tmp_path / "theirs.zarr",
        shape=rows.shape,
        dtype=rows.dtype,
        chunks=(1, 2, 3, 4),
        shards=rows.shape,
        filters=None,
        compressors=[Crc32cCodec()],
        fill_value=0,
        config={"write_empty_chunks": True},
    )
    array[:] = rows
    for file in ("zarr.json", "c/0/0/0/0"):
        assert (group / "rows_float16_2x3x4" / file).read_bytes() == (
            tmp_path / "theirs.zarr" / file
        ).read_bytes()


def test_our_reader_reads_what_zarr_wrote(
    sample: list[Entry], shard: str, make_store: Maker
) -> None:
    """Rows rewritten by zarr-python in place (in whatever chunk order it likes) are read."""
    path = make_store("zarr", sample)
    group = zarr.open_group(path / "appearance" / f"{shard}.zarr", mode="r+")
    group["rows_float16_3x2x4"][5] = np.float16(3)
    expected = sample[1].rows.copy()
    expected[5] = 3
    np.testing.assert_array_equal(Store(path).open("appearance").read("tall"), expected)
