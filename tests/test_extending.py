"""The checklists of `docs/extending.md`, carried out on small made-up examples."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from grounding.losses.boxes import box_losses
from grounding.metrics.protocols import (
    PROTOCOLS,
    GroundTruthTubes,
    Protocol,
    ProtocolRule,
    score_tubes,
)
from grounding.models.config import TransformerConfig
from grounding.models.output import AttentionKind
from grounding.modules.frame_outputs import FramewiseOutputs
from grounding.structures.inputs import ModelInputs
from grounding.structures.targets import LossNormalizers, Targets
from grounding.structures.tubes import Tubes
from grounding.systems.config import TrainConfig
from grounding.systems.registry import SYSTEMS
from grounding.systems.spec import SystemSpec
from pipeline.datasets import PARSERS, ParsedDataset, ProgressCallback, ignore_progress
from pipeline.datasets.parsed import ProbeFunction
from pipeline.datasets.prepare import prepare
from pipeline.datasets.video_checks import probe_videos
from pipeline.encoders.image_geometry import compute_appearance_size
from pipeline.extraction.config import ExtractConfig
from pipeline.extraction.run import run_extraction
from pipeline.features.builders import AppearanceBuilder, FeatureBuilder
from pipeline.features.config import SamplingConfig
from pipeline.features.products import PRODUCTS, VISUAL_LIBRARIES, ProductSpec, SizeRequest
from pipeline.io.jsonl import read_jsonl
from pipeline.records import Prediction, Query, Truth
from pipeline.sampling import sample_grid
from pipeline.store import Store
from pipeline.tracks import Tracks
from pipeline.validation import StrictModel
from pipeline.video import VideoMetadata
from pipeline.weights.encoder_specs import ENCODERS, EncoderOptions, EncoderSpec
from tests.conftest import TinyRun

# ------------------------------------------------------------------------------------------------
# A data set: one text file with a line `video | sentence` per query.


def parse_lines(
    root: Path, progress: ProgressCallback = ignore_progress, probe: ProbeFunction = probe_videos
) -> ParsedDataset:
    """Parse `sentences.txt`; a line without a sentence is a defect."""
    parsed = ParsedDataset(folder=root)
    lines = (root / "sentences.txt").read_text(encoding="utf-8").splitlines()
    entries = [[part.strip() for part in line.split("|")] for line in lines]
    metadata = probe(root, [path for path, _ in entries], progress)

    for number, (path, text) in enumerate(entries):
        if not text:
            parsed.defects.add("empty sentence", path, "there is nothing to ask", excluded=True)
            continue
        video = metadata[path]
        assert isinstance(video, VideoMetadata)
        parsed.queries.append(
            Query(
                id=f"line-{number}",
                video=Path(path).stem,
                path=path,
                fps=video.fps,
                frame_count=video.frame_count,
                size=video.size,
                segment=(0, video.frame_count),
                text=text,
                split="test",
            )
        )
    return parsed


def test_a_data_set_is_a_parser_and_a_line(
    tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PARSERS, "lines", parse_lines)
    videos = sorted((tiny_run.root / "video").rglob("*.mp4"))
    text = f"{videos[0]} | what falls?\n{videos[1]} |\n"
    (tmp_path / "sentences.txt").write_text(text, encoding="utf-8")

    report = prepare("lines", tmp_path, tmp_path / "index" / "index.jsonl")

    queries = list(read_jsonl(tmp_path / "index" / "index.jsonl", Query))
    assert [query.text for query in queries] == ["what falls?"]
    assert queries[0].frame_count == 50
    assert report.exit_code(0) == 1  # one entry was left out
    assert report.exit_code(1) == 0


# ------------------------------------------------------------------------------------------------
# A product: the mean color of each cell of 16 × 16 pixels.


class ColorEncoder(nn.Module):
    """Mean color per cell: RGB `[n, 3, h, w]` → `[n, h/16, w/16, 3]`."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.channels = 3
        self.stride = 16

    def forward(self, images: Tensor) -> Tensor:
        """Average over cells."""
        pooled = nn.functional.avg_pool2d(images.float() / 255, self.stride)  # [n, 3, H, W]
        return pooled.permute(0, 2, 3, 1)


