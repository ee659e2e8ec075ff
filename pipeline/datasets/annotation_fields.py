"""Types and validation of the fields in annotation files.

Types are exact, numbers are bounded, and texts can be written as UTF-8.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from pipeline.datasets.parsed import DefectLog
from pipeline.records import MAX_FRAMES, Coordinate
from pipeline.validation import format_first_error

SAFE_NAME_PATTERN = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")
"""Pattern of a video's name that becomes part of a path."""


def _check_encodable(text: str) -> str:
    r"""Return the text if UTF-8 and a path can hold it (JSON's \ud800 and \u0000 cannot)."""
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
"""Frame index as annotated. Parsers clip an index before the first frame."""
ObjectId = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Box = Annotated[list[Coordinate], Field(min_length=4, max_length=4)]
"""Coordinates of one box in pixels."""


class RawEntry(BaseModel):
    """Base of the objects in annotation files: exact types; unknown fields are ignored."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


ModelT = TypeVar("ModelT", bound=BaseModel)
MESSAGE_REPLACEMENTS = (
    (
        re.compile(
            r"a valid dictionary or (instance of|object to extract fields from) ?\w*|"
            r"a valid dictionary"
        ),
        "an object",
    ),
    (re.compile(r"a valid (tuple|list)"), "a list"),
    (re.compile(r"; use sys\.set_int_max_str_digits\(\) to increase the limit"), ""),
    (re.compile(r"Extra inputs are not permitted"), "no such field"),
)
"""Python terms in messages of libraries, and their replacements in terms of JSON."""


def validate_raw(
    model: type[ModelT],
    content: Any,
    entry_kind: str,
    name: str,
    defects: DefectLog,
    num_queries: int = 1,
) -> ModelT | None:
    """Validate one value of an annotation file.

    Args:
        model: Model to validate against.
        content: The value, as parsed from JSON.
        entry_kind: Kind of the value for the log, such as "entry".
        name: Name of the entry for the log.
        defects: Log; an invalid value adds the defect `malformed <entry_kind>`.
        num_queries: Number of queries that an invalid value excludes.

    Returns:
        The validated model, or None if the value is invalid.
    """
    try:
        return model.model_validate(content)
    except ValidationError as error:
        detail = simplify_message(format_first_error(error))
        defects.add(f"malformed {entry_kind}", name, detail, excluded=True, count=num_queries)
        return None


def simplify_message(message: str) -> str:
    """Replace Python terms in a library's message.

    Args:
        message: Message of pydantic or of the `json` module.

    Returns:
        The message in terms of JSON.
    """
    for pattern, replacement in MESSAGE_REPLACEMENTS:
        message = pattern.sub(replacement, message)
    return message
