"""Every published format of weights loads, by its real names, and gives what the library's own
network gives.
"""

from __future__ import annotations

import json
import os
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import ResNet, ResNet101_Weights
from torchvision.models.video import swin3d_t
from transformers import RobertaConfig, RobertaForMaskedLM, RobertaModel, RobertaTokenizerFast

from pipeline.encoders.appearance import AppearanceEncoder
from pipeline.encoders.swin import SwinEncoder
from pipeline.encoders.text import TextEncoder, get_vocab_size
from pipeline.weights.checkpoint_files import load_strict
from pipeline.weights.encoder_specs import ENCODERS
from pipeline.weights.load import load_backbone

REPOSITORY = Path(__file__).parents[3]
GOLDEN = (
    Path(os.environ.get("STVG_GOLDEN") or REPOSITORY.parent / "shared" / "golden")
    / "mdetr_state_dict.json"
)
SENTENCES = ["the red circle moves", "a man in red opens the door <pad>", "", "ein Hund – 犬"]
MDETR_REST = {
    "transformer.encoder.layers.0.linear1.weight": torch.zeros(4, 2),
    "transformer.decoder.norm.bias": torch.zeros(2),
    "transformer.resizer.fc.weight": torch.zeros(2, 3),
    "bbox_embed.layers.2.bias": torch.zeros(4),
    "class_embed.weight": torch.zeros(3, 2),
    "query_embed.weight": torch.zeros(5, 2),
    "input_proj.weight": torch.zeros(2, 3, 1, 1),
    "contrastive_align_projection_image.weight": torch.zeros(2, 2),
    "answer_type_head.bias": torch.zeros(3),
}
"""Names of MDETR's other parts, of shapes that do not matter."""


def save_mdetr(path: Path, state: dict[str, Tensor], **changes: Any) -> Path:
    """A checkpoint as MDETR writes it: plain weights (here zeros), averaged ones, the optimiser,
    and its settings.
    """
    plain = {name: torch.zeros_like(value) for name, value in state.items()}
    args = Namespace(
        lr=1e-4,
        backbone="resnet101",
        load_dataset_config="configs/pretrain.json",
        combine_datasets=["flickr", "mixed"],
        ema=True,
    )
    optimizer = {
        "state": {0: {"step": 7, "exp_avg": torch.zeros(3)}},
        "param_groups": [{"lr": 1e-5, "params": [0]}],
    }
    torch.save(
        {"model": plain, "model_ema": state, "optimizer": optimizer, "epoch": 39, "args": args}
        | changes,
        path,
    )
    return path


def their_c5(model: ResNet, pictures: Tensor) -> Tensor:
    preset = ResNet101_Weights.IMAGENET1K_V1.transforms()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (preset.mean, preset.std))
    stages = [
        getattr(model, name)
        for name in ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
    ]
    return nn.Sequential(*stages)((pictures / 255 - mean) / std).permute(0, 2, 3, 1)


def pictures() -> Tensor:
    return torch.rand(2, 3, 65, 33, generator=torch.Generator().manual_seed(0)) * 255


