"""Left and right in a sentence, exchanged as a mirror exchanges them.

Both words mean other things too: he left, right away, all right. So only what stands where a side stands is exchanged, and a sentence
with any other left or right has no mirrored one: better a picture that is never mirrored than a sentence that is not true of it.
"""

from __future__ import annotations

import re

WORD_PATTERN = re.compile(r"[^\W\d_]+(?:[-'’][^\W\d_]+)*|[^\w\s]")
"""A word with its hyphens and apostrophes, or one mark of punctuation."""
SIDE_PATTERN = re.compile(r"(?<![^\W\d_])(left|right)", re.IGNORECASE)
OPPOSITE_SIDE = {"left": "right", "right": "left"}
COMPOUND_PART_PATTERN = re.compile(
    "(left|right)(most|wards?|hand(ed)?|sided?)?|back|bottom|cent(er|re)|far|foot(ed)?|front|hand(ed)?|lower|most|rear|sided?|top|upper"
)
"""The parts of a word with hyphens that means a side: left-hand, far-right."""
PRECEDING_PATTERN = re.compile("an?|extreme|far|his|its|lower|my|the|their|upper|your")
"""Left or right after these is a side, unless `NON_SIDE_FOLLOWER_PATTERN` follows."""
NON_SIDE_FOLLOWER_PATTERN = re.compile(
    "an?|angle|answer|choice|decision|direction|her?|hi[ms]|its?|moment|my|one|order|person|place|she|size|the(y|m|ir)?|things?|times?|track|us|"
    "way|you|your"
)
PAIRED_NOUN_PATTERN = re.compile(
    "arms?|bank|cheek|corner|ears?|edge|elbow|eyes?|feet|foot|front|half|hands?|hip|knees?|legs?|lane|row|shoulders?|sides?|thigh|thumb|wrist"
)
"""What has a left and a right one: a side, after anything but `SUBJECTS`."""
SUBJECT_PATTERN = re.compile(
    "ha(d|s|ve|ving)|he|i|it|she|that|they|we|which|who|you|be(en|ing)?|gets?|got|is|are|was|were|him|them"
)
DIRECTION_PATTERN = re.compile(
    "at|from|on|to|(bend|fly|go|head|jump|lean|look|point|roll|run|shift|step|swim|swing|tilt|turn|walk)(s|es|ed|ing)?|"
    "(driv|fac|gaz|glanc|mov|rid|rotat|slid)(es?|ed|ing)|bent|drove|flew|flies|gone|ran|rode|running|slid|stepp(ed|ing)|swam|swimming|swung|went"
)
"""Left or right at the end of a clause, after one of these, is a side."""
CLAUSE_ENDINGS = ("", "and", "or", "while")
"""What ends a clause; "" is punctuation, or the sentence's end."""


def mirror_left_right(sentence: str) -> str | None:
    """The sentence that is true of the mirrored video: itself where it names no side; None where that cannot be told."""
    words = [
        "" if not word[0].isalpha() else word.lower() for word in WORD_PATTERN.findall(sentence)
    ]
    if any("clockwise" in word for word in words):
        return None
    for place, word in enumerate(words):
        if SIDE_PATTERN.search(word) and not (
            _is_side(words, place)
            if word in OPPOSITE_SIDE
            else all(map(COMPOUND_PART_PATTERN.fullmatch, word.split("-")))
        ):
            return None
    return SIDE_PATTERN.sub(
        lambda found: _match_case(OPPOSITE_SIDE[found[0].lower()], found[0]), sentence
    )


def _is_side(words: list[str], index: int) -> bool:
    """Whether a bare left or right means a side, by the words around it."""
    word = words[index]
    two_before, before, after, two_after = (
        words[at] if 0 <= at < len(words) else ""
        for at in (index - 2, index - 1, index + 1, index + 2)
    )
    if before in ("and", "or", "to") and two_before == OPPOSITE_SIDE[word]:
        before = "to"  # "left and right": left is looked at by itself
    if after in ("and", "or", "to") and two_after == OPPOSITE_SIDE[word]:
        return not SUBJECT_PATTERN.fullmatch(before)
    if PAIRED_NOUN_PATTERN.fullmatch(after):
        return not SUBJECT_PATTERN.fullmatch(before) and (after, two_after) not in (
            ("side", "by"),
            ("hand", "in"),
        )
    if PRECEDING_PATTERN.fullmatch(before):
        return not NON_SIDE_FOLLOWER_PATTERN.fullmatch(after)
    if before == "her":  # her left, but not "next to her left the room"
        return after == ""
    return DIRECTION_PATTERN.fullmatch(before) is not None and (
        after in CLAUSE_ENDINGS or (word, after) == ("left", "to")
    )


def _match_case(word: str, template: str) -> str:
    return (
        word.upper() if template.isupper() else word.capitalize() if template[0].isupper() else word
    )
