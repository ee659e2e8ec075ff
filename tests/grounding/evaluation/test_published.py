"""The published results: figures as their papers print them, plausible row by row, and the table
with a run in it.
"""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path
from typing import get_args

import pytest
from rich.console import Console

from grounding.evaluation.published import (
    DATASET_NAMES,
    METRIC_NAMES,
    TABLE_CAPTION,
    MeansByProtocol,
    ProtocolName,
    PublishedResult,
    PublishedRow,
    build_paper_table,
    get_published_ablations,
    get_published_protocols,
    get_published_rows,
    load_published,
)
from grounding.metrics.protocols import PROTOCOLS
from pipeline.errors import InputError

V1, V2, CHALLENGE, VIDSTG = (
    ("hcstvg-v1", "test"),
    ("hcstvg-v2", "val"),
    ("hcstvg-v2", "test"),
    ("vidstg", "test"),
)
SPLITS = (VIDSTG, V1, V2, CHALLENGE)
ROWS = {place: get_published_rows(*place) for place in SPLITS}
ABLATIONS = {place: get_published_ablations(*place) for place in SPLITS}
RESULTS: list[PublishedResult] = [
    result for place in SPLITS for result in (*ROWS[place], *ABLATIONS[place])
]
PAPERS = {
    "CG-STVG baseline": "CG-STVG",
    "STVGFormer, 5 models": "STVGFormer",
}  # of methods whose paper has another name
UNROUNDED = 0.0501
"""Some tables print hundredths where another prints tenths."""


def row_of(place: tuple[str, str], method: str, form: str | None = None) -> PublishedRow:
    (row,) = (row for row in ROWS[place] if (row.method, row.form) == (method, form))
    return row


def shown(place: tuple[str, str], ours: MeansByProtocol, width: int = 160) -> list[list[str]]:
    """The lines of the printed table, as words."""
    console = Console(record=True, width=width, file=io.StringIO())
    console.print(build_paper_table(*place, ours))
    return [line.split() for line in console.export_text().splitlines()]


@pytest.mark.parametrize(
    ("place", "method", "form", "expected"),
    [
        (V1, "CSDVL", None, (None, 36.9, 62.2, 34.8, None)),
        (V2, "CSDVL", None, (58.1, 38.7, 65.5, 33.8, 65.7)),
        (VIDSTG, "CSDVL", "declarative", (None, 33.7, 47.2, 32.8, None)),
        (VIDSTG, "CSDVL", "interrogative", (None, 28.5, 39.9, 26.2, None)),
        (V2, "STVGFormer", None, (None, 38.7, 65.5, 33.8, None)),
        (CHALLENGE, "STVGFormer", None, (None, 36.8, None, None, None)),
        (CHALLENGE, "STVGFormer, 5 models", None, (None, 39.6, None, None, None)),
        (V1, "CG-STVG", None, (52.8, 38.4, 61.5, 36.3, None)),
        (V2, "CG-STVG", None, (60.0, 39.5, 64.5, 36.3, None)),
        (VIDSTG, "CG-STVG", "declarative", (51.4, 34.0, 47.7, 33.1, None)),
        (VIDSTG, "CG-STVG", "interrogative", (49.9, 29.0, 40.5, 27.5, None)),
        (V1, "CoSTA", None, (52.9, 39.0, 63.1, 38.2, None)),
        (VIDSTG, "CoSTA", "interrogative", (None, 30.4, None, None, None)),
        (V1, "TubeDETR", None, (43.7, 32.4, 49.8, 23.5, None)),
        (V2, "TubeDETR", None, (None, 36.4, 58.8, 30.6, None)),
        (VIDSTG, "STCAT", "declarative", (50.8, 33.1, 46.2, 32.6, None)),
    ],
)
def test_a_system_has_the_figures_its_paper_prints(
    place: tuple[str, str], method: str, form: str | None, expected: tuple[float | None, ...]
) -> None:
    known = {
        metric: value
        for metric, value in zip(METRIC_NAMES, expected, strict=True)
        if value is not None
    }
    assert row_of(place, method, form).scores == pytest.approx(known, abs=UNROUNDED)


