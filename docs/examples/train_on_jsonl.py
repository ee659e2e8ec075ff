"""Train on your own data from Python: `python docs/examples/train_on_jsonl.py DATA.jsonl OUT`.

The four stages as library calls, with the small backbones; the commands do the same.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from grounding.systems.registry import get_preset, get_system
from grounding.training.run_directory import prepare_run_dir
from grounding.training.train import train
from pipeline import prepare, run_extraction
from pipeline.config import merge, validate
from pipeline.extraction.config import ExtractConfig


def main() -> None:
    """Prepare an index, extract features, train CSDVL for a few steps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=50)
    arguments = parser.parse_args()

    index, store, run = (arguments.out / name for name in ("index.jsonl", "store", "run"))

    # Annotations and videos are checked; the report names everything that was left out.
    report = prepare("jsonl", arguments.data, index)
    print(report)

    # Without workers, this process does all work: the quickest way for a few videos.
    settings = {"backbones": "tiny", "weights": "tiny", "workers": 0}
    extract_config = ExtractConfig.model_validate(settings)
    run_extraction(index, arguments.data.parent, "jsonl", store, extract_config)

    changes = {"max_steps": arguments.steps, "validate_every": arguments.steps}
    values = merge(get_preset("shapes", "csdvl"), changes)
    train_config = validate(get_system("csdvl").config_class, values, "section 'train'")

    prepare_run_dir(store, run, train_config)
    train(store, run, train_config)
    print(f"the run is in {run}")


if __name__ == "__main__":
    main()
