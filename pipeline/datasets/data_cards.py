"""Data cards: the numbers a card states about a data set, and the same numbers counted in the annotations at hand.

A card is `data_cards/<name>.md`; its one yaml block holds `splits` (numbers of each split), `examples` (single queries,
by id) and numbers of all splits together. Numbers are rounded to two decimals; a pair is a smallest and a largest value.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml

from pipeline.datasets import PARSERS, Parsed
from pipeline.errors import InputError
from pipeline.records import Query
from pipeline.tracks import Tracks

FOLDER = Path(__file__).parents[2] / "data_cards"
BLOCK = re.compile(r"```yaml\n(.*?)```", re.DOTALL)
ENTRY = re.compile(r"-[cq]\d+$")  # what VidSTG's queries add to the name of their entry
SETTINGS = {"seed", "colours", "shapes", "motions"}  # what `shapes` is made with: not in the annotations
ALL = "all"
Card = dict[str, Any]
Queries = list[Query]


def load_card(name: str) -> Card:
    """What the card's yaml block states; an InputError where there is no card, or no number in it."""
    if name not in PARSERS:
        raise InputError(f"unknown data set {name!r}; the data sets are {', '.join(PARSERS)}")
    path = FOLDER / f"{name}.md"
    if not path.is_file():
        raise InputError(f"the data card {path} does not exist; install the project again")
    block = BLOCK.search(path.read_text(encoding="utf-8"))
    if block is None:
        raise InputError(f"the card of {name!r} states no numbers to verify: its data are your own; run stvg-prepare without --verify")
    card: Card = yaml.safe_load(block[1])
    return card


@dataclass(frozen=True)
class Row:
    """One number: what the card says of `part` (a split, a query's id, or all), and what was found (None: the part is absent)."""

    part: str
    number: str
    stated: Any
    found: Any

    @property
    def verdict(self) -> Literal["ok", "differs", "absent"]:
        if self.found is None:
            return "absent"
        return "ok" if self.found == self.stated else "differs"


def agree(rows: Iterable[Row]) -> bool:
    """Whether something was compared and nothing differs."""
    return {row.verdict for row in rows} in ({"ok"}, {"ok", "absent"})


def compare(card: Card, parsed: Parsed) -> list[Row]:
    """Every number of the card beside the one found; parts that are not at hand are absent. Queries left out differ from any card."""
    found = statistics(parsed)
    rows = [
        Row(part, name, said, found.get(part, {}).get(name)) for part, numbers in card["splits"].items() for name, said in numbers.items()
    ]
    stated = {name: said for name, said in card.items() if name not in SETTINGS | {"splits", "examples"}}
    whole = found.get(ALL, {}) if set(card["splits"]) <= set(found) else {}
    rows += [Row(ALL, name, said, whole.get(name)) for name, said in flat(stated).items()]
    by_id = {query.id: query for query in parsed.queries}
    for name, fields in card.get("examples", {}).items():
        known = example(by_id[name], parsed.tracks) if name in by_id else {}
        missing = "no such query" if fields["split"] in found else None
        rows += [Row(name, field, said, known.get(field, missing)) for field, said in fields.items()]
    if parsed.defects.excluded:
        rows.append(Row(ALL, "left out", 0, parsed.defects.excluded))
    return rows


def statistics(parsed: Parsed) -> dict[str, dict[str, Any]]:
    """Every number the cards may state: of each split with queries by its name, and of all splits as `all`."""
    splits: dict[str, Queries] = defaultdict(list)
    for query in parsed.queries:
        splits[query.split].append(query)
    numbers = {split: {name: count(queries) for name, count in NUMBERS.items()} for split, queries in splits.items()}
    if parsed.queries:
        numbers[ALL] = flat({name: count(parsed.queries) for name, count in TOGETHER.items()})
    return numbers


def example(query: Query, tracks: Tracks) -> dict[str, Any]:
    """What a card may state of one query; `span` and `segment` are frames `[begin, end)`, `first box` is xyxy in pixels."""
    key = query.truth and query.truth.track
    boxes = tracks[key][1] if key else np.zeros((0, 4))
    return {
        "split": query.split,
        "text": query.text,
        "fps": _rounded(query.fps),
        "frames": query.frame_count,
        "size": list(query.size),
        "segment": list(query.segment),
        "span": list(query.truth.span) if query.truth else [],
        "boxes": len(boxes),
        "first box": [_rounded(float(side)) for side in boxes[0]] if len(boxes) else [],
    }


def flat(numbers: dict[str, Any]) -> dict[str, Any]:
    """`{tags: {neither: 54}}` as `{"tags, neither": 54}`."""
    result: dict[str, Any] = {}
    for name, value in numbers.items():
        result |= {f"{name}, {inner}": one for inner, one in value.items()} if isinstance(value, dict) else {name: value}
    return result


def entries(queries: Queries) -> Queries:
    """One query of each annotation entry: VidSTG's captions and questions of one entry share segment and span."""
    return list({ENTRY.sub("", query.id): query for query in queries}.values())


