"""A shard as one HDF5 file: each array a dataset of one-row chunks with fletcher32, the table a dataset of JSON bytes.

Written in HDF5 1.10's form, whose metadata has checksums, and without times, so the same rows give the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.store.layout import DamageError, Table, column_name, raise_unless_damage, seal, unseal

FAULTS = (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError)  # what h5py raises on damaged files


class Hdf5Sink:
    """Streams rows into the datasets of a new file."""

    def __init__(self, path: Path) -> None:
        import h5py

        self._file = h5py.File(path, "w-", libver=("v110", "v110"), locking=False)

    def append(self, array: str, rows: np.ndarray) -> None:
        shape = rows.shape[1:]
        if array not in self._file:
            self._file.create_dataset(
                array, shape=(0, *shape), maxshape=(None, *shape), chunks=(1, *shape), dtype=rows.dtype, fletcher32=True, track_times=False
            )
        dataset = self._file[array]
        begin = len(dataset)
        dataset.resize(begin + len(rows), axis=0)
        dataset[begin:] = rows

    def finish(self, table: Table, columns: Mapping[str, np.ndarray]) -> None:
        for name, values in columns.items():
            self._whole(column_name(name), values)
        self._whole("table", np.frombuffer(json.dumps(seal(table), ensure_ascii=False).encode(), np.uint8))
        self.close()

    def close(self) -> None:
        self._file.close()

    def _whole(self, name: str, values: np.ndarray) -> None:
        """A 1-D dataset in one chunk with a checksum (an empty one has neither)."""
        checked: dict[str, Any] = {"chunks": values.shape, "fletcher32": True} if len(values) else {}
        self._file.create_dataset(name, data=values, track_times=False, **checked)


class Hdf5Source:
    """Reads the datasets of one file; the library lets one thread of a process read at a time."""

    def __init__(self, path: Path, table: Table) -> None:
        self._file = _open(path)
        self._table = table
        self._datasets: dict[str, Any] = {}

    def read(self, array: str, rows: np.ndarray, places: np.ndarray, out: np.ndarray) -> None:
        if not len(rows):
            return
        dataset = self._dataset(array)
        apart = np.flatnonzero((np.diff(rows) != 1) | (np.diff(places) != 1)) + 1
        for run in np.split(np.arange(len(rows)), apart):
            first, count = run[0], len(run)
            source = np.s_[rows[first] : rows[first] + count]
            try:
                dataset.read_direct(out, source, np.s_[places[first] : places[first] + count])
            except FAULTS as error:
                raise_unless_damage(error)
                raise DamageError(f"rows {source.start} to {source.stop - 1} cannot be read ({error})") from None

    def column(self, name: str) -> np.ndarray:
        spec = self._table.columns[name]
        try:
            values = np.asarray(self._file[column_name(name)][...])
        except FAULTS as error:
            raise_unless_damage(error)
            raise DamageError(f"column {name!r} cannot be read ({error})") from None
        if values.shape != spec.shape or values.dtype != np.dtype(spec.dtype):
            raise DamageError(f"column {name!r} is {values.dtype}{list(values.shape)}, not {spec.dtype}{list(spec.shape)}")
        return values

    def _dataset(self, array: str) -> Any:
        """The dataset, once its form is as written and no chunk is missing (HDF5 would return zeros for it)."""
        if array not in self._datasets:
            spec = self._table.arrays[array]
            try:
                dataset = self._file[array]
                found = (dataset.shape, dataset.dtype, dataset.id.get_num_chunks(), dataset.fletcher32)
            except FAULTS as error:
                raise_unless_damage(error)
                raise DamageError(f"its rows cannot be read ({error})") from None
            if found != (spec.shape, np.dtype(spec.dtype), spec.shape[0], True):
                raise DamageError(f"array {array} is not as written: {found[2]} of {spec.shape[0]} rows are there")
            self._datasets[array] = dataset
        return self._datasets[array]


def read_hdf5_table(path: Path) -> Table:
    """The table of a file, from its dataset of JSON bytes."""
    file = _open(path)
    try:
        document = json.loads(file["table"][...].tobytes())
    except FAULTS as error:
        raise_unless_damage(error)
        raise DamageError(f"its table cannot be read ({error})") from None
    finally:
        file.close()
    return unseal(document)


def _open(path: Path) -> Any:
    import h5py

    try:
        return h5py.File(path, "r", locking=False)
    except FAULTS as error:
        raise_unless_damage(error)
        raise DamageError(f"it cannot be opened ({error})") from None
