"""Reductions lose what they say and no more, are a function of their input alone, and are undone by
the store's reader.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.errors import InputError, StoreError, VideoError
from pipeline.features.reduction import (
    Projection,
    Reduction,
    ReductionSpec,
    fit_pca,
    load_mdetr_projection,
    load_stored_projection,
    parse_reduction,
    sample_cells,
    sample_videos,
)
from pipeline.store import ShardBuilder, ShardKind, Store, StoreWriter, compute_origin_digest

MAPS = np.random.default_rng(0).standard_normal((7, 3, 4, 16)).astype(np.float16) * np.array(
    [1, 20, 300, 0.01] * 4, np.float16
)


@pytest.fixture
def cells() -> np.ndarray:
    random = np.random.default_rng(1)
    return (
        random.standard_normal((500, 16)) @ random.standard_normal((16, 16))
        + random.standard_normal(16)
    ).astype(np.float16)


@pytest.mark.parametrize(
    ("text", "asked", "origin"),
    [
        ("pca", ReductionSpec("pca", 256), "pca:256"),
        ("pca:64", ReductionSpec("pca", 64), "pca:64"),
        ("pca:64+int8", ReductionSpec("pca", 64, int8=True), "pca:64"),
        ("int8", ReductionSpec(None, int8=True), None),
        (
            "mdetr:a/b+c:d.pth+int8",
            ReductionSpec("mdetr", checkpoint=Path("a/b+c:d.pth"), int8=True),
            "mdetr",
        ),
    ],
)
def test_reductions_are_read(text: str, asked: ReductionSpec, origin: str | None) -> None:
    assert parse_reduction(text) == asked
    assert asked.projection_name == origin


@pytest.mark.parametrize(
    "text",
    [
        "",
        "pca:",
        "pca:0",
        "pca:x",
        "pca:-1",
        "mdetr",
        "mdetr:",
        "int4",
        "int8+pca",
        "int8+int8",
        "+int8",
    ],
)
def test_other_reductions_are_refused(text: str) -> None:
    with pytest.raises(
        InputError,
        match=r"reduction '.*' is unknown; allowed are pca:K \(for example pca:256\), mdetr:FILE, "
        r"int8",
    ):
        parse_reduction(text)


def test_int8_is_off_by_half_a_step_at_most(tmp_path: Path) -> None:
    maps = np.concatenate(
        [MAPS, np.zeros_like(MAPS[:1]), np.full_like(MAPS[:1], 65504), np.full_like(MAPS[:1], 6e-8)]
    )
    rows, columns = Reduction(None, int8=True).apply(maps)
    assert (rows.dtype, rows.shape, columns["scale"].shape) == (np.int8, maps.shape, (10,))
    back = write_and_read(tmp_path, "zarr", rows, columns)
    largest = np.abs(maps).max((1, 2, 3), keepdims=True).astype(np.float64)
    assert back.dtype == np.float16
    assert (np.abs(back.astype(np.float64) - maps) <= largest / 254 + largest * 2.0**-11).all()
    np.testing.assert_array_equal(back[-3:], maps[-3:])


@pytest.mark.parametrize("kind", ["zarr", "hdf5"])
def test_the_reader_gives_float16_in_any_order(tmp_path: Path, kind: ShardKind) -> None:
    rows, columns = Reduction(None, int8=True).apply(MAPS)
    expected = (rows.astype(np.float32) * columns["scale"][:, None, None, None]).astype(np.float16)
    np.testing.assert_array_equal(write_and_read(tmp_path, kind, rows, columns), expected)
    reader = Store(tmp_path).open("appearance")
    for target in ([5, 0, 5, 2], [], [6]):
        np.testing.assert_array_equal(
            reader.read("a", np.array(target, np.int64)), expected[target]
        )
    np.testing.assert_array_equal(reader.read("b"), expected[:0])
    assert reader.shape("a") == MAPS.shape
    assert Store(tmp_path).verify() == []


def write_and_read(
    store: Path, kind: ShardKind, rows: np.ndarray, columns: dict[str, np.ndarray]
) -> np.ndarray:
    """Store the rows in two blocks, and read them."""
    with StoreWriter(store, "shapes", "data") as writer:
        provenance = {"reduction": Reduction(None, int8=True).provenance}
        writer.open_product("appearance", kind, provenance)
        with ShardBuilder(
            store, "appearance", "s", kind, ["a"], compute_origin_digest(kind, provenance)
        ) as shard:
            for key, count in (("a", len(rows)), ("b", 0)):
                shard.begin(key, "a")
                shard.append(rows[: count // 2])
                shard.append(rows[count // 2 : count])
                shard.end({name: values[:count] for name, values in columns.items()}, {})
            writer.publish_shard("appearance", "s", shard.finish())
    return Store(store).open("appearance").read("a")


def test_all_directions_lose_nothing_but_rounding(cells: np.ndarray) -> None:
    basis = fit_pca(cells, 16)
    small = basis.project(cells[:, None, None])[:, 0, 0].astype(np.float64)
    np.testing.assert_allclose(
        basis.matrix.astype(np.float64) @ basis.matrix.T, np.eye(16), atol=1e-6
    )
    np.testing.assert_allclose(small @ basis.matrix + basis.mean, cells, atol=1e-4)
    np.testing.assert_allclose(small.mean(0), 0, atol=1e-4)
    variances = small.var(0)
    assert (np.diff(variances) <= 0).all()
    centred = cells - cells.mean(0, dtype=np.float64)
    np.testing.assert_allclose(
        variances, np.linalg.svd(centred, compute_uv=False) ** 2 / len(cells), rtol=1e-4
    )


def test_the_first_directions_are_the_best(cells: np.ndarray) -> None:
    """The error is the variance of the omitted directions; a larger fit begins with the same K."""
    complete, basis = fit_pca(cells, 16), fit_pca(cells, 5)
    np.testing.assert_array_equal(basis.matrix, complete.matrix[:5])
    back = basis.project(cells[:, None, None])[:, 0, 0] @ basis.matrix + basis.mean
    left = complete.project(cells[:, None, None])[:, 0, 0][:, 5:]
    np.testing.assert_allclose(
        ((cells - back) ** 2).sum(), (left.astype(np.float64) ** 2).sum(), rtol=1e-3
    )


def test_signs_are_fixed(cells: np.ndarray) -> None:
    for samples in (cells, -cells, cells[::-1]):
        matrix = fit_pca(samples, 16).matrix
        assert (matrix[np.arange(16), np.abs(matrix).argmax(1)] > 0).all()
        np.testing.assert_allclose(matrix, fit_pca(cells, 16).matrix, atol=1e-4)
    assert fit_pca(cells, 4).file_bytes == fit_pca(cells.copy(), 4).file_bytes


def test_blocks_do_not_matter(cells: np.ndarray) -> None:
    many = np.concatenate([cells] * 20)
    np.testing.assert_allclose(fit_pca(many, 16).matrix, fit_pca(cells, 16).matrix, atol=1e-5)


@pytest.mark.parametrize("k", [0, 17])
def test_too_many_directions_are_refused(cells: np.ndarray, k: int) -> None:
    with pytest.raises(
        InputError, match=rf"pca:{k} of 500 samples with 16 channels: K must lie in \[1, 16\]"
    ):
        fit_pca(cells, k)
    with pytest.raises(
        InputError, match=r"pca:9 of 8 samples with 16 channels: K must lie in \[1, 8\]"
    ):
        fit_pca(cells[:8], 9)
    with pytest.raises(InputError, match="pca:2: the samples are not finite"):
        fit_pca(np.full((4, 3), np.inf, np.float16), 2)


def test_how_rows_are_grouped_does_not_matter(cells: np.ndarray) -> None:
    reduction = Reduction(fit_pca(cells, 5), int8=True)
    rows, columns = reduction.apply(MAPS)
    assert rows.shape == (7, 3, 4, 5)
    for size in (1, 3):
        parts = [reduction.apply(MAPS[begin : begin + size]) for begin in range(0, 7, size)]
        np.testing.assert_array_equal(np.concatenate([part[0] for part in parts]), rows)
        np.testing.assert_array_equal(
            np.concatenate([part[1]["scale"] for part in parts]), columns["scale"]
        )
    half, none = Reduction(reduction.projection, int8=False).apply(MAPS)
    assert (half.dtype, none) == (np.float16, {})
    assert Reduction(None, int8=False).apply(MAPS)[0] is MAPS


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("projected", [False, True])
def test_what_is_not_finite_is_refused(
    cells: np.ndarray, value: float, int8: bool, projected: bool
) -> None:
    maps = MAPS.copy()
    maps[2, 0, 0, 3] = value
    with pytest.raises(VideoError, match="not-finite"):
        Reduction(fit_pca(cells, 5) if projected else None, int8).apply(maps)


def test_a_basis_for_other_channels_is_refused(cells: np.ndarray) -> None:
    with pytest.raises(
        InputError,
        match="reduction pca:4 takes maps of 16 channels, not 8: it was made for another backbone",
    ):
        Reduction(fit_pca(cells, 4), int8=False).apply(MAPS[..., :8])


def test_the_sample_depends_on_ids_alone() -> None:
    videos = [f"v{number}" for number in range(50)]
    chosen = sample_videos(videos, 10)
    assert sample_videos(reversed(videos), 10) == chosen
    assert set(chosen) - set(videos[:10])
    cells = sample_cells(MAPS, "v1", 20)
    assert cells.shape == (20, 16)
    np.testing.assert_array_equal(cells, sample_cells(MAPS, "v1", 20))
    assert not np.array_equal(cells, sample_cells(MAPS, "v2", 20))
    assert {cell.tobytes() for cell in cells} <= {cell.tobytes() for cell in MAPS.reshape(-1, 16)}
    np.testing.assert_array_equal(sample_cells(MAPS, "v1", 10**6), MAPS.reshape(-1, 16))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Callable[..., Path]:
    def make(
        state: dict[str, torch.Tensor], averaged: dict[str, torch.Tensor] | None = None
    ) -> Path:
        torch.save(
            {"model": state, "model_ema": averaged, "args": argparse.Namespace(lr=1)},
            tmp_path / "mdetr.pth",
        )
        return tmp_path / "mdetr.pth"

    return make


def test_mdetrs_projection_is_its_convolution(checkpoint: Callable[..., Path]) -> None:
    convolution = torch.nn.Conv2d(16, 8, 1)
    state = {
        f"input_proj.{name}": value.detach() for name, value in convolution.state_dict().items()
    }
    basis = load_mdetr_projection(
        checkpoint({name: value * 0 for name, value in state.items()}, state)
    )
    assert (basis.name, basis.matrix.shape) == ("mdetr", (8, 16))
    with torch.no_grad():
        expected = (
            convolution(torch.from_numpy(MAPS).float().permute(0, 3, 1, 2))
            .permute(0, 2, 3, 1)
            .numpy()
        )
    np.testing.assert_allclose(basis.project(MAPS), expected, rtol=1e-4, atol=1e-4)
    assert basis.file_bytes == load_mdetr_projection(checkpoint(state)).file_bytes


def test_other_checkpoints_are_refused(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(
        InputError,
        match=r"mdetr\.pth has no input_proj \(weight \[256, 2048, 1, 1\] and bias \[256\]\): use "
        r"MDETR's",
    ):
        load_mdetr_projection(checkpoint({"other": torch.zeros(2)}))
    with pytest.raises(InputError, match=r"none\.pth does not exist"):
        load_mdetr_projection(tmp_path / "none.pth")


def open_reduced(store: Path, basis: Projection, replace: bool = False) -> None:
    with StoreWriter(store, "shapes", "data") as writer:
        if replace:
            writer.drop_product("appearance")
        writer.open_product(
            "appearance",
            "zarr",
            {"reduction": Reduction(basis, int8=False).provenance},
            basis.file_bytes,
        )
        writer.remove_orphans("appearance")


def test_a_basis_lies_in_the_store_and_is_part_of_the_provenance(
    tmp_path: Path, cells: np.ndarray
) -> None:
    basis, other = fit_pca(cells, 5), fit_pca(cells[:300], 5)
    assert load_stored_projection(tmp_path, "appearance") is None
    open_reduced(tmp_path, basis)
    result = load_stored_projection(tmp_path, "appearance")
    assert result is not None
    assert (result.file_bytes, result.digest, result.name) == (
        basis.file_bytes,
        basis.digest,
        "pca:5",
    )
    np.testing.assert_array_equal(result.project(MAPS), basis.project(MAPS))
    assert Store(tmp_path).verify() == []
    with pytest.raises(StoreError, match=r"made with other settings: reduction\.basis_digest is"):
        open_reduced(tmp_path, other)
    assert (tmp_path / "appearance" / "basis.safetensors").read_bytes() == basis.file_bytes
    open_reduced(tmp_path, other, replace=True)
    assert (tmp_path / "appearance" / "basis.safetensors").read_bytes() == other.file_bytes


def test_a_run_killed_between_basis_and_manifest_goes_on(tmp_path: Path, cells: np.ndarray) -> None:
    basis = fit_pca(cells, 5)
    (tmp_path / "appearance").mkdir()
    (tmp_path / "appearance" / "basis.safetensors").write_bytes(basis.file_bytes)
    open_reduced(tmp_path, basis)
    assert Store(tmp_path).verify() == []


def test_a_damaged_basis_is_noticed_and_made_whole(tmp_path: Path, cells: np.ndarray) -> None:
    basis = fit_pca(cells, 5)
    open_reduced(tmp_path, basis)
    path = tmp_path / "appearance" / "basis.safetensors"
    random = np.random.default_rng(0)
    for position in random.integers(len(basis.file_bytes), size=20):
        damaged = bytearray(basis.file_bytes)
        damaged[position] ^= 1 << int(random.integers(8))
        path.write_bytes(damaged)
        (problem,) = Store(tmp_path).verify()
        assert str(problem) == (
            "appearance/basis.safetensors: its bytes are not those of the manifest: restore "
            "it, or extract into another --store"
        )
    for content in (
        basis.file_bytes[:100],
        b"",
        basis.file_bytes[:8] + b"x" + basis.file_bytes[9:],
    ):
        path.write_bytes(content)
        with pytest.raises(
            StoreError,
            match=r"basis\.safetensors cannot be read .*: restore it, "
            r"or extract into another --store",
        ):
            load_stored_projection(tmp_path, "appearance")
    path.unlink()
    assert [problem.detail.split(":")[0] for problem in Store(tmp_path).verify()] == [
        "it is missing"
    ]
    open_reduced(tmp_path, basis)
    assert Store(tmp_path).verify() == []
