"""CSDVL's static stream from MDETR's ResNet-101 checkpoint.

The stream is MDETR's transformer: post-norm layers with ReLU, sine positions added to the queries and keys of visual
tokens and none for text, no norm after the encoder, one after the decoder. So each of its parameters has a counterpart
of the same shape. From scratch stays what MDETR does not have: dynamic stream, collaboration, time heads, and a box head
other than its MLP.

Of the file are left over, as documented: backbone and text encoder (the store's features come from those), the heads of
MDETR's own tasks, and the query embeddings after the first. MDETR's queries attend to each other; ours is alone in its
frame and gives what MDETR gives when it is asked with its first query alone.
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
"""Attention heads of every published MDETR: shapes do not tell them."""
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
"""MDETR's names of a layer's parts, and ours."""
DECODER_LAYER_NAMES = {
    "self_attn": "self_attn",
    "norm1": "norm_self",
    "cross_attn_image": "cross_attn",
    "norm3": "norm_cross",
    "linear1": "feed_forward.linear1",
    "linear2": "feed_forward.linear2",
    "norm4": "feed_forward.norm",
}
"""There is no norm2: it belonged to an attention to text alone that MDETR gave up."""


def initialize_from_mdetr(
    model: Csdvl, path: Path, projection: Projection | None = None
) -> LoadReport:
    """Load the static stream from MDETR's checkpoint (`model_ema` where it has it); the report names every key.

    `basis` is the projection that the store's appearance maps went through, None where they have the backbone's own
    channels. On an InputError nothing is changed: for a file that is not MDETR's, sizes of the model or the features that
    are not its, and any key that is missing, unexpected, of another shape or not finite (a store reduced to components
    whose `basis` is not given counts as features of another backbone).
    """
    if model.streams != "both":
        raise InputError(
            f"initialise {path}: a model of streams={model.streams} has no static stream: set model.streams=both, or initialise=null"
        )
    state = read_state_dict("mdetr", path)
    _check_sizes(model, state, path)
    _adapt_input_projection(state, model.project_appearance.in_features, projection, path)
    queries = state.get("query_embed.weight")
    if queries is not None and queries.dim() == 2 and len(queries):
        state["query_embed.weight"] = queries[0]
    stream = build_static_stream(model)
    own = {id(parameter) for parameter in stream.parameters()}
    scratch = sorted(
        {
            name.partition(".")[0]
            for name, parameter in model.named_parameters()
            if id(parameter) not in own
        }
    )
    what = f"static stream from MDETR's {path} (from scratch: {', '.join(scratch)})"
    return load_strict(
        stream,
        state,
        what,
        StateDictLayout(
            ignored_pattern=IGNORED_KEYS_PATTERN
            if "bbox_embed" in stream
            else f"{IGNORED_KEYS_PATTERN}|{BOX_HEAD_KEYS_PATTERN}"
        ),
    )


def build_static_stream(model: Csdvl) -> nn.ModuleDict:
    """The static stream under MDETR's names. Its parameters are the model's own: what is loaded here is in the model."""
    transformer = {
        "encoder": nn.ModuleDict(
            {"layers": _rename_submodules(model.encoder, ENCODER_LAYER_NAMES)}
        ),
        "decoder": nn.ModuleDict(
            {
                "layers": _rename_submodules(model.decoder, DECODER_LAYER_NAMES),
                "norm": model.decoder_norm,
            }
        ),
        "resizer": nn.ModuleDict(
            {"fc": model.project_text[0], "layer_norm": model.project_text[1]}
        ),
    }
    stream = nn.ModuleDict(
        {"transformer": nn.ModuleDict(transformer), "input_proj": model.project_appearance}
    )
    stream["query_embed"] = nn.ParameterDict({"weight": model.object_query})
    if isinstance(model.box_head, MLPBoxHead):
        stream["bbox_embed"] = model.box_head.mlp
    return stream


def _rename_submodules(layers: nn.ModuleList, names: Mapping[str, str]) -> nn.ModuleList:
    return nn.ModuleList(
        nn.ModuleDict({theirs: layer.get_submodule(own) for theirs, own in names.items()})
        for layer in layers
    )


def _check_sizes(model: Csdvl, state: Mapping[str, Tensor], path: Path) -> None:
    """Refuse a model of other sizes, with the keys to set. A size that the file does not tell is left to the strict loading."""
    layers = {
        found[1]
        for name in state
        if (found := re.match(r"transformer\.encoder\.layers\.(\d+)\.", name))
    }
    vectors = {
        "hidden_dim": "transformer.decoder.norm.bias",
        "ffn_dim": "transformer.encoder.layers.0.linear1.bias",
    }
    true = {key: state[name].numel() for key, name in vectors.items() if name in state} | {
        "num_heads": MDETR_NUM_HEADS,
        "layers": len(layers),
    }
    first = model.get_submodule("encoder.0")
    own = {
        "hidden_dim": model.object_query.numel(),
        "ffn_dim": first.get_submodule("feed_forward.linear1").out_features,
        "num_heads": first.get_submodule("self_attn").num_heads,
        "layers": len(model.encoder),
    }
    differ = [key for key in true if true[key] != own[key]]
    if layers and differ:
        have = ", ".join(f"{key}={own[key]}" for key in differ)
        need = ", ".join(f"model.{key}={true[key]}" for key in differ)
        raise InputError(
            f"initialise {path}: the model's {have} do not fit MDETR's weights: set {need}, or initialise=null"
        )


def _adapt_input_projection(
    state: dict[str, Tensor], num_channels: int, projection: Projection | None, path: Path
) -> None:
    """Make `input_proj` the linear map of the store's features, `channels` wide.

    Features y = M(x − m) + b of a reduced store are undone as far as they can be, x' = m + M⁺(y − b), and projected as
    MDETR projects x: P·x' + p. With MDETR's own M = P, b = p that is y itself; with principal components the loss is
    only of what they left out.
    """
    weight, bias = state.get("input_proj.weight"), state.get("input_proj.bias")
    if (
        weight is None
        or bias is None
        or weight.shape[2:] != (1, 1)
        or bias.shape != weight.shape[:1]
    ):
        return  # the strict loading says so
    weight = weight[:, :, 0, 0]
    reads = num_channels if projection is None else len(projection.mean)
    if reads != weight.shape[1]:
        raise InputError(
            f"initialise {path}: MDETR reads maps of {weight.shape[1]} channels, and the store's backbone gives {reads}: extract them"
            " with --backbones full and --weights appearance=mdetr:FILE, or set initialise=null"
        )
    if projection is not None:
        mean, matrix, shift = (
            torch.from_numpy(part).double()
            for part in (projection.mean, projection.matrix, projection.bias)
        )
        whole = weight.double()
        weight = whole @ torch.linalg.pinv(matrix)
        bias = bias + whole @ mean - weight @ shift
    state["input_proj.weight"], state["input_proj.bias"] = weight, bias
