"""Running one case in a fresh process, with the environment it wants."""

from __future__ import annotations

import os
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from typing import Any

from benchmarks.cases import get_case_class


def get_case_environment(name: str) -> dict[str, str]:
    """What a case wants set before anything is imported, asked in a process of its own."""
    return run_in_fresh_process(_read_environment, {}, name)


def _read_environment(name: str) -> dict[str, str]:
    return dict(get_case_class(name).environment)


def run_in_fresh_process(function: Any, environment: dict[str, str], *args: str) -> Any:
    """The work in a fresh process with these variables, which may start others."""
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            return pool.submit(function, *args).result()
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def run_case(name: str) -> dict[str, Any]:
    """What one case finds, with where and when, and the rates its floors are reckoned with."""
    from cli.console.app import tune_malloc

    tune_malloc()  # as every command does; GOMP_SPINCOUNT is set by the import
    from benchmarks.machine import describe_machine, measure_rates

    load, began = os.getloadavg()[0], time.perf_counter()
    with get_case_class(name)() as case:
        case.check_agreement()
        speed = measure_rates(case.device, case.precision)
        groups = case.measure()
        return {
            "compares": " ".join((case.__doc__ or "").split()),
            "found": [record for group in groups for record in group.to_records(speed)],
            "rates": asdict(speed) | {"device": case.device, "precision": case.precision},
            "where": describe_machine(*case.packages),
            "load_before": load,
            "date": time.strftime("%Y-%m-%d"),
            "took_seconds": time.perf_counter() - began,
        }
