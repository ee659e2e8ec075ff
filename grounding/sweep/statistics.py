"""The numbers of a sweep's table: means over seeds, how sure they are, differences, and what the paper claims.

**Mean.** Of every query's score over the seeds' runs, then over queries.

**Interval** (95 %). Another draw of the videos and another draw of the seeds would both have given another mean. Videos
are drawn again with replacement (`grounding.metrics.bootstrap`: the sentences of one video together), on the scores averaged
over seeds. To each of those draws an error of the seeds is added: Student's t with S - 1 degrees of freedom times the
standard deviation of the S seeds' own means over √S, which is what S runs tell of the mean of all runs. The interval
is from the 2.5 % to the 97.5 % percentile. Few seeds cost width: for two of them t is wide. What is left to chance per
query and seed counts in both parts, so that the interval is a little too wide rather than too narrow.

**Difference.** The same of the differences query by query, so that what is hard for both cancels, and seed by seed
(the runs of one seed see the same batches). An ensemble is one answer: its own interval is over videos alone; against
other variants it is set beside each seed's run.

Intervals are not corrected for their number: of twenty differences that are none, one is expected to exclude 0.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from grounding.metrics.bootstrap import PERCENTILES, bootstrap_means, stack_scores, too_few_videos
from grounding.metrics.scores import MEAN_METRICS, Score
from grounding.sweep.run import Sweep, SweepScores
from grounding.sweep.tables import Claim, Section
from grounding.systems.checkpoint import load_model, read_provenance
from pipeline.records import Query

ALL_QUERIES = "all"
Estimate = dict[str, Any]
"""`mean`, `low`, `high` (its 95 % interval; None for too few videos), `seeds` (each seed's own), `spread` (their standard
deviation; None for one)."""


def compute_statistics(sweep: Sweep, sweep_scores: SweepScores) -> dict[str, Any]:
    """What `table.json` holds; means and differences are in [0, 1], published figures in percent."""
    order = sweep_scores[next(iter(sweep.table.trained_variants))][0]
    stacks = {name: _stack_runs(scores, order) for name, scores in sweep_scores.items()}
    groups = build_query_groups(sweep.ground_truth.queries, [one.id for one in order])
    videos = np.array([sweep.ground_truth.video_by_query[one.id] for one in order])

    def judged(
        stack: np.ndarray, only: Sequence[str], least: float, wanted: Iterable[str]
    ) -> dict[str, dict[str, Estimate]]:
        found = {
            group: compute_estimates(stack[:, groups[group]], videos[groups[group]], least)
            for group in wanted
        }
        return {
            group: {name: one for name, one in means.items() if name in only}
            for group, means in found.items()
        }

    def differences(
        name: str, reference: str, wanted: Iterable[str] = tuple(groups)
    ) -> dict[str, dict[str, Estimate]]:
        both = [
            mean
            for mean in sweep.table.variants[name].metrics
            if mean in sweep.table.variants[reference].metrics
        ]
        return judged(stacks[name] - stacks[reference], both, -1.0, wanted)

    return {
        "format": 1,
        "title": sweep.table.title,
        **({"unit": sweep.table.cost_reference} if sweep.table.has_costs else {}),
        **_build_metadata(sweep, groups, videos),
        "variants": {
            name: {
                "shows": variant.label,
                "of": variant.derived_from,
                "changes": variant.changes,
                **_build_cost_entry(sweep, name),
                "runs": [
                    sweep.get_run_dir(name, seed).relative_to(sweep.out).as_posix()
                    for seed in sweep.seeds_for_variant(name)
                ],
                "groups": judged(stacks[name], variant.metrics, 0.0, groups),
            }
            for name, variant in sweep.table.variants.items()
        },
        "sections": [_build_section(section, differences) for section in sweep.table.sections],
        "claims": [
            _evaluate_claim(
                claim, differences(claim.higher, claim.lower, [ALL_QUERIES])[ALL_QUERIES]
            )
            for claim in sweep.table.claims
        ],
    }


def build_query_groups(queries: Sequence[Query], query_ids: Sequence[str]) -> dict[str, np.ndarray]:
    """Which of the scored queries (`ids`) are in a group: all, then each form and each tag."""
    names = {query.id: {query.form, *query.tags} - {None} for query in queries}
    known = sorted({str(name) for one in query_ids for name in names[one]})
    return {ALL_QUERIES: np.ones(len(query_ids), bool)} | {
        name: np.array([name in names[one] for one in query_ids]) for name in known
    }


def compute_estimates(
    scores: np.ndarray, videos: Sequence[str] | np.ndarray, minimum: float
) -> dict[str, Estimate]:
    """Of scores, or of their differences, `[seeds, queries, means]` (NaN where not known): each mean with its interval.

    No mean is below `least` or above 1, and so no interval reaches there. A mean that no query has is left out.
    """
    own = _compute_seed_means(scores)
    spread = own.std(0, ddof=1) if len(own) > 1 else np.zeros(own.shape[1])
    drawn = bootstrap_means(scores.mean(0), list(videos), seed=0)
    if len(own) > 1:
        error = np.random.default_rng(1).standard_t(len(own) - 1, (len(drawn), 1))
        drawn = drawn + error * spread / np.sqrt(len(own))
    found: dict[str, Estimate] = {}
    for place, name in enumerate(MEAN_METRICS):
        if np.isnan(own[:, place]).all():
            continue
        ends = np.nanpercentile(drawn[:, place], PERCENTILES).clip(minimum, 1.0)
        low, high = (None, None) if too_few_videos(videos) else ends.tolist()
        seeds = own[:, place].tolist()
        mean = float(np.mean(seeds))
        found[name] = {
            "mean": mean,
            "low": low,
            "high": high,
            "seeds": seeds,
            "spread": float(spread[place]) if len(own) > 1 else None,
        }
    return found


def is_significant(difference: Mapping[str, Any] | None) -> bool:
    """Whether a difference's interval excludes 0."""
    return (
        difference is not None
        and difference["low"] is not None
        and (difference["low"] > 0 or difference["high"] < 0)
    )


