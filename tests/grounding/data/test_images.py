"""Pictures: decoded as they are read, or kept as JPEGs until they are on their device; the same
either way.
"""

from __future__ import annotations

import logging
from io import BytesIO
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import grounding.data.dataset
import grounding.data.images
from grounding.data.augmentation import Augmentation, AugmentConfig, choose_image_transform
from grounding.data.collate import collate, to_device
from grounding.data.dataset import GroundingDataset
from grounding.data.images import EncodedImageBatch, EncodedImages, can_decode_jpegs
from grounding.data.loader import Batch, Loader
from grounding.data.sources import ImageSource
from pipeline.store import Store

CPU = torch.device("cpu")
GREY_LEVELS = 2
"""What two decoders of JPEGs may differ by on the mean."""


@pytest.fixture
def image_source(image_store: Path) -> ImageSource:
    return ImageSource.from_store(Store(image_store).open("frames"))


def open_dataset(store: Path) -> GroundingDataset:
    return GroundingDataset.from_store(store, "train", 4, None, None, None, use_images=True)


@pytest.fixture
def decoded_dataset(image_store: Path) -> GroundingDataset:
    return open_dataset(image_store)


@pytest.fixture
def encoded_dataset(
    image_store: Path, decoded_dataset: GroundingDataset, monkeypatch: pytest.MonkeyPatch
) -> GroundingDataset:
    """Pictures that wait to be decoded, as for a GPU."""
    monkeypatch.setattr(grounding.data.dataset, "can_decode_jpegs", lambda device: True)
    return open_dataset(image_store)


def test_pictures_are_what_pillow_decodes(image_store: Path, image_source: ImageSource) -> None:
    """To the bit, in any order, also more than once."""
    product = Store(image_store).open("frames")
    rows, columns = product.read("v0"), product.columns("v0")
    rows_read = np.array([7, 2, 2, 19])
    result = image_source.read("v0", rows_read)
    assert (result.dtype, result.shape) == (np.uint8, (4, 36, 64, 3))
    for picture, number in zip(result, image_source.columns("v0")["frame"][rows_read], strict=True):
        pages = np.flatnonzero(columns["frame"] == number)
        data = b"".join(rows[page, : columns["bytes"][page]].tobytes() for page in pages)
        np.testing.assert_array_equal(picture, np.array(Image.open(BytesIO(data))))
    np.testing.assert_array_equal(image_source.read("v0")[rows_read], result)


