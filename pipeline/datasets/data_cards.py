"""Data cards: the statistics that a card states, and the same statistics of the parsed data set.

A card is `data_cards/<name>.md`. Its one yaml block holds:

- `splits`: statistics of each split.
- `examples`: fields of single queries, by query id.
- all other keys: statistics of all splits together.

Statistics are rounded to two decimals; a pair is a minimum and a maximum.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml

from pipeline.datasets import ParsedDataset, get_parser
from pipeline.errors import InputError
from pipeline.records import Query
from pipeline.tracks import Tracks

CARDS_DIR = Path(__file__).parents[2] / "data_cards"
YAML_BLOCK = re.compile(r"```yaml\n(.*?)```", re.DOTALL)
QUERY_SUFFIX = re.compile(r"-[cq]\d+$")
"""Suffix that the id of a VidSTG query adds to the name of its entry."""
GENERATION_KEYS = {"seed", "colours", "shapes", "motions"}
"""Keys of the settings that generate `shapes`; the annotations do not state them."""
ALL_SPLITS = "all"
TAGS = ("look-alike", "same-motion")
"""The tags of sentences in `shapes`."""

Card = dict[str, Any]
Queries = list[Query]


def load_card(name: str) -> Card:
    """Load the yaml block of a data card.

    Args:
        name: Name of the data set.

    Returns:
        The content of the block.

    Raises:
        InputError: The name is unknown, the card does not exist, or it has no yaml block.
    """
    # Unknown names are refused here, so that a name is never a path out of the folder.
    get_parser(name)

    path = CARDS_DIR / f"{name}.md"
    if not path.is_file():
        raise InputError(f"the data card {path} does not exist; install the project again")
    block = YAML_BLOCK.search(path.read_text(encoding="utf-8"))
    if block is None:
        raise InputError(
            f"the card of {name!r} states no numbers to verify, because its data are your own; "
            f"run stvg-prepare without --verify"
        )
    card: Card = yaml.safe_load(block[1])
    return card


@dataclass(frozen=True)
class CardCheck:
    """Comparison of one statistic with its value in the card.

    Attributes:
        scope: A split, a query's id, or `ALL_SPLITS`.
        statistic: Name of the statistic.
        expected: Value in the card.
        actual: Value in the data set; None if the data set lacks the scope.
    """

    scope: str
    statistic: str
    expected: Any
    actual: Any

    @property
    def verdict(self) -> Literal["ok", "differs", "absent"]:
        """Result of the comparison; "absent" if the data set lacks the scope."""
        if self.actual is None:
            return "absent"
        return "ok" if self.actual == self.expected else "differs"


def checks_pass(checks: Iterable[CardCheck]) -> bool:
    """Return True if at least one statistic is equal and none differs.

    Args:
        checks: The comparisons.

    Returns:
        True if the data set agrees with the card.
    """
    verdicts = {check.verdict for check in checks}
    return "ok" in verdicts and "differs" not in verdicts


def compare_with_card(card: Card, parsed_dataset: ParsedDataset) -> list[CardCheck]:
    """Compare every statistic in a card with the data set.

    Args:
        card: The card.
        parsed_dataset: The parsed data set.

    Returns:
        One check per statistic. Splits without queries are absent. If queries are excluded, a
        further check differs.
    """
    statistics = summarize_dataset(parsed_dataset)

    # Statistics of each split.
    checks = []
    for split, expected_statistics in card["splits"].items():
        actual_statistics = statistics.get(split, {})
        for name, expected in expected_statistics.items():
            checks.append(CardCheck(split, name, expected, actual_statistics.get(name)))

    # Statistics of all splits; comparable only if no split is absent.
    other_keys = GENERATION_KEYS | {"splits", "examples"}
    expected_totals = flatten({key: card[key] for key in card if key not in other_keys})
    has_all_splits = set(card["splits"]) <= set(statistics)
    actual_totals = statistics.get(ALL_SPLITS, {}) if has_all_splits else {}
    for name, expected in expected_totals.items():
        checks.append(CardCheck(ALL_SPLITS, name, expected, actual_totals.get(name)))

    # Single queries. A query is only missing if its split is present.
    queries_by_id = {query.id: query for query in parsed_dataset.queries}
    for query_id, expected_fields in card.get("examples", {}).items():
        query = queries_by_id.get(query_id)
        actual_fields = {} if query is None else describe_query(query, parsed_dataset.tracks)
        default = "no such query" if expected_fields["split"] in statistics else None
        for name, expected in expected_fields.items():
            checks.append(CardCheck(query_id, name, expected, actual_fields.get(name, default)))

    num_excluded = parsed_dataset.defects.num_excluded
    if num_excluded:
        checks.append(CardCheck(ALL_SPLITS, "left out", 0, num_excluded))
    return checks


def summarize_dataset(parsed_dataset: ParsedDataset) -> dict[str, dict[str, Any]]:
    """Compute all statistics that a card may state.

    Args:
        parsed_dataset: The parsed data set.

    Returns:
        Statistics by name, for each split that has queries, and for `ALL_SPLITS`.
    """
    queries_by_split: dict[str, Queries] = defaultdict(list)
    for query in parsed_dataset.queries:
        queries_by_split[query.split].append(query)

    statistics = {}
    for split, queries in queries_by_split.items():
        statistics[split] = _compute_statistics(SPLIT_STATISTICS, queries)
    if parsed_dataset.queries:
        totals = _compute_statistics(DATASET_STATISTICS, parsed_dataset.queries)
        statistics[ALL_SPLITS] = flatten(totals)
    return statistics


def _compute_statistics(
    functions: dict[str, Callable[[Queries], Any]], queries: Queries
) -> dict[str, Any]:
    """Call every function on the queries."""
    return {name: function(queries) for name, function in functions.items()}


def describe_query(query: Query, tracks: Tracks) -> dict[str, Any]:
    """Return the fields of one query that a card may state.

    Args:
        query: The query.
        tracks: Tracks of the data set.

    Returns:
        The fields by name. `span` and `segment` are frames `[begin, end)`, `first box` is xyxy in
        pixels.
    """
    track_key = query.truth and query.truth.track
    boxes = tracks[track_key][1] if track_key else np.zeros((0, 4))  # [n, 4]
    first_box = []
    if len(boxes):
        first_box = [_round(float(coordinate)) for coordinate in boxes[0]]

    return {
        "split": query.split,
        "text": query.text,
        "fps": _round(query.fps),
        "frames": query.frame_count,
        "size": list(query.size),
        "segment": list(query.segment),
        "span": list(query.truth.span) if query.truth else [],
        "boxes": len(boxes),
        "first box": first_box,
    }


def flatten(numbers: dict[str, Any]) -> dict[str, Any]:
    """Flatten one level of nesting: `{tags: {neither: 54}}` to `{"tags, neither": 54}`.

    Args:
        numbers: Statistics by name; a value may be a dict.

    Returns:
        Statistics without nested dicts.
    """
    result: dict[str, Any] = {}
    for name, value in numbers.items():
        if isinstance(value, dict):
            for inner_name, inner_value in value.items():
                result[f"{name}, {inner_name}"] = inner_value
        else:
            result[name] = value
    return result


def select_entry_queries(queries: Queries) -> Queries:
    """Select one query of each annotation entry.

    Queries of one VidSTG entry share segment and span.

    Args:
        queries: All queries.

    Returns:
        The last query of each entry, in the order of the entries.
    """
    queries_by_entry = {QUERY_SUFFIX.sub("", query.id): query for query in queries}
    return list(queries_by_entry.values())


def _round(value: float) -> float:
    """Round to the precision of the cards."""
    return round(value, 2)


def _min_max(values: Iterable[float]) -> list[float]:
    """Return the rounded minimum and maximum; [] without values."""
    numbers = list(values)
    return [_round(min(numbers)), _round(max(numbers))] if numbers else []


def _mean(values: Iterable[float]) -> float:
    """Return the rounded mean; NaN without values."""
    numbers = list(values)
    return _round(sum(numbers) / len(numbers)) if numbers else math.nan


def _segment_seconds(queries: Queries) -> list[float]:
    """Return the duration of each entry's segment in seconds."""
    durations = []
    for query in select_entry_queries(queries):
        begin, end = query.segment
        durations.append((end - begin) / query.fps)
    return durations