def build_color_encoder(options: EncoderOptions) -> nn.Module:
    """Return the network; it has one size."""
    return ColorEncoder()


def create_color_builder(
    encoder: nn.Module, video: VideoMetadata, sampling: SamplingConfig, batch_size: int
) -> FeatureBuilder:
    """Return the builder of one map per sampled frame."""
    image_size = compute_appearance_size(video.size, sampling.short_side)
    return AppearanceBuilder(
        encoder, image_size, sample_grid(video.pts_seconds, sampling.fps), batch_size
    )


def estimate_color_bytes(request: SizeRequest) -> int:
    """Estimate three float16 values per cell and frame."""
    cells = request.resized_pixels / 16**2
    return int(request.seconds * request.sampling.fps * cells * 3 * 2)


def test_a_product_is_an_encoder_a_builder_and_an_entry(
    tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = EncoderSpec(
        name="color", build=build_color_encoder, source_forms=(), state_dict_layouts={}
    )
    spec = ProductSpec(
        name="color",
        recipe_version=1,
        libraries=VISUAL_LIBRARIES,
        estimate_bytes=estimate_color_bytes,
        encoder=encoder,
        create_builder=create_color_builder,
        sampling_keys=("fps", "short_side"),
        channels={"tiny": 3},
    )
    monkeypatch.setitem(ENCODERS, "color", encoder)
    monkeypatch.setitem(PRODUCTS, "color", spec)

    settings = {
        "backbones": "tiny",
        "weights": "random:0",
        "products": ["color"],
        "sampling": {"fps": 2.0, "short_side": 96},
        "workers": 0,
        "device": "cpu",
    }
    config = ExtractConfig.model_validate(settings)
    run_extraction(tiny_run.index, tiny_run.root, "shapes", tmp_path / "store", config)

    color = Store(tmp_path / "store").open("color")
    video = color.keys()[0]
    maps = color.read(video)
    assert maps.shape == (10, 6, 10, 3)
    assert maps.dtype == np.float16
    assert maps.min() >= 0
    assert maps.max() <= 1
    assert color.columns(video)["frame"].tolist() == list(range(0, 50, 5))
    assert color.product.provenance["sampling"] == {"fps": 2.0, "short_side": 96}


# ------------------------------------------------------------------------------------------------
# A system: boxes and boundaries from the mean of all features of a frame.


class MeanConfig(TransformerConfig):
    """Sizes of the made-up model."""

    motion_product: ClassVar[str | None] = "motion"
    uses_images: ClassVar[bool] = False
    num_frames: int = 4
    num_clips: int = 4


class MeanLossConfig(StrictModel):
    """Weights of the made-up loss."""

    l1: float = 1.0


@dataclass
class MeanOutputs(FramewiseOutputs):
    """Outputs of the made-up model; it has no attention."""

    def attention_maps(self) -> dict[AttentionKind, Tensor]:
        """Return no map."""
        return {}


class MeanModel(nn.Module):
    """A linear model of the mean appearance of each frame and the mean of the words."""

    def __init__(self, dims: tuple[int, int, int], config: MeanConfig) -> None:
        super().__init__()
        self.heads = nn.Linear(dims[0] + dims[2], 6)

    def forward(self, inputs: ModelInputs) -> MeanOutputs:
        """Predict a box and two boundary logits per frame."""
        appearance = inputs.expand_to_queries(inputs.appearance).float()
        frames = appearance.mean((2, 3))  # [B, T, C]
        words = inputs.text.float().mean(1, keepdim=True).expand(-1, frames.shape[1], -1)
        values = self.heads(torch.cat([frames, words], -1))  # [B, T, 6]

        batch_size, num_frames = frames.shape[:2]
        return MeanOutputs(
            boxes=values[None, ..., :4].sigmoid(),
            start_logits=values[None, ..., 4],
            end_logits=values[None, ..., 5],
            frame_positions=inputs.frame_positions,
            box_attention=torch.zeros(0),
            cell_boxes=torch.zeros(0),
            cell_centers=torch.zeros(batch_size, 0, 2),
            temporal_attention=torch.zeros(1, batch_size, num_frames, 0),
        )


def mean_loss(
    outputs: MeanOutputs, targets: Targets, weights: MeanLossConfig, normalizers: LossNormalizers
) -> dict[str, Tensor]:
    """Return the L1 loss of boxes."""
    l1, _ = box_losses(outputs.boxes, targets, normalizers.num_boxed_frames)
    return {"loss": weights.l1 * l1, "l1": l1}


class MeanTrainConfig(TrainConfig):
    """Section `train` of the made-up system."""

    system: Literal["mean"] = "mean"
    model: MeanConfig = MeanConfig()
    loss: MeanLossConfig = MeanLossConfig()


def load_nothing(model: nn.Module, path: Path, projection: object) -> object:
    """Load no published weights: there are none."""
    raise AssertionError(path)


def test_a_system_is_a_model_a_loss_a_spec_and_a_line(
    tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from typer.testing import CliRunner

    from cli.evaluate import app as evaluate_app
    from cli.train import app as train_app

    spec = SystemSpec(
        name="mean",
        config_class=MeanTrainConfig,
        presets={"shapes": {"lr": 1e-2, "batch": 2}},
        build=MeanModel,
        loss=mean_loss,
        load_pretrained=load_nothing,  # type: ignore[arg-type]
    )
    monkeypatch.setitem(SYSTEMS, "mean", spec)
    run = tmp_path / "mean"
    where = ["--features", str(tiny_run.store), "--run", str(run)]

    options = ["--model", "mean", "--set", "max_steps=2", "--set", "device=cpu"]
    trained = CliRunner().invoke(train_app, [*where, *options])
    assert trained.exit_code == 0, trained.output

    evaluated = CliRunner().invoke(evaluate_app, [*where, "--set", "device=cpu"])
    assert evaluated.exit_code == 0, evaluated.output
    assert (run / "metrics.json").is_file()


# ------------------------------------------------------------------------------------------------
# A protocol: only the first true frame counts.


def use_first_frame(true_tubes: GroundTruthTubes) -> ProtocolRule:
    """Return the rule that scores the box of each tube's first frame."""
    tubes = true_tubes.tubes
    first_rows = tubes.offsets[:-1]
    spans = np.stack([tubes.spans[:, 0], tubes.spans[:, 0] + 1], 1)
    return ProtocolRule(spans, first_rows)


def test_a_protocol_is_a_rule_and_an_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PROTOCOLS, "first-frame", Protocol(use_first_frame))
    box = [0.0, 0.0, 10.0, 10.0]
    half = [0.0, 0.0, 10.0, 5.0]
    query = Query(
        id="q", video="v", path="v.mp4", fps=10.0, frame_count=30, size=(20, 20),
        segment=(0, 30), text="x", split="test", truth=Truth(span=(5, 15), track="v"),
    )  # fmt: skip
    tracks = Tracks()
    tracks.add("v", np.arange(5, 15), np.array([box] * 10))
    prediction = Prediction(id="q", span=(5, 6), score=1.0, boxes=[(5, *half)])

    scores = score_tubes(
        GroundTruthTubes.from_index([query], tracks),
        Tubes.from_predictions([prediction]),
        "first-frame",
    )

    assert scores.tIoU.tolist() == [1.0]
    assert scores.vIoU.tolist() == [0.5]
