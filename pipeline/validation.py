"""The strict base model of records, and readable validation errors."""

from __future__ import annotations

import reprlib

from pydantic import BaseModel, ConfigDict, ValidationError


class Record(BaseModel):
    """Base of all records: immutable, unknown fields refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


_short = reprlib.Repr()


def first_problem(error: ValidationError) -> str:
    """The first problem of a pydantic error as one readable line: `field: what is wrong (got …)`."""
    problem = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in problem["loc"])
    message = problem["msg"].removeprefix("Value error, ")
    return f"{_cut(place) + ': ' if place else ''}{message} (got {_cut(_short.repr(problem.get('input')))})"


def _cut(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "..."
