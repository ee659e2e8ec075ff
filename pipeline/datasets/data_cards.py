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

from pipeline.datasets import PARSERS, ParsedDataset
from pipeline.errors import InputError
from pipeline.records import Query
from pipeline.tracks import Tracks

CARDS_DIR = Path(__file__).parents[2] / "data_cards"
YAML_BLOCK = re.compile(r"```yaml\n(.*?)```", re.DOTALL)
QUERY_SUFFIX = re.compile(r"-[cq]\d+$")  # what VidSTG's queries add to the name of their entry
GENERATION_KEYS = {
    "seed",
    "colours",
    "shapes",
    "motions",
}  # what `shapes` is made with: not in the annotations
ALL_SPLITS = "all"
Card = dict[str, Any]
Queries = list[Query]


def load_card(name: str) -> Card:
    """What the card's yaml block states; an InputError where there is no card, or no number in it."""
    if name not in PARSERS:
        raise InputError(f"unknown data set {name!r}; the data sets are {', '.join(PARSERS)}")
    path = CARDS_DIR / f"{name}.md"
    if not path.is_file():
        raise InputError(f"the data card {path} does not exist; install the project again")
    block = YAML_BLOCK.search(path.read_text(encoding="utf-8"))
    if block is None:
        raise InputError(
            f"the card of {name!r} states no numbers to verify: its data are your own; run stvg-prepare without --verify"
        )
    card: Card = yaml.safe_load(block[1])
    return card


@dataclass(frozen=True)
class CardCheck:
    """One number: what the card says of `part` (a split, a query's id, or all), and what was found (None: the part is absent)."""

    scope: str
    statistic: str
    expected: Any
    actual: Any

    @property
    def verdict(self) -> Literal["ok", "differs", "absent"]:
        if self.actual is None:
            return "absent"
        return "ok" if self.actual == self.expected else "differs"


def checks_pass(checks: Iterable[CardCheck]) -> bool:
    """Whether something was compared and nothing differs."""
    return {row.verdict for row in checks} in ({"ok"}, {"ok", "absent"})


def compare_with_card(card: Card, parsed_dataset: ParsedDataset) -> list[CardCheck]:
    """Every number of the card beside the one found; parts that are not at hand are absent. Queries left out differ from any card."""
    found = summarize_dataset(parsed_dataset)
    rows = [
        CardCheck(part, name, said, found.get(part, {}).get(name))
        for part, numbers in card["splits"].items()
        for name, said in numbers.items()
    ]
    stated = {
        name: said
        for name, said in card.items()
        if name not in GENERATION_KEYS | {"splits", "examples"}
    }
    whole = found.get(ALL_SPLITS, {}) if set(card["splits"]) <= set(found) else {}
    rows += [
        CardCheck(ALL_SPLITS, name, said, whole.get(name)) for name, said in flatten(stated).items()
    ]
    by_id = {query.id: query for query in parsed_dataset.queries}
    for name, fields in card.get("examples", {}).items():
        known = describe_query(by_id[name], parsed_dataset.tracks) if name in by_id else {}
        missing = "no such query" if fields["split"] in found else None
        rows += [
            CardCheck(name, field, said, known.get(field, missing))
            for field, said in fields.items()
        ]
    if parsed_dataset.defects.num_excluded:
        rows.append(CardCheck(ALL_SPLITS, "left out", 0, parsed_dataset.defects.num_excluded))
    return rows


def summarize_dataset(parsed_dataset: ParsedDataset) -> dict[str, dict[str, Any]]:
    """Every number the cards may state: of each split with queries by its name, and of all splits as `all`."""
    splits: dict[str, Queries] = defaultdict(list)
    for query in parsed_dataset.queries:
        splits[query.split].append(query)
    numbers = {
        split: {name: count(queries) for name, count in SPLIT_STATISTICS.items()}
        for split, queries in splits.items()
    }
    if parsed_dataset.queries:
        numbers[ALL_SPLITS] = flatten(
            {name: count(parsed_dataset.queries) for name, count in DATASET_STATISTICS.items()}
        )
    return numbers


def describe_query(query: Query, tracks: Tracks) -> dict[str, Any]:
    """What a card may state of one query; `span` and `segment` are frames `[begin, end)`, `first box` is xyxy in pixels."""
    key = query.truth and query.truth.track
    boxes = tracks[key][1] if key else np.zeros((0, 4))
    return {
        "split": query.split,
        "text": query.text,
        "fps": _round(query.fps),
        "frames": query.frame_count,
        "size": list(query.size),
        "segment": list(query.segment),
        "span": list(query.truth.span) if query.truth else [],
        "boxes": len(boxes),
        "first box": [_round(float(side)) for side in boxes[0]] if len(boxes) else [],
    }


def flatten(numbers: dict[str, Any]) -> dict[str, Any]:
    """`{tags: {neither: 54}}` as `{"tags, neither": 54}`."""
    result: dict[str, Any] = {}
    for name, value in numbers.items():
        result |= (
            {f"{name}, {inner}": one for inner, one in value.items()}
            if isinstance(value, dict)
            else {name: value}
        )
    return result


def select_entry_queries(queries: Queries) -> Queries:
    """One query of each annotation entry: VidSTG's captions and questions of one entry share segment and span."""
    return list({QUERY_SUFFIX.sub("", query.id): query for query in queries}.values())


