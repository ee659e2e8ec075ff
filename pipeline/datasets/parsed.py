"""What every data set's parser gives: queries, their boxes, and a report of all that was wrong with them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from pipeline.errors import InputError, VideoError
from pipeline.records import Query
from pipeline.tracks import Tracks
from pipeline.video import VideoFacts

EXAMPLES = 20
NO_SPLIT = "?"
LONGEST = 500
Progress = Callable[[int, int], None]
Facts = Mapping[str, VideoFacts | VideoError]
Probe = Callable[[Path, Iterable[str], Progress], Facts]
"""From a folder and paths relative to it to each video's facts."""


def quiet(done: int, total: int) -> None:
    """A progress callback that says nothing."""


@dataclass
class _Kind:
    count: int = 0
    excluded: int = 0
    kept: int = 0
    entries: list[dict[str, Any]] = field(default_factory=list)


class Defects:
    """Counts by kind; every entry that was left out is named, of those kept with a blemish the first few.

    `split` is that of the entries being read ("?" while none is).
    """

    def __init__(self) -> None:
        self._kinds: dict[str, _Kind] = {}
        self.split = NO_SPLIT

    def add(self, kind: str, entry: str, detail: str, *, excluded: bool = False, count: int = 1) -> None:
        """Note `count` defects of one entry; `excluded`: the entry is not in the index, which loses `count` queries by it."""
        found = self._kinds.setdefault(kind, _Kind())
        found.count += count
        found.excluded += count * excluded
        found.kept += not excluded
        if excluded or found.kept <= EXAMPLES:
            row = {"entry": _shown(entry), "split": self.split, "detail": _shown(detail), "count": count}
            found.entries.append(row | {"outcome": "left out" if excluded else "kept"})

    def count(self, kind: str) -> int:
        return self._kinds[kind].count if kind in self._kinds else 0

    @property
    def excluded(self) -> int:
        """How many queries were left out, by all kinds; an entry that is no entry at all counts as one."""
        return sum(kind.excluded for kind in self._kinds.values())

    def to_list(self) -> list[dict[str, Any]]:
        """`[{kind, count, excluded, entries: [{entry, split, detail, count, outcome}]}]`, most frequent first.

        `excluded`, and the `count` of an entry left out, are queries.
        """
        kinds = sorted(self._kinds.items(), key=lambda item: (-item[1].count, item[0]))
        return [{"kind": name, "count": kind.count, "excluded": kind.excluded, "entries": kind.entries} for name, kind in kinds]


def _shown(text: str) -> str:
    """The text as a report can hold it: in UTF-8, and not without end."""
    text = text.encode(errors="backslashreplace").decode()
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."


@dataclass
class Parsed:
    """A data set as its files state it. Queries' paths are relative to `folder`; `facts` by such a path, where already found."""

    folder: Path
    queries: list[Query] = field(default_factory=list)
    tracks: Tracks = field(default_factory=Tracks)
    defects: Defects = field(default_factory=Defects)
    facts: Facts = field(default_factory=dict)


class Parser(Protocol):
    """From a data set's folder (for `jsonl` its file) to all it states; `probe` looks at the videos its files leave open."""

    def __call__(self, root: Path, progress: Progress = ..., probe: Probe = ...) -> Parsed: ...


def refuse_empty(found: object, parsed: Parsed, files: Iterable[Path]) -> None:
    """An InputError where the files hold not one entry: neither `found`, nor one that was left out."""
    if not found and not parsed.defects.excluded:
        raise InputError(f"not one entry in {', '.join(map(str, files))}; download the annotations again")


def name_repeats(parsed: Parsed) -> None:
    """Report sentences said more than once about one video, and videos in more than one split; nothing is dropped."""
    said: dict[tuple[str, str, str], list[str]] = {}
    splits: dict[str, dict[str, None]] = {}
    for query in parsed.queries:
        said.setdefault((query.split, query.video, query.text), []).append(query.id)
        splits.setdefault(query.path, {})[query.split] = None
    for (_, video, text), ids in said.items():
        if len(ids) > 1:
            parsed.defects.add("repeated sentence", ids[0], f"{len(ids)} times about video {video}: {text}")
    for path, found in splits.items():
        if len(found) > 1:
            parsed.defects.add("video in several splits", path, ", ".join(found))