@pytest.mark.parametrize(
    ("place", "method", "expected"),
    [
        (
            V2,
            "CSDVL",
            {
                "no collaboration": (36.4, 56.1, 64.9),
                "static to dynamic only": (37.5, 57.4, 64.6),
                "dynamic to static only": (37.1, 56.2, 65.7),
                "sum": (36.6,),
                "FC and sum": (36.8,),
                "concatenation and FC": (37.1,),
                "dynamic stream alone": (None, 56.1),
                "dynamic stream alone, without space": (None, 54.7),
                "dynamic stream alone, without mean pooling": (None, 56.2),
                "SlowFast of AVA": (38.7,),
                "SlowFast of Kinetics-600": (38.4,),
                "λ3 5, λ4 .1": (37.6,),
                "λ3 5, λ4 10": (37.1,),
                "λ3 1, λ4 1": (38.0,),
                "λ3 20, λ4 1": (38.6,),
            },
        ),
        (
            V1,
            "CG-STVG",
            {
                "neither ICG nor ICR": (36.5,),
                "ICG": (37.4,),
                "ICG, temporal refinement": (37.9,),
                "ICG, spatial refinement": (38.0,),
                "ICG, both refinements": (38.4,),
                "θ_t .3": (38.2,),
                "θ_t .5": (38.3,),
                "θ_t .7": (38.4,),
                "θ_t .9": (38.3,),
                "θ_s .4": (37.5,),
                "θ_s .6": (37.4,),
                "θ_s .8": (38.4,),
                "θ_s .9": (37.6,),
                "scores summed": (38.3,),
                "scores multiplied": (38.3,),
                "context in the temporal block": (38.0,),
            },
        ),
        (
            V1,
            "CoSTA",
            {
                "no space-time encoder": (34.5, 47.6),
                "no space-time decoder": (36.4, 51.3),
                "2-D backbone only": (37.6,),
                "3-D backbone only": (36.1,),
                "both backbones": (39.0,),
                "concatenation": (32.7,),
                "Hadamard product": (34.4,),
                "sum with norms": (39.0,),
                "β 0": (37.5,),
                "β .3": (38.4,),
                "β .5": (38.8,),
                "β .9": (39.0,),
                "β 1": (38.9,),
            },
        ),
    ],
)
def test_an_ablation_has_the_figures_its_paper_prints(
    place: tuple[str, str], method: str, expected: dict[str, tuple[float | None, ...]]
) -> None:
    """(m_vIoU, m_tIoU, m_sIoU), as far as listed here; every variant is listed."""
    output = {row.variant: row.scores for row in ABLATIONS[place] if row.method == method}
    assert output.keys() == expected.keys()
    for variant, values in expected.items():
        known = {
            metric: value
            for metric, value in zip(("m_vIoU", "m_tIoU", "m_sIoU"), values, strict=False)
            if value is not None
        }
        assert {metric: output[variant][metric] for metric in known} == pytest.approx(
            known, abs=UNROUNDED
        ), variant


def test_figures_can_be_those_of_one_set_of_tubes() -> None:
    """A tube's vIoU is at most its tIoU; the shares above .3 and .5 bound the mean of vIoU from
    both sides.
    """
    for result in RESULTS:
        source = f"{result.method} {result.source}"
        scores = result.scores
        assert scores, source
        assert all(0 < value < 100 for value in scores.values()), source

        if {"m_vIoU", "m_tIoU"} <= scores.keys():
            assert scores["m_vIoU"] < scores["m_tIoU"], source

        if {"m_vIoU", "vIoU@0.3", "vIoU@0.5"} <= scores.keys():
            above_3 = scores["vIoU@0.3"]
            above_5 = scores["vIoU@0.5"]
            assert above_5 < above_3, source
            lower = 0.3 * (above_3 - above_5) + 0.5 * above_5
            upper = 0.3 * (100 - above_3) + 0.5 * (above_3 - above_5) + above_5
            assert lower < scores["m_vIoU"] < upper, source


def test_a_row_says_where_it_was_read() -> None:
    for row in (row for place in SPLITS for row in ROWS[place]):
        paper, _, spot = row.source.partition(", ")
        assert paper in ("CSDVL", "STVGFormer", "CG-STVG", "CoSTA")
        assert spot.startswith(("Table", "text"))
        assert row.published_by == (None if PAPERS.get(row.method, row.method) == paper else paper)
    for row in (row for place in SPLITS for row in ABLATIONS[place]):
        assert row.source.startswith(f"{row.method}, ")


@pytest.mark.parametrize("place", SPLITS)
def test_a_method_stands_once_in_a_table(place: tuple[str, str]) -> None:
    names = Counter((row.form, row.method) for row in ROWS[place]) + Counter(
        (row.method, row.variant) for row in ABLATIONS[place]
    )
    assert set(names.values()) == {1}


def test_methods_of_each_table() -> None:
    forms = {
        form: {row.method for row in ROWS[VIDSTG] if row.form == form}
        for form in ("declarative", "interrogative")
    }
    shared = {
        "STGRN",
        "OMRN",
        "STVGBert",
        "TubeDETR",
        "STCAT",
        "CSDVL",
        "CG-STVG baseline",
        "CG-STVG",
    }
    assert forms == {"declarative": shared | {"STGVT"}, "interrogative": shared | {"CoSTA"}}
    both = {"TubeDETR", "CSDVL", "CG-STVG baseline", "CG-STVG"}
    assert {row.method for row in ROWS[V1]} == both | {"STGVT", "STVGBert", "STCAT", "CoSTA"}
    assert {row.method for row in ROWS[V2]} == both | {
        "Yu et al.",
        "MMN",
        "Aug. 2D-TAN",
        "STVGFormer",
    }


def test_protocols_are_named_only_where_they_are_known() -> None:
    known = {
        "TubeDETR": "tubedetr",
        "STCAT": "stcat",
        "CG-STVG": "stcat",
        "CG-STVG baseline": "stcat",
    }
    for place in (VIDSTG, V1, V2):
        assert [row.protocol for row in ROWS[place]] == [
            known.get(row.method) for row in ROWS[place]
        ]
    assert {row.protocol for row in ROWS[CHALLENGE]} == {"official"}


