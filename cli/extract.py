"""`stvg-extract`: videos and sentences of an index → a store of features; resumable, parallel."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.console.app import (
    Assignments,
    ConfigFile,
    Debug,
    handle_errors,
    log_to,
    new_app,
    print_info,
    print_warning,
)
from cli.console.progress import show_progress

if TYPE_CHECKING:
    from pipeline.extraction.dry_run import DryRunReport
    from pipeline.records import Failure

app = new_app()
MAX_PRINTED_FAILURES = 20
"""Failures that are printed; all are in the ledger."""


@app.command()
@handle_errors
def extract(
    dataset: Annotated[
        str | None,
        typer.Option(
            "--dataset", metavar="NAME", help="shapes, vidstg, hcstvg-v1, hcstvg-v2, jsonl or cvat."
        ),
    ] = None,
    root: Annotated[
        Path | None,
        typer.Option("--root", metavar="PATH", help="The data set's folder; for jsonl the file."),
    ] = None,
    index: Annotated[
        Path | None,
        typer.Option("--index", metavar="FILE", help="The index that stvg-prepare wrote."),
    ] = None,
    store: Annotated[
        Path, typer.Option("--store", metavar="DIR", help="The store to fill.")
    ] = Path("store"),
    backbones: Annotated[str | None, typer.Option("--backbones", help="full or tiny.")] = None,
    weights: Annotated[
        list[str] | None,
        typer.Option(
            "--weights",
            metavar="SOURCE",
            help="tiny, random:SEED, or one per product (may be repeated): appearance=torchvision|mdetr:FILE, "
            "motion=ava:FILE|kinetics:FILE, text=hf:DIR|mdetr:FILE+hf:DIR, swin=torchvision.",
        ),
    ] = None,
    format_: Annotated[
        str | None, typer.Option("--format", help="Of visual products: zarr or hdf5.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", min=0, help="Processes; 0 works in this one.")
    ] = None,
    scheduler: Annotated[
        str | None,
        typer.Option("--scheduler", metavar="ADDRESS", help="An existing Dask scheduler."),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Say what would be made and how large it would be; write nothing."
        ),
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Only check the store: 0 intact, 1 damaged.")
    ] = False,
    config: ConfigFile = None,
    assignments: Assignments = None,
    debug: Debug = False,
) -> None:
    """Decode every video once and write its features; what is there already is kept."""
    if verify:
        return _verify_store(store)
    from cli.console.dataset_options import load_dataset_config
    from pipeline.config import merge, parse_assignments, read_section, validate
    from pipeline.extraction.config import ExtractConfig
    from pipeline.extraction.dry_run import estimate_run
    from pipeline.extraction.run import run_extraction

    source = load_dataset_config(config, dataset, root, index)
    named = {
        "backbones": backbones,
        "weights": _parse_weights(weights),
        "format": format_,
        "workers": workers,
        "scheduler": scheduler,
    }
    given = {key: value for key, value in named.items() if value is not None}
    values = merge(
        merge(read_section(config, "extract"), parse_assignments(assignments or [])), given
    )
    settings = validate(ExtractConfig, values, "section 'extract'")
    if dry_run:
        return _print_dry_run(
            store,
            estimate_run(
                source.index_path, source.video_root, source.name, store, settings, print_info
            ),
        )
    with show_progress("extracting", unit="videos") as advance:
        begun = partial(log_to, store / "log.txt")
        report = run_extraction(
            source.index_path,
            source.video_root,
            source.name,
            store,
            settings,
            advance,
            print_info,
            begun,
        )
    _warn_failures(report.failures, store)
    whole = report.videos - len(report.failures)
    print_info(
        f"{store}: {whole} of {report.videos} videos, {report.shards_written} shards made, {len(report.failures)} failed"
    )
    _print_summary(store)
    raise typer.Exit(report.exit_code(settings.allow_failed))


def _parse_weights(given: list[str] | None) -> Any:
    """`["random:0"]` → one source for all; `["appearance=random:0", …]` → one per product."""
    from pipeline.errors import InputError

    if not given:
        return None
    pairs = [text.partition("=") for text in ",".join(given).split(",")]
    if len(pairs) == 1 and not pairs[0][1]:
        return pairs[0][0]
    if not all(equals for _, equals, _ in pairs):
        raise InputError(
            f"--weights {','.join(given)!r} mixes one source for all with sources per product"
        )
    return {product: source for product, _, source in pairs}


def _warn_failures(failures: list[Failure], store: Path) -> None:
    """A line for each of the first failures: its video, which its path may name, and the first line of what is known."""
    for failure in failures[:MAX_PRINTED_FAILURES]:
        what = (failure.detail.splitlines() or [failure.reason])[0]
        print_warning(what if failure.path in what else f"{failure.video}: {what}")
    if len(failures) > MAX_PRINTED_FAILURES:
        print_warning(
            f"and {len(failures) - MAX_PRINTED_FAILURES} more videos failed: {store / 'failures.jsonl'} lists all"
        )


def _print_dry_run(store: Path, found: DryRunReport) -> None:
    """The survey in one line, and a warning where the disk is too small."""
    absent = f" ({found.missing_files} not found)" if found.missing_files else ""
    size, free = (f"{count / 1e9:.3g} GB" for count in (found.estimated_bytes, found.free_bytes))
    print_info(
        f"{store}: {found.videos} videos{absent}; to make: {found.pending_shards} shards of {found.pending_videos} videos, "
        f"{found.pending_seconds / 3600:.2g} hours, about {size}; {free} free; nothing was written"
    )
    if found.estimated_bytes > found.free_bytes:
        print_warning(f"about {size} will not fit into the {free} that are free where {store} lies")


def _verify_store(path: Path) -> None:
    from pipeline.store import Store

    problems = Store(path).verify()
    for problem in problems:
        print_warning(str(problem))
    _print_summary(path)
    print_info(f"{path}: {'intact' if not problems else f'{len(problems)} problems'}")
    raise typer.Exit(1 if problems else 0)


def _print_summary(path: Path) -> None:
    """What the store holds, a line per product."""
    from pipeline.store import Store

    for contents in Store(path).summarize():
        print_info(f"  {contents}")


def main() -> None:
    app()
