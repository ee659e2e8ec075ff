"""What random reads from the store cost, and what each way of storing features takes.

    .venv/bin/python -m benchmarks.store [--video FILE …]     # about two minutes; writes benchmarks/results/store.md

Maps of real size are written in both formats and read by our reader, by a plain `numpy.memmap` of the same data, and
by zarr-python; all give the same numbers before any time is believed. With videos, their frames go through the
full-size appearance backbone (random weights) and are stored in every way there is.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import zarr
from numcodecs import Zstd

from benchmarks.machine import where
from pipeline.reduce import Reduction, fit_pca
from pipeline.store import Entry, Kind, ProductReader, Store, StoreWriter, made_from, write_shard

SHAPE = (10, 18, 2048)
"""A C5 map of a 320 × 576 picture."""
VIDEOS, FRAMES, WANTED, ROUNDS = 8, 120, 48, 60
KINDS: tuple[Kind, ...] = ("zarr", "hdf5")
SEED = 0
RESULT = Path(__file__).parent / "results" / "store.md"
Pick = tuple[np.ndarray, np.ndarray]
Read = Callable[[Pick], list[np.ndarray]]
"""The frames of a pick, in one array if they are of one video, else in one array each: what a reader gives without copying again."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--video", type=Path, nargs="*", default=[], help="natural videos, for the bytes per frame of every option")
    parser.add_argument("--frames", type=int, default=24, help="frames of each that are encoded")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        speed = [*measure_reading(Path(place))]
        sizes = [*measure_options(Path(place), arguments.video, arguments.frames)] if arguments.video else []
    text = result(speed, sizes, arguments)
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(text, encoding="utf-8")
    print(text)


def measure_reading(place: Path) -> list[str]:
    """Table rows: the time of each reader and the bytes it asks the system for, for two kinds of picks."""
    data = np.lib.format.open_memmap(place / "rows.npy", "w+", np.float16, (VIDEOS * FRAMES, *SHAPE))
    random = np.random.default_rng(SEED)
    for row in data:
        row[...] = random.standard_normal(SHAPE, np.float32)
    for kind in KINDS:
        fill(place / kind, kind, {f"v{number}": data[number * FRAMES : (number + 1) * FRAMES] for number in range(VIDEOS)})
    del data
    plain = np.load(place / "rows.npy", mmap_mode="r")
    readers: dict[str, Read] = {"numpy.memmap": lambda pick: [plain[rows] for rows in rows_of(pick)]}
    for kind in KINDS:
        readers[f"store, {kind}"] = reading(Store(place / kind).open("appearance"))
    shard = next((place / "zarr" / "appearance").glob("*.zarr"))
    array = zarr.open_group(shard, mode="r")["rows_float16_" + "x".join(map(str, SHAPE))]
    assert isinstance(array, zarr.Array)
    rows = []
    for name, draw in (("one random video", one_video), ("random videos, one each", many_videos)):
        few: dict[str, Read] = {"zarr-python, oindex": lambda pick: [np.asarray(array.oindex[pick[0] * FRAMES + pick[1]])]}
        rows += compare(name, draw, readers, few)
    return rows


def fill(store: Path, kind: Kind, videos: dict[str, np.ndarray]) -> None:
    with StoreWriter(store, "benchmark", ".") as writer:
        writer.open_product("appearance", kind, {})
        entries = (Entry(video, video, rows) for video, rows in videos.items())
        info = write_shard(store, "appearance", "s", kind, entries, [*videos], made_from(kind, {}))
        writer.publish("appearance", "s", info)


def is_of_one_video(pick: Pick) -> bool:
    return bool((pick[0] == pick[0][0]).all())


def rows_of(pick: Pick) -> list[np.ndarray]:
    """Rows of the plain array, one index for each array that is wanted."""
    rows = pick[0] * FRAMES + pick[1]
    return [rows] if is_of_one_video(pick) else [*rows[:, None]]


def reading(reader: ProductReader) -> Read:
    """Read a pick as training does: one call for each video in it."""

    def read(pick: Pick) -> list[np.ndarray]:
        videos, frames = pick
        if is_of_one_video(pick):
            return [reader.read(f"v{videos[0]}", frames)]
        return [reader.read(f"v{video}", frame[None]) for video, frame in zip(videos.tolist(), frames, strict=True)]

    return read


def one_video(random: np.random.Generator) -> Pick:
    return np.full(WANTED, random.integers(VIDEOS)), random.choice(FRAMES, WANTED, replace=False)


def many_videos(random: np.random.Generator) -> Pick:
    return random.integers(VIDEOS, size=WANTED), random.integers(FRAMES, size=WANTED)


def compare(name: str, draw: Callable[[np.random.Generator], Pick], readers: dict[str, Read], few: dict[str, Read]) -> list[str]:
    """Alternate the readers over many rounds on cached pages; those in `few` get three rounds."""
    random = np.random.default_rng(SEED)
    everyone = {**readers, **few}
    times: dict[str, list[float]] = {reader: [] for reader in everyone}
    touched: dict[str, int] = {}
    expected = draw(random)
    for reader, read in everyone.items():
        np.testing.assert_array_equal(np.concatenate(read(expected)), np.concatenate(readers["numpy.memmap"](expected)))
        before = bytes_read()
        read(expected)
        touched[reader] = bytes_read() - before
    for turn in range(ROUNDS):
        pick = draw(random)
        order = list(everyone) if turn < 3 else list(readers)
        for reader in np.roll(np.array(order, object), turn).tolist():
            began = time.perf_counter()
            found = everyone[reader](pick)
            times[reader].append(time.perf_counter() - began)
            assert sum(map(len, found)) == WANTED
            del found
    wanted = WANTED * int(np.prod(SHAPE)) * 2
    base = np.median(times["numpy.memmap"])
    return [
        f"| {name} | {reader} | {np.median(values) * 1e3:.1f} ms | {np.median(values) / base:.2f} "
        f"| {'–' if reader == 'numpy.memmap' else f'{touched[reader] / wanted:.4f}'} |"
        for reader, values in times.items()
    ]


