"""Boxes of objects over frames, and the file `tracks.npz`."""

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
    """Boxes of objects, stored once per (video, object), not per query.

    A track is `(frames, boxes)`: int32 `[n]` ascending frame numbers and float `[n, 4]` xyxy pixels, in 32 bits where
    those hold them exactly. Frames where the object is absent are simply not listed.
    """

    def __init__(self, tracks: dict[str, tuple[np.ndarray, np.ndarray]] | None = None) -> None:
        self._tracks = dict(tracks or {})

    def __len__(self) -> int:
        return len(self._tracks)

    def __contains__(self, key: str) -> bool:
        return key in self._tracks

    def keys(self) -> Iterable[str]:
        return self._tracks.keys()

    def __getitem__(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        try:
            return self._tracks[key]
        except KeyError:
            raise InputError(f"no track {key!r} in tracks.npz: run stvg-prepare again") from None

    def add(self, key: str, frames: np.ndarray, boxes: np.ndarray) -> None:
        exact = np.asarray(boxes, np.float64).reshape(-1, 4)
        short = exact.astype(np.float32)
        self._tracks[key] = (
            np.asarray(frames, np.int32),
            short if (short == exact).all() else exact,
        )

    def save(self, path: Path) -> None:
        keys = sorted(self._tracks)
        counts = [len(self._tracks[key][0]) for key in keys]
        frames = [self._tracks[key][0] for key in keys]
        boxes = [self._tracks[key][1] for key in keys]
        with atomic_write(path) as aside, aside.open("wb") as file:
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
        try:
            with np.load(path, allow_pickle=False) as file:
                if int(file["format"]) != FORMAT:
                    raise InputError(
                        f"{path}: format {int(file['format'])} is unknown; this version reads {FORMAT}"
                    )
                keys, offsets, frames, boxes = (
                    file[name] for name in ("keys", "offsets", "frames", "boxes")
                )
        except FileNotFoundError:
            raise InputError(f"{path} does not exist: run stvg-prepare first") from None
        except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise InputError(
                f"{path} cannot be read as tracks ({error}): run stvg-prepare again"
            ) from None
        rows = zip(keys.tolist(), offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)
        return cls({key: (frames[b:e], boxes[b:e]) for key, b, e in rows})
