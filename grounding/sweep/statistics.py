"""Statistics of a sweep: means over seeds, intervals, differences, and claims of the paper.

**Mean.** The mean over queries of each query's score, averaged over the seeds' runs.

**Interval** (95 %). Another sample of videos and another set of seeds would both have given another
mean. The videos are resampled with replacement on the scores averaged over seeds
(`grounding.metrics.bootstrap`: the sentences of one video stay together). An error of the seeds is
added to each resample: Student's t with S - 1 degrees of freedom, times the standard deviation of
the S seeds' own means, over √S. The interval is from the 2.5 % to the 97.5 % percentile. With few
seeds it is wide, because t is wide for two of them. Chance per query and seed counts in both parts,
so that the interval is slightly too wide rather than too narrow.

**Difference.** The same statistics of the differences, query by query, so that the difficulty of a
query cancels, and seed by seed, because the runs of one seed see the same batches. An ensemble is
one set of predictions: its own interval is over videos alone. Against other variants it is compared
with each seed's run.

Intervals are not corrected for their number: of twenty true differences of zero, one interval is
expected to exclude 0.
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
from grounding.systems.checkpoint import load_model
from grounding.systems.provenance import read_provenance
from pipeline.records import Query

ALL_QUERIES = "all"
"""Name of the group of all queries."""

Estimate = dict[str, Any]
"""A mean with its uncertainty.

