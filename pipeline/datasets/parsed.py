"""The result of parsing a data set: queries, their boxes, and a log of all defects."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from pipeline.callbacks import ProgressCallback
from pipeline.errors import InputError, VideoError
from pipeline.records import Query
from pipeline.tracks import Tracks
from pipeline.video import VideoMetadata

MAX_EXAMPLES = 20
"""Entries that are named per kind of defect, among the entries that stay in the index."""
NO_SPLIT = "?"
"""Split of a defect that is found while no split is being read."""
MAX_TEXT_LENGTH = 500
"""Characters of an entry's name or of a detail in the report; longer texts are cut."""
ProbeResults = Mapping[str, VideoMetadata | VideoError]
"""Metadata of each video, or the error that makes it unusable, by path."""
ProbeFunction = Callable[[Path, Iterable[str], ProgressCallback], ProbeResults]
"""Function of a folder and of paths relative to it that returns the result for each path."""


def ignore_progress(done: int, total: int) -> None:
    """Do nothing; the default progress callback.

    Args:
        done: Number of finished units.
        total: Number of all units.
    """


@dataclass
class _DefectCounts:
    """Counts and named entries of one kind of defect."""

    count: int = 0
    num_excluded: int = 0
    num_included: int = 0
    entries: list[dict[str, Any]] = field(default_factory=list)


class DefectLog:
    """Defects counted by kind.

    Every excluded entry is named. Of the entries that stay in the index despite a defect, the
    first `MAX_EXAMPLES` of each kind are named.

    Attributes:
        split: Split of the entries being read; `NO_SPLIT` while no split is being read.
    """

    def __init__(self) -> None:
        self._kinds: dict[str, _DefectCounts] = {}
        self.split = NO_SPLIT

    def add(
        self, kind: str, entry: str, detail: str, *, excluded: bool = False, count: int = 1
    ) -> None:
        """Record a defect of one entry.

        Args:
            kind: Kind of the defect, a short fixed text.
            entry: Name of the entry: an id, a path or a line.
            detail: One sentence for the user.
            excluded: True if the entry is left out of the index.
            count: Number of defects; if the entry is excluded, the number of queries lost.
        """
        counts = self._kinds.setdefault(kind, _DefectCounts())
        counts.count += count
        if excluded:
            counts.num_excluded += count
        else:
            counts.num_included += 1

        # Included entries are only examples, so the report does not grow with their number.
        if excluded or counts.num_included <= MAX_EXAMPLES:
            row = {
                "entry": _to_printable(entry),
                "split": self.split,
                "detail": _to_printable(detail),
                "count": count,
                "outcome": "left out" if excluded else "kept",
            }
            counts.entries.append(row)

    def count(self, kind: str) -> int:
        """Return the number of defects of one kind.

        Args:
            kind: Kind of the defect.

        Returns:
            The number of defects; 0 for an unknown kind.
        """
        counts = self._kinds.get(kind)
        return 0 if counts is None else counts.count

    @property
    def num_excluded(self) -> int:
        """Number of excluded queries of all kinds; an unreadable entry counts as one query."""
        return sum(counts.num_excluded for counts in self._kinds.values())

    def to_list(self) -> list[dict[str, Any]]:
        """Return the defects as JSON values, the most frequent kind first.

        Returns:
            One `{kind, count, excluded, entries: [{entry, split, detail, count, outcome}]}` per
            kind. `excluded`, and the `count` of an excluded entry, are numbers of queries.
        """
        items = sorted(self._kinds.items(), key=lambda item: (-item[1].count, item[0]))
        rows = []
        for kind, counts in items:
            rows.append(
                {
                    "kind": kind,
                    "count": counts.count,
                    "excluded": counts.num_excluded,
                    "entries": counts.entries,
                }
            )
        return rows


def _to_printable(text: str) -> str:
    """Escape characters that UTF-8 cannot encode, and cut a long text."""
    text = text.encode(errors="backslashreplace").decode()
    return text if len(text) <= MAX_TEXT_LENGTH else text[: MAX_TEXT_LENGTH - 3] + "..."


@dataclass
class ParsedDataset:
    """A data set as its files state it.

    Attributes:
        folder: Folder of the data set; the queries' video paths are relative to it.
        queries: Usable queries.
        tracks: Boxes of the queries' ground truth.
        defects: Log of all defects.
        probe_results: Results for the videos probed while parsing, by the queries' paths.
    """

    folder: Path
    queries: list[Query] = field(default_factory=list)
    tracks: Tracks = field(default_factory=Tracks)
    defects: DefectLog = field(default_factory=DefectLog)
    probe_results: ProbeResults = field(default_factory=dict)


class Parser(Protocol):
    """Function that parses the files of one data set."""

    def __call__(
        self, root: Path, progress: ProgressCallback = ..., probe: ProbeFunction = ...
    ) -> ParsedDataset:
        """Parse a data set.

        Args:
            root: Folder of the data set; for `jsonl`, the file.
            progress: Called as `progress(done, total)`.
            probe: Function that probes the videos whose metadata the annotations do not state.

        Returns:
            Everything that the files state.

        Raises:
            InputError: There are no annotations, or a file is not in the data set's format.
        """
        ...


def check_not_empty(entries: object, parsed_dataset: ParsedDataset, files: Iterable[Path]) -> None:
    """Check that the annotation files hold at least one entry.

    Args:
        entries: The usable entries, a collection.
        parsed_dataset: The data set; its log counts the excluded entries.
        files: The annotation files, for the message.

    Raises:
        InputError: There is neither a usable nor an excluded entry.
    """
    if not entries and not parsed_dataset.defects.num_excluded:
        raise InputError(
            f"there is no entry in {', '.join(map(str, files))}; download the annotations again"
        )


def log_duplicates(parsed_dataset: ParsedDataset) -> None:
    """Log repeated sentences about one video, and videos in several splits. Drops nothing.

    Args:
        parsed_dataset: The data set; defects are added to its log.
    """
    # Group the queries by sentence, and the splits by video. Dicts keep the order of the files.
    ids_by_sentence: dict[tuple[str, str, str], list[str]] = {}
    splits_by_path: dict[str, dict[str, None]] = {}
    for query in parsed_dataset.queries:
        sentence = (query.split, query.video, query.text)
        ids_by_sentence.setdefault(sentence, []).append(query.id)
        splits_by_path.setdefault(query.path, {})[query.split] = None

    for (_, video, text), ids in ids_by_sentence.items():
        if len(ids) > 1:
            detail = f"{len(ids)} times about video {video}: {text}"
            parsed_dataset.defects.add("repeated sentence", ids[0], detail)

    for path, splits in splits_by_path.items():
        if len(splits) > 1:
            parsed_dataset.defects.add("video in several splits", path, ", ".join(splits))
