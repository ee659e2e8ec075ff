"""Left and right are exchanged where they are sides, and nowhere else; where that cannot be told
there is no mirrored sentence.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from grounding.data.text_mirroring import mirror_left_right
from pipeline.datasets.shapes.sentences import PHRASES

ANNOTATIONS = Path(__file__).parents[4] / "shared" / "annotations" / "val_annotations.json"


@pytest.mark.parametrize(
    ("sentence", "other"),
    [
        (
            "the leftmost child is next to a green toy.",
            "the rightmost child is next to a green toy.",
        ),
        (
            "a panda on the left touches the panda on the right.",
            "a panda on the right touches the panda on the left.",
        ),
        (
            "She lifts her Left hand, then the RIGHT one's LEFT arm.",
            "She lifts her Right hand, then the LEFT one's RIGHT arm.",
        ),
        (
            "Left-hand side: he raises his RIGHT hand and turns left.",
            "Right-hand side: he raises his LEFT hand and turns right.",
        ),
        (
            "a man on the far left, a bag in the top left corner",
            "a man on the far right, a bag in the top right corner",
        ),
        ("he looks left and right", "he looks right and left"),
        ("it goes from right to left and stops", "it goes from left to right and stops"),
        ("the cup on her right", "the cup on her left"),
        ("a bright copyright, upright and cleft", "a bright copyright, upright and cleft"),
        (
            "a bird is on the right away from the upper-left one",
            "a bird is on the left away from the upper-right one",
        ),
    ],
)
def test_whole_words_are_exchanged_in_their_case(sentence: str, other: str | None) -> None:
    assert mirror_left_right(sentence) == other
    assert other is None or mirror_left_right(other) == sentence


@pytest.mark.parametrize(
    "sentence",
    [
        "he left the room.",
        "the man on the left has left.",
        "the person next to her left the room",
        "who left?",
        "they both left.",
        "the woman in front left.",
        "what is left on the table?",
        "the bag left behind is blue",
        "he leaves right away.",
        "it turns right now",
        "all right, he sits down",
        "she takes the right way at the right time",
        "he runs right to the door",
        "she kisses her right there",
        "a right-angled box",
        "a left-over box",
        "the left's captain",
        "it turns clockwise",
        "it turns anti-clockwise on the left",
    ],
)
def test_what_may_be_no_side_has_no_mirrored_sentence(sentence: str) -> None:
    assert mirror_left_right(sentence) is None


def test_shapes_that_go_to_a_side_go_to_the_other() -> None:
    for side, other in (("left", "right"), ("right", "left")):
        assert [mirror_left_right(f"the red circle {phrase}.") for phrase in PHRASES[side]] == [
            f"the red circle {p}." for p in PHRASES[other]
        ]
    for motion in PHRASES.keys() - {"left", "right"}:
        for phrase in PHRASES[motion]:
            assert mirror_left_right(phrase) == phrase


@pytest.mark.skipif(
    not ANNOTATIONS.exists(), reason="VidSTG's annotations are not beside the project"
)
def test_every_side_in_vidstg_s_sentences_is_exchanged() -> None:
    """149 of its 8,956 validation sentences name a side, and no left or right in them is anything
    else.
    """
    entries = json.loads(ANNOTATIONS.read_text())
    sentences = [
        said["description"]
        for entry in entries
        for kind in ("captions", "questions")
        for said in entry[kind]
    ]
    pairs = [(sentence, mirror_left_right(sentence)) for sentence in sentences]
    changed = [(sentence, other) for sentence, other in pairs if other != sentence]
    assert (len(sentences), len(changed)) == (8956, 149)
    for sentence, other in changed:
        assert other is not None, sentence
        assert mirror_left_right(other) == sentence
        sides = [re.findall(r"left|right", text) for text in (sentence, other)]
        assert all(
            side_before != side_after for side_before, side_after in zip(*sides, strict=True)
        ), sentence
        assert re.sub(r"left|right", "", sentence) == re.sub(r"left|right", "", other)
