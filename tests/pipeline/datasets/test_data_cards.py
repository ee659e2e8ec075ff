"""Data cards: what they may state, each number counted by hand on a few queries, and the
comparison.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import pipeline.datasets.data_cards as cards
from pipeline.datasets import PARSERS, ParsedDataset
from pipeline.datasets.data_cards import (
    ALL_SPLITS,
    CardCheck,
    checks_pass,
    compare_with_card,
    describe_query,
    flatten,
    load_card,
    summarize_dataset,
)
from pipeline.errors import InputError
from pipeline.records import Query, Truth

FILES = sorted(cards.CARDS_DIR.glob("*.md"))
STATED = {
    path.stem: yaml.safe_load(cards.YAML_BLOCK.search(path.read_text())[1])
    for path in FILES
    if path.stem not in ("jsonl", "cvat")
}  # type: ignore[index]


def query(name: str, span: tuple[int, int] | None, **changes: Any) -> Query:
    """A question of four words about video `v`: 100 frames at 10 fps, segment [0, 50)."""
    fields: dict[str, Any] = {
        "id": name,
        "video": "v",
        "path": "v.mp4",
        "fps": 10,
        "frame_count": 100,
        "size": (64, 48),
        "segment": (0, 50),
    }
    fields |= {
        "text": "who runs so fast",
        "form": "interrogative",
        "split": "test",
        "object": "dog",
    }

    return Query.model_validate(fields | {"truth": span and Truth(span=span)} | changes)


@pytest.fixture
def parsed() -> ParsedDataset:
    """Two entries of one video and one of another, in two splits; the first has a caption and a
    question.
    """
    result = ParsedDataset(Path())
    result.queries = [
        query("test-00000-c0", (10, 50), form="declarative", text="a dog runs."),
        query("test-00000-q0", (10, 50)),
        query("test-00001-q0", (0, 50)),
        query(
            "test-00002-q0",
            (20, 80),
            video="w",
            fps=25.004,
            frame_count=80,
            size=(32, 96),
            segment=(0, 80),
            object="cat",
        ),
        query("val-00000-q0", None, split="val"),
    ]
    result.queries[2] = result.queries[2].model_copy(
        update={"truth": Truth(span=(0, 50), track="v/1")}
    )
    result.tracks.add("v/1", np.array([0, 1]), np.array([[1, 2, 3.5, 4], [1, 2, 3, 4]]))

    return result


def test_each_number_of_a_split(parsed: ParsedDataset) -> None:
    assert summarize_dataset(parsed)["test"] == {
        "queries": 4,
        "sentences": 4,
        "entries": 3,
        "videos": 2,
        "declarative": 1,
        "interrogative": 3,
        "with truth": 4,
        "categories asked about": 2,
        "queries per video": [1, 3],
        "words": [3, 4],
        "mean words": 3.75,
        "repeated sentences": 1,
        "repeated with another span": 1,
        "repeated in one segment with another span": 1,
        "fps": [10, 25],
        "entries at the lowest fps": 2,
        "frames": [80, 100],
        "width": [32, 64],
        "height": [48, 96],
        "segment seconds": [3.2, 5],
        "mean segment seconds": 4.4,
        "segment is the whole video": 1,
        "span seconds": [2.4, 5],
        "mean span seconds": 3.8,
        "span is the whole segment": 1,
        "span ends with its segment": 3,
    }


def test_without_truth_there_are_no_spans_to_count(parsed: ParsedDataset) -> None:
    result = summarize_dataset(parsed)["val"]

    assert [
        result[name] for name in ("with truth", "span seconds", "span ends with its segment")
    ] == [0, [], 0]
    assert math.isnan(result["mean span seconds"])

    stated = {"splits": {"val": {"mean span seconds": 9.7}}}

    assert [row.verdict for row in compare_with_card(stated, parsed)] == ["differs"]


def test_numbers_of_all_splits_together(parsed: ParsedDataset) -> None:
    parsed.queries = [
        query("a", None, tags=("look-alike",)),
        query("b", None, tags=("look-alike", "same-motion")),
        query("c", None, split="train"),
    ]

    assert summarize_dataset(parsed)[ALL_SPLITS] == {
        "picture": [64, 48],
        "fps": 10,
        "frames": [100, 100],
        "tags, look-alike": 2,
        "tags, same-motion": 1,
        "tags, look-alike and same-motion": 1,
        "tags, neither": 0,
        "shares, look-alike only": 33.3,
        "shares, same-motion only": 0,
        "shares, both": 33.3,
        "shares, neither": 33.3,
    }


def test_a_repeat_in_another_segment_contradicts_nothing(parsed: ParsedDataset) -> None:
    parsed.queries = [query("a", (0, 10)), query("b", (60, 70), segment=(50, 100))]
    result = summarize_dataset(parsed)["test"]
    names = (
        "repeated sentences",
        "repeated with another span",
        "repeated in one segment with another span",
    )

    assert [result[name] for name in names] == [1, 1, 0]


def test_an_example_states_its_span_and_boxes(parsed: ParsedDataset) -> None:
    result = describe_query(parsed.queries[2], parsed.tracks)

    assert result == {
        "split": "test",
        "text": "who runs so fast",
        "fps": 10,
        "frames": 100,
        "size": [64, 48],
        "segment": [0, 50],
        "span": [0, 50],
        "boxes": 2,
        "first box": [1, 2, 3.5, 4],
    }

    without = describe_query(parsed.queries[4], parsed.tracks)

    assert (without["span"], without["boxes"], without["first box"]) == ([], 0, [])


def test_rows_agree_differ_or_are_absent(parsed: ParsedDataset) -> None:
    card = {
        "splits": {"test": {"queries": 4, "videos": 3}, "train": {"queries": 7}},
        "examples": {
            "test-00001-q0": {"split": "test", "boxes": 2},
            "test-9": {"split": "test"},
            "train-1": {"split": "train"},
        },
        "tags": {"neither": 4},
        "seed": 0,
    }
    rows = compare_with_card(card, parsed)

    assert [(row.scope, row.statistic, row.expected, row.actual, row.verdict) for row in rows] == [
        ("test", "queries", 4, 4, "ok"),
        ("test", "videos", 3, 2, "differs"),
        ("train", "queries", 7, None, "absent"),
        ("all", "tags, neither", 4, None, "absent"),  # not judged before every split is there
        ("test-00001-q0", "split", "test", "test", "ok"),
        ("test-00001-q0", "boxes", 2, 2, "ok"),
        ("test-9", "split", "test", "no such query", "differs"),
        ("train-1", "split", "train", None, "absent"),
    ]

    del card["splits"]["train"]  # type: ignore[attr-defined]

    assert ("all", "tags, neither", 4, 4) in [
        (row.scope, row.statistic, row.expected, row.actual)
        for row in compare_with_card(card, parsed)
    ]


def test_something_left_out_never_agrees(parsed: ParsedDataset) -> None:
    card = {"splits": {"val": {"queries": 1}, "train": {"queries": 2}}}
    assert checks_pass(compare_with_card(card, parsed))
    parsed.defects.add("malformed entry", "train-00000", "as all of them", excluded=True)
    assert compare_with_card(card, parsed)[-1] == CardCheck(ALL_SPLITS, "left out", 0, 1)
    assert not checks_pass(compare_with_card(card, parsed))


def test_nothing_but_absent_is_no_agreement(parsed: ParsedDataset) -> None:
    assert not checks_pass([])
    assert not checks_pass([CardCheck("train", "queries", 7, None)])
    assert checks_pass([CardCheck("train", "queries", 7, None), CardCheck("val", "queries", 7, 7)])


def test_a_card_without_numbers_says_so() -> None:
    with pytest.raises(InputError, match="the card of 'jsonl' states no numbers to verify"):
        load_card("jsonl")


def test_an_unknown_name_lists_the_names() -> None:
    with pytest.raises(
        InputError, match=r"unknown data set '\.\./secrets'; the data sets are shapes, vidstg,"
    ):
        load_card("../secrets")


def test_a_card_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cards, "CARDS_DIR", tmp_path)
    with pytest.raises(InputError, match=r"data card .*vidstg\.md does not exist"):
        load_card("vidstg")


@pytest.mark.parametrize("name", STATED)
def test_a_card_states_only_what_the_verifier_counts(name: str) -> None:
    card = STATED[name]
    together = {
        key: value
        for key, value in card.items()
        if key not in cards.GENERATION_KEYS | {"splits", "examples"}
    }
    known = flatten(
        {key: count([query("a", None)]) for key, count in cards.DATASET_STATISTICS.items()}
    )

    assert set(flatten(together)) <= set(known)
    assert {number for numbers in card["splits"].values() for number in numbers} <= set(
        cards.SPLIT_STATISTICS
    )

    fields = set(describe_query(query("a", None), ParsedDataset(Path()).tracks))

    assert all(
        {"split"} < set(stated) <= fields and stated["split"] in card["splits"]
        for stated in card.get("examples", {}).values()
    )
    assert name == "shapes" or not cards.GENERATION_KEYS & set(card)


def numbers_in(value: Any) -> set[str]:
    """Every number of a yaml value as people write it."""
    if isinstance(value, dict):
        return {number for inner in (*value, *value.values()) for number in numbers_in(inner)}
    if isinstance(value, list):
        return {number for inner in value for number in numbers_in(inner)}
    return {f"{value:g}", f"{value:,}", str(value)} if isinstance(value, int | float) else set()


@pytest.mark.parametrize(
    "path", [path for path in FILES if path.stem != "shapes"], ids=lambda path: path.stem
)
def test_the_prose_of_a_card_states_no_other_numbers(path: Path) -> None:
    prose = re.sub(
        r"```.*?```|`[^`]*`|\"[^\"]*\"", "", path.read_text(), flags=re.DOTALL
    )  # code, names, what others said
    result = set(re.findall(r"(?<![\w.])\d+(?:[.,]\d+)*(?!-based)\b", prose))
    years = {number for number in result if re.fullmatch(r"(19|20)\d\d", number)}

    assert result - years <= numbers_in(STATED.get(path.stem, {}))


def test_every_data_set_has_a_card() -> None:
    assert {path.stem for path in FILES} >= set(PARSERS)
