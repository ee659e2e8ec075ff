"""The public names of the packages: they exist, and importing the packages stays light."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "zarr", "h5py", "dask", "transformers", "numpy"}


@pytest.mark.parametrize("package", ["grounding", "pipeline"])
def test_every_public_name_is_there(package: str) -> None:
    module = importlib.import_module(package)
    for name in module.__all__:
        assert getattr(module, name) is not None
        assert name in dir(module)


@pytest.mark.parametrize("package", ["grounding", "pipeline"])
def test_an_unknown_name_is_an_attribute_error(package: str) -> None:
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'nothing'"):
        _ = importlib.import_module(package).nothing


def test_importing_the_packages_imports_nothing_heavy() -> None:
    program = f"import sys, grounding, pipeline; print({HEAVY!r} & set(sys.modules))"
    output = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True
    ).stdout
    assert output == "set()\n"


def test_the_version_is_that_of_the_distribution() -> None:
    import tomllib

    import grounding
    import pipeline

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert grounding.__version__ == pipeline.__version__ == project["version"]


@pytest.mark.parametrize("package", ["grounding", "pipeline"])
def test_types_are_announced(package: str) -> None:
    assert (ROOT / package / "py.typed").is_file()
