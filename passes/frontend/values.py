"""Compute the values of the nodes of a graph on meta tensors again: for changed graphs, and at other sizes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from bnas.passes.errors import add_note
from bnas.passes.ops.calls import form_of

from .entry import Axis
from .functions import BATCH, run_leaf, run_on_meta, to_meta
from .opaque import Draws, OpaqueMethod, run_opaque
from .structure import Path, map_leaves


def revalue(
    root: nn.Module,
    own: Mapping[str, nn.Module],
    constants: Mapping[str, Tensor],
    graph: fx.Graph,
    plain: Mapping[str, type[nn.Module]],
) -> Iterator[fx.Node]:
    """Compute the value of every node of a graph again, except inputs; yield each node after it got its value.

    Raises:
        Exception: The error of a node that does not fit, with a note that names the node.
    """
    draws = Draws()
    for node in graph.nodes:
        try:
            if node.op not in ("placeholder", "output"):
                node.meta["value"] = _value(root, own, constants, node, plain, draws)
        except Exception as error:
            add_note(error, f"at the node {node.format_node()}")
            raise
        if node.op != "output":
            yield node


def _value(
    root: nn.Module,
    own: Mapping[str, nn.Module],
    constants: Mapping[str, Tensor],
    node: fx.Node,
    plain: Mapping[str, type[nn.Module]],
    draws: Draws,
) -> Any:
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda one: one.meta["value"])
    target = str(node.target)
    with torch.no_grad():
        if node.op == "get_attr":
            return to_meta(constants[target] if target in constants else _attribute(root, target))
        if node.op != "call_module":
            return run_on_meta(node.op, node.target, args, kwargs)
        if target in plain:
            like: Any = args
            return torch.empty_like(like[0])
        module = own[target] if target in own else root.get_submodule(target)
        form = form_of(module)
        if form is None and (target not in own or isinstance(module, OpaqueMethod)):
            device = next((p.device for p in root.parameters()), torch.device("cpu"))
            return run_opaque(module, args, kwargs, BATCH, device, draws)
        return run_leaf(module, form, args, kwargs)


def _attribute(root: nn.Module, path: str) -> Any:
    owner, _, name = path.rpartition(".")
    return getattr(root.get_submodule(owner), name)


def resize_inputs(graph: fx.Graph, names: Mapping[Path, str], sizes: Mapping[Axis, int]) -> None:
    """Give the placeholders values with other sizes of dynamic axes; `names` has the placeholder of each argument."""
    shapes: dict[Path, dict[int, int]] = {}
    for axis, size in sizes.items():
        for path, place in axis.places:
            shapes.setdefault(path, {})[place] = size
    paths = {name: path for path, name in names.items()}
    for node in graph.find_nodes(op="placeholder"):
        node.meta["value"] = _reshaped(node.meta["value"], paths[str(node.target)], shapes)


def _reshaped(value: Any, prefix: Any, shapes: Mapping[Any, Mapping[int, int]]) -> Any:
    """Return the value of a placeholder with other sizes; `shapes` has them by the path of each tensor."""

    def changed(path: Any, leaf: Any) -> Any:
        new = shapes.get((*prefix, *path)) if isinstance(leaf, Tensor) else None
        if new is None:
            return leaf
        shape = [new.get(place, size) for place, size in enumerate(leaf.shape)]
        return torch.empty(shape, dtype=leaf.dtype, device="meta")

    return map_leaves(value, changed)
