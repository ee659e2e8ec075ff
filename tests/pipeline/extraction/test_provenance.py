"""What a product is made of: recorded whole, and its values are those that its recipe number stands
for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pipeline.encoders.optimize import optimize_for_inference
from pipeline.errors import StoreError
from pipeline.extraction import provenance
from pipeline.extraction.config import ExtractConfig
from pipeline.extraction.plan import Job
from pipeline.extraction.provenance import (
    build_provenance,
    check_worker_environment,
    expected_provenance,
)
from pipeline.features.builders import encode_texts
from pipeline.features.config import SamplingConfig
from pipeline.features.images import decode_jpegs
from pipeline.features.products import PRODUCTS
from pipeline.features.stream import FeatureStream
from pipeline.store import Shard
from pipeline.weights.load import load_backbone

pytestmark = pytest.mark.usefixtures("one_thread")
FRAMES, SIZE = 10, (48, 32)
SAMPLING = SamplingConfig(fps=5, short_side=64, clip_stride_seconds=0.2, clip_seconds=0.4)
GOLDEN: dict[str, tuple[tuple[int, ...], list[float]]] = {
    "appearance": (
        (5, 4, 6, 128),
        [
            0.6265,
            0.3105,
            2.4199,
            0.7134,
            0.2563,
            0.028,
            1.8721,
            1.8906,
            0.3328,
            1.2412,
            0.0587,
            0.9238,
        ],
    ),
    "motion": (
        (5, 8, 8, 384),
        [0.8013, 0.0, 0.1843, 0.3228, 0.0, 0.1276, 0.3235, 0.0091, 0.0491, 0.4231, 0.0, 0.0695],
    ),
    "swin": (
        (5, 2, 3, 768),
        [
            -0.3557,
            0.2656,
            1.248,
            -1.1484,
            -1.2686,
            0.4841,
            -1.0449,
            -0.4434,
            -1.0771,
            -0.1217,
            -0.3328,
            -0.3154,
        ],
    ),
    "frames": (
        (5, 3, 64, 96),
        [124.0, 225.0, 35.0, 102.0, 213.0, 166.0, 40.0, 148.0, 140.0, 45.0, 63.0, 186.0],
    ),
    "text": (
        (18, 64),
        [
            -0.8813,
            -0.4094,
            -1.0781,
            -0.8882,
            -1.2168,
            0.6992,
            -1.0771,
            0.4768,
            -1.0938,
            0.2124,
            -0.6504,
            -1.376,
        ],
    ),
}
"""By product, the shape of what is made of `Moving` pictures (or `SENTENCE`) and every so manyth of
its numbers.
"""
SENTENCE = "What does the red ball hit?"


class Moving:
    """Decoder stand-in that generates its frames: smooth moving waves, at 10 frames per second."""

    decoder, reason = "made", ""

    def probe(self, path: Path) -> Any:
        return SimpleNamespace(
            path=path,
            size=SIZE,
            fps=10.0,
            frame_count=FRAMES,
            duration=1.0,
            pts_seconds=np.arange(FRAMES) / 10,
        )

    @contextmanager
    def frames(self, path: Path, facts: Any, wanted: np.ndarray) -> Iterator[Any]:
        yield _Pictures([(int(number), picture(int(number))) for number in wanted])


class _Pictures(list[Any]):
    decoder, reason = "made", ""


def picture(number: int) -> np.ndarray:
    """RGB uint8 `[32, 48, 3]`."""
    y, x, colour = np.mgrid[: SIZE[1], : SIZE[0], :3]
    return np.round(127.5 + 100 * np.sin(0.2 * x + 0.1 * y * (colour + 1) + 0.5 * number)).astype(
        np.uint8
    )


def made(product: str, folder: Path) -> np.ndarray:
    """What the product's encoder, with weights drawn from seed 0, makes of the pictures or of the
    sentence.
    """
    size = "full" if product == "swin" else "tiny"
    encoder = (
        None
        if product == "frames"
        else optimize_for_inference(load_backbone(product, size, "random:0").encoder)
    )
    if product == "text":
        ((states, _),) = encode_texts([SENTENCE], encoder)
        return states
    (folder / "v").touch()
    stream = FeatureStream(
        folder / "v", SAMPLING, {product: encoder}, batch_size=3, decoder=Moving()
    )
    rows = np.concatenate([block for _, block in stream])
    if product == "frames":
        return np.stack(
            [frame.transpose(2, 0, 1) for _, frame in decode_jpegs(rows, stream.columns[product])]
        )
    return rows


@pytest.mark.parametrize("product", PRODUCTS)
def test_values_are_those_of_the_recipe(product: str, tmp_path: Path) -> None:
    maps = made(product, tmp_path).astype(np.float64)
    shape, expected = GOLDEN[product]
    some = maps.reshape(-1)[:: max(1, maps.size // len(expected))][: len(expected)]
    tolerance = 3 if product == "frames" else 2e-3 * np.abs(expected).max()
    same = maps.shape == shape and np.allclose(some, expected, rtol=2e-3, atol=tolerance)
    assert same, (
        f"what is made for {product} has changed: raise its recipe_version in "
        f"pipeline/features/products.py, "
        f"so that no store mixes both, and write down here {maps.shape}, "
        f"{np.round(some, 4).tolist()}"
    )


def settings(**changes: Any) -> ExtractConfig:
    return ExtractConfig.model_validate(
        {"backbones": "tiny", "weights": "random:0", "device": "cpu"} | changes
    )


def test_what_determines_a_product_is_recorded() -> None:
    appearance, motion, frames, text = (
        build_provenance(product, settings(), {})
        for product in ("appearance", "motion", "frames", "text")
    )
    assert (
        appearance["recipe"],
        appearance["precision"],
        appearance["backbone"],
        appearance["weights"],
    ) == (
        2,
        "float32",
        "tiny",
        "random:0",
    )
    assert appearance["sampling"] == {"fps": 5.0, "short_side": 320}
    assert list(appearance["versions"]) == ["torch", "torchvision", "decord", "av"]
    assert (motion["slowfast"], set(motion["sampling"])) == (
        "ava",
        {"clip_stride_seconds", "clip_seconds", "pool_motion_2x2"},
    )
    assert list(text["versions"]) == ["torch", "torchvision", "tokenizers", "transformers"]
    assert "sampling" not in text
    assert set(frames) == {"recipe", "versions", "sampling"}
    assert list(frames["versions"])[-1] == "pillow"


@pytest.mark.parametrize(
    ("device", "precision"), [("cpu", "float32"), ("cuda", "float16"), ("cuda:1", "float16")]
)
def test_half_precision_is_recorded_where_workers_have_a_gpu(device: str, precision: str) -> None:
    """Also by a machine that has none."""
    assert (
        build_provenance("text", settings(device=device, scheduler="tcp://a:1"), {})["precision"]
        == precision
    )


def test_the_same_weights_under_another_name_are_the_same() -> None:
    held = build_provenance("text", settings(weights="tiny"), {}) | {"weights": "hf:there"}
    assert build_provenance("text", settings(weights="tiny"), held)["weights"] == "hf:there"
    assert build_provenance("text", settings(), held)["weights"] == "random:0"


@pytest.mark.parametrize(
    ("reduce", "held", "wanted"),
    [
        ("int8", {}, {"int8": True}),
        ("pca:4", {}, {"int8": False, "basis": "pca:4"}),
        (
            "pca:4+int8",
            {"basis": "pca:4", "basis_digest": "d"},
            {"int8": True, "basis": "pca:4", "basis_digest": "d"},
        ),
        ("pca:4", {"basis": "pca:8", "basis_digest": "d"}, {"int8": False, "basis": "pca:4"}),
    ],
)
def test_a_basis_of_the_same_name_is_the_stores(
    reduce: str, held: dict[str, Any], wanted: dict[str, Any]
) -> None:
    assert (
        expected_provenance("motion", settings(reduce={"motion": reduce}), {"reduction": held})[
            "reduction"
        ]
        == wanted
    )
    assert "reduction" not in expected_provenance("text", settings(reduce={"motion": reduce}), {})


def job_of(product: str, folder: Path) -> Job:
    config = settings(scheduler="tcp://a:1")
    return Job(
        folder,
        Shard("0", ("v",)),
        {product: frozenset("v")},
        {},
        {},
        config,
        {product: build_provenance(product, config, {})},
    )


@pytest.mark.parametrize(
    ("product", "library"),
    [("text", "tokenizers"), ("appearance", "av"), ("frames", "pillow"), ("motion", "torchvision")],
)
def test_a_worker_with_another_library_is_refused(
    product: str, library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of(product, tmp_path)
    check_worker_environment(job)
    own = provenance.version
    monkeypatch.setattr(provenance, "version", lambda name: "0.0" if name == library else own(name))
    monkeypatch.setattr(provenance.socket, "gethostname", lambda: "far")
    message = (
        f"the worker on far has {library} 0.0, but {product} of this store is made with "
        f"{own(library)}: install the same versions"
    )
    with pytest.raises(StoreError, match=message):
        check_worker_environment(job)


def test_a_worker_with_other_code_or_weights_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of("motion", tmp_path)
    other = replace(
        job, provenance={"motion": {**job.provenance["motion"], "weights_digest": "other"}}
    )
    with pytest.raises(
        StoreError, match=r"has weights_digest \w{64}, but motion of this store is made with other"
    ):
        check_worker_environment(other)
    monkeypatch.setitem(PRODUCTS, "motion", replace(PRODUCTS["motion"], recipe_version=7))
    with pytest.raises(
        StoreError,
        match="has recipe 7, but motion of this store is made with 2: install the same versions",
    ):
        check_worker_environment(job)
