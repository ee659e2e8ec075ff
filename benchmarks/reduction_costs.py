"""Measure the disk space and the error of each feature reduction.

    .venv/bin/python -m benchmarks.reduction_costs VIDEO …

Takes a minute and writes benchmarks/results/reductions.md. Frames of natural videos pass the
full-size appearance backbone (random weights) and are stored with each reduction. `make bench` does
not include this script, because it needs natural videos and measures no time.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from numcodecs import Zstd

from benchmarks.machine import describe_machine
from pipeline.features.reduction import Reduction, fit_pca
from pipeline.store import Entry, Store, StoreWriter, compute_origin_digest, write_shard

RESULT_FILE = Path(__file__).parent / "results" / "reductions.md"


def main() -> None:
    """Measure the reductions on the videos of the command line, write and print the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("videos", type=Path, nargs="+", help="natural videos")
    parser.add_argument("--frames", type=int, default=24, help="frames of each that are encoded")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as work_dir:
        rows = measure_reductions(Path(work_dir), arguments.videos, arguments.frames)
    RESULT_FILE.write_text(
        format_reductions_page(rows, arguments.videos, arguments.frames), encoding="utf-8"
    )
    print(RESULT_FILE.read_text(encoding="utf-8"))


def measure_reductions(work_dir: Path, videos: list[Path], frames: int) -> list[str]:
    """Measure all reductions.

    Args:
        work_dir: Folder of the stores.
        videos: Paths of the videos.
        frames: Number of frames of each video.

    Returns:
        Table rows with the bytes per frame on disk and the relative error of each reduction.
    """
    maps = {path.name: encode_frames(path, frames) for path in videos}
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
        store = work_dir / name.replace(":", "-")
        with StoreWriter(store, "benchmark", ".") as writer:
            provenance = {"reduction": reduction.provenance}
            writer.open_product(
                "appearance",
                "zarr",
                provenance,
                reduction.projection and reduction.projection.file_bytes,
            )
            entries = [
                Entry(video, video, *reduction.apply(features)) for video, features in maps.items()
            ]
            origin = compute_origin_digest("zarr", provenance)
            writer.publish_shard(
                "appearance",
                "s",
                write_shard(store, "appearance", "s", "zarr", entries, [*maps], origin),
            )

        assert Store(store).verify() == []
        reader = Store(store).open("appearance")
        error = compute_relative_error(
            maps, {video: reader.read(video).astype(np.float32) for video in maps}, reduction
        )
        (contents,) = Store(store).summarize()
        packed = sum(
            len(Zstd(3).encode(np.ascontiguousarray(row)))
            for entry in entries
            for row in entry.rows
        )
        stored = sum(entry.rows.nbytes for entry in entries)

        rows.append(
            f"| {name} | {contents.bytes_per_row:,.0f} | {error:.2%} | {packed / stored:.2f} |"
        )
    return rows


def encode_frames(path: Path, frames: int) -> np.ndarray:
    """Compute appearance maps of frames spread over a video, by ResNet-101 with random weights.

    Args:
        path: Path of the video.
        frames: Number of frames.

    Returns:
        `[n, H, W, C]` float16, the maps.
    """
    import torch

    from pipeline.encoders.image_geometry import compute_appearance_size, resize
    from pipeline.video import open_frames, probe
    from pipeline.weights.load import load_backbone

    encoder = load_backbone("appearance", "full", "random:0").encoder
    metadata = probe(path)
    frame_indices = np.unique(
        np.linspace(0, metadata.frame_count - 1, frames).round().astype(np.int64)
    )
    size = compute_appearance_size(metadata.size, 320)
    rows = []
    with torch.inference_mode(), open_frames(path, metadata, frame_indices) as decoded:
        for _, rgb in decoded:
            image = torch.from_numpy(np.array(rgb)).permute(2, 0, 1)
            rows.append(encoder(resize(image[None], size)).half().numpy())
    return np.concatenate(rows)


def compute_relative_error(
    maps: dict[str, np.ndarray], reconstructions: dict[str, np.ndarray], reduction: Reduction
) -> float:
    """Compute ‖read − computed‖ ÷ ‖computed‖, with channel means subtracted from both.

    Args:
        maps: Computed maps `[n, H, W, C]` by video.
        reconstructions: Maps read from the store, by video; projected ones are projected back.
        reduction: Reduction of the store.

    Returns:
        The relative error over all values.
    """
    mean = np.concatenate([rows.reshape(-1, rows.shape[-1]) for rows in maps.values()]).mean(
        0, dtype=np.float64
    )

    error = 0.0
    total = 0.0
    for video, rows in maps.items():
        restored = reconstructions[video]
        if reduction.projection is not None:
            restored = restored @ reduction.projection.matrix + reduction.projection.mean

        error += float(((restored - rows) ** 2).sum(dtype=np.float64))
        total += float(((rows - mean) ** 2).sum())
    return float(np.sqrt(error / total))


def format_reductions_page(rows: list[str], videos: list[Path], frames: int) -> str:
    """Format the page of the results.

    Args:
        rows: Table rows.
        videos: Paths of the videos.
        frames: Number of frames of each video.

    Returns:
        Markdown text.
    """
    video_names = ", ".join(path.name for path in videos)
    return f"""# Bytes per frame

{frames} frames of each of {video_names}, short side 320, through ResNet-101 with random
weights; random weights keep what a picture has, not what a trained network makes of it, so errors \
with trained ones differ. Bytes
are those on disk, checksums and tables included. The error is ‖read − computed‖ ÷ ‖computed − \
channel means‖, for `pca` after
projecting back, on the frames the basis was fitted on. There is no compressed option: the last \
column says what zstd (level 3) would
make of each row.

| stored as | bytes per frame | error | zstd would leave |
| --- | --- | --- | --- |
{chr(10).join(rows)}

**Where.** {describe_machine("numpy", "zarr", "torch")}. {time.strftime("%Y-%m-%d")}.

**Command**

```
.venv/bin/python -m benchmarks.reduction_costs VIDEO …
```
"""


if __name__ == "__main__":
    main()
