"""Initialization of CSDVL's static stream from MDETR's ResNet-101 checkpoint.

The static stream is MDETR's transformer: post-norm layers with ReLU, sine positions added to the
queries and keys of visual tokens and none for text, no norm after the encoder and one after the
decoder. Each parameter of the stream has a counterpart of the same shape in MDETR.
The rest of the model trains from scratch: the dynamic stream, the collaboration, the temporal
heads, and a box head other than MDETR's MLP.

Ignored entries of the checkpoint: the backbone and the text encoder (the store's features come from
them), the heads of MDETR's own tasks, and all query embeddings after the first.
MDETR's queries attend to each other, and CSDVL has one query per frame. So the stream computes what
MDETR computes with its first query alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from grounding.models.csdvl import Csdvl
from grounding.modules.box_heads import MLPBoxHead
from pipeline.errors import InputError
from pipeline.features.reduction import Projection
from pipeline.weights.checkpoint_files import (
    LoadReport,
    StateDictLayout,
    load_strict,
    read_state_dict,
)

MDETR_NUM_HEADS = 8
"""Attention heads of every published MDETR. Parameter shapes do not determine the number."""
IGNORED_KEYS_PATTERN = (
    r"(backbone|transformer\.text_encoder)\..*"
    r"|((class|isfinal|qa)_embed|contrastive(_align)?_projection_(image|text)|answer(_\w+)?_head)\..*"
)
BOX_HEAD_KEYS_PATTERN = r"bbox_embed\..*"
ENCODER_LAYER_NAMES = {
    "self_attn": "self_attn",
    "norm1": "norm",
    "linear1": "feed_forward.linear1",
    "linear2": "feed_forward.linear2",
    "norm2": "feed_forward.norm",
}
"""MDETR's name of each submodule of an encoder layer → CSDVL's name."""
DECODER_LAYER_NAMES = {
    "self_attn": "self_attn",
    "norm1": "norm_self",
    "cross_attn_image": "cross_attn",
    "norm3": "norm_cross",
    "linear1": "feed_forward.linear1",
    "linear2": "feed_forward.linear2",
    "norm4": "feed_forward.norm",
}
"""MDETR's name of each submodule of a decoder layer → CSDVL's name.

MDETR has no norm2: the norm belonged to an attention to text only, which MDETR dropped."""


def initialize_from_mdetr(
    model: Csdvl, path: Path, projection: Projection | None = None
) -> LoadReport:
    """Load the static stream from MDETR's checkpoint (from `model_ema` if the file has it).

    Args:
        model: The model to initialize; nothing is changed on an error.
        path: MDETR's checkpoint.
        projection: Projection of the store's appearance maps, None if the maps have the backbone's
            own channels. A reduced store without its projection counts as features of another
            backbone.

    Returns:
        A report that names every key.

    Raises:
        InputError: The file is not MDETR's, the model or the features have other sizes, or a key is
            missing, unexpected, of another shape or not finite.
    """
    if model.streams != "both":
        raise InputError(
            f"init_from {path}: a model of streams={model.streams} has no static stream:"
            " set model.streams=both, or init_from=null"
        )
    state = read_state_dict("mdetr", path)
    _check_sizes(model, state, path)
    _adapt_input_projection(state, model.project_appearance.in_features, projection, path)

    # CSDVL has one object query: MDETR's first.
    queries = state.get("query_embed.weight")
    if queries is not None and queries.dim() == 2 and len(queries):
        state["query_embed.weight"] = queries[0]

    stream = build_static_stream(model)
    ignored_pattern = IGNORED_KEYS_PATTERN
    if "bbox_embed" not in stream:
        ignored_pattern = f"{IGNORED_KEYS_PATTERN}|{BOX_HEAD_KEYS_PATTERN}"
    scratch_modules = ", ".join(_list_other_modules(model, stream))
    context = f"static stream from MDETR's {path} (from scratch: {scratch_modules})"
    return load_strict(stream, state, context, StateDictLayout(ignored_pattern=ignored_pattern))


def _list_other_modules(model: Csdvl, stream: nn.Module) -> list[str]:
    """Return the sorted names of the model's direct children with parameters outside the stream."""
    stream_ids = {id(parameter) for parameter in stream.parameters()}
    names = set()
    for name, parameter in model.named_parameters():
        if id(parameter) not in stream_ids:
            names.add(name.partition(".")[0])
    return sorted(names)