def test_only_the_pages_of_the_frames_wanted_are_read(
    image_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    product, read = Store(image_store).open("frames"), []
    pictures = ImageSource.from_store(product)
    inner = product.read
    monkeypatch.setattr(product, "read", lambda key, rows: (read.append(rows), inner(key, rows))[1])
    pictures.read("v0", np.array([3, 3, 1]))
    pictures.read_encoded("v0", np.array([3, 3, 1]))
    frame = product.columns("v0")["frame"]
    assert [np.unique(frame[rows]).tolist() for rows in read] == [[5, 15]] * 2


def test_jpegs_that_wait_are_the_pictures(image_source: ImageSource) -> None:
    rows = np.array([7, 2, 2, 19])
    encoded = image_source.read_encoded("v0", rows)
    assert encoded.shape == (4, 36, 64, 3)
    assert len(encoded.images) == 3
    assert encoded.nbytes < image_source.read("v0", rows).nbytes
    np.testing.assert_array_equal(
        EncodedImageBatch([encoded]).to(CPU)[0].numpy(), image_source.read("v0", rows)
    )


def test_a_batch_that_waits_is_the_batch(
    decoded_dataset: GroundingDataset, encoded_dataset: GroundingDataset
) -> None:
    """Wide and tall pictures, padded alike, and with the same sizes."""
    first_queries = encoded_dataset.queries[:3]
    encoded = collate([encoded_dataset.load_sample(query) for query in first_queries])
    assert isinstance(encoded.appearance, EncodedImageBatch)
    expected, result = (
        collate([decoded_dataset.load_sample(query) for query in first_queries]),
        to_device(encoded, CPU),
    )
    assert isinstance(expected.appearance, torch.Tensor)
    assert torch.equal(result.appearance, expected.appearance)
    assert torch.equal(result.map_size, expected.map_size)
    assert torch.equal(result.picture_in_square, expected.picture_in_square)


def test_a_view_of_what_waits_is_the_view_of_the_pictures(image_source: ImageSource) -> None:
    rows = np.array([5, 9])
    view = choose_image_transform(
        AugmentConfig(min_scale=0.5, crop_probability=1),
        (36, 64),
        np.array([5, 5, 20, 30]),
        True,
        np.random.default_rng(3),
    )
    recorded = image_source.read_encoded("v0", rows).with_transform(view)
    assert recorded.shape == (2, *view.size, 3)
    assert view.size != (36, 64)
    result, expected = (
        EncodedImageBatch([recorded]).to(CPU)[0].numpy(),
        view.apply_to_array(image_source.read("v0", rows)),
    )
    assert np.abs(result.astype(int) - expected).max() <= 1


def test_what_waits_is_read_once(encoded_dataset: GroundingDataset) -> None:
    query = encoded_dataset.queries[0]
    first, again = (
        encoded_dataset.load_sample(query).appearance,
        encoded_dataset.load_sample(query).appearance,
    )
    assert isinstance(first, EncodedImages)
    assert first is again


def test_a_cpu_decodes_what_it_reads(decoded_dataset: GroundingDataset) -> None:
    assert not can_decode_jpegs(CPU)
    assert isinstance(
        decoded_dataset.load_sample(decoded_dataset.queries[0]).appearance, np.ndarray
    )


def test_a_gpu_without_a_decoder_is_named_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(jpegs: object, device: torch.device) -> None:
        raise RuntimeError("compiled without nvJPEG\nsomewhere")

    monkeypatch.setattr(grounding.data.images, "decode_jpegs_on_device", refuse)
    can_decode_jpegs.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert [can_decode_jpegs(torch.device("cuda")) for _ in range(3)] == [False] * 3
    can_decode_jpegs.cache_clear()
    (message,) = caplog.messages
    assert (
        message
        == "images are decoded on the CPU: torchvision cannot decode them on cuda: compiled without nvJPEG"
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_gpu_s_pictures_are_the_cpu_s_to_a_few_grey_levels(
    image_store: Path, image_source: ImageSource
) -> None:
    device = torch.device("cuda")
    assert can_decode_jpegs(device)
    rows = np.arange(20)
    result = (
        EncodedImageBatch(
            [image_source.read_encoded("v0", rows), image_source.read_encoded("v2", rows)]
        )
        .to(device)
        .cpu()
        .numpy()
    )
    for image, video in zip(result, ("v0", "v2"), strict=True):
        expected = image_source.read(video).astype(int)
        image = image[:, : expected.shape[1], : expected.shape[2]]
        assert np.abs(image - expected).mean() < GREY_LEVELS


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_loader_sends_what_a_gpu_decodes(image_store: Path) -> None:
    """Augmented too: the same views of the same pictures, and the same boxes to the bit."""
    device = torch.device("cuda")
    cpu_dataset, gpu_dataset = (
        GroundingDataset.from_store(
            image_store, "train", 4, None, None, None, use_images=True, device=on
        )
        for on in (CPU, device)
    )
    config = AugmentConfig(flip_probability=0.5, min_scale=0.5, crop_probability=0.5)
    for step, (cpu_batch, gpu_batch) in enumerate(
        zip(
            *(
                batches(dataset, on, config)
                for dataset, on in ((cpu_dataset, CPU), (gpu_dataset, device))
            ),
            strict=True,
        )
    ):
        assert gpu_batch.inputs.appearance.is_cuda, step
        difference = (
            cpu_batch.inputs.appearance.float() - gpu_batch.inputs.appearance.cpu().float()
        ).abs()
        assert difference.mean() < GREY_LEVELS
        assert torch.equal(cpu_batch.inputs.map_size, gpu_batch.inputs.map_size.cpu())
        assert torch.equal(cpu_batch.targets.boxes, gpu_batch.targets.boxes.cpu())


def batches(features: GroundingDataset, device: torch.device, config: AugmentConfig) -> list[Batch]:
    augment = Augmentation(config, 0, features.queries, None)
    with Loader(features, features.queries, 4, 0, 0, device=device, transforms=[augment]) as loader:
        return [part for step in islice(loader, 8) for part in step]
