"""What the files of a data set may say: exact types, bounded numbers, text that can be written again."""

from __future__ import annotations

import re
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from pipeline.datasets.parsed import DefectLog
from pipeline.records import MAX_FRAMES, Coordinate
from pipeline.validation import format_first_error

SAFE_NAME_PATTERN = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")
"""What a video may be called where its name comes to stand in a path."""


def _check_encodable(text: str) -> str:
    """The text, if it can be written as UTF-8 and stand in a path (JSON's \\ud800 and \\u0000 cannot)."""
    if "\0" in text:
        raise ValueError("text with a NUL character")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("text with half a surrogate pair") from None
    return text


Text = Annotated[str, AfterValidator(_check_encodable)]
FrameCount = Annotated[int, Field(gt=0, le=MAX_FRAMES)]
FrameRate = Annotated[float, Field(ge=0.001, le=1000)]
"""Frames per second."""
SideLength = Annotated[int, Field(gt=0, le=2**16)]
"""Pixels."""
SignedFrameIndex = Annotated[int, Field(ge=-MAX_FRAMES, le=MAX_FRAMES)]
"""A frame number as annotations may have it: before the first frame is still a number, to be clipped."""
ObjectId = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Box = Annotated[list[Coordinate], Field(min_length=4, max_length=4)]


class RawEntry(BaseModel):
    """Base of a data set's own objects: exact types, unknown fields passed over."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


ModelT = TypeVar("ModelT", bound=BaseModel)
MESSAGE_REPLACEMENTS = (
    (
        re.compile(
            r"a valid dictionary or (instance of|object to extract fields from) ?\w*|a valid dictionary"
        ),
        "an object",
    ),
    (re.compile(r"a valid (tuple|list)"), "a list"),
    (re.compile(r"; use sys\.set_int_max_str_digits\(\) to increase the limit"), ""),
    (re.compile(r"Extra inputs are not permitted"), "no such field"),
)
"""Words of the libraries, and what is said for them."""


def validate_raw(
    model: type[ModelT],
    content: Any,
    entry_kind: str,
    name: str,
    defects: DefectLog,
    num_queries: int = 1,
) -> ModelT | None:
    """The content as a `model`; None, and a defect `malformed <what>` that leaves its `queries` out, where it is none."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        defects.add(
            f"malformed {entry_kind}",
            name,
            simplify_message(format_first_error(error)),
            excluded=True,
            count=num_queries,
        )
        return None


def simplify_message(message: str) -> str:
    """What a library says of a value, without the words of its own."""
    for pattern, word in MESSAGE_REPLACEMENTS:
        message = pattern.sub(word, message)
    return message
