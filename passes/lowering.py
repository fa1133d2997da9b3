"""From a plain sub-network to an ONNX model, without running it and without torch.onnx."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from onnx import ModelProto
from torch import Tensor
from torch.fx import GraphModule

from . import (
    lowering_activations,
    lowering_arithmetic,
    lowering_attention,
    lowering_convolutions,
    lowering_layouts,
    lowering_norms,
    lowering_pads,
    lowering_pools,
    lowering_reductions,
    lowering_resizes,
    lowering_selections,
    lowering_views,
)
from .errors import LoweringError
from .lowering_builder import IR_VERSION, OPSET, OnnxBuilder
from .lowering_site import BATCH, LOWERING, Rule, Site, Value, batch_multiple, register_lowering
from .lowering_walk import GraphWalk, Scope, bound_inputs

FAMILIES = (
    lowering_activations,
    lowering_arithmetic,
    lowering_attention,
    lowering_convolutions,
    lowering_layouts,
    lowering_norms,
    lowering_pads,
    lowering_pools,
    lowering_reductions,
    lowering_resizes,
    lowering_selections,
    lowering_views,
)
"""The modules whose rules are registered when they are imported."""

__all__ = [
    "BATCH",
    "IR_VERSION",
    "LOWERING",
    "OPSET",
    "Rule",
    "Site",
    "Value",
    "lower",
    "lowered_graph",
    "named_outputs",
    "register_lowering",
]


def lower(
    module: GraphModule, example_inputs: Sequence[Tensor], *, metadata: Mapping[str, str] | None = None
) -> ModelProto:
    """The ONNX model that computes in eval mode what `module` computes, for batches of any size.

    `module` is not run, not copied and not changed. Axis 0 of every input is the dynamic axis ``batch``. Inputs keep
    their names; outputs are called as `named_outputs` says. A BatchNorm right behind a convolution that nothing else
    reads is folded into it.

    Args:
        module: A graph of ordinary layers and functions, in eval mode.
        example_inputs: One tensor for each input: only their shapes and dtypes matter.
        metadata: Properties that are stored with the model.

    Raises:
        LoweringError: if an operator has no rule, or is used in a way that its rule cannot express; it names the
            operator, the node and the module.
    """
    return lowered_graph(module, example_inputs).model(type(module).__name__, metadata or {})


def lowered_graph(module: GraphModule, example_inputs: Sequence[Tensor]) -> OnnxBuilder:
    """What `lower` makes the model of: all nodes, and the weights where they are, not yet copied.

    Raises:
        LoweringError: as `lower` does.
    """
    _check_eval(module)
    builder = OnnxBuilder()
    with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # shapes are computed once more: what PyTorch warns of was said before
        inputs = list(bound_inputs(module.graph, example_inputs, {}, "the model"))
        names = [str(node.target) for node in module.graph.nodes if node.op == "placeholder"]
        values = [_input(builder, name, given) for name, given in zip(names, inputs, strict=True)]
        result = GraphWalk(builder).run(Scope(module), module.graph, values)
        for name, value in named_outputs(result):
            _output(builder, name, value)
    return builder


def named_outputs(value: Any, name: str = "output") -> Iterator[tuple[str, Any]]:
    """The tensors that a model returns, flattened, with their names in the ONNX model.

    A tensor is ``output``; those of a tuple or list are ``output_0``, ``output_1``...; those of a dict go by their
    keys; and what is nested has the names joined by ``_``.
    """
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from named_outputs(item, str(key) if name == "output" else f"{name}_{key}")
    elif isinstance(value, list | tuple):
        for place, item in enumerate(value):
            yield from named_outputs(item, f"{name}_{place}")
    else:
        yield name, value


def _check_eval(module: GraphModule) -> None:
    training = [path or type(module).__name__ for path, one in module.named_modules() if one.training]
    if training:
        raise LoweringError(f"{training[0]}: is in training mode, but only eval mode can be lowered; call eval() first")


def _input(builder: OnnxBuilder, name: str, given: Any) -> Any:
    if not isinstance(given, Tensor):
        return given
    sizes = (BATCH, *given.shape[1:]) if given.ndim else ()
    tensor = torch.empty(sizes, dtype=given.dtype, device="meta")
    return Value(tensor, builder.add_input(name, tensor, _dims(tensor)))


def _output(builder: OnnxBuilder, name: str, value: Any) -> None:
    if not isinstance(value, Value):
        raise LoweringError(f"{name}: the model returns {value!r}, but only tensors can be lowered")
    source = value.name
    if value.constant:
        source = builder.initializer(value.tensor, value.name, copy=not value.state)
    builder.add_output(name, source, value.tensor, _dims(value.tensor))


def _dims(tensor: Tensor) -> list[int | str]:
    """The axes of a tensor: the batch by name, others by size."""
    counts = [batch_multiple(size) for size in tensor.shape]
    names = ["batch" if count == 1 else f"batch_times_{count}" for count in counts]
    return [name if count else size for name, count, size in zip(names, counts, tensor.shape, strict=True)]
