"""`stvg-extract`: features of the videos and sentences of an index; resumable, parallel."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.console.app import (
    Assignments,
    ConfigFile,
    Debug,
    Version,
    handle_errors,
    log_to,
    new_app,
    print_info,
    print_warning,
)
from cli.console.progress import show_progress

if TYPE_CHECKING:
    from pipeline.extraction.config import ExtractConfig
    from pipeline.extraction.dry_run import DryRunReport
    from pipeline.records import Failure

app = new_app()

MAX_PRINTED_FAILURES = 20
"""Failures that are printed; the ledger has all."""


@app.command()
@handle_errors
def extract(
    dataset: Annotated[
        str | None,
        typer.Option(
            "--dataset",
            metavar="NAME",
            help="Data set: shapes, vidstg, hcstvg-v1, hcstvg-v2, jsonl or cvat.",
        ),
    ] = None,
    root: Annotated[
        Path | None,
        typer.Option("--root", metavar="PATH", help="Folder of the data set; for jsonl, the file."),
    ] = None,
    index: Annotated[
        Path | None,
        typer.Option("--index", metavar="FILE", help="The index that stvg-prepare wrote."),
    ] = None,
    store: Annotated[
        Path, typer.Option("--store", metavar="DIR", help="The feature store to fill.")
    ] = Path("store"),
    backbones: Annotated[
        str | None,
        typer.Option("--backbones", metavar="SIZE", help="Size of the encoders: full or tiny."),
    ] = None,
    weights: Annotated[
        list[str] | None,
        typer.Option(
            "--weights",
            metavar="SOURCE",
            help="Weights of the encoders: tiny, random:SEED, or one source per product. "
            "May be repeated. Products: appearance=torchvision|mdetr:FILE, "
            "motion=ava:FILE|kinetics:FILE, text=hf:DIR|mdetr:FILE+hf:DIR, swin=torchvision.",
        ),
    ] = None,
    format_: Annotated[
        str | None,
        typer.Option(
            "--format", metavar="FORMAT", help="File format of visual products: zarr or hdf5."
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            metavar="N",
            min=0,
            help="Number of worker processes. With 0, this process does all work.",
        ),
    ] = None,
    scheduler: Annotated[
        str | None,
        typer.Option("--scheduler", metavar="ADDRESS", help="Use an existing Dask scheduler."),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Report what would be extracted and its size. Write nothing."
        ),
    ] = False,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Only check the store. Exit code 0: intact; 1: damaged."),
    ] = False,
    config: ConfigFile = None,
    assignments: Assignments = None,
    debug: Debug = False,
    version: Version = False,
) -> None:
    """Decode every video once and write its features to a store.

    Features that are in the store already are kept.
    """
    if verify:
        return _verify_store(store)

    from cli.console.dataset_options import load_dataset_config
    from pipeline.extraction.dry_run import estimate_run
    from pipeline.extraction.run import run_extraction

    dataset_config = load_dataset_config(config, dataset, root, index)
    options = {
        "backbones": backbones,
        "weights": _parse_weights(weights),
        "format": format_,
        "workers": workers,
        "scheduler": scheduler,
    }
    settings = _load_settings(config, assignments or [], options)

    if dry_run:
        estimate = estimate_run(
            dataset_config.index_path,
            dataset_config.video_root,
            dataset_config.name,
            store,
            settings,
            print_info,
        )
        return _print_dry_run(store, estimate)

    with show_progress("extracting", unit="videos") as advance:
        # The log file lies in the store, so it is opened once the store may be made.
        open_log = partial(log_to, store / "log.txt")
        report = run_extraction(
            dataset_config.index_path,
            dataset_config.video_root,
            dataset_config.name,
            store,
            settings,
            advance,
            print_info,
            open_log,
        )

    _warn_failures(report.failures, store)
    num_complete = report.videos - len(report.failures)
    print_info(
        f"{store}: {num_complete} of {report.videos} videos, {report.shards_written} shards made,"
        f" {len(report.failures)} failed"
    )
    _print_summary(store)
    raise typer.Exit(report.exit_code(settings.allow_failed))


def _load_settings(
    config: Path | None, assignments: list[str], options: dict[str, Any]
) -> ExtractConfig:
    """Load section `extract`: the file, then `--set`, then the command's own options."""
    from pipeline.config import merge, parse_assignments, read_section, validate
    from pipeline.extraction.config import ExtractConfig

    overrides = {key: value for key, value in options.items() if value is not None}
    values = merge(read_section(config, "extract"), parse_assignments(assignments))
    values = merge(values, overrides)
    return validate(ExtractConfig, values, "section 'extract'")


def _parse_weights(weights: list[str] | None) -> Any:
    """Parse `--weights`: one source for all products, or a source for each product.

    `["random:0"]` gives `"random:0"`; `["appearance=random:0"]` gives `{"appearance": "random:0"}`.
    """
    from pipeline.errors import InputError

    if not weights:
        return None

    pairs = [text.partition("=") for text in ",".join(weights).split(",")]
    if len(pairs) == 1 and not pairs[0][1]:
        return pairs[0][0]

    if not all(equals for _, equals, _ in pairs):
        raise InputError(
            f"--weights {','.join(weights)!r} mixes one source for all products with sources per"
            " product: give one source, or PRODUCT=SOURCE for each product"
        )
    return {product: source for product, _, source in pairs}


def _warn_failures(failures: list[Failure], store: Path) -> None:
    """Print a line for each of the first failures: the video and the first line of the cause."""
    for failure in failures[:MAX_PRINTED_FAILURES]:
        cause = (failure.detail.splitlines() or [failure.reason])[0]
        print_warning(cause if failure.path in cause else f"{failure.video}: {cause}")

    num_hidden = len(failures) - MAX_PRINTED_FAILURES
    if num_hidden > 0:
        print_warning(f"and {num_hidden} more videos failed: {store / 'failures.jsonl'} lists all")


def _print_dry_run(store: Path, estimate: DryRunReport) -> None:
    """Print the estimate in one line, and a warning if the disk is too small."""
    missing = f" ({estimate.missing_files} not found)" if estimate.missing_files else ""
    size = f"{estimate.estimated_bytes / 1e9:.3g} GB"
    free = f"{estimate.free_bytes / 1e9:.3g} GB"
    print_info(
        f"{store}: {estimate.videos} videos{missing}; to make: {estimate.pending_shards} shards"
        f" of {estimate.pending_videos} videos, {estimate.pending_seconds / 3600:.2g} hours, about"
        f" {size}; {free} free; nothing was written"
    )
    if estimate.estimated_bytes > estimate.free_bytes:
        print_warning(f"about {size} will not fit: the disk of {store} has {free} free")


def _verify_store(path: Path) -> None:
    """Check a store, print its problems and its contents, and leave with the exit code."""
    from pipeline.store import Store

    problems = Store(path).verify()
    for problem in problems:
        print_warning(str(problem))

    _print_summary(path)
    print_info(f"{path}: {f'{len(problems)} problems' if problems else 'intact'}")
    raise typer.Exit(1 if problems else 0)


def _print_summary(path: Path) -> None:
    """Print the contents of a store, one line per product."""
    from pipeline.store import Store

    for product_summary in Store(path).summarize():
        print_info(f"  {product_summary}")


def main() -> None:
    """Run the command."""
    app()
