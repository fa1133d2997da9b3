"""The layers of an exported program: calls of operators on the tensors of one submodule, as `torch.nn` layers again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch._ops import OpOverload
from torch.fx import Node

from bnas.passes.ops.aten import arguments
from bnas.passes.ops.calls import NORM_OF_RANK

TENSORS = ("weight", "bias", "running_mean", "running_var")
"""The names that tensors of a layer have both in the layer and in the schema of its operator."""

Shapes = Mapping[str, Any]
"""The tensors of a call that are of the submodule, by name; None for those that are not given."""


def _convolution(tensors: Shapes, given: Mapping[str, Any]) -> dict[str, Any]:
    weight, groups = tensors["weight"], given["groups"]
    outer, inner = weight.shape[:2]
    transposed = "output_padding" in given
    found = {"in_channels": outer, "out_channels": inner * groups, "output_padding": given.get("output_padding")}
    if not transposed:
        found = {"in_channels": inner * groups, "out_channels": outer}
    same = {name: given[name] for name in ("stride", "padding", "dilation")}
    return found | same | {"kernel_size": weight.shape[2:], "groups": groups, "bias": tensors["bias"] is not None}


def _linear(tensors: Shapes, given: Mapping[str, Any]) -> dict[str, Any]:
    outer, inner = tensors["weight"].shape
    return {"in_features": inner, "out_features": outer, "bias": tensors["bias"] is not None}


def _batch_norm(tensors: Shapes, given: Mapping[str, Any]) -> dict[str, Any] | None:
    if given["training"] or tensors["running_mean"] is None:
        return None
    features = {"num_features": len(tensors["running_mean"]), "affine": tensors["weight"] is not None}
    return features | {name: given[name] for name in ("eps", "momentum")}


def _layer_norm(tensors: Shapes, given: Mapping[str, Any]) -> dict[str, Any]:
    told = {"elementwise_affine": tensors["weight"] is not None, "bias": tensors["bias"] is not None}
    return told | {name: given[name] for name in ("normalized_shape", "eps")}


def _group_norm(tensors: Shapes, given: Mapping[str, Any]) -> dict[str, Any]:
    return {"num_groups": given["num_groups"], "num_channels": len(tensors["weight"]), "eps": given["eps"]}


def _embedding(tensors: Shapes, given: Mapping[str, Any]) -> dict[str, Any]:
    count, features = tensors["weight"].shape
    padding = given["padding_idx"]
    found = {"num_embeddings": count, "embedding_dim": features, "padding_idx": None if padding < 0 else padding}
    return found | {name: given[name] for name in ("scale_grad_by_freq", "sparse")}


Settings = Callable[[Shapes, Mapping[str, Any]], dict[str, Any] | None]

LAYERS: dict[str, tuple[type[nn.Module], Settings]] = {
    "conv1d": (nn.Conv1d, _convolution),
    "conv2d": (nn.Conv2d, _convolution),
    "conv3d": (nn.Conv3d, _convolution),
    "conv_transpose1d": (nn.ConvTranspose1d, _convolution),
    "conv_transpose2d": (nn.ConvTranspose2d, _convolution),
    "conv_transpose3d": (nn.ConvTranspose3d, _convolution),
    "linear": (nn.Linear, _linear),
    "batch_norm": (nn.BatchNorm2d, _batch_norm),
    "layer_norm": (nn.LayerNorm, _layer_norm),
    "group_norm": (nn.GroupNorm, _group_norm),
    "embedding": (nn.Embedding, _embedding),
}
"""The layer whose forward calls an operator, and its settings; None where the layer does not make that call."""


@dataclass(frozen=True)
class _Layer:
    """A layer that makes a call."""

    path: str
    kind: type[nn.Module]
    settings: dict[str, Any]
    reads: frozenset[Node]


def layers_of(module: fx.GraphModule) -> dict[Node, str]:
    """The calls in the graph of a program that are those of a layer, by its path; `module` then has these layers.

    A submodule becomes a layer if all that reads its tensors are calls of one layer with the same settings. The layer
    has the very same parameters and buffers.
    """
    calls: dict[str, dict[Node, _Layer]] = {}
    for node in module.graph.nodes:
        layer = _layer(module, node)
        if layer is not None:
            calls.setdefault(layer.path, {})[node] = layer
    found = {}
    for path, layers in calls.items():
        first = next(iter(layers.values()))
        readers = {user for layer in layers.values() for tensor in layer.reads for user in tensor.users}
        alike = all((one.kind, one.settings) == (first.kind, first.settings) for one in layers.values())
        if alike and readers == set(layers):
            _put(module, first)
            found.update(dict.fromkeys(layers, path))
    return found


def _layer(module: fx.GraphModule, node: Node) -> _Layer | None:
    """The layer of a call whose tensors are those of one submodule, which has no others."""
    if not isinstance(node.target, OpOverload) or node.target.overloadpacket.__name__ not in LAYERS:
        return None
    kind, settings = LAYERS[node.target.overloadpacket.__name__]
    given = arguments(node.target, node.args, node.kwargs)
    refs = {name: given[name] for name in TENSORS if given.get(name) is not None}
    owners = {str(ref.target).rpartition(".")[::2] for ref in refs.values() if ref.op == "get_attr"}
    paths = {path for path, _ in owners}
    if len(paths) != 1 or "" in paths or {name for _, name in owners} != set(refs) or len(owners) != len(refs):
        return None
    path = paths.pop()
    tensors = {**dict.fromkeys(TENSORS), **_tensors(module.get_submodule(path))}
    if {name for name, one in tensors.items() if one is not None} - {"num_batches_tracked"} != set(refs):
        return None
    found = settings(tensors, given)
    if settings is _batch_norm:
        kind = NORM_OF_RANK.get(node.meta["val"].ndim, kind)
    return None if found is None else _Layer(path, kind, _plain(found), frozenset(refs.values()))


def _tensors(owner: nn.Module) -> dict[str, Any]:
    return {**owner._parameters, **owner._buffers}


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a layer: tuples for lists."""
    return {name: tuple(value) if isinstance(value, list | tuple) else value for name, value in settings.items()}


def _put(module: fx.GraphModule, layer: _Layer) -> None:
    """Put a layer in the place of the submodule whose tensors it has."""
    owner = module.get_submodule(layer.path)
    with torch.random.fork_rng(devices=[]):
        made = layer.kind(**layer.settings, device="meta")
    for name in made._parameters:
        made._parameters[name] = owner._parameters.get(name)
    for name in made._buffers:
        made._buffers[name] = owner._buffers.get(name)
    if "num_batches_tracked" in made._buffers and made._buffers["num_batches_tracked"] is None:
        made._buffers["num_batches_tracked"] = torch.tensor(0)
    parent, _, name = layer.path.rpartition(".")
    module.get_submodule(parent).add_module(name, made)