Keys: `mean`; `low` and `high` of its 95 % interval (None for too few videos); `seeds`, the mean of
each seed; `spread`, their standard deviation (None for one seed).
"""
GroupEstimates = dict[str, dict[str, Estimate]]
"""Group of queries → metric → estimate."""


def compute_statistics(sweep: Sweep, sweep_scores: SweepScores) -> dict[str, Any]:
    """Compute the content of `table.json`.

    Args:
        sweep: The plan of the sweep.
        sweep_scores: Scores of all runs, by variant.

    Returns:
        The table. Means and differences are in [0, 1], published figures in percent.
    """
    comparison = _Comparison(sweep, sweep_scores)
    metadata = _build_metadata(sweep, comparison.groups, comparison.videos)

    variants = {}
    for name, variant in sweep.table.variants.items():
        run_dirs = [sweep.get_run_dir(name, seed) for seed in sweep.seeds_for_variant(name)]
        variants[name] = {
            "shows": variant.label,
            "of": variant.derived_from,
            "changes": variant.changes,
            **_build_cost_entry(sweep, name),
            "runs": [run_dir.relative_to(sweep.out).as_posix() for run_dir in run_dirs],
            "groups": comparison.estimate_variant(name),
        }

    sections = [
        _build_section(section, comparison.estimate_difference) for section in sweep.table.sections
    ]

    claims = []
    for claim in sweep.table.claims:
        differences = comparison.estimate_difference(claim.higher, claim.lower, [ALL_QUERIES])
        claims.append(_evaluate_claim(claim, differences[ALL_QUERIES]))

    unit = {"unit": sweep.table.cost_reference} if sweep.table.has_costs else {}
    return {
        "format": 1,
        "title": sweep.table.title,
        **unit,
        **metadata,
        "variants": variants,
        "sections": sections,
        "claims": claims,
    }


class _Comparison:
    """Scores of all variants, in one order of queries."""

    def __init__(self, sweep: Sweep, sweep_scores: SweepScores) -> None:
        self.sweep = sweep
        ordered_scores = sweep_scores[next(iter(sweep.table.trained_variants))][0]
        query_ids = [score.id for score in ordered_scores]

        self.stacks = {
            name: _stack_runs(runs, ordered_scores) for name, runs in sweep_scores.items()
        }
        """Scores [seeds, queries, metrics] of each variant."""
        self.groups = build_query_groups(sweep.ground_truth.queries, query_ids)
        video_by_query = sweep.ground_truth.video_by_query
        self.videos = np.array([video_by_query[query_id] for query_id in query_ids])

    def estimate_variant(self, name: str) -> GroupEstimates:
        """Estimate the meaningful metrics of a variant, for each group."""
        metrics = self.sweep.table.variants[name].metrics
        return self._estimate(self.stacks[name], metrics, 0.0, self.groups)

    def estimate_difference(
        self, name: str, reference: str, groups: Iterable[str] | None = None
    ) -> GroupEstimates:
        """Estimate the differences of a variant from a reference, for metrics of both."""
        variants = self.sweep.table.variants
        reference_metrics = variants[reference].metrics
        metrics = [metric for metric in variants[name].metrics if metric in reference_metrics]

        # An ensemble has one row of scores, which is compared with each seed.
        differences = self.stacks[name] - self.stacks[reference]
        return self._estimate(differences, metrics, -1.0, self.groups if groups is None else groups)

    def _estimate(
        self, stack: np.ndarray, metrics: Sequence[str], minimum: float, groups: Iterable[str]
    ) -> GroupEstimates:
        """Estimate some metrics of scores `[seeds, queries, metrics]`, group by group."""
        result: GroupEstimates = {}
        for group in groups:
            query_mask = self.groups[group]
            estimates = compute_estimates(stack[:, query_mask], self.videos[query_mask], minimum)
            result[group] = {
                metric: estimate for metric, estimate in estimates.items() if metric in metrics
            }
        return result


def build_query_groups(queries: Sequence[Query], query_ids: Sequence[str]) -> dict[str, np.ndarray]:
    """Group queries: all, then by sentence form and tag.

    Args:
        queries: Queries with forms and tags.
        query_ids: Ids of the scored queries, in order.

    Returns:
        Mask [n] over `query_ids` for each group.
    """
    labels_by_query = {query.id: {query.form, *query.tags} - {None} for query in queries}

    labels: set[str] = set()
    for query_id in query_ids:
        labels |= {str(label) for label in labels_by_query[query_id]}

    groups = {ALL_QUERIES: np.ones(len(query_ids), bool)}
    for label in sorted(labels):
        groups[label] = np.array([label in labels_by_query[query_id] for query_id in query_ids])
    return groups


def compute_estimates(
    scores: np.ndarray, videos: Sequence[str] | np.ndarray, minimum: float
) -> dict[str, Estimate]:
    """Estimate each metric's mean with its interval.

    Args:
        scores: Scores or differences of scores, [seeds, queries, metrics]; NaN if unknown.
        videos: Video of each query, [queries].
        minimum: Smallest possible mean; the largest is 1. Intervals are clipped to this range.

    Returns:
        Estimates by metric. A metric that no query has is left out.
    """
    seed_means = _compute_seed_means(scores)  # [seeds, metrics]
    num_seeds = len(seed_means)
    has_seeds = num_seeds > 1
    spread = seed_means.std(0, ddof=1) if has_seeds else np.zeros(seed_means.shape[1])

    # Resampled means, plus an error of the seeds.
    resampled = bootstrap_means(scores.mean(0), list(videos), seed=0)  # [resamples, metrics]
    if has_seeds:
        generator = np.random.default_rng(1)
        error = generator.standard_t(num_seeds - 1, (len(resampled), 1))
        resampled = resampled + error * spread / np.sqrt(num_seeds)

    estimates: dict[str, Estimate] = {}
    for index, metric in enumerate(MEAN_METRICS):
        if np.isnan(seed_means[:, index]).all():
            continue

        interval = np.nanpercentile(resampled[:, index], PERCENTILES).clip(minimum, 1.0)
        low, high = (None, None) if too_few_videos(videos) else interval.tolist()
        metric_seed_means = seed_means[:, index].tolist()
        estimates[metric] = {
            "mean": float(np.mean(metric_seed_means)),
            "low": low,
            "high": high,
            "seeds": metric_seed_means,
            "spread": float(spread[index]) if has_seeds else None,
        }
    return estimates


def is_significant(difference: Mapping[str, Any] | None) -> bool:
    """Return True if the interval of a difference excludes 0.

    Args:
        difference: Estimate of a difference; None if there is none.

    Returns:
        False without a difference or without an interval.
    """
    if difference is None or difference["low"] is None:
        return False
    return difference["low"] > 0 or difference["high"] < 0


def _compute_seed_means(scores: np.ndarray) -> np.ndarray:
    """Compute each seed's means over its known queries, `[seeds, metrics]`."""
    is_known = ~np.isnan(scores)
    sums = np.where(is_known, scores, 0).sum(1)
    means = np.full(scores.shape[::2], np.nan)
    return np.divide(sums, is_known.sum(1), out=means, where=is_known.any(1))


