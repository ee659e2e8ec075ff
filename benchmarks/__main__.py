"""Run the benchmark: each case in a process of its own, one table at the end, JSON beside it.

    make bench                                        # everything
    .venv/bin/python -m benchmarks [CASE …]           # some cases; what others found before stays in the table

Writes benchmarks/results/cpu.{json,md}, or gpu.{json,md} where there is a GPU. A case first checks that what it compares gives
the same; one that fails is named at the end, keeps its old numbers and makes the exit code 1.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import traceback
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.cases import PLACES, case_class
from benchmarks.page import page, table

RESULTS = Path(__file__).parent / "results"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", metavar="CASE", nargs="*", choices=[*PLACES, []], help=f"of {', '.join(PLACES)}; by default all")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    arguments = parser.parse_args()
    kind = "gpu" if _apart(has_gpu, {}) else "cpu"
    file: Path = arguments.out / f"{kind}.json"
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    failed = []
    for name in arguments.cases or PLACES:
        print(f"{name} …", end=" ", flush=True)
        began = time.perf_counter()
        try:
            found[name] = _apart(run_case, case_environment(name), name)
        except Exception:  # whatever a case fails with must not cost the others
            failed.append(name)
            traceback.print_exc()
        print(f"{time.perf_counter() - began:.0f} s", flush=True)
        if name not in failed:
            write(file, {name: found[name] for name in PLACES if name in found})
    print(f"\n{table(found)}\n\n{file.with_suffix('.md')} says what each case compares, {file} holds everything that was found")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


def write(file: Path, found: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    file.with_suffix(".md").write_text(page(found), encoding="utf-8")


def case_environment(name: str) -> dict[str, str]:
    """What a case wants set before anything is imported, asked in a process of its own."""
    return _apart(_environment, {}, name)


def _environment(name: str) -> dict[str, str]:
    return dict(case_class(name).environment)


def _apart(work: Any, environment: dict[str, str], *given: str) -> Any:
    """The work in a fresh process with these variables, which may start others."""
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            return pool.submit(work, *given).result()
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def run_case(name: str) -> dict[str, Any]:
    """What one case finds, with where and when, and the rates its floors are reckoned with."""
    from cli.app import keep_memory

    keep_memory()  # as every command does; GOMP_SPINCOUNT is set by the import
    from benchmarks.machine import rates, where

    load, began = os.getloadavg()[0], time.perf_counter()
    with case_class(name)() as case:
        case.agree()
        speed = rates(case.device, case.precision)
        groups = case.measure()
        return {
            "compares": " ".join((case.__doc__ or "").split()),
            "found": [record for group in groups for record in group.found(speed)],
            "rates": asdict(speed) | {"device": case.device, "precision": case.precision},
            "where": where(*case.packages),
            "load_before": load,
            "date": time.strftime("%Y-%m-%d"),
            "took_seconds": time.perf_counter() - began,
        }


if __name__ == "__main__":
    sys.exit(main())
