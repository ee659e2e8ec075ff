"""Learning curves, written by DVCLive into the run's `curves/`."""

from __future__ import annotations

from pathlib import Path
from typing import Any


class Curves:
    """Write named values per step. Opened at step s it first forgets what a killed run wrote after s."""

    def __init__(self, folder: Path, step: int) -> None:
        from dvclive import Live

        for path in folder.glob("plots/metrics/**/*.tsv"):
            head, *rows = path.read_text().splitlines()
            kept = [row for row in rows if int(row.split("\t")[0]) <= step]
            path.write_text("\n".join([head, *kept]) + "\n")
        # DVCLive would rewrite dvc.yaml, save an experiment and empty its folder if it were not told otherwise.
        self._live: Any = Live(str(folder), resume=step > 0, dvcyaml=None, save_dvc_exp=False, monitor_system=False)

    def write(self, step: int, values: dict[str, float]) -> None:
        self._live.step = step
        for name, value in values.items():
            self._live.log_metric(name, value)
        self._live.make_summary()

    def close(self) -> None:
        self._live.end()