@pytest.fixture(scope="module")
def torchvision_digest(resnet: ResNet, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest of the network loaded from torchvision's format, which is checked on the way."""
    path = tmp_path_factory.mktemp("torchvision") / "resnet101.pth"
    torch.save(resnet.state_dict(), path)
    loaded = load_backbone("appearance", "full", f"torchvision:{path}")
    with torch.inference_mode():
        torch.testing.assert_close(
            loaded.encoder(pictures()), their_c5(resnet, pictures()), rtol=1e-3, atol=1e-4
        )
    assert (len(loaded.report.loaded_keys), loaded.report.num_expected) == (520, 520)
    assert len(loaded.report.ignored_keys) == 2 + 104
    assert {"fc.weight", "fc.bias", "bn1.num_batches_tracked"} <= set(loaded.report.ignored_keys)
    assert not loaded.encoder.training
    return loaded.digest


def test_torchvisions_file_of_the_old_format_is_the_same(
    resnet: ResNet, torchvision_digest: str, tmp_path: Path
) -> None:
    """`resnet101-63fe2227.pth` is not a zip, and has no counters."""
    state = {
        name: value
        for name, value in resnet.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    loaded = load_backbone("appearance", "full", f"torchvision:{tmp_path / 'old.pth'}")
    assert loaded.digest == torchvision_digest
    assert loaded.report.ignored_keys == ("fc.bias", "fc.weight")


def test_mdetrs_resnet_is_its_averaged_one(
    resnet: ResNet, torchvision_digest: str, tmp_path: Path
) -> None:
    body = {
        name: value
        for name, value in resnet.state_dict().items()
        if not name.startswith("fc.") and "num_batches" not in name
    }
    state = {f"backbone.0.body.{name}": value for name, value in body.items()} | MDETR_REST
    loaded = load_backbone(
        "appearance", "full", f"mdetr:{save_mdetr(tmp_path / 'mdetr.pth', state)}"
    )
    assert loaded.digest == torchvision_digest
    assert len(loaded.report.loaded_keys) == loaded.report.num_expected == 520
    assert set(loaded.report.ignored_keys) == set(MDETR_REST)


@pytest.mark.parametrize("kind", ["ava", "kinetics"])
def test_pytorchvideos_slowfast(
    kind: str, slowfast: Callable[[str], nn.Module], tmp_path: Path
) -> None:
    """Before its pooling and head, built as the source's: the maps of AVA's network are twice as
    fine.
    """
    expected = slowfast(kind)
    path = tmp_path / "slowfast.pyth"
    torch.save({"model_state": expected.state_dict()}, path)
    loaded = load_backbone("motion", "full", f"{kind}:{path}")
    clips = torch.rand(1, 3, 32, 64, 64, generator=torch.Generator().manual_seed(0)) * 255
    fast = (clips / 255 - 0.45) / 0.225
    paths = [fast[:, :, torch.linspace(0, 31, 8).long()], fast]
    with torch.inference_mode():
        for block in (expected.model if kind == "ava" else expected).blocks[:5]:
            paths = block(list(paths))
        target = torch.cat([path.mean(2) for path in paths], 1).permute(0, 2, 3, 1)
        torch.testing.assert_close(loaded.encoder(clips), target, rtol=1e-4, atol=1e-5)
    assert target.shape[1:] == ((4, 4, 2304) if kind == "ava" else (2, 2, 2304))
    head = (
        {"detection_head.proj.weight", "detection_head.proj.bias"}
        if kind == "ava"
        else {"blocks.6.proj.weight", "blocks.6.proj.bias"}
    )
    assert {name for name in loaded.report.ignored_keys if "num_batches" not in name} == head
    assert len(loaded.report.loaded_keys) == loaded.report.num_expected


def test_torchvisions_video_swin(tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = swin3d_t(weights=None)
    torch.save(expected.state_dict(), tmp_path / "swin.pth")
    loaded = load_backbone("swin", "full", f"torchvision:{tmp_path / 'swin.pth'}")
    current = SwinEncoder().eval()
    current.body.load_state_dict(
        {
            name: value
            for name, value in expected.state_dict().items()
            if not name.startswith("head.")
        }
    )
    frames = torch.rand(1, 3, 3, 40, 40) * 255
    with torch.inference_mode():
        assert torch.equal(loaded.encoder(frames), current(frames))
    assert loaded.report.ignored_keys == ("head.bias", "head.weight")


def small_roberta(vocabulary: int, cls: type = RobertaModel) -> Any:
    torch.manual_seed(2)
    return cls(
        RobertaConfig(
            vocab_size=vocabulary,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=40,
            type_vocab_size=1,
            pad_token_id=1,
            layer_norm_eps=1e-5,
        )
    ).eval()


@pytest.fixture
def roberta_dir(tmp_path: Path, save_tokenizer: Callable[..., None]) -> Path:
    """A Hugging Face folder as `save_pretrained` writes that of `roberta-base`: a language model
    with its head.
    """
    save_tokenizer(tmp_path / "roberta")
    small_roberta(300, RobertaForMaskedLM).save_pretrained(tmp_path / "roberta")
    return tmp_path / "roberta"


def their_states(folder: Path, texts: list[str]) -> tuple[Tensor, Tensor, Tensor]:
    tokenizer = RobertaTokenizerFast.from_pretrained(folder)
    result = tokenizer(texts, padding=True, return_tensors="pt", split_special_tokens=True)
    model = RobertaModel.from_pretrained(folder, add_pooling_layer=False).eval()
    with torch.inference_mode():
        return (
            result["input_ids"],
            result["attention_mask"].bool(),
            model(**result).last_hidden_state,
        )


def check_folder(folder: Path) -> Any:
    """The encoder tokenises and encodes as transformers does from this folder."""
    loaded = load_backbone("text", "full", f"hf:{folder}")
    tokens, mask, states = their_states(folder, SENTENCES)
    current = loaded.encoder.tokenize(SENTENCES)
    assert torch.equal(current[0], tokens)
    assert torch.equal(current[1], mask)
    with torch.inference_mode():
        torch.testing.assert_close(
            loaded.encoder(*current)[mask], states[mask], rtol=1e-5, atol=1e-5
        )
    assert loaded.encoder.channels == 32
    assert len(loaded.report.loaded_keys) == loaded.report.num_expected == 37
    return loaded


def test_a_hugging_face_folder(roberta_dir: Path) -> None:
    loaded = check_folder(roberta_dir)
    assert loaded.report.ignored_keys
    assert all(name.startswith("lm_head.") for name in loaded.report.ignored_keys)


def test_a_hugging_face_folder_with_tokenizer_json(roberta_dir: Path) -> None:
    RobertaTokenizerFast.from_pretrained(roberta_dir).save_pretrained(roberta_dir)
    (roberta_dir / "vocab.json").unlink()
    (roberta_dir / "merges.txt").unlink()
    check_folder(roberta_dir)


def test_a_hugging_face_folder_of_the_model_alone(roberta_dir: Path) -> None:
    """`RobertaModel` saves names without `roberta.`, with its pooler."""
    small_roberta(300).save_pretrained(roberta_dir)
    assert check_folder(roberta_dir).report.ignored_keys == (
        "pooler.dense.bias",
        "pooler.dense.weight",
    )


def test_a_hugging_face_folder_with_a_pickle(roberta_dir: Path) -> None:
    """The older `pytorch_model.bin`, which held the positions too."""
    model = small_roberta(300, RobertaForMaskedLM)
    (roberta_dir / "model.safetensors").unlink()
    torch.save(
        model.state_dict() | {"roberta.embeddings.position_ids": torch.arange(40)[None]},
        roberta_dir / "pytorch_model.bin",
    )
    loaded = load_backbone("text", "full", f"hf:{roberta_dir}")
    assert "roberta.embeddings.position_ids" in loaded.report.ignored_keys
    save_file(
        {name: value.clone() for name, value in model.roberta.state_dict().items()},
        roberta_dir / "model.safetensors",
    )
    assert load_backbone("text", "full", f"hf:{roberta_dir}").digest == loaded.digest


@pytest.mark.parametrize("change", ["tokenizer", "heads"])
def test_the_digest_covers_what_else_decides_the_states(roberta_dir: Path, change: str) -> None:
    before = load_backbone("text", "full", f"hf:{roberta_dir}").digest
    if change == "tokenizer":
        merges = (roberta_dir / "merges.txt").read_text().splitlines()
        (roberta_dir / "merges.txt").write_text("\n".join([merges[0], *merges[:0:-1]]))
    else:
        config = json.loads((roberta_dir / "config.json").read_text())
        (roberta_dir / "config.json").write_text(json.dumps(config | {"num_attention_heads": 8}))
    assert load_backbone("text", "full", f"hf:{roberta_dir}").digest != before


def test_long_sentences_are_cut_where_the_positions_end(roberta_dir: Path) -> None:
    """40 positions, of which RoBERTa leaves the first two unused."""
    encoder: Any = load_backbone("text", "full", f"hf:{roberta_dir}").encoder
    tokens, mask = encoder.tokenize(["circle " * 100, "a"])
    assert tokens.shape == (2, 38)
    assert (tokens[0, 0], tokens[0, -1]) == (0, 2)
    with torch.inference_mode():
        assert encoder(tokens, mask).isfinite().all()


def test_mdetrs_roberta_with_a_folders_tokenizer(
    roberta_dir: Path, tmp_path: Path, save_tokenizer: Callable[..., None]
) -> None:
    """At the tiny size: names, the averaged weights, the tokenizer. Of the folder nothing but the
    tokenizer is read.
    """
    encoder = TextEncoder("tiny").eval()
    save_tokenizer(tmp_path / "tokenizer", get_vocab_size())
    state = {
        f"transformer.text_encoder.{name}": value
        for name, value in encoder.roberta.state_dict().items()
    } | MDETR_REST
    extra = {
        f"transformer.text_encoder.{name}": torch.zeros(2)
        for name in ("embeddings.position_ids", "pooler.dense.weight")
    }
    state |= extra | {"backbone.0.body.conv1.weight": torch.zeros(1)}
    path = save_mdetr(tmp_path / "mdetr.pth", state)
    loaded = load_backbone("text", "tiny", f"mdetr:{path}+hf:{tmp_path / 'tokenizer'}")
    tokens, mask = loaded.encoder.tokenize(SENTENCES)
    expected = RobertaTokenizerFast.from_pretrained(tmp_path / "tokenizer")(
        SENTENCES, padding=True, split_special_tokens=True
    )
    assert tokens.tolist() == expected["input_ids"]
    with torch.inference_mode():
        assert torch.equal(loaded.encoder(tokens, mask), encoder(tokens, mask))
    assert set(loaded.report.ignored_keys) == {*MDETR_REST, *extra, "backbone.0.body.conv1.weight"}


def test_the_plain_weights_serve_where_mdetr_kept_no_average(tmp_path: Path) -> None:
    state = {
        name.replace("body.", "backbone.0.body."): value
        for name, value in AppearanceEncoder("tiny").state_dict().items()
    }
    path = save_mdetr(tmp_path / "mdetr.pth", state, model=state, model_ema=None)
    loaded = load_backbone("appearance", "tiny", f"mdetr:{path}")
    assert torch.equal(
        loaded.encoder.state_dict()["body.conv1.weight"], state["backbone.0.body.conv1.weight"]
    )


@pytest.mark.filterwarnings("ignore:.*copying from a non-meta parameter")
@pytest.mark.skipif(
    not GOLDEN.exists(), reason=f"the list of MDETR's names is not at {GOLDEN} (set STVG_GOLDEN)"
)
@pytest.mark.parametrize(
    ("product", "prefix"),
    [("appearance", "backbone.0.body."), ("text", "transformer.text_encoder.")],
)
def test_the_names_and_shapes_are_mdetrs(product: str, prefix: str) -> None:
    golden = {
        name: torch.zeros(()).expand(shape)
        for name, shape in json.loads(GOLDEN.read_text()).items()
    }
    with torch.device("meta"):
        encoder = AppearanceEncoder() if product == "appearance" else TextEncoder()
    report = load_strict(encoder, golden, "MDETR", ENCODERS[product].state_dict_layouts["mdetr"])
    own = {name for name in golden if name.startswith(prefix) and ".pooler." not in name}
    assert set(report.loaded_keys) == own
    assert (
        len(report.loaded_keys) == report.num_expected == {"appearance": 520, "text": 197}[product]
    )
    assert set(report.ignored_keys) == set(golden) - own
