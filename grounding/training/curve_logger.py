"""Learning curves, written by DVCLive into the run's `curves/`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class CurveLogger:
    """Writer of named values per step.

    Points that a killed run wrote after its last checkpoint are removed, and so are files that it
    left half written.

    Args:
        folder: The folder of the curves.
        step: The step to go on from. Later points are removed.
        validated_step: The last validated step: later points of `val/…` are removed. `step` by
            default.
    """

    def __init__(self, folder: Path, step: int, validated_step: int | None = None) -> None:
        for path in folder.glob("plots/metrics/**/*.tsv"):
            last_step = step
            if validated_step is not None and path.parent.name == "val":
                last_step = validated_step
            _truncate_curve(path, last_step)

        summary = folder / "metrics.json"
        if summary.exists() and not _is_json(summary):
            summary.unlink()

        self._live_logger = _open_live_logger(folder, resume=step > 0)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Add one point to each curve.

        Args:
            step: The number of steps taken.
            values: Value of each curve, by its name `<split>/<name>`.
        """
        self._live_logger.step = step
        for name, value in values.items():
            self._live_logger.log_metric(name, value)
        self._live_logger.make_summary()

    def close(self) -> None:
        """Finish all files."""
        self._live_logger.end()


def _truncate_curve(path: Path, last_step: int) -> None:
    """Remove the points of a curve after a step."""
    header, *rows = path.read_text().splitlines() or [""]

    # An empty file is of a run killed before its first row. DVCLive writes the header only to a
    # file that does not exist.
    if not header:
        path.unlink()
        return

    remaining = [row for row in rows if int(row.split("\t")[0]) <= last_step]
    path.write_text("\n".join([header, *remaining]) + "\n")


def _open_live_logger(folder: Path, resume: bool) -> Any:
    """Return a DVCLive logger that leaves the repository alone.

    By default DVCLive rewrites dvc.yaml, saves an experiment and empties its folder. No option
    keeps it from `dvc init` in a git repository without DVC.
    """
    from dvclive import Live

    class IsolatedLive(Live):
        def _init_dvc(self) -> None:
            self._dvc_file = "dvc.yaml"

    return IsolatedLive(
        str(folder), resume=resume, dvcyaml=None, save_dvc_exp=False, monitor_system=False
    )


def _is_json(path: Path) -> bool:
    """Return True if a file holds valid JSON."""
    try:
        json.loads(path.read_text())
    except ValueError:
        return False
    return True