def _rounded(value: float) -> float:
    return round(value, 2)


def _range(values: Iterable[float]) -> list[float]:
    """Smallest and largest; empty where there is none."""
    found = list(values)
    return [_rounded(min(found)), _rounded(max(found))] if found else []


def _mean(values: Iterable[float]) -> float:
    """NaN where there is none."""
    found = list(values)
    return _rounded(sum(found) / len(found)) if found else math.nan


def _segments(queries: Queries) -> Iterator[float]:
    """Seconds of each entry's segment."""
    return ((query.segment[1] - query.segment[0]) / query.fps for query in entries(queries))


def _spans(queries: Queries) -> Iterator[float]:
    """Seconds of each entry's true span."""
    return ((query.truth.span[1] - query.truth.span[0]) / query.fps for query in entries(queries) if query.truth)


def _words(queries: Queries) -> Iterator[int]:
    return (len(query.text.split()) for query in queries)


def _repeats(queries: Queries, *fields: str) -> list[Queries]:
    """The groups of more than one query with the same sentence, video and `fields`."""
    groups: dict[tuple[Any, ...], Queries] = defaultdict(list)
    for query in queries:
        groups[query.video, query.text, *(getattr(query, name) for name in fields)].append(query)
    return [group for group in groups.values() if len(group) > 1]


def _contradictions(groups: list[Queries]) -> int:
    """How many of the groups have more than one true span."""
    return sum(len({query.truth.span for query in group if query.truth}) > 1 for group in groups)


def _tag_counts(queries: Queries) -> dict[str, int]:
    """Sentences of the test split by tag: each tag, both, none."""
    tags = [set(query.tags) for query in queries if query.split == "test"]
    kinds = ("look-alike", "same-motion")
    one = {kind: sum(kind in found for found in tags) for kind in kinds}
    return one | {" and ".join(kinds): sum(found >= set(kinds) for found in tags), "neither": sum(not found for found in tags)}


def _tag_shares(queries: Queries) -> dict[str, float]:
    """The share of all sentences with exactly these tags, in percent."""
    counts = Counter(frozenset(query.tags) for query in queries)
    kinds = {
        "look-alike only": {"look-alike"},
        "same-motion only": {"same-motion"},
        "both": {"look-alike", "same-motion"},
        "neither": set(),
    }
    return {name: round(100 * counts[frozenset(kind)] / len(queries), 1) for name, kind in kinds.items()}


def _common(values: Iterable[Any]) -> Any:
    """The one value all share, or all of them."""
    found = sorted(set(values))
    return found[0] if len(found) == 1 else found


NUMBERS: dict[str, Callable[[Queries], Any]] = {
    "queries": len,
    "sentences": len,
    "entries": lambda queries: len(entries(queries)),
    "videos": lambda queries: len({query.video for query in queries}),
    "declarative": lambda queries: sum(query.form == "declarative" for query in queries),
    "interrogative": lambda queries: sum(query.form == "interrogative" for query in queries),
    "with truth": lambda queries: sum(query.truth is not None for query in queries),
    "categories asked about": lambda queries: len({query.object for query in queries} - {None}),
    "queries per video": lambda queries: _range(Counter(query.video for query in queries).values()),
    "words": lambda queries: _range(_words(queries)),
    "mean words": lambda queries: _mean(_words(queries)),
    "repeated sentences": lambda queries: len(_repeats(queries)),
    "repeated with another span": lambda queries: _contradictions(_repeats(queries)),
    "repeated in one segment with another span": lambda queries: _contradictions(_repeats(queries, "segment")),
    "fps": lambda queries: _range(query.fps for query in queries),
    "entries at the lowest fps": lambda queries: Counter(query.fps for query in entries(queries))[min(query.fps for query in queries)],
    "frames": lambda queries: _range(query.frame_count for query in queries),
    "width": lambda queries: _range(query.size[0] for query in queries),
    "height": lambda queries: _range(query.size[1] for query in queries),
    "segment seconds": lambda queries: _range(_segments(queries)),
    "mean segment seconds": lambda queries: _mean(_segments(queries)),
    "segment is the whole video": lambda queries: sum(query.segment == (0, query.frame_count) for query in entries(queries)),
    "span seconds": lambda queries: _range(_spans(queries)),
    "mean span seconds": lambda queries: _mean(_spans(queries)),
    "span is the whole segment": lambda queries: sum(bool(q.truth and q.truth.span == q.segment) for q in entries(queries)),
    "span ends with its segment": lambda queries: sum(bool(q.truth and q.truth.span[1] == q.segment[1]) for q in entries(queries)),
}
TOGETHER: dict[str, Callable[[Queries], Any]] = {
    "picture": lambda queries: list(_common(query.size for query in queries)),
    "fps": lambda queries: _common(query.fps for query in queries),
    "frames": lambda queries: _range(query.frame_count for query in queries),
    "tags": _tag_counts,
    "shares": _tag_shares,
}
