"""Runs of one case in a fresh process with the case's environment."""

from __future__ import annotations

import inspect
import os
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from typing import Any

from benchmarks.case import Case
from benchmarks.cases import get_case_class


def get_case_environment(name: str) -> dict[str, str]:
    """Return the environment variables of a case, which a separate process imports.

    Args:
        name: Name of the case.

    Returns:
        Values by variable.
    """
    return run_in_fresh_process(_read_environment, {}, name)


def _read_environment(name: str) -> dict[str, str]:
    """Return the environment variables of a case, importing its module."""
    return dict(get_case_class(name).environment)


def run_in_fresh_process(function: Any, environment: dict[str, str], *args: str) -> Any:
    """Run a function in a fresh process that may start other processes.

    Args:
        function: Function to run, picklable.
        environment: Environment variables of the process.
        *args: Arguments of the function.

    Returns:
        The function's result.
    """
    previous = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)

    try:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            return pool.submit(function, *args).result()
    finally:
        for name, value in previous.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value


def run_case(name: str) -> dict[str, Any]:
    """Run one case in this process.

    Args:
        name: Name of the case.

    Returns:
        Record of the case: its results, date and machine, and the rates of its lower bounds.
    """
    from cli.console.app import tune_malloc

    # As in every command. The import itself sets GOMP_SPINCOUNT, so torch comes after it.
    tune_malloc()
    from benchmarks.machine import describe_machine, measure_rates

    load = os.getloadavg()[0]
    start = time.perf_counter()

    with get_case_class(name)() as case:
        case.check_agreement()
        rates = measure_rates(case.device, case.precision)
        comparisons = case.measure()

        records = []
        for comparison in comparisons:
            records += comparison.to_records(rates)

        return {
            "compares": describe_case(case),
            "found": records,
            "rates": asdict(rates) | {"device": case.device, "precision": case.precision},
            "where": describe_machine(*case.packages),
            "load_before": load,
            "date": time.strftime("%Y-%m-%d"),
            "took_seconds": time.perf_counter() - start,
        }


def describe_case(case: Case) -> str:
    """Return the description of a case for the results page.

    Args:
        case: The case.

    Returns:
        Its docstring without the first line, as one paragraph.
    """
    _, _, description = inspect.cleandoc(case.__doc__ or "").partition("\n\n")
    return " ".join(description.split())
