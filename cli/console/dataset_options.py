"""Sections of the configuration that belong to commands. Import inside command bodies."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import Field

from pipeline.config import StrictModel, load, validate
from pipeline.datasets.shapes.make import ShapesConfig


class DatasetConfig(StrictModel):
    """Section `dataset`, shared by `stvg-prepare` and `stvg-extract`."""

    name: str = "shapes"
    """Name of the data set."""
    root: Path | None = None
    """Folder of the data set; for `jsonl` the file. By default `data/NAME`."""
    index: Path | None = None
    """The prepared index. By default `data/NAME-index/index.jsonl`."""

    @property
    def root_path(self) -> Path:
        """The data set's folder, or its default."""
        return self.root or Path("data") / self.name

    @property
    def video_root(self) -> Path:
        """Folder that the index's video paths are relative to."""
        return self.root_path.parent if self.name == "jsonl" else self.root_path

    @property
    def index_path(self) -> Path:
        """The index, or its default."""
        return self.index or Path("data") / f"{self.name}-index" / "index.jsonl"


class PrepareConfig(StrictModel):
    """Section `prepare`."""

    allow_failed: float = Field(0, ge=0)
    """Inputs that may fail: a share below 1, or a count."""
    workers: int = Field(default_factory=lambda: os.cpu_count() or 1, ge=1)
    """Processes that draw the videos of `shapes`."""
    shapes: ShapesConfig = ShapesConfig()
    """Size of the data set `shapes`."""


def load_dataset_config(
    file: Path | None, name: str | None, root: Path | None, index: Path | None = None
) -> DatasetConfig:
    """Load section `dataset`, with the values of the command line over those of the file.

    Args:
        file: YAML file with sections; None for no file.
        name: Name of the data set. A name other than the file's discards the file's paths.
        root: Folder of the data set.
        index: The prepared index.

    Returns:
        The config.

    Raises:
        InputError: The file or a value is invalid.
    """
    settings = load(DatasetConfig, "dataset", file, [])

    options = {"name": name, "root": root, "index": index}
    overrides = {key: value for key, value in options.items() if value is not None}

    same_dataset = name is None or name == settings.name
    defaults = settings.model_dump() if same_dataset else {}
    return validate(DatasetConfig, {**defaults, **overrides}, "section 'dataset'")
