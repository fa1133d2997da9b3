"""Modules that our own lowering cannot express: PyTorch's exporter takes the whole graph, and that is said."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import torch
from onnx import ModelProto, helper
from torch import Tensor, nn
from torch.fx import GraphModule

from bnas.passes import Elasticity
from bnas.passes.errors import LoweringError, CaptureError
from bnas.passes.lowering import lower, named_outputs

from .onnx_trial import trial_inputs
from .origin import FALLBACK
from .supernetwork import SuperNetwork


class OnnxFallbackWarning(UserWarning):
    """A model was exported by torch.onnx.export; the message says why."""


def to_onnx(
    module: nn.Module, example_inputs: Sequence[Tensor], metadata: Mapping[str, str]
) -> tuple[ModelProto, str | None]:
    """The ONNX model of `module`, which is in eval mode, and if PyTorch's exporter made it the reason why.

    Raises:
        LoweringError: neither can make it; says why of both.
    """
    try:
        graph = module if isinstance(module, GraphModule) else _graph_of(module, example_inputs)
        return lower(graph, example_inputs, metadata=metadata), None
    except (LoweringError, CaptureError) as error:
        reason = str(error)
    model = _standard(module, example_inputs, reason)
    helper.set_model_props(model, {**metadata, FALLBACK: reason})
    warnings.warn(f"torch.onnx.export exported the whole graph: {reason}", OnnxFallbackWarning, stacklevel=3)
    return model, reason


def _graph_of(module: nn.Module, example_inputs: Sequence[Tensor]) -> GraphModule:
    """The graph of a module that has none yet: nothing in it is elastic."""
    supernet = SuperNetwork.from_model(module, tuple(example_inputs), Elasticity(dimensions=()))
    return supernet.extract(supernet.space.maximal())


def _standard(module: nn.Module, example_inputs: Sequence[Tensor], reason: str) -> ModelProto:
    if find_spec("onnxscript") is None:
        raise LoweringError(
            f"{reason}. torch.onnx.export could take the whole graph, but it needs onnxscript: "
            "pip install 'bnas[export]'"
        )
    inputs = tuple(trial_inputs(example_inputs)[-1])  # torch.export fixes a batch of 1
    dynamic = tuple({0: torch.export.Dim.DYNAMIC} if given.ndim else None for given in inputs)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            names = [name for name, _ in named_outputs(module(*(given.clone() for given in inputs)))]
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