def _span_seconds(queries: Queries) -> list[float]:
    """Return the duration of each entry's ground-truth span in seconds."""
    durations = []
    for query in select_entry_queries(queries):
        if query.truth:
            begin, end = query.truth.span
            durations.append((end - begin) / query.fps)
    return durations


def _word_counts(queries: Queries) -> list[int]:
    """Return the number of words of each sentence."""
    return [len(query.text.split()) for query in queries]


def _count_form(queries: Queries, form: str) -> int:
    """Count the sentences of one form."""
    return sum(query.form == form for query in queries)


def _count_categories(queries: Queries) -> int:
    """Count the different object categories."""
    categories = {query.object for query in queries}
    return len(categories - {None})


def _queries_per_video(queries: Queries) -> list[float]:
    """Return the minimum and maximum number of queries per video."""
    counts = Counter(query.video for query in queries)
    return _min_max(counts.values())


def _count_lowest_fps(queries: Queries) -> int:
    """Count the entries whose video has the lowest frame rate."""
    lowest_fps = min(query.fps for query in queries)
    return sum(query.fps == lowest_fps for query in select_entry_queries(queries))


def _count_whole_videos(queries: Queries) -> int:
    """Count the entries whose segment is the complete video."""
    count = 0
    for query in select_entry_queries(queries):
        count += query.segment == (0, query.frame_count)
    return count


