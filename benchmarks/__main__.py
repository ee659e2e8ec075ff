"""Run the benchmark: each case in a process of its own, one table at the end, JSON beside it.

    make bench                                        # everything
    .venv/bin/python -m benchmarks [CASE …]           # some cases; what others found before stays in the table

Writes benchmarks/results/cpu.{json,md}, or gpu.{json,md} where there is a GPU. A case first checks
that what it compares gives the same; one that fails is named at the end, keeps its old numbers and
makes the exit code 1.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from benchmarks.cases import CASES
from benchmarks.machine import has_gpu
from benchmarks.results_page import format_page, format_table
from benchmarks.subprocess_runner import get_case_environment, run_case, run_in_fresh_process

RESULTS_DIR = Path(__file__).parent / "results"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "cases",
        metavar="CASE",
        nargs="*",
        choices=[*CASES, []],
        help=f"of {', '.join(CASES)}; by default all",
    )
    parser.add_argument("--out", type=Path, default=RESULTS_DIR, help="folder of the results")
    arguments = parser.parse_args()
    kind = "gpu" if run_in_fresh_process(has_gpu, {}) else "cpu"
    file: Path = arguments.out / f"{kind}.json"
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    failed = []
    os.environ.setdefault(
        "KINETO_LOG_LEVEL", "99"
    )  # or torch's profiler tells of GPUs that it does not find
    for name in arguments.cases or CASES:
        print(f"{name} …", end=" ", flush=True)
        began = time.perf_counter()
        try:
            found[name] = run_in_fresh_process(run_case, get_case_environment(name), name)
        except Exception:  # whatever a case fails with must not cost the others
            failed.append(name)
            traceback.print_exc()
        print(f"{time.perf_counter() - began:.0f} s", flush=True)
        if name not in failed:
            save_results(file, {name: found[name] for name in CASES if name in found})
    print(
        f"\n{format_table(found)}\n\n{file.with_suffix('.md')} says what each case compares, {file} holds everything that was found"
    )
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


def save_results(file: Path, results: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    file.with_suffix(".md").write_text(format_page(results), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
