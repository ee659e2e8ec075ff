"""The strict base model of configurations and records, and readable validation errors."""

from __future__ import annotations

import reprlib

from pydantic import BaseModel, ConfigDict, ValidationError

MAX_QUOTE_LENGTH = 80
"""Characters of a key or of a value that an error message quotes."""


class StrictModel(BaseModel):
    """Base of all configurations and records: frozen, without unknown fields, finite numbers."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True)


# Values come from files of others: their representation is bounded in length and depth.
_value_repr = reprlib.Repr()
_value_repr.maxstring = MAX_QUOTE_LENGTH
_value_repr.maxother = MAX_QUOTE_LENGTH
_value_repr.maxlong = MAX_QUOTE_LENGTH


def format_first_error(error: ValidationError) -> str:
    """Format the first problem of a pydantic error as one line.

    Args:
        error: The error of a failed validation; it has at least one problem.

    Returns:
        `field: message (got value)`; without `field: ` if the model as a whole is at fault.
        Long fields and values are cut.
    """
    problem = error.errors(include_url=False)[0]

    field = ".".join(str(part) for part in problem["loc"])
    prefix = f"{_truncate(field)}: " if field else ""
    message = problem["msg"].removeprefix("Value error, ")
    value = _truncate(_value_repr.repr(problem.get("input")))

    return f"{prefix}{message} (got {value})"


def _truncate(text: str) -> str:
    """Cut a text to MAX_QUOTE_LENGTH characters."""
    if len(text) <= MAX_QUOTE_LENGTH:
        return text
    return text[: MAX_QUOTE_LENGTH - 3] + "..."