def _count_whole_segments(queries: Queries) -> int:
    """Count the entries whose ground-truth span is the complete segment."""
    count = 0
    for query in select_entry_queries(queries):
        if query.truth and query.truth.span == query.segment:
            count += 1
    return count


def _count_common_ends(queries: Queries) -> int:
    """Count the entries whose ground-truth span ends with the segment."""
    count = 0
    for query in select_entry_queries(queries):
        if query.truth and query.truth.span[1] == query.segment[1]:
            count += 1
    return count


def _group_duplicates(queries: Queries, *fields: str) -> list[Queries]:
    """Group queries by sentence, video and the fields; return groups of two and more."""
    groups: dict[tuple[Any, ...], Queries] = defaultdict(list)
    for query in queries:
        values = [getattr(query, field) for field in fields]
        groups[query.video, query.text, *values].append(query)
    return [group for group in groups.values() if len(group) > 1]


def _count_contradictions(groups: list[Queries]) -> int:
    """Count the groups whose ground-truth spans differ."""
    count = 0
    for group in groups:
        spans = {query.truth.span for query in group if query.truth}
        count += len(spans) > 1
    return count


def _count_tags(queries: Queries) -> dict[str, int]:
    """Count the sentences of the test split with each tag, with both tags, and with none."""
    tag_sets = [set(query.tags) for query in queries if query.split == "test"]
    counts = {}
    for tag in TAGS:
        counts[tag] = sum(tag in tags for tags in tag_sets)
    counts[" and ".join(TAGS)] = sum(tags >= set(TAGS) for tags in tag_sets)
    counts["neither"] = sum(not tags for tags in tag_sets)
    return counts


def _compute_tag_shares(queries: Queries) -> dict[str, float]:
    """Return the percentage of sentences that have exactly the tags, for each set of tags."""
    tag_sets = {
        "look-alike only": frozenset({"look-alike"}),
        "same-motion only": frozenset({"same-motion"}),
        "both": frozenset(TAGS),
        "neither": frozenset[str](),
    }
    counts = Counter(frozenset(query.tags) for query in queries)
    shares = {}
    for name, tags in tag_sets.items():
        shares[name] = round(100 * counts[tags] / len(queries), 1)
    return shares


def _unique_value(values: Iterable[Any]) -> Any:
    """Return the value that all share, or the sorted list of different values."""
    unique_values = sorted(set(values))
    return unique_values[0] if len(unique_values) == 1 else unique_values


SPLIT_STATISTICS: dict[str, Callable[[Queries], Any]] = {
    "queries": len,
    "sentences": len,
    "entries": lambda queries: len(select_entry_queries(queries)),
    "videos": lambda queries: len({query.video for query in queries}),
    "declarative": lambda queries: _count_form(queries, "declarative"),
    "interrogative": lambda queries: _count_form(queries, "interrogative"),
    "with truth": lambda queries: sum(query.truth is not None for query in queries),
    "categories asked about": _count_categories,
    "queries per video": _queries_per_video,
    "words": lambda queries: _min_max(_word_counts(queries)),
    "mean words": lambda queries: _mean(_word_counts(queries)),
    "repeated sentences": lambda queries: len(_group_duplicates(queries)),
    "repeated with another span": lambda queries: _count_contradictions(_group_duplicates(queries)),
    "repeated in one segment with another span": lambda queries: _count_contradictions(
        _group_duplicates(queries, "segment")
    ),
    "fps": lambda queries: _min_max(query.fps for query in queries),
    "entries at the lowest fps": _count_lowest_fps,
    "frames": lambda queries: _min_max(query.frame_count for query in queries),
    "width": lambda queries: _min_max(query.size[0] for query in queries),
    "height": lambda queries: _min_max(query.size[1] for query in queries),
    "segment seconds": lambda queries: _min_max(_segment_seconds(queries)),
    "mean segment seconds": lambda queries: _mean(_segment_seconds(queries)),
    "segment is the whole video": _count_whole_videos,
    "span seconds": lambda queries: _min_max(_span_seconds(queries)),
    "mean span seconds": lambda queries: _mean(_span_seconds(queries)),
    "span is the whole segment": _count_whole_segments,
    "span ends with its segment": _count_common_ends,
}
"""Statistics of one split, by their names in the cards."""
DATASET_STATISTICS: dict[str, Callable[[Queries], Any]] = {
    "picture": lambda queries: list(_unique_value(query.size for query in queries)),
    "fps": lambda queries: _unique_value(query.fps for query in queries),
    "frames": lambda queries: _min_max(query.frame_count for query in queries),
    "tags": _count_tags,
    "shares": _compute_tag_shares,
}
"""Statistics of all splits together, by their names in the cards."""
