"""Modules that our own lowering cannot express: PyTorch's exporter takes the whole graph, and that is said."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from onnx import ModelProto, helper
from torch import nn
from torch.fx import GraphModule

from bnas.passes import Elasticity
from bnas.passes.errors import BnasError, LoweringError
from bnas.passes.lowering import dynamic_dims, lower, named_outputs
from bnas.passes.lowering_walk import bound_inputs

from .nested import map_tensors, tensors_in
from .onnx_trial import Dims, batch_dims, fits, outputs_of, trial_inputs
from .origin import FALLBACK
from .supernetwork import SuperNetwork


class OnnxFallbackWarning(UserWarning):
    """A model was exported by torch.onnx.export; the message says why."""


def to_onnx(
    module: nn.Module,
    example_inputs: Sequence[Any],
    metadata: Mapping[str, str],
    known: tuple[nn.Module, str] | None = None,
    dims: Dims | None = None,
) -> tuple[ModelProto, str | None]:
    """The ONNX model of `module`, which is in eval mode, and if PyTorch's exporter made it the reason why.

    `known` is what `graph_of` made of it, and `dims` what `dims_of` made of that, where they are known.

    Raises:
        LoweringError: neither can make it; says why of both.
    """
    graph, reason = known or graph_of(module, example_inputs)
    if isinstance(graph, GraphModule):
        try:
            return lower(graph, example_inputs, metadata=metadata), None
        except BnasError as error:
            reason = str(error)
    model = _standard(module, example_inputs, reason, dims or dims_of(graph, example_inputs))
    helper.set_model_props(model, {**metadata, FALLBACK: reason})
    warnings.warn(f"torch.onnx.export exported the whole graph: {reason}", OnnxFallbackWarning, stacklevel=3)
    return model, reason


def graph_of(module: nn.Module, example_inputs: Sequence[Any]) -> tuple[nn.Module, str]:
    """The graph of a module; if it cannot be captured the module itself, and why."""
    try:
        return _graph_of(module, example_inputs), ""
    except BnasError as error:
        return module, str(error)


def dims_of(module: nn.Module, example_inputs: Sequence[Any]) -> Dims:
    """The dynamic axes of the tensors among the inputs, in order; of what is no graph axis 0, if it can be another."""
    tensors = tensors_in(list(example_inputs))
    if isinstance(module, GraphModule):
        inputs = bound_inputs(module.graph, example_inputs, {}, "the model")
        names = [str(node.target) for node in module.graph.nodes if node.op == "placeholder"]
        return list(dynamic_dims(module, dict(zip(names, inputs, strict=True))).values())
    dims = batch_dims(tensors)
    others = trial_inputs(example_inputs, dims)[1:]
    return dims if any(fits(module, one) for one in others) else [{} for _ in tensors]


def _graph_of(module: nn.Module, example_inputs: Sequence[Any]) -> GraphModule:
    """The graph of a module that has none yet: nothing in it is elastic."""
    if isinstance(module, GraphModule):
        return module
    supernet = SuperNetwork.from_model(module, tuple(example_inputs), Elasticity(dimensions=()))
    return supernet.extract(supernet.space.maximal())


def _standard(module: nn.Module, example_inputs: Sequence[Any], reason: str, dims: Dims) -> ModelProto:
    if find_spec("onnxscript") is None:
        raise LoweringError(
            f"{reason}. torch.onnx.export could take the whole graph, but it needs onnxscript: "
            "pip install 'bnas[export]'"
        )
    inputs = tuple(trial_inputs(example_inputs, dims, partial(fits, module))[-1])  # torch.export fixes a size of 1
    axes = iter(dims)
    dynamic = tuple(map_tensors(list(inputs), lambda _: _open(next(axes))))  # type: ignore[arg-type, return-value]
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            names = [name for name, _ in named_outputs(outputs_of(module, inputs))]
            program: Any = torch.onnx.export(
                module, inputs, dynamo=True, dynamic_shapes=dynamic, output_names=names, verbose=False
            )
        model: ModelProto = program.model_proto
    except Exception as error:
        cause = error.__cause__ or error  # the error itself is a page of advice
        told = next(iter(str(cause).splitlines()), "")
        raise LoweringError(
            f"{reason}. torch.onnx.export was tried for the whole graph, and fails: {type(cause).__name__}: {told}"
        ) from error
    return model


def _open(axes: Mapping[int, str]) -> dict[int, Any] | None:
    return {axis: torch.export.Dim.DYNAMIC for axis in axes} or None