def test_protocols_to_judge_a_run_by() -> None:
    assert (
        get_published_protocols(*VIDSTG)
        == get_published_protocols(*V1)
        == get_published_protocols(*V2)
        == ("tubedetr", "stcat")
    )
    assert get_published_protocols(*CHALLENGE) == ("official",)
    assert get_published_protocols("shapes", "test") == ()
    assert get_args(ProtocolName) == tuple(PROTOCOLS)


def test_only_what_was_published_has_rows() -> None:
    assert tuple(dict.fromkeys(dataset for dataset, _ in SPLITS)) == DATASET_NAMES
    assert {(table.dataset, table.split) for table in load_published().tables} == set(SPLITS)
    for nothing in (("shapes", "test"), ("jsonl", "test"), ("vidstg", "val")):
        assert get_published_rows(*nothing) == get_published_ablations(*nothing) == []


def test_the_corrected_figure_of_tubedetr_is_explained() -> None:
    assert "46.7" in (row_of(V2, "TubeDETR").note or "")


@pytest.mark.parametrize("place", SPLITS)
@pytest.mark.parametrize("width", [80, 160])
def test_the_table_holds_every_method(place: tuple[str, str], width: int) -> None:
    """Each row's method, figures and protocol stand whole on one line, even on 80 columns."""
    lines = shown(place, {}, width)
    for row in ROWS[place]:
        mark = "*" if row.note else ""
        figures = [
            f"{row.scores[metric] + 1e-9:.1f}" if metric in row.scores else "–"
            for metric in METRIC_NAMES
        ]
        words = [*(row.method + mark).split(), *figures, *(row.protocol or "not stated").split()]
        assert words in [line[: len(words)] for line in lines]


def test_a_run_stands_below_the_published_rows_of_each_form() -> None:
    lines = shown(
        VIDSTG,
        {
            "every-frame": {
                "declarative": {"m_tIoU": 0.5, "m_vIoU": 0.12345, "queries": 7},
                "interrogative": {"m_sIoU": 1.0},
            },
            "stcat": {"declarative": {"m_vIoU": 0.0815, "vIoU@0.3": 0.2, "vIoU@0.5": 0.1}},
        },
    )
    order = [
        line
        for line in lines
        if line[:1] in (["declarative"], ["interrogative"], ["CG-STVG"])
        or line[:2] == ["this", "run"]
    ]
    assert [line for line in order if line[:2] != ["CG-STVG", "baseline"]] == [
        ["declarative"],
        ["CG-STVG", "51.4", "34.0", "47.7", "33.1", "–", "stcat", "CG-STVG,", "Table", "3"],
        ["this", "run", "50.0", "12.3", "–", "–", "–", "every-frame"],
        ["this", "run", "–", "8.2", "20.0", "10.0", "–", "stcat"],
        ["interrogative"],
        ["CG-STVG", "49.9", "29.0", "40.5", "27.5", "–", "stcat", "CG-STVG,", "Table", "3"],
        ["this", "run", "–", "–", "–", "–", "100.0", "every-frame"],
    ]


def test_a_run_on_sentences_without_a_form_needs_no_heading() -> None:
    lines = shown(V1, {"stcat": {"": {"m_vIoU": 0.4}}})
    assert ["this", "run", "–", "40.0", "–", "–", "–", "stcat"] in lines
    assert not any(line[:1] in (["all"], ["declarative"]) for line in lines)
    assert ["all", "sentences"] in shown(VIDSTG, {"stcat": {"": {"m_vIoU": 0.4}}})


def test_only_this_run_is_bold() -> None:
    table = build_paper_table(*V1, {"stcat": {"": {"m_vIoU": 0.4}}})
    assert [row.style for row in table.rows] == [None] * len(ROWS[V1]) + ["bold"]


def test_the_caption_warns_and_holds_the_notes() -> None:
    caption = str(build_paper_table(*V2, {}).caption)
    assert caption.splitlines() == [
        TABLE_CAPTION,
        *(f"* {row.method}: {row.note}" for row in ROWS[V2] if row.note),
    ]
    assert "not comparable" in caption


def test_a_data_set_without_published_rows_shows_the_run_alone() -> None:
    table = build_paper_table("shapes", "test", {"every-frame": {"": {"m_vIoU": 0.4}}})
    assert len(table.rows) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read as YAML .*No such file.* install the package again"),
        ("tables: [", "cannot be read as YAML"),
        (
            "tables: [{dataset: mars, split: test, rows: []}]",
            r"tables\.0\.dataset: Input should be 'vidstg'.*got 'mars'",
        ),
        (
            "tables: [{dataset: vidstg, split: test, rows: [{method: A, venue: B, scores:"
            " {AP: 1}, source: C}]}]",
            "scores.*'m_tIoU'",
        ),
    ],
)
def test_a_file_that_holds_no_results_is_named(
    tmp_path: Path, content: str | None, message: str
) -> None:
    path = tmp_path / "published.yaml"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        load_published(path)