def _round(value: float) -> float:
    return round(value, 2)


def _min_max(values: Iterable[float]) -> list[float]:
    """Smallest and largest; empty where there is none."""
    found = list(values)
    return [_round(min(found)), _round(max(found))] if found else []


def _mean(values: Iterable[float]) -> float:
    """NaN where there is none."""
    found = list(values)
    return _round(sum(found) / len(found)) if found else math.nan


def _segment_seconds(queries: Queries) -> Iterator[float]:
    """Seconds of each entry's segment."""
    return (
        (query.segment[1] - query.segment[0]) / query.fps for query in select_entry_queries(queries)
    )


def _span_seconds(queries: Queries) -> Iterator[float]:
    """Seconds of each entry's true span."""
    return (
        (query.truth.span[1] - query.truth.span[0]) / query.fps
        for query in select_entry_queries(queries)
        if query.truth
    )


def _word_counts(queries: Queries) -> Iterator[int]:
    return (len(query.text.split()) for query in queries)


def _group_duplicates(queries: Queries, *fields: str) -> list[Queries]:
    """The groups of more than one query with the same sentence, video and `fields`."""
    groups: dict[tuple[Any, ...], Queries] = defaultdict(list)
    for query in queries:
        groups[query.video, query.text, *(getattr(query, name) for name in fields)].append(query)
    return [group for group in groups.values() if len(group) > 1]


def _count_contradictions(groups: list[Queries]) -> int:
    """How many of the groups have more than one true span."""
    return sum(len({query.truth.span for query in group if query.truth}) > 1 for group in groups)


def _count_tags(queries: Queries) -> dict[str, int]:
    """Sentences of the test split by tag: each tag, both, none."""
    tags = [set(query.tags) for query in queries if query.split == "test"]
    kinds = ("look-alike", "same-motion")
    one = {kind: sum(kind in found for found in tags) for kind in kinds}
    return one | {
        " and ".join(kinds): sum(found >= set(kinds) for found in tags),
        "neither": sum(not found for found in tags),
    }


def _compute_tag_shares(queries: Queries) -> dict[str, float]:
    """The share of all sentences with exactly these tags, in percent."""
    counts = Counter(frozenset(query.tags) for query in queries)
    kinds = {
        "look-alike only": {"look-alike"},
        "same-motion only": {"same-motion"},
        "both": {"look-alike", "same-motion"},
        "neither": set(),
    }
    return {
        name: round(100 * counts[frozenset(kind)] / len(queries), 1) for name, kind in kinds.items()
    }


def _unique_value(values: Iterable[Any]) -> Any:
    """The one value all share, or all of them."""
    found = sorted(set(values))
    return found[0] if len(found) == 1 else found


SPLIT_STATISTICS: dict[str, Callable[[Queries], Any]] = {
    "queries": len,
    "sentences": len,
    "entries": lambda queries: len(select_entry_queries(queries)),
    "videos": lambda queries: len({query.video for query in queries}),
    "declarative": lambda queries: sum(query.form == "declarative" for query in queries),
    "interrogative": lambda queries: sum(query.form == "interrogative" for query in queries),
    "with truth": lambda queries: sum(query.truth is not None for query in queries),
    "categories asked about": lambda queries: len({query.object for query in queries} - {None}),
    "queries per video": lambda queries: _min_max(
        Counter(query.video for query in queries).values()
    ),
    "words": lambda queries: _min_max(_word_counts(queries)),
    "mean words": lambda queries: _mean(_word_counts(queries)),
    "repeated sentences": lambda queries: len(_group_duplicates(queries)),
    "repeated with another span": lambda queries: _count_contradictions(_group_duplicates(queries)),
    "repeated in one segment with another span": lambda queries: _count_contradictions(
        _group_duplicates(queries, "segment")
    ),
    "fps": lambda queries: _min_max(query.fps for query in queries),
    "entries at the lowest fps": lambda queries: Counter(
        query.fps for query in select_entry_queries(queries)
    )[min(query.fps for query in queries)],
    "frames": lambda queries: _min_max(query.frame_count for query in queries),
    "width": lambda queries: _min_max(query.size[0] for query in queries),
    "height": lambda queries: _min_max(query.size[1] for query in queries),
    "segment seconds": lambda queries: _min_max(_segment_seconds(queries)),
    "mean segment seconds": lambda queries: _mean(_segment_seconds(queries)),
    "segment is the whole video": lambda queries: sum(
        query.segment == (0, query.frame_count) for query in select_entry_queries(queries)
    ),
    "span seconds": lambda queries: _min_max(_span_seconds(queries)),
    "mean span seconds": lambda queries: _mean(_span_seconds(queries)),
    "span is the whole segment": lambda queries: sum(
        bool(q.truth and q.truth.span == q.segment) for q in select_entry_queries(queries)
    ),
    "span ends with its segment": lambda queries: sum(
        bool(q.truth and q.truth.span[1] == q.segment[1]) for q in select_entry_queries(queries)
    ),
}
DATASET_STATISTICS: dict[str, Callable[[Queries], Any]] = {
    "picture": lambda queries: list(_unique_value(query.size for query in queries)),
    "fps": lambda queries: _unique_value(query.fps for query in queries),
    "frames": lambda queries: _min_max(query.frame_count for query in queries),
    "tags": _count_tags,
    "shares": _compute_tag_shares,
}
