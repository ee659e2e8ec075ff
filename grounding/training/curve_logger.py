"""Learning curves, written by DVCLive into the run's `curves/`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class CurveLogger:
    """Write named values per step. Opened at step s it first forgets what a killed run wrote after s, or half wrote; of
    `val/…` what it wrote after step `judged` (by default s).
    """

    def __init__(self, folder: Path, step: int, validated_step: int | None = None) -> None:
        for path in folder.glob("plots/metrics/**/*.tsv"):
            head, *rows = path.read_text().splitlines() or [""]
            if not head:  # killed before its first row: DVCLive gives a header only to a file that is not there
                path.unlink()
                continue
            until = (
                validated_step if validated_step is not None and path.parent.name == "val" else step
            )
            kept = [row for row in rows if int(row.split("\t")[0]) <= until]
            path.write_text("\n".join([head, *kept]) + "\n")
        summary = folder / "metrics.json"
        if summary.exists() and not _is_json(summary):
            summary.unlink()
        self._live_logger = _open_live_logger(folder, resume=step > 0)

    def write(self, step: int, values: dict[str, float]) -> None:
        self._live_logger.step = step
        for name, value in values.items():
            self._live_logger.log_metric(name, value)
        self._live_logger.make_summary()

    def close(self) -> None:
        self._live_logger.end()


def _open_live_logger(folder: Path, resume: bool) -> Any:
    """A DVCLive logger that leaves the repository alone.

    DVCLive would rewrite dvc.yaml, save an experiment and empty its folder if it were not told otherwise. And no
    option keeps it from `dvc init` in a git repository that is not DVC's.
    """
    from dvclive import Live

    class Apart(Live):
        def _init_dvc(self) -> None:
            self._dvc_file = "dvc.yaml"

    return Apart(str(folder), resume=resume, dvcyaml=None, save_dvc_exp=False, monitor_system=False)


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text())
    except ValueError:
        return False
    return True
