"""The table of products agrees with the settings, the encoders and itself."""

from __future__ import annotations

import pytest

from pipeline.features.config import SamplingConfig
from pipeline.features.products import PRODUCTS, VISUAL_PRODUCTS
from pipeline.weights.encoder_specs import ENCODERS


@pytest.mark.parametrize("name", PRODUCTS)
def test_an_entry_agrees_with_the_settings(name: str) -> None:
    spec = PRODUCTS[name]
    assert spec.name == name
    assert set(spec.sampling_keys) <= set(SamplingConfig.model_fields)
    assert bool(spec.sampling_keys) == spec.is_visual
    assert bool(spec.channels) == spec.is_reducible


def test_every_encoder_belongs_to_the_product_of_its_name() -> None:
    encoders = {name: spec.encoder for name, spec in PRODUCTS.items() if spec.encoder is not None}
    assert encoders == ENCODERS


def test_every_sampling_key_determines_a_product() -> None:
    keys = {key for spec in PRODUCTS.values() for key in spec.sampling_keys}
    assert keys == set(SamplingConfig.model_fields)


def test_kinds_of_products() -> None:
    assert VISUAL_PRODUCTS == ("appearance", "motion", "swin", "frames")
    assert [name for name, spec in PRODUCTS.items() if spec.is_reducible] == [
        "appearance",
        "motion",
        "swin",
    ]
    assert [name for name, spec in PRODUCTS.items() if spec.padded_to_square] == ["motion"]