def bytes_read() -> int:
    """Bytes this process has asked the system to read, from the page cache or from disk."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("rchar")).split()[1])


def measure_options(place: Path, videos: list[Path], frames: int) -> list[str]:
    """Table rows: bytes per frame on disk of every option, and how far the features read are from those computed."""
    maps = {path.name: encode(path, frames) for path in videos}
    cells = np.concatenate([rows.reshape(-1, rows.shape[-1]) for rows in maps.values()])
    basis = fit_pca(cells, 256)
    options = {
        "float16": Reduction(None, int8=False),
        "int8": Reduction(None, int8=True),
        "pca:256": Reduction(basis, int8=False),
        "pca:256+int8": Reduction(basis, int8=True),
    }
    rows = []
    for name, reduction in options.items():
        store = place / name.replace(":", "-")
        with StoreWriter(store, "benchmark", ".") as writer:
            provenance = {"reduction": reduction.provenance}
            writer.open_product("appearance", "zarr", provenance, reduction.basis and reduction.basis.content)
            entries = [Entry(video, video, *reduction.apply(features)) for video, features in maps.items()]
            made = made_from("zarr", provenance)
            writer.publish("appearance", "s", write_shard(store, "appearance", "s", "zarr", entries, [*maps], made))
        assert Store(store).verify() == []
        reader = Store(store).open("appearance")
        error = relative_error(maps, {video: reader.read(video).astype(np.float32) for video in maps}, reduction)
        (contents,) = Store(store).summary()
        packed = sum(len(Zstd(3).encode(np.ascontiguousarray(row))) for entry in entries for row in entry.rows)
        stored = sum(entry.rows.nbytes for entry in entries)
        rows.append(f"| {name} | {contents.bytes_per_row:,.0f} | {error:.2%} | {packed / stored:.2f} |")
    return rows


def encode(path: Path, frames: int) -> np.ndarray:
    """Appearance maps `[n, H, W, C]` float16 of frames spread over a video, by ResNet-101 with random weights."""
    import torch

    from pipeline.decode import open_frames, probe
    from pipeline.encoders.geometry import appearance_size, resize
    from pipeline.weights import load_backbone

    encoder = load_backbone("appearance", "full", "random:0").encoder
    facts = probe(path)
    wanted = np.unique(np.linspace(0, facts.frame_count - 1, frames).round().astype(np.int64))
    size = appearance_size(facts.size, 320)
    rows = []
    with torch.inference_mode(), open_frames(path, facts, wanted) as decoded:
        for _, rgb in decoded:
            picture = torch.from_numpy(np.array(rgb)).permute(2, 0, 1)
            rows.append(encoder(resize(picture[None], size)).half().numpy())
    return np.concatenate(rows)


def relative_error(maps: dict[str, np.ndarray], read: dict[str, np.ndarray], reduction: Reduction) -> float:
    """‖read − computed‖ ÷ ‖computed‖ over all numbers, both less the mean of their channel; projections are taken back."""
    mean = np.concatenate([rows.reshape(-1, rows.shape[-1]) for rows in maps.values()]).mean(0, dtype=np.float64)
    off, whole = 0.0, 0.0
    for video, rows in maps.items():
        found = read[video] if reduction.basis is None else read[video] @ reduction.basis.matrix + reduction.basis.mean
        off += float(((found - rows) ** 2).sum(dtype=np.float64))
        whole += float(((rows - mean) ** 2).sum())
    return float(np.sqrt(off / whole))


def result(speed: list[str], sizes: list[str], arguments: argparse.Namespace) -> str:
    options = f"""
## Bytes per frame

{arguments.frames} frames of each of {", ".join(path.name for path in arguments.video)}, short side 320, through ResNet-101 with random
weights; random weights keep what a picture has, not what a trained network makes of it, so errors with trained ones differ. Bytes
are those on disk, checksums and tables included. The error is ‖read − computed‖ ÷ ‖computed − channel means‖, for `pca` after
projecting back, on the frames the basis was fitted on. There is no compressed option: the last column says what zstd (level 3) would
make of each row.

| stored as | bytes per frame | error | zstd would leave |
| --- | --- | --- | --- |
{chr(10).join(sizes)}
"""
    return f"""# Reading from the store

{WANTED} random frames out of {VIDEOS} videos of {FRAMES}, maps of {"×".join(map(str, SHAPE))} in float16
({int(np.prod(SHAPE)) * 2 * WANTED / 2**20:.0f} MiB wanted), all pages cached; medians of {ROUNDS} rounds in which the readers take turns
(zarr-python: 3). Every reader gave the same numbers before it was timed. Ours compares the checksum of every frame, which a memory
map cannot; and it uses the memory of results that are gone again, where NumPy asks the system for fresh pages.

Bytes are counted by the system (`rchar` of `/proc/self/io`) for a pick that was read before: a shard's table and the index of its
chunks are read once per process and kept, so they are not in them. What a memory map reads is not counted there.

| frames of | reader | time | ÷ memmap | bytes read ÷ wanted |
| --- | --- | --- | --- | --- |
{chr(10).join(speed)}
{options if sizes else ""}
**Where.** {where("numpy", "zarr", "h5py")}. {time.strftime("%Y-%m-%d")}.

**Command**

```
.venv/bin/python -m benchmarks.store{" --video …" if arguments.video else ""}
```
"""


if __name__ == "__main__":
    main()