def _compute_seed_means(scores: np.ndarray) -> np.ndarray:
    """Each seed's means over its known queries, `[seeds, means]`."""
    known = ~np.isnan(scores)
    return np.divide(
        np.where(known, scores, 0).sum(1),
        known.sum(1),
        out=np.full(scores.shape[::2], np.nan),
        where=known.any(1),
    )


def _stack_runs(runs: Sequence[Sequence[Score]], ordered_scores: Sequence[Score]) -> np.ndarray:
    """The scores of some runs, `[seeds, queries, means]`, with the queries in one order."""
    tables = []
    for scores in runs:
        by_id = {one.id: one for one in scores}
        tables.append(stack_scores([by_id[one.id] for one in ordered_scores]))
    return np.stack(tables)


def _build_metadata(
    sweep: Sweep, groups: Mapping[str, np.ndarray], videos: np.ndarray
) -> dict[str, Any]:
    """What the table stands on."""
    runs = [
        read_provenance(sweep.get_run_dir(name, seed))
        for name in sweep.table.trained_variants
        for seed in sweep.seeds
    ]
    codes = defaultdict[bool, set[str]](set)
    for run in runs:
        codes[bool(run.get("encoders"))].add(
            run["code"]
        )  # where encoders train, their sources are part of the code
    most = max(codes.values(), key=len)
    return {
        "dataset": sweep.ground_truth.dataset_name,
        "split": sweep.split,
        "protocol": "every-frame",
        "store": sweep.store_digest,
        "seeds": list(sweep.seeds),
        "steps": sorted({run["finished"] for run in runs}),
        "codes": sorted(most),
        "groups": {
            name: {"queries": int(rows.sum()), "videos": len(set(videos[rows]))}
            for name, rows in groups.items()
        },
    }


def _build_cost_entry(sweep: Sweep, name: str) -> dict[str, Any]:
    """What a variant takes, where the table says it: its parameters (those of an encoder in its network among them), steps, and a
    step's time and memory as multiples of the unit's.
    """
    variant = sweep.table.variants[name]
    source = variant.derived_from if variant.derived_from and not variant.ensemble_seeds else name
    cost = sweep.table.variants[source].cost
    if cost is None:
        return {}
    model, _, about = load_model(sweep.get_run_dir(source, sweep.seeds[0]))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {
        "system": about["model"],
        "parameters": parameters,
        "steps": about["finished"],
        "cost": cost.model_dump(),
    }


def _build_section(
    section: Section, compare_variants: Callable[[str, str], dict[str, dict[str, Estimate]]]
) -> dict[str, Any]:
    """A section's rows: how each differs from the reference, here and in the paper."""
    source = section.published
    rows = []
    for name in section.rows:
        row: dict[str, Any] = {"variant": name, "published": source.scores(name) if source else {}}
        if name != section.reference:
            row["differences"] = compare_variants(name, section.reference)
        rows.append(row)
    published = (
        {"dataset": source.dataset, "split": source.split, "method": source.method}
        if source
        else None
    )
    return {
        "title": section.title,
        "reference": section.reference,
        "published": published,
        "rows": rows,
    }


def _evaluate_claim(claim: Claim, differences: Mapping[str, Estimate]) -> dict[str, Any]:
    """Whether what a paper says is seen: yes or no where the difference's interval excludes 0, else unclear."""
    one = differences.get(claim.metric, {"mean": None, "low": None, "high": None})
    seen = "unclear" if not is_significant(one) else "yes" if one["low"] > 0 else "no"
    return {
        **claim.model_dump(),
        "difference": one["mean"],
        "low": one["low"],
        "high": one["high"],
        "seen": seen,
    }
