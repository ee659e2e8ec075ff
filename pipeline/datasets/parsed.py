"""What every data set's parser gives: queries, their boxes, and a report of all that was wrong with them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator

from pipeline.decode import VideoFacts
from pipeline.errors import InputError, VideoError
from pipeline.records import Query, Tracks


def _encodable(text: str) -> str:
    """The text, if it can be written as UTF-8 (JSON's \\ud800 and the like cannot)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("text with half a surrogate pair") from None
    return text


EXAMPLES = 20
Text = Annotated[str, AfterValidator(_encodable)]
Progress = Callable[[int, int], None]
Facts = Mapping[str, VideoFacts | VideoError]


def quiet(done: int, total: int) -> None:
    """A progress callback that says nothing."""


@dataclass
class _Kind:
    count: int = 0
    excluded: int = 0
    entries: list[dict[str, str]] = field(default_factory=list)


class Defects:
    """Counts by kind; every entry that was left out is named, of those kept with a blemish the first few."""

    def __init__(self) -> None:
        self._kinds: dict[str, _Kind] = {}

    def add(self, kind: str, entry: str, detail: str, *, excluded: bool = False, count: int = 1) -> None:
        """Note `count` defects of one entry; `excluded`: the entry is not in the index."""
        found = self._kinds.setdefault(kind, _Kind())
        found.count += count
        found.excluded += excluded
        kept = len(found.entries) - found.excluded + excluded
        if excluded or kept < EXAMPLES:
            found.entries.append({"entry": entry, "detail": detail, "outcome": "left out" if excluded else "kept"})

    def count(self, kind: str) -> int:
        return self._kinds[kind].count if kind in self._kinds else 0

    @property
    def excluded(self) -> int:
        """How many entries were left out, of all kinds."""
        return sum(kind.excluded for kind in self._kinds.values())

    def to_list(self) -> list[dict[str, Any]]:
        """`[{kind, count, excluded, entries: [{entry, detail, outcome}]}]`, most frequent first."""
        kinds = sorted(self._kinds.items(), key=lambda item: (-item[1].count, item[0]))
        return [{"kind": name, "count": kind.count, "excluded": kind.excluded, "entries": kind.entries} for name, kind in kinds]


@dataclass
class Parsed:
    """A data set as its files state it. Queries' paths are relative to `folder`; `facts` by such a path, where already found."""

    folder: Path
    queries: list[Query] = field(default_factory=list)
    tracks: Tracks = field(default_factory=Tracks)
    defects: Defects = field(default_factory=Defects)
    facts: Facts = field(default_factory=dict)


Parser = Callable[[Path, Progress], Parsed]


def read_json(path: Path) -> Any:
    """A file's JSON; an InputError names the file and the place where it stops being JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{path}, line {error.lineno}, column {error.colno}: not JSON ({error.msg}); download it again") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}, byte {error.start}: not UTF-8 text; download it again") from None
    except RecursionError:
        raise InputError(f"{path}: JSON nested too deeply; download it again") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from None


def name_repeats(parsed: Parsed) -> None:
    """Report sentences said more than once about one video (one defect for each such sentence); nothing is dropped."""
    said: dict[tuple[str, str, str], list[str]] = {}
    for query in parsed.queries:
        said.setdefault((query.split, query.video, query.text), []).append(query.id)
    for (_, video, text), ids in said.items():
        if len(ids) > 1:
            parsed.defects.add("repeated sentence", ids[0], f"{len(ids)} times about video {video}: {text}")
