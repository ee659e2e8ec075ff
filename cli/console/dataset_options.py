"""The sections of the configuration that belong to commands rather than to a library part. Import inside command bodies."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import Field

from pipeline.config import StrictModel, load, validate
from pipeline.datasets.shapes.make import ShapesConfig


class DatasetConfig(StrictModel):
    """Section `dataset`, shared by commands. `root` is a folder (for `jsonl` the file), `index` the prepared index."""

    name: str = "shapes"
    root: Path | None = None
    index: Path | None = None

    @property
    def root_path(self) -> Path:
        return self.root or Path("data") / self.name

    @property
    def video_root(self) -> Path:
        """What the index's video paths are relative to."""
        return self.root_path.parent if self.name == "jsonl" else self.root_path

    @property
    def index_path(self) -> Path:
        return self.index or Path("data") / f"{self.name}-index" / "index.jsonl"


class PrepareConfig(StrictModel):
    """Section `prepare`. `allow_failed`: how many inputs may fail, a share below 1 or a count; `shapes`: how much of it is made."""

    allow_failed: float = Field(0, ge=0)
    workers: int = Field(default_factory=lambda: os.cpu_count() or 1, ge=1)
    shapes: ShapesConfig = ShapesConfig()


def load_dataset_config(
    file: Path | None, name: str | None, root: Path | None, index: Path | None = None
) -> DatasetConfig:
    """The file's section `dataset` under what the command line names; another name forgets the file's paths."""
    settings = load(DatasetConfig, "dataset", file, [])
    given = {
        key: value
        for key, value in (("name", name), ("root", root), ("index", index))
        if value is not None
    }
    kept = settings.model_dump() if name in (None, settings.name) else {}
    return validate(DatasetConfig, {**kept, **given}, "section 'dataset'")