def _stack_runs(runs: Sequence[Sequence[Score]], ordered_scores: Sequence[Score]) -> np.ndarray:
    """Stack the scores of runs to `[seeds, queries, metrics]`, in the order of other scores."""
    tables = []
    for scores in runs:
        score_by_id = {score.id: score for score in scores}
        tables.append(stack_scores([score_by_id[score.id] for score in ordered_scores]))
    return np.stack(tables)


def _build_metadata(
    sweep: Sweep, groups: Mapping[str, np.ndarray], videos: np.ndarray
) -> dict[str, Any]:
    """Build the entries on data, seeds, steps and code."""
    provenances = []
    for name, seed in sweep.iterate_trained_runs():
        provenances.append(read_provenance(sweep.get_run_dir(name, seed)))

    # The digest of runs that train encoders covers the encoders' sources too, so that the digests
    # of the two kinds of runs differ. The kind with more versions counts.
    codes_by_kind = defaultdict[bool, set[str]](set)
    for provenance in provenances:
        codes_by_kind[bool(provenance.get("encoders"))].add(provenance["code"])
    codes = max(codes_by_kind.values(), key=len)

    group_counts = {}
    for group, query_mask in groups.items():
        num_videos = len(set(videos[query_mask]))
        group_counts[group] = {"queries": int(query_mask.sum()), "videos": num_videos}

    return {
        "dataset": sweep.ground_truth.dataset_name,
        "split": sweep.split,
        "protocol": "every-frame",
        "store": sweep.store_digest,
        "seeds": list(sweep.seeds),
        "steps": sorted({provenance["finished"] for provenance in provenances}),
        "codes": sorted(codes),
        "groups": group_counts,
    }


def _build_cost_entry(sweep: Sweep, name: str) -> dict[str, Any]:
    """Build the entries on a variant's costs; empty if the table has no costs.

    Parameters include those of an encoder inside the model. Time and memory of a step are
    multiples of the cost reference's.
    """
    variant = sweep.table.variants[name]
    is_same_model = variant.derived_from is not None and not variant.ensemble_seeds
    source = variant.derived_from if is_same_model and variant.derived_from else name
    cost = sweep.table.variants[source].cost
    if cost is None:
        return {}

    model, _, provenance = load_model(sweep.get_run_dir(source, sweep.seeds[0]))
    return {
        "system": provenance["model"],
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "steps": provenance["finished"],
        "cost": cost.model_dump(),
    }


def _build_section(
    section: Section, estimate_difference: Callable[[str, str], GroupEstimates]
) -> dict[str, Any]:
    """Build a section: the differences of each row from the reference, here and in the paper."""
    source = section.published
    rows = []
    for name in section.rows:
        row: dict[str, Any] = {"variant": name, "published": source.scores(name) if source else {}}
        if name != section.reference:
            row["differences"] = estimate_difference(name, section.reference)
        rows.append(row)

    published = None
    if source is not None:
        published = {"dataset": source.dataset, "split": source.split, "method": source.method}
    return {
        "title": section.title,
        "reference": section.reference,
        "published": published,
        "rows": rows,
    }


def _evaluate_claim(claim: Claim, differences: Mapping[str, Estimate]) -> dict[str, Any]:
    """Build a claim's entry: yes or no if the difference is significant, otherwise unclear."""
    no_difference = {"mean": None, "low": None, "high": None}
    difference = differences.get(claim.metric, no_difference)

    if not is_significant(difference):
        verdict = "unclear"
    elif difference["low"] > 0:
        verdict = "yes"
    else:
        verdict = "no"
    return {
        **claim.model_dump(),
        "difference": difference["mean"],
        "low": difference["low"],
        "high": difference["high"],
        "seen": verdict,
    }
