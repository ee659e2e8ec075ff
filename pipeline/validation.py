"""The strict base model of records, and readable validation errors."""

from __future__ import annotations

import reprlib

from pydantic import BaseModel, ConfigDict, ValidationError


class StrictModel(BaseModel):
    """Base of all records: immutable, unknown fields refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


_value_repr = reprlib.Repr()


def format_first_error(error: ValidationError) -> str:
    """The first problem of a pydantic error as one readable line: `field: what is wrong (got …)`."""
    problem = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in problem["loc"])
    message = problem["msg"].removeprefix("Value error, ")
    return f"{_truncate(place) + ': ' if place else ''}{message} (got {_truncate(_value_repr.repr(problem.get('input')))})"


def _truncate(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "..."