def build_static_stream(model: Csdvl) -> nn.ModuleDict:
    """Return the static stream under MDETR's names.

    Args:
        model: A model with both streams.

    Returns:
        A module that shares its parameters with the model, so loading changes the model.
    """
    encoder = {"layers": _rename_submodules(model.encoder, ENCODER_LAYER_NAMES)}
    decoder = {
        "layers": _rename_submodules(model.decoder, DECODER_LAYER_NAMES),
        "norm": model.decoder_norm,
    }
    resizer = {"fc": model.project_text[0], "layer_norm": model.project_text[1]}
    transformer = {
        "encoder": nn.ModuleDict(encoder),
        "decoder": nn.ModuleDict(decoder),
        "resizer": nn.ModuleDict(resizer),
    }

    stream = nn.ModuleDict(
        {"transformer": nn.ModuleDict(transformer), "input_proj": model.project_appearance}
    )
    stream["query_embed"] = nn.ParameterDict({"weight": model.object_query})
    if isinstance(model.box_head, MLPBoxHead):
        stream["bbox_embed"] = model.box_head.mlp
    return stream


def _rename_submodules(layers: nn.ModuleList, names: Mapping[str, str]) -> nn.ModuleList:
    """Return the layers with their submodules under other names; `names` maps new to old."""
    renamed_layers = nn.ModuleList()
    for layer in layers:
        submodules = {new_name: layer.get_submodule(name) for new_name, name in names.items()}
        renamed_layers.append(nn.ModuleDict(submodules))
    return renamed_layers


def _check_sizes(model: Csdvl, state: Mapping[str, Tensor], path: Path) -> None:
    """Raise an InputError, with the keys to set, if the model's sizes differ from the file's.

    Sizes that the file lacks are left to the strict loading.
    """
    # Sizes of MDETR, read from its parameters.
    layer_indices = set()
    for name in state:
        match = re.match(r"transformer\.encoder\.layers\.(\d+)\.", name)
        if match:
            layer_indices.add(match[1])
    size_keys = {
        "hidden_dim": "transformer.decoder.norm.bias",
        "ffn_dim": "transformer.encoder.layers.0.linear1.bias",
    }
    mdetr_sizes = {key: state[name].numel() for key, name in size_keys.items() if name in state}
    mdetr_sizes["num_heads"] = MDETR_NUM_HEADS
    mdetr_sizes["num_layers"] = len(layer_indices)

    # Sizes of the model.
    first_layer = model.get_submodule("encoder.0")
    model_sizes = {
        "hidden_dim": model.object_query.numel(),
        "ffn_dim": first_layer.get_submodule("feed_forward.linear1").out_features,
        "num_heads": first_layer.get_submodule("self_attn").num_heads,
        "num_layers": len(model.encoder),
    }

    # Without any layer the file is not MDETR's: the strict loading names the keys.
    differences = [key for key in mdetr_sizes if mdetr_sizes[key] != model_sizes[key]]
    if layer_indices and differences:
        current = ", ".join(f"{key}={model_sizes[key]}" for key in differences)
        required = ", ".join(f"model.{key}={mdetr_sizes[key]}" for key in differences)
        raise InputError(
            f"init_from {path}: the model's {current} do not fit MDETR's weights:"
            f" set {required}, or init_from=null"
        )


def _adapt_input_projection(
    state: dict[str, Tensor], num_channels: int, projection: Projection | None, path: Path
) -> None:
    """Replace `input_proj` by the equivalent linear map of the store's features.

    Features y = M(x − m) + b of a reduced store are restored as x' = m + M⁺(y − b), and projected
    as MDETR projects x: P·x' + p. With MDETR's own M = P and b = p the result is y itself. With
    principal components, only the components that the reduction dropped are lost.
    """
    weight = state.get("input_proj.weight")
    bias = state.get("input_proj.bias")
    if weight is None or bias is None:
        return  # the strict loading names the missing keys
    if weight.shape[2:] != (1, 1) or bias.shape != weight.shape[:1]:
        return  # the strict loading names the shapes

    # A 1×1 convolution is a linear map.
    weight = weight[:, :, 0, 0]
    backbone_channels = num_channels if projection is None else len(projection.mean)
    if backbone_channels != weight.shape[1]:
        raise InputError(
            f"init_from {path}: MDETR reads maps of {weight.shape[1]} channels, and the store's"
            f" backbone gives {backbone_channels}: extract them with --backbones full and"
            " --weights appearance=mdetr:FILE, or set init_from=null"
        )

    if projection is not None:
        mean = torch.from_numpy(projection.mean).double()
        matrix = torch.from_numpy(projection.matrix).double()
        shift = torch.from_numpy(projection.bias).double()
        backbone_weight = weight.double()
        weight = backbone_weight @ torch.linalg.pinv(matrix)
        bias = bias + backbone_weight @ mean - weight @ shift
    state["input_proj.weight"] = weight
    state["input_proj.bias"] = bias
