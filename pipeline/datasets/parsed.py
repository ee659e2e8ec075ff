"""What every data set's parser gives: queries, their boxes, and a report of all that was wrong with them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from pipeline.errors import InputError, VideoError
from pipeline.records import Query
from pipeline.tracks import Tracks
from pipeline.video import VideoMetadata

MAX_EXAMPLES = 20
NO_SPLIT = "?"
MAX_TEXT_LENGTH = 500
ProgressCallback = Callable[[int, int], None]
ProbeResults = Mapping[str, VideoMetadata | VideoError]
ProbeFunction = Callable[[Path, Iterable[str], ProgressCallback], ProbeResults]
"""From a folder and paths relative to it to each video's facts."""


def ignore_progress(done: int, total: int) -> None:
    """A progress callback that says nothing."""


@dataclass
class _DefectCounts:
    count: int = 0
    num_excluded: int = 0
    num_included: int = 0
    entries: list[dict[str, Any]] = field(default_factory=list)


class DefectLog:
    """Counts by kind; every entry that was left out is named, of those kept with a blemish the first few.

    `split` is that of the entries being read ("?" while none is).
    """

    def __init__(self) -> None:
        self._kinds: dict[str, _DefectCounts] = {}
        self.split = NO_SPLIT

    def add(
        self, kind: str, entry: str, detail: str, *, excluded: bool = False, count: int = 1
    ) -> None:
        """Note `count` defects of one entry; `excluded`: the entry is not in the index, which loses `count` queries by it."""
        found = self._kinds.setdefault(kind, _DefectCounts())
        found.count += count
        found.num_excluded += count * excluded
        found.num_included += not excluded
        if excluded or found.num_included <= MAX_EXAMPLES:
            row = {
                "entry": _to_printable(entry),
                "split": self.split,
                "detail": _to_printable(detail),
                "count": count,
            }
            found.entries.append(row | {"outcome": "left out" if excluded else "kept"})

    def count(self, kind: str) -> int:
        return self._kinds[kind].count if kind in self._kinds else 0

    @property
    def num_excluded(self) -> int:
        """How many queries were left out, by all kinds; an entry that is no entry at all counts as one."""
        return sum(kind.num_excluded for kind in self._kinds.values())

    def to_list(self) -> list[dict[str, Any]]:
        """`[{kind, count, excluded, entries: [{entry, split, detail, count, outcome}]}]`, most frequent first.

        `excluded`, and the `count` of an entry left out, are queries.
        """
        kinds = sorted(self._kinds.items(), key=lambda item: (-item[1].count, item[0]))
        return [
            {
                "kind": name,
                "count": kind.count,
                "excluded": kind.num_excluded,
                "entries": kind.entries,
            }
            for name, kind in kinds
        ]


def _to_printable(text: str) -> str:
    """The text as a report can hold it: in UTF-8, and not without end."""
    text = text.encode(errors="backslashreplace").decode()
    return text if len(text) <= MAX_TEXT_LENGTH else text[: MAX_TEXT_LENGTH - 3] + "..."


@dataclass
class ParsedDataset:
    """A data set as its files state it. Queries' paths are relative to `folder`; `facts` by such a path, where already found."""

    folder: Path
    queries: list[Query] = field(default_factory=list)
    tracks: Tracks = field(default_factory=Tracks)
    defects: DefectLog = field(default_factory=DefectLog)
    probe_results: ProbeResults = field(default_factory=dict)


class Parser(Protocol):
    """From a data set's folder (for `jsonl` its file) to all it states; `probe` looks at the videos its files leave open."""

    def __call__(
        self, root: Path, progress: ProgressCallback = ..., probe: ProbeFunction = ...
    ) -> ParsedDataset: ...


def check_not_empty(entries: object, parsed_dataset: ParsedDataset, files: Iterable[Path]) -> None:
    """An InputError where the files hold not one entry: neither `found`, nor one that was left out."""
    if not entries and not parsed_dataset.defects.num_excluded:
        raise InputError(
            f"not one entry in {', '.join(map(str, files))}; download the annotations again"
        )


def log_duplicates(parsed_dataset: ParsedDataset) -> None:
    """Report sentences said more than once about one video, and videos in more than one split; nothing is dropped."""
    said: dict[tuple[str, str, str], list[str]] = {}
    splits: dict[str, dict[str, None]] = {}
    for query in parsed_dataset.queries:
        said.setdefault((query.split, query.video, query.text), []).append(query.id)
        splits.setdefault(query.path, {})[query.split] = None
    for (_, video, text), ids in said.items():
        if len(ids) > 1:
            parsed_dataset.defects.add(
                "repeated sentence", ids[0], f"{len(ids)} times about video {video}: {text}"
            )
    for path, found in splits.items():
        if len(found) > 1:
            parsed_dataset.defects.add("video in several splits", path, ", ".join(found))
