"""The projection of a reduced product: fitted once, kept in the store, used by every run that adds
to it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.errors import InputError, StoreError
from pipeline.extraction import fit_reduction as fitting
from pipeline.extraction.config import ExtractConfig
from pipeline.extraction.run import run_extraction
from pipeline.extraction.shard_task import get_encoder
from pipeline.features.reduction import Reduction, fit_pca, load_stored_projection, sample_cells
from pipeline.features.stream import extract_video
from pipeline.io.jsonl import write_jsonl
from pipeline.records import Query
from pipeline.store import Store
from pipeline.tracks import Tracks

pytestmark = pytest.mark.usefixtures("one_thread")
VIDEOS = ("a", "b", "c")
BASE: dict[str, Any] = {
    "backbones": "tiny",
    "weights": "random:0",
    "products": ["appearance"],
    "reduce": {"appearance": "pca:4"},
    "sampling": {"short_side": 32, "clip_seconds": 0.4, "clip_stride_seconds": 0.2},
    "workers": 0,
    "device": "cpu",
}
Extract = Callable[..., list[str]]


@pytest.fixture
def data_dir(tmp_path: Path, make_video: Callable[..., Path]) -> Path:
    """Three videos of different lengths with their index."""
    folder = tmp_path / "data"
    folder.mkdir()
    for number, name in enumerate(VIDEOS):
        make_video(folder / f"{name}.mp4", 12 + 5 * number)
    write_index(folder, VIDEOS)
    return folder


def write_index(folder: Path, videos: tuple[str, ...], seconds: float = 0.5) -> None:
    facts: dict[str, Any] = {
        "fps": 24,
        "frame_count": int(24 * seconds),
        "size": (128, 48),
        "segment": (0, 12),
        "split": "test",
    }
    write_jsonl(
        folder / "index.jsonl",
        [Query(id=v, video=v, path=f"{v}.mp4", text="what moves?", **facts) for v in videos],
    )
    Tracks().save(folder / "tracks.npz")


@pytest.fixture
def run_and_list_messages(data_dir: Path, tmp_path: Path) -> Extract:
    """Extract into `store` and give what the run said about fitting."""

    def extract_into(store: str = "s", **changes: Any) -> list[str]:
        said: list[str] = []
        config = ExtractConfig.model_validate(BASE | changes)
        run_extraction(
            data_dir / "index.jsonl",
            data_dir,
            "jsonl",
            tmp_path / store,
            config,
            on_message=said.append,
        )
        return [line for line in said if line.startswith("fitting")]

    return extract_into


def maps_of(data: Path, product: str, video: str) -> np.ndarray:
    """A video's maps before any reduction."""
    config = ExtractConfig.model_validate(BASE)
    return extract_video(
        data / f"{video}.mp4", config.sampling, {product: get_encoder(product, config)}
    ).products[product][0]


def width(store: Path) -> int:
    return Store(store).open("appearance").shape("a")[-1]


@pytest.mark.parametrize(
    ("product", "asked"),
    [
        ("appearance", "pca:4"),
        ("appearance", "pca:4+int8"),
        ("motion", "pca:6"),
        ("motion", "int8"),
    ],
)
def test_the_store_holds_the_maps_after_their_projection(
    data_dir: Path, tmp_path: Path, run_and_list_messages: Extract, product: str, asked: str
) -> None:
    said = run_and_list_messages(products=[product], reduce={product: asked})
    basis, int8 = load_stored_projection(tmp_path / "s", product), asked.endswith("int8")
    assert said == (
        []
        if asked == "int8"
        else [f"fitting {asked.removesuffix('+int8')} for {product} on up to 32 videos"]
    )
    assert (basis is None) == (asked == "int8")
    opened = Store(tmp_path / "s")
    assert opened.products[product].provenance["reduction"] == Reduction(basis, int8).provenance
    for video in VIDEOS:
        rows, columns = Reduction(basis, int8).apply(maps_of(data_dir, product, video))
        expected = (
            (rows * columns["scale"][:, None, None, None]).astype(np.float16) if int8 else rows
        )
        np.testing.assert_array_equal(opened.open(product).read(video), expected)
    assert opened.verify() == []


