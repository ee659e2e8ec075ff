"""Importing what a command runs is quick: what only some networks need, or only extraction, is
imported where it is used.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import pipeline

OF_NETWORKS = {"torchvision", "transformers", "pytorchvideo", "torch._dynamo"}
OF_EXTRACTION = {"dask", "distributed", "decord", "av"}
TRAINED_AND_ASKED = (
    "grounding.training.train",
    "grounding.sweep.run",
    "grounding.inference.ensemble",
    "grounding.predictor.grounder",
    "grounding.report.figures",
    "grounding.visualization.attention_maps",
)
PLAIN = (
    "pipeline.video.worker",
    "pipeline.store",
    "pipeline.datasets.prepare",
    "grounding.evaluation.ground_truth",
    "grounding.evaluation.evaluate",
    "grounding.report.build",
    "grounding.evaluation.results",
    "benchmarks.cases.memory",
)
"""What reads and writes files: the child that decodes, the store, an index, what judges tubes and
shows them; and what measures the memory of decoders, in processes that import it.
"""


def imported_with(*modules: str) -> set[str]:
    """All modules that a fresh interpreter has loaded after these."""
    program = f"import json, sys, {', '.join(modules)}; print(json.dumps(sorted(sys.modules)))"
    root = Path(pipeline.__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=root, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


def test_training_asking_and_planning_extraction_import_no_libraries_of_backbones() -> None:
    assert not imported_with(*TRAINED_AND_ASKED, "pipeline.extraction.run") & (
        OF_NETWORKS | OF_EXTRACTION
    )


@pytest.mark.parametrize("module", PLAIN)
def test_what_has_no_network_imports_no_torch(module: str) -> None:
    assert not imported_with(module) & ({"torch"} | OF_NETWORKS | OF_EXTRACTION)


def test_this_check_can_fail() -> None:
    assert imported_with("av", "dask") & OF_EXTRACTION == {"av", "dask"}
