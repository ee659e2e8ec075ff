"""Exchange of left and right in a sentence, for a horizontally flipped video.

Both words have other meanings: he left, right away, all right. So they are exchanged only where
they name a side. A sentence with any other left or right has no mirrored sentence: a video that is
never flipped is better than a sentence that is false.
"""

from __future__ import annotations

import re

WORD_PATTERN = re.compile(r"[^\W\d_]+(?:[-'’][^\W\d_]+)*|[^\w\s]")
"""A word with its hyphens and apostrophes, or one punctuation mark."""
SIDE_PATTERN = re.compile(r"(?<![^\W\d_])(left|right)", re.IGNORECASE)
OPPOSITE_SIDE = {"left": "right", "right": "left"}
COMPOUND_PART_PATTERN = re.compile(
    "(left|right)(most|wards?|hand(ed)?|sided?)?|back|bottom|cent(er|re)|far|foot(ed)?|front"
    "|hand(ed)?|lower|most|rear|sided?|top|upper"
)
"""The parts of a hyphenated word that names a side: left-hand, far-right."""
PRECEDING_PATTERN = re.compile("an?|extreme|far|his|its|lower|my|the|their|upper|your")
"""After these words left or right is a side, unless `NON_SIDE_FOLLOWER_PATTERN` follows."""
NON_SIDE_FOLLOWER_PATTERN = re.compile(
    "an?|angle|answer|choice|decision|direction|her?|hi[ms]|its?|moment|my|one|order|person|place"
    "|she|size|the(y|m|ir)?|things?|times?|track|us|way|you|your"
)
PAIRED_NOUN_PATTERN = re.compile(
    "arms?|bank|cheek|corner|ears?|edge|elbow|eyes?|feet|foot|front|half|hands?|hip|knees?|legs?"
    "|lane|row|shoulders?|sides?|thigh|thumb|wrist"
)
"""Nouns with a left and a right one: before them it is a side, except after `SUBJECT_PATTERN`."""
SUBJECT_PATTERN = re.compile(
    "ha(d|s|ve|ving)|he|i|it|she|that|they|we|which|who|you|be(en|ing)?|gets?|got|is|are|was|were"
    "|him|them"
)
DIRECTION_PATTERN = re.compile(
    "at|from|on|to"
    "|(bend|fly|go|head|jump|lean|look|point|roll|run|shift|step|swim|swing|tilt|turn|walk)"
    "(s|es|ed|ing)?"
    "|(driv|fac|gaz|glanc|mov|rid|rotat|slid)(es?|ed|ing)"
    "|bent|drove|flew|flies|gone|ran|rode|running|slid|stepp(ed|ing)|swam|swimming|swung|went"
)
"""After these words left or right is a side if the clause ends there."""
CLAUSE_ENDINGS = ("", "and", "or", "while")
"""Words that end a clause; "" is punctuation or the end of the sentence."""
CONJUNCTIONS = ("and", "or", "to")
"""Words between two sides: left and right, left to right."""


def mirror_left_right(sentence: str) -> str | None:
    """Exchange left and right in a sentence.

    Args:
        sentence: A sentence about a video.

    Returns:
        The sentence about the flipped video, equal to `sentence` if no side is named. None if a
        left or right may not be a side, or if a rotation is named.
    """
    # Words in lower case; punctuation is "".
    words = []
    for word in WORD_PATTERN.findall(sentence):
        words.append(word.lower() if word[0].isalpha() else "")
    if any("clockwise" in word for word in words):
        return None

    for index, word in enumerate(words):
        if not SIDE_PATTERN.search(word):
            continue
        if word in OPPOSITE_SIDE:
            is_side = _is_side(words, index)
        else:
            is_side = all(COMPOUND_PART_PATTERN.fullmatch(part) for part in word.split("-"))
        if not is_side:
            return None

    return SIDE_PATTERN.sub(_exchange, sentence)


def _exchange(match: re.Match[str]) -> str:
    """Return the opposite of a matched side, in the same case."""
    word = match[0]
    opposite = OPPOSITE_SIDE[word.lower()]
    if word.isupper():
        return opposite.upper()
    return opposite.capitalize() if word[0].isupper() else opposite


def _is_side(words: list[str], index: int) -> bool:
    """Return True if a single left or right names a side, judged by the words around it."""
    padded = ["", "", *words, "", ""]
    two_before, before, word, after, two_after = padded[index : index + 5]

    # In "left and right" each of the two words is judged by what surrounds the pair.
    if before in CONJUNCTIONS and two_before == OPPOSITE_SIDE[word]:
        before = "to"
    if after in CONJUNCTIONS and two_after == OPPOSITE_SIDE[word]:
        return not SUBJECT_PATTERN.fullmatch(before)

    # "left hand", but not "he left hand in hand".
    if PAIRED_NOUN_PATTERN.fullmatch(after):
        is_idiom = (after, two_after) in (("side", "by"), ("hand", "in"))
        return not SUBJECT_PATTERN.fullmatch(before) and not is_idiom

    if PRECEDING_PATTERN.fullmatch(before):
        return not NON_SIDE_FOLLOWER_PATTERN.fullmatch(after)

    # "her left", but not "next to her left the room".
    if before == "her":
        return after == ""

    if not DIRECTION_PATTERN.fullmatch(before):
        return False
    return after in CLAUSE_ENDINGS or (word, after) == ("left", "to")