def test_the_basis_is_that_of_every_videos_cells(
    data_dir: Path, tmp_path: Path, run_and_list_messages: Extract, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chosen, and seen, by their ids: the order of the videos in the index does not matter."""
    monkeypatch.setattr(fitting, "MIN_STRIDE_SECONDS", 0.2)
    monkeypatch.setattr(fitting, "MAX_CELLS_PER_VIDEO", 10)
    run_and_list_messages()
    cells = {
        video: sample_cells(maps_of(data_dir, "appearance", video), video, 10) for video in VIDEOS
    }
    order = fitting.sample_videos(VIDEOS, 3)
    result = load_stored_projection(tmp_path / "s", "appearance")
    assert result is not None
    assert (
        result.file_bytes
        == fit_pca(np.concatenate([cells[video] for video in order]), 4).file_bytes
    )
    write_index(data_dir, VIDEOS[::-1])
    run_and_list_messages("other")
    again = load_stored_projection(tmp_path / "other", "appearance")
    assert again is not None
    assert again.file_bytes == result.file_bytes


def test_few_videos_and_few_maps_are_looked_at(
    data_dir: Path, run_and_list_messages: Extract, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory is bounded: a video of ten hours gives no more maps than one of two minutes."""
    looked: list[tuple[str, float, float]] = []

    def stream(path: Path, sampling: Any, *rest: Any) -> Any:
        looked.append((path.stem, sampling.fps, sampling.clip_stride_seconds))
        return fitting_stream(path, sampling, *rest)

    fitting_stream = fitting.FeatureStream
    monkeypatch.setattr(fitting, "FeatureStream", stream)
    monkeypatch.setattr(fitting, "MAX_FIT_VIDEOS", 2)
    run_and_list_messages()
    assert looked == [(video, 0.5, 2.0) for video in fitting.sample_videos(VIDEOS, 2)]
    write_index(data_dir, VIDEOS, seconds=36000)
    looked.clear()
    run_and_list_messages("long")
    assert looked == [(video, 64 / 36000, 36000 / 64) for video in fitting.sample_videos(VIDEOS, 2)]


def test_the_stores_own_basis_is_used_again(
    data_dir: Path, tmp_path: Path, run_and_list_messages: Extract, make_video: Callable[..., Path]
) -> None:
    write_index(data_dir, ("a",))
    assert run_and_list_messages() == ["fitting pca:4 for appearance on up to 32 videos"]
    before = (tmp_path / "s" / "appearance" / "basis.safetensors").read_bytes()
    write_index(data_dir, VIDEOS)
    for changes in ({}, {"replace": True}):
        assert run_and_list_messages(**changes) == []
        assert (tmp_path / "s" / "appearance" / "basis.safetensors").read_bytes() == before
    basis = load_stored_projection(tmp_path / "s", "appearance")
    expected, _ = Reduction(basis, int8=False).apply(maps_of(data_dir, "appearance", "c"))
    np.testing.assert_array_equal(Store(tmp_path / "s").open("appearance").read("c"), expected)


@pytest.mark.parametrize(
    ("reduce", "message"),
    [
        (
            {"appearance": "pca:8"},
            r"'appearance' was made with other settings: reduction.basis is \"pca:4\" in the "
            r"store, \"pca:8\" was",
        ),
        ({"appearance": "pca:4+int8"}, "reduction.int8 is false in the store, true was asked for"),
        ({"appearance": "int8"}, r"reduction.basis is \"pca:4\" in the store, null was asked for"),
        (
            {},
            r"reduction is \{.* in the store, null was asked for. Extract into another "
            r"--store, or delete",
        ),
    ],
)
def test_another_reduction_is_refused_or_made_anew(
    tmp_path: Path, run_and_list_messages: Extract, reduce: dict[str, str], message: str
) -> None:
    run_and_list_messages()
    before = (tmp_path / "s" / "manifest.json").read_bytes()
    with pytest.raises(StoreError, match=message):
        run_and_list_messages(reduce=reduce)
    assert (tmp_path / "s" / "manifest.json").read_bytes() == before
    assert width(tmp_path / "s") == 4
    run_and_list_messages(reduce=reduce, replace=True)
    run_and_list_messages("fresh", reduce=reduce)
    for video in VIDEOS:
        rows = [Store(tmp_path / store).open("appearance").read(video) for store in ("s", "fresh")]
        np.testing.assert_array_equal(*rows)
    assert Store(tmp_path / "s").verify() == []
    assert (tmp_path / "s" / "appearance" / "basis.safetensors").exists() == any(
        "pca" in text for text in reduce.values()
    )


def test_replacing_the_weights_fits_anew(tmp_path: Path, run_and_list_messages: Extract) -> None:
    run_and_list_messages()
    assert run_and_list_messages(weights="random:1", replace=True) == [
        "fitting pca:4 for appearance on up to 32 videos"
    ]
    run_and_list_messages("fresh", weights="random:1")
    contents = [
        (tmp_path / store / "appearance" / "basis.safetensors").read_bytes()
        for store in ("s", "fresh")
    ]
    assert contents[0] == contents[1]


def test_videos_that_cannot_be_read_are_passed_over(
    data_dir: Path, tmp_path: Path, run_and_list_messages: Extract, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many: the next one takes the place of the one that fails."""
    monkeypatch.setattr(fitting, "MAX_FIT_VIDEOS", 1)
    bad, good = fitting.sample_videos(VIDEOS, 3)[:2]
    (data_dir / f"{bad}.mp4").write_bytes(b"not a video")
    run_and_list_messages()
    basis = load_stored_projection(tmp_path / "s", "appearance")
    assert basis is not None
    assert sorted(Store(tmp_path / "s").open("appearance").keys()) == sorted({*VIDEOS} - {bad})
    write_index(data_dir, (good,))
    run_and_list_messages("good")
    other = load_stored_projection(tmp_path / "good", "appearance")
    assert other is not None
    assert other.file_bytes == basis.file_bytes


def test_without_any_readable_video_nothing_is_fitted(
    data_dir: Path, run_and_list_messages: Extract
) -> None:
    for video in VIDEOS:
        (data_dir / f"{video}.mp4").unlink()
    with pytest.raises(
        InputError,
        match="pca:4 for appearance cannot be fitted: none of the videos can be read; run "
        "stvg-prepare",
    ):
        run_and_list_messages()


def test_more_directions_than_samples_are_refused(
    data_dir: Path, run_and_list_messages: Extract
) -> None:
    write_index(data_dir, ("a",))
    with pytest.raises(
        InputError, match=r"pca:100 of 8 samples with 128 channels: K must lie in \[1, 8\]"
    ):
        run_and_list_messages(reduce={"appearance": "pca:100"})
    write_index(data_dir, VIDEOS)
    with pytest.raises(
        InputError, match=r"pca:256 of 24 samples with 128 channels: K must lie in \[1, 24\]"
    ):
        run_and_list_messages(reduce={"appearance": "pca"})


@pytest.mark.parametrize(
    ("reduce", "message"),
    [
        (
            {"text": "int8"},
            "reduce is given for 'text'; products that can be reduced are appearance, motion, swin",
        ),
        ({"frames": "pca:4"}, "reduce is given for 'frames'"),
        (
            {"apearance": "pca:4"},
            "reduce is given for 'apearance'; products that can be reduced are appearance, "
            "motion, swin",
        ),
        (
            {"motion": "mdetr:x.pth"},
            "reduce 'mdetr:x.pth' is for appearance: .* motion may have pca:256 or int8",
        ),
        ({"appearance": "pca:4", "swin": "pca4"}, "reduction 'pca4' is unknown; allowed are pca:K"),
        ({"appearance": "mdetr:gone.pth"}, "gone.pth"),
    ],
)
def test_reductions_that_make_no_sense_are_refused(
    run_and_list_messages: Extract, reduce: dict[str, str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        run_and_list_messages(products=["appearance", "motion", "text"], reduce=reduce)


def test_mdetrs_own_projection_is_stored(
    data_dir: Path, tmp_path: Path, run_and_list_messages: Extract
) -> None:
    """y = W·x + b, as MDETR's `input_proj` gives it."""
    random = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(8, 128, 1, 1, generator=random), torch.randn(8, generator=random)
    torch.save(
        {"model": {"input_proj.weight": weight, "input_proj.bias": bias}}, tmp_path / "mdetr.pth"
    )
    reduce = {"appearance": f"mdetr:{tmp_path / 'mdetr.pth'}"}
    assert run_and_list_messages(reduce=reduce) == []
    opened = Store(tmp_path / "s")
    assert opened.products["appearance"].provenance["reduction"]["basis"] == "mdetr"
    maps = torch.from_numpy(maps_of(data_dir, "appearance", "b")).float().permute(0, 3, 1, 2)
    expected = torch.nn.functional.conv2d(maps, weight, bias).permute(0, 2, 3, 1)
    np.testing.assert_allclose(
        opened.open("appearance").read("b"), expected.half().numpy(), rtol=2e-3, atol=2e-3
    )
    torch.save(
        {"model": {"input_proj.weight": weight + 1, "input_proj.bias": bias}},
        tmp_path / "mdetr.pth",
    )
    with pytest.raises(
        StoreError, match=r"reduction.basis_digest is .* in the store, .* was asked for"
    ):
        run_and_list_messages(reduce=reduce)


def test_a_damaged_basis_stops_the_run(tmp_path: Path, run_and_list_messages: Extract) -> None:
    run_and_list_messages()
    path = tmp_path / "s" / "appearance" / "basis.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(
        StoreError,
        match=r"basis.safetensors cannot be read .*: restore it, or extract into another --store",
    ):
        run_and_list_messages()
    assert [problem.shard for problem in Store(tmp_path / "s").verify()] == ["basis.safetensors"]


def test_a_lost_basis_is_fitted_again(tmp_path: Path, run_and_list_messages: Extract) -> None:
    run_and_list_messages()
    path = tmp_path / "s" / "appearance" / "basis.safetensors"
    before = path.read_bytes()
    path.unlink()
    assert len(run_and_list_messages()) == 1
    assert path.read_bytes() == before


def test_a_basis_without_a_product_is_not_trusted(
    tmp_path: Path, run_and_list_messages: Extract
) -> None:
    """Killed after the basis was written and before the manifest told of it; then the weights are
    others.
    """
    run_and_list_messages()
    manifest = json.loads((tmp_path / "s" / "manifest.json").read_text())
    for shard in (tmp_path / "s" / "appearance").glob("*.zarr"):
        shard.rename(tmp_path / shard.name)
    (tmp_path / "s" / "manifest.json").write_text(json.dumps(manifest | {"products": {}}))
    run_and_list_messages(weights="random:1")
    run_and_list_messages("fresh", weights="random:1")
    contents = [
        (tmp_path / store / "appearance" / "basis.safetensors").read_bytes()
        for store in ("s", "fresh")
    ]
    assert contents[0] == contents[1]
