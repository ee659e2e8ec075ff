"""The records every stage reads and writes: queries, tubes of truth, predictions, failures.

Conventions (all files): frame numbers are 0-based positions in presentation order; spans are half-open
`[begin, end)`; boxes are `xyxy` in pixels of the original video. Every line of `index.jsonl` carries its
`format`; an unknown one is refused by name.
"""

from __future__ import annotations

import errno
import json
import os
import re
import reprlib
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar
from uuid import uuid4

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.errors import InputError
from pipeline.json_files import RepeatedKeyError, lines_of, parse_json

FORMAT: Literal[1] = 1
MOST_FRAMES = 10**8
LARGEST_COORDINATE = 10**6
FrameNumber = Annotated[int, Field(ge=0, le=MOST_FRAMES)]
Coordinate = Annotated[float, Field(ge=-LARGEST_COORDINATE, le=LARGEST_COORDINATE)]
"""Pixels; far outside any picture is still a coordinate."""
Span = tuple[FrameNumber, FrameNumber]


class Record(BaseModel):
    """Base of all records: immutable, unknown fields refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Truth(Record):
    """When the event happens (`span`, frames `[begin, end)`) and the key of its boxes in `tracks.npz`.

    `track` is None where the boxes are not at hand (VidSTG without VidOR's trajectories).
    """

    span: Span
    track: str | None = None


class Query(Record):
    """One sentence about one video: a line of `index.jsonl`.

    `path` is relative to the data set's root (absolute if it lies outside it), `segment` the frames
    `[begin, end)` the sentence is asked about, `size` the picture's `(width, height)` in pixels.
    """

    format: Literal[1] = FORMAT
    id: str
    video: str
    path: str
    fps: float
    frame_count: FrameNumber
    size: tuple[int, int]
    segment: Span
    text: str
    form: Literal["declarative", "interrogative"] | None = None
    split: str
    object: str | None = None
    truth: Truth | None = None
    tags: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _spans_hold(self) -> Query:
        begin, end = self.segment
        if not 0 <= begin < end <= self.frame_count:
            raise ValueError(f"segment [{begin}, {end}) does not lie in [0, {self.frame_count})")
        if self.truth is not None:
            first, last = self.truth.span
            if not begin <= first < last <= end:
                raise ValueError(f"truth span [{first}, {last}) does not lie in the segment [{begin}, {end})")
        return self


class Prediction(Record):
    """The predicted tube of one query: a line of `predictions/<split>.jsonl`.

    `boxes` rows are `[frame, x1, y1, x2, y2]`; they may reach beyond `span` (m_sIoU judges them there).
    """

    id: str
    span: Span
    score: float
    boxes: list[tuple[FrameNumber, Coordinate, Coordinate, Coordinate, Coordinate]]

    @model_validator(mode="after")
    def _span_holds(self) -> Prediction:
        if self.span[0] > self.span[1]:
            raise ValueError(f"span [{self.span[0]}, {self.span[1]}) ends before it begins")
        return self


class Failure(Record):
    """A video that could not be used: a line of `failures.jsonl`, one per video, current failures only."""

    video: str
    path: str
    stage: str
    reason: str
    detail: str
    attempts: int = 1


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
        self._tracks[key] = (np.asarray(frames, np.int32), short if (short == exact).all() else exact)

    def save(self, path: Path) -> None:
        keys = sorted(self._tracks)
        counts = [len(self._tracks[key][0]) for key in keys]
        frames = [self._tracks[key][0] for key in keys]
        boxes = [self._tracks[key][1] for key in keys]
        with replacing(path) as aside, aside.open("wb") as file:
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
                    raise InputError(f"{path}: format {int(file['format'])} is unknown; this version reads {FORMAT}")
                keys, offsets, frames, boxes = (file[name] for name in ("keys", "offsets", "frames", "boxes"))
        except FileNotFoundError:
            raise InputError(f"{path} does not exist: run stvg-prepare first") from None
        except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise InputError(f"{path} cannot be read as tracks ({error}): run stvg-prepare again") from None
        rows = zip(keys.tolist(), offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)
        return cls({key: (frames[b:e], boxes[b:e]) for key, b, e in rows})


RecordT = TypeVar("RecordT", bound=Record)
KEY = re.compile(rb'"\s*:')
"""Found at least once for every key of an object."""


def read_jsonl(path: Path, kind: type[RecordT]) -> Iterator[RecordT]:
    """Yield one validated record per line; a bad line is an InputError that names file and line."""
    for number, line in lines_of(path):
        try:
            record = kind.model_validate_json(line)
            if len(KEY.findall(line)) != _fields(record):  # pydantic takes the last of two equal keys without a word
                parse_json(line)
        except ValidationError as error:
            raise InputError(f"{path}, line {number}: {first_problem(error)}") from None
        except RepeatedKeyError as error:
            raise InputError(f"{path}, line {number}: {error}") from None
        yield record


def _fields(record: Record) -> int:
    """How many keys a record was read from, those of records in it included."""
    values = (getattr(record, name) for name in record.model_fields_set)
    return len(record.model_fields_set) + sum(_fields(value) for value in values if isinstance(value, Record))


_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = 80  # and six levels deep, whatever was sent


def first_problem(error: ValidationError) -> str:
    """The first problem of a pydantic error as one readable line: `field: what is wrong (got …)`."""
    problem = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in problem["loc"])
    message = problem["msg"].removeprefix("Value error, ")
    return f"{_cut(place) + ': ' if place else ''}{message} (got {_cut(_short.repr(problem.get('input')))})"


def _cut(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "..."


def write_jsonl(path: Path, records: Iterable[Record]) -> None:
    """Write one record per line, atomically: the old file stays until the new one is whole."""
    with replacing(path) as aside, aside.open("w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(record.model_dump(mode="json"), ensure_ascii=False) + "\n")


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON, atomically."""
    with replacing(path) as aside, aside.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=1, ensure_ascii=False, allow_nan=False)
        file.write("\n")


class replacing:  # noqa: N801 - reads as a verb: `with replacing(path) as aside`
    """Context: a path beside `path` to write to; on success it is fsynced and renamed over `path`.

    An InputError says why nothing can be written there; a full disk comes through as the OSError it is.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        if self.path.is_dir():
            raise InputError(f"{self.path} is a folder: name a file to write")
        self.aside = self.path.with_name(f".{self.path.name}.{uuid4().hex[:12]}.part")  # hosts that share a folder share process ids

    def __enter__(self) -> Path:
        if self.path.exists() and not self.path.is_file():
            raise InputError(f"{self.path} is a device or a pipe: name a file to write")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.aside.touch()
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise InputError(f"{self.path} cannot be written ({error.strerror}): name another place") from None
        return self.aside

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.aside.unlink(missing_ok=True)
            return
        with self.aside.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(self.aside, self.path)
