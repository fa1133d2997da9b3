"""The layers of an exported program: calls of operators on the tensors of one submodule, as `torch.nn` layers again."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import fx, nn
from torch._ops import OpOverload
from torch.fx import Node

from bnas.passes.ops.aten import arguments, in_python
from bnas.passes.ops.calls import NORM_OF_RANK
from bnas.passes.ops.registry import OPERATORS

TENSORS = ("weight", "bias", "running_mean", "running_var")
"""The names that tensors of a layer have both in the layer and in the schema of its operator."""

Shapes = Mapping[str, Any]
"""The tensors of a call that are of the submodule, by name; None for those that are not given."""


def kind_of(node: Node) -> type[nn.Module] | None:
    """The layer whose forward calls the operator of a node on its weights; None where there is none."""
    if not isinstance(node.target, OpOverload):
        return None
    target, _, _ = in_python(node.target, node.args, node.kwargs)
    layers = OPERATORS.of(target).layers
    kinds = [kind for kind, form in layers.items() if form.leaf and form.sizes is not None and "weight" in form.tensors]
    return kinds[0] if kinds else None


def settings_of_call(kind: type[nn.Module], tensors: Shapes, given: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the constructor of a layer takes, so that it makes the call; None where no layer makes it."""
    first = tensors["weight"] if tensors["weight"] is not None else tensors["running_mean"]
    sizes = OPERATORS.sizes(kind)
    of_the_batch = given.get("training") or ("running_mean" in given and tensors["running_mean"] is None)
    if first is None or sizes is None or of_the_batch:
        return None
    taken = inspect.signature(kind).parameters
    scaled = tensors["weight"] is not None
    known = {
        "kernel_size": tuple(first.shape[2:]),
        "affine": scaled,
        "elementwise_affine": scaled,
        "bias": tensors["bias"] is not None,
        **{name: value for name, value in given.items() if name not in ("input", *TENSORS)},
        **sizes(SimpleNamespace(**given), tuple(first.shape)),
    }
    if known.get("padding_idx", 0) < 0:
        known["padding_idx"] = None
    return {name: value for name, value in known.items() if name in taken}


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
    kind = kind_of(node)
    if kind is None:
        return None
    given = arguments(node.target, node.args, node.kwargs)  # type: ignore[arg-type]
    refs = {name: given[name] for name in TENSORS if given.get(name) is not None}
    owners = {str(ref.target).rpartition(".")[::2] for ref in refs.values() if ref.op == "get_attr"}
    paths = {path for path, _ in owners}
    if len(paths) != 1 or "" in paths or {name for _, name in owners} != set(refs) or len(owners) != len(refs):
        return None
    path = paths.pop()
    tensors = {**dict.fromkeys(TENSORS), **_tensors(module.get_submodule(path))}
    if {name for name, one in tensors.items() if one is not None} - {"num_batches_tracked"} != set(refs):
        return None
    if "running_mean" in given:
        kind = NORM_OF_RANK.get(node.meta["val"].ndim, kind)
    found = settings_of_call(kind, tensors, given)
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
