"""Boxes of objects over frames, and their file `tracks.npz`."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from pipeline.errors import InputError
from pipeline.io.atomic import atomic_write
from pipeline.records import FORMAT


class Tracks:
    """Boxes of objects, stored once per (video, object) and shared by all queries.

    A track is a pair `(frames, boxes)`: int32 `[n]` ascending frame indices, and `[n, 4]` xyxy
    boxes in pixels. Boxes are float32 if float32 represents them exactly, else float64. Frames
    without the object have no row.

    Args:
        tracks: Tracks by key; empty by default.
    """

    def __init__(self, tracks: dict[str, tuple[np.ndarray, np.ndarray]] | None = None) -> None:
        self._tracks = dict(tracks or {})

    def __len__(self) -> int:
        return len(self._tracks)

    def __contains__(self, key: str) -> bool:
        return key in self._tracks

    def keys(self) -> Iterable[str]:
        """Return the keys of all tracks."""
        return self._tracks.keys()

    def __getitem__(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        try:
            return self._tracks[key]
        except KeyError:
            raise InputError(f"no track {key!r} in tracks.npz: run stvg-prepare again") from None

    def add(self, key: str, frames: np.ndarray, boxes: np.ndarray) -> None:
        """Add or replace a track.

        Args:
            key: Key of the track.
            frames: `[n]`, ascending frame indices.
            boxes: `[n, 4]`, xyxy in pixels.
        """
        exact_boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
        single_boxes = exact_boxes.astype(np.float32)
        is_lossless = (single_boxes == exact_boxes).all()

        self._tracks[key] = (
            np.asarray(frames, np.int32),
            single_boxes if is_lossless else exact_boxes,
        )

    def save(self, path: Path) -> None:
        """Write all tracks to a file, atomically.

        Args:
            path: The `.npz` file to write.

        Raises:
            InputError: The file cannot be written.
        """
        # Tracks lie end to end in two arrays, in the order of their keys.
        keys = sorted(self._tracks)
        frames = [self._tracks[key][0] for key in keys]
        boxes = [self._tracks[key][1] for key in keys]
        counts = [len(track_frames) for track_frames in frames]

        with atomic_write(path) as temporary_path, temporary_path.open("wb") as file:
            np.savez_compressed(
                file,
                format=np.int64(FORMAT),
                keys=np.array(keys, dtype=np.str_),
                offsets=np.cumsum([0, *counts], dtype=np.int64),
                frames=np.concatenate(frames) if frames else np.zeros(0, np.int32),
                boxes=np.concatenate(boxes) if boxes else np.zeros((0, 4), np.float32),
            )

    @classmethod
    def load(cls, path: Path) -> Tracks:
        """Load tracks from a file.

        Args:
            path: The `.npz` file to read.

        Returns:
            The tracks of the file.

        Raises:
            InputError: The file is missing, damaged, or of an unknown format.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                file_format = int(file["format"])
                if file_format != FORMAT:
                    raise InputError(
                        f"{path}: format {file_format} is unknown; this version reads {FORMAT}"
                    )
                keys = file["keys"]
                offsets = file["offsets"]
                frames = file["frames"]
                boxes = file["boxes"]
        except FileNotFoundError:
            raise InputError(f"{path} does not exist: run stvg-prepare first") from None
        except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise InputError(
                f"{path} cannot be read as tracks ({error}): run stvg-prepare again"
            ) from None

        # Cut the two arrays into views, one pair for each track.
        tracks = {}
        ranges = zip(keys.tolist(), offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)
        for key, begin, end in ranges:
            tracks[key] = (frames[begin:end], boxes[begin:end])
        return cls(tracks)
