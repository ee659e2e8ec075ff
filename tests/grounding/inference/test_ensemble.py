"""Runs that answer together must fit together."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import yaml

from grounding.evaluation.config import EvaluateConfig
from grounding.evaluation.evaluate import predict_split
from grounding.inference.ensemble import Ensemble, describe_product_differences
from grounding.models.csdvl import Csdvl
from grounding.predictor.grounder import Grounder
from grounding.structures.inputs import ModelInputs
from grounding.visualization.attention_maps import AttentionRecorder
from pipeline.errors import InputError
from pipeline.io.jsonl import read_jsonl
from pipeline.records import Query

CPU = torch.device("cpu")


@pytest.fixture
def other_run(tiny_run: Any, tmp_path: Path) -> Path:
    """A copy of the run that may be changed."""
    return shutil.copytree(tiny_run.run, tmp_path / "other")


def set_model(run: Path, **values: int) -> None:
    content = yaml.safe_load((run / "config.yaml").read_text())
    content["train"]["model"] |= values
    (run / "config.yaml").write_text(yaml.safe_dump(content))


def test_an_ensemble_sees_what_its_runs_were_trained_with(tiny_run: Any, other_run: Path) -> None:
    ensemble = Ensemble.from_runs([tiny_run.run, other_run], CPU)
    assert (len(ensemble.models), ensemble.num_frames, ensemble.num_clips) == (2, 4, 8)
    assert not any(model.training for model in ensemble.models)
    assert Ensemble.from_runs([tiny_run.run], CPU, num_frames=96).num_frames == 96


def test_an_ensemble_is_as_precise_as_its_most_precise_run(tiny_run: Any, other_run: Path) -> None:
    """On a CPU it always computes in float32."""
    content = yaml.safe_load((other_run / "config.yaml").read_text())
    content["train"]["precision"] = "bfloat16"
    (other_run / "config.yaml").write_text(yaml.safe_dump(content))
    single, ensemble = (
        Ensemble.from_runs([other_run], CPU),
        Ensemble.from_runs([tiny_run.run, other_run], CPU),
    )
    assert (single.precision, ensemble.precision) == ("bfloat16", "float32")
    with single.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def test_all_that_asks_an_ensemble_computes_as_it_says(
    tiny_run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Judging a split, asking about a video, and looking at what a network sees."""
    inside: list[bool] = []

    @contextmanager
    def computing(ensemble: Ensemble) -> Iterator[None]:
        inside.append(True)
        yield
        inside.pop()

    def forward(network: Csdvl, inputs: ModelInputs) -> Any:
        assert inside
        return prediction(network, inputs)

    prediction = Csdvl.forward
    monkeypatch.setattr(Ensemble, "autocast", computing)
    monkeypatch.setattr(Csdvl, "forward", forward)
    query = next(query for query in read_jsonl(tiny_run.index, Query) if query.split == "test")
    assert predict_split([tiny_run.run], tiny_run.store, EvaluateConfig(device="cpu"))[0]
    assert (
        Grounder(tiny_run.run, device="cpu")
        .ground(tiny_run.root / query.path, [query.text])
        .queries
    )
    recorder = AttentionRecorder.from_run(tiny_run.run, tiny_run.store, "test", "cpu")
    assert len(recorder.record(recorder.dataset.queries[0]).frame_indices)


@pytest.mark.parametrize(
    ("precision", "device", "half"),
    [("bfloat16", "cuda", True), ("float32", "cuda", False), ("bfloat16", "cpu", False)],
)
def test_half_precision_is_for_gpus_and_runs_validated_in_it(
    tiny_run: Any, precision: str, device: str, half: bool
) -> None:
    ensemble = replace(Ensemble.from_runs([tiny_run.run], CPU), precision=precision)
    with (
        mock.patch.object(Ensemble, "device", torch.device(device)),
        mock.patch.object(torch, "autocast") as autocast,
        ensemble.autocast(),
    ):
        pass
    autocast.assert_called_once_with(device, torch.bfloat16, enabled=half)


def test_runs_with_other_clips_are_refused(tiny_run: Any, other_run: Path) -> None:
    set_model(other_run, num_clips=5)
    with pytest.raises(
        InputError,
        match=r"scores the proposals of 8 clips and .*other the proposals of 5 clips: "
        r"scores are averaged",
    ):
        Ensemble.from_runs([tiny_run.run, other_run], CPU, num_frames=4)


def test_runs_with_other_frames_need_a_number_for_all(tiny_run: Any, other_run: Path) -> None:
    set_model(other_run, num_frames=6)
    with pytest.raises(
        InputError,
        match=r"was trained with 4 frames per pass and .*other with 6: choose one "
        r"number with --set frames=N",
    ):
        Ensemble.from_runs([tiny_run.run, other_run], CPU)
    assert Ensemble.from_runs([tiny_run.run, other_run], CPU, num_frames=6).num_frames == 6


def test_runs_of_other_features_are_refused(tiny_run: Any, other_run: Path) -> None:
    provenance = json.loads((other_run / "provenance.json").read_text())
    provenance["products"]["motion"] |= {"weights": "random:1", "versions": {"torch": "0"}}
    del provenance["products"]["text"]
    (other_run / "provenance.json").write_text(json.dumps(provenance))
    expected = (
        r"other does not fit run .*: motion weights is 'random:1', not 'tiny'; "
        r"text is absent: the runs .* must fit one store"
    )
    with pytest.raises(InputError, match=expected):
        Ensemble.from_runs([tiny_run.run, other_run], CPU)


def test_what_differs_is_named_and_versions_may() -> None:
    expected = {"motion": {"weights": "a", "versions": {"torch": "1"}}, "text": {"weights": "t"}}
    assert (
        describe_product_differences(
            expected, {**expected, "frames": {}, "motion": {"weights": "a"}}
        )
        == []
    )
    result = {"motion": {"weights": "b", "int8": True}}
    assert describe_product_differences(expected, result) == [
        "motion int8 is True, not None",
        "motion weights is 'b', not 'a'",
        "text is absent",
    ]
