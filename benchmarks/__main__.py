"""Run the benchmark: each case in its own process, one table at the end, and a JSON file.

    make bench                               # all cases
    .venv/bin/python -m benchmarks [CASE …]  # some cases; the table keeps the results of the others

Writes benchmarks/results/cpu.{json,md}, or gpu.{json,md} on a machine with a GPU. A case first
checks that its variants give the same result. A case that fails is named at the end, keeps its
previous results and makes the exit code 1.
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
    """Run the cases of the command line and save their results.

    Returns:
        Exit code: 1 if a case failed, else 0.
    """
    arguments = parse_arguments()

    # Results of earlier runs
    kind = "gpu" if run_in_fresh_process(has_gpu, {}) else "cpu"
    results_file: Path = arguments.out / f"{kind}.json"
    results: dict[str, Any] = {}
    if results_file.is_file():
        results = json.loads(results_file.read_text(encoding="utf-8"))

    # torch's profiler would warn about missing GPUs.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")

    # Save after each case: an interrupted run keeps its finished cases.
    failed = []
    for name in arguments.cases or CASES:
        print(f"{name} …", end=" ", flush=True)
        start = time.perf_counter()
        try:
            results[name] = run_in_fresh_process(run_case, get_case_environment(name), name)
        except Exception:  # an error of one case must not stop the other cases
            failed.append(name)
            traceback.print_exc()
        print(f"{time.perf_counter() - start:.0f} s", flush=True)

        if name not in failed:
            ordered_results = {case: results[case] for case in CASES if case in results}
            save_results(results_file, ordered_results)

    page_file = results_file.with_suffix(".md")
    print(f"\n{format_table(results)}\n")
    print(f"{page_file} describes each case, {results_file} holds all results")

    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


def parse_arguments() -> argparse.Namespace:
    """Parse the command line.

    Returns:
        `cases`, an empty list for all cases, and `out`, the folder of the results.
    """
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
        help=f"cases to run, by default all: {', '.join(CASES)}",
    )
    parser.add_argument("--out", type=Path, default=RESULTS_DIR, help="folder of the results")
    return parser.parse_args()


def save_results(file: Path, results: dict[str, Any]) -> None:
    """Write the results as JSON, and the results page beside them.

    Args:
        file: Path of the JSON file.
        results: Records by case.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    file.with_suffix(".md").write_text(format_page(results), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
