"""Provenance of a run: its system, data set, features and code. Reading it needs no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline.errors import InputError

PROVENANCE_FILE = "provenance.json"


def read_provenance(run: Path) -> dict[str, Any]:
    """Read the provenance of a run: its system, data set, features and code.

    Args:
        run: Run directory.

    Returns:
        The content of `provenance.json`.

    Raises:
        InputError: The directory is not a run, or the file is damaged.
    """
    path = run / PROVENANCE_FILE
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise InputError(
            f"{run} is not a run directory (no provenance.json):"
            f" train one with stvg-train --run {run}"
        ) from None
    except ValueError:
        raise InputError(f"{path} is damaged: train the run again") from None
