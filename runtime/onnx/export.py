"""Export to ONNX. Every file is run on ONNX Runtime and compared with the PyTorch model."""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import ModelProto, helper
from torch import nn
from torch.fx import GraphModule

from bnas.passes import Elasticity, Subnet
from bnas.passes.errors import BnasError, LoweringError, StateError
from bnas.passes.frontend.ir import as_call
from bnas.passes.onnx.lower import dynamic_dims, lower, named_outputs, sizes_property
from bnas.passes.onnx.walk import bound_inputs
from bnas.runtime.nested import map_tensors, on_cpu, tensors_in
from bnas.runtime.supernetwork import SuperNetwork

from .file import BATCH, FALLBACK, VERSION, model_bytes, origin, staged, write_model
from .int8 import Int8, Int8Report, QuantisationError, quantise
from .session import SessionError, form_property, open_session
from .trial import Dims, batch_dims, compare, eval_mode, fits, not_verified, outputs_of, trial_inputs

# If bnas cannot lower a module, PyTorch's exporter exports the whole graph, with a warning.


class OnnxFallbackWarning(UserWarning):
    """torch.onnx.export exported the model; the message has the reason."""


def to_onnx(
    module: nn.Module,
    example_inputs: Sequence[Any],
    metadata: Mapping[str, str],
    known: tuple[nn.Module, str] | None = None,
    dims: Dims | None = None,
) -> tuple[ModelProto, str | None]:
    """Return the ONNX model of a module in eval mode, and the reason if PyTorch's exporter had to make it.

    `known` is the result of `graph_of` for this module, and `dims` that of `dims_of`, if they are known already.

    Raises:
        LoweringError: Neither bnas nor PyTorch can export the module; the message has both reasons.
    """
    graph, reason = known or graph_of(module, example_inputs)
    dims = dims_of(graph, example_inputs) if dims is None else dims
    if isinstance(graph, GraphModule):
        try:
            return lower(graph, example_inputs, metadata=metadata, fixed=not any(dims)), None
        except StateError:
            raise  # PyTorch's exporter cannot do it either, and may crash the process with a segmentation fault
        except BnasError as error:
            reason = str(error)
    model = _standard(module, example_inputs, reason, dims)
    sizes = _titled(model, dims, example_inputs)
    helper.set_model_props(model, {**sizes_property(sizes), **metadata, FALLBACK: reason})
    warnings.warn(f"torch.onnx.export exported the whole graph: {reason}", OnnxFallbackWarning, stacklevel=3)
    return model, reason


def graph_of(module: nn.Module, example_inputs: Sequence[Any]) -> tuple[nn.Module, str]:
    """Return the graph of a module; if it cannot be captured, the module itself and the reason."""
    try:
        return _graph_of(module, example_inputs), ""
    except BnasError as error:
        return module, str(error)


def dims_of(module: nn.Module, example_inputs: Sequence[Any]) -> Dims:
    """Return the dynamic axes of each input tensor, in order. If `module` is not a graph, try axis 0."""
    tensors = tensors_in(list(example_inputs))
    if isinstance(module, GraphModule):
        inputs = bound_inputs(module.graph, example_inputs, {}, "the model")
        names = [str(node.target) for node in module.graph.nodes if node.op == "placeholder"]
        return list(dynamic_dims(module, dict(zip(names, inputs, strict=True))).values())
    dims = batch_dims(tensors)
    others = trial_inputs(example_inputs, dims)[1:]
    return dims if any(fits(module, one) for one in others) else [{} for _ in tensors]


def _graph_of(module: nn.Module, example_inputs: Sequence[Any]) -> GraphModule:
    """Capture the graph of a module without elastic parts."""
    if isinstance(module, GraphModule):
        return module
    supernet = SuperNetwork.from_model(module, tuple(example_inputs), Elasticity(dimensions=()))
    return supernet.extract(supernet.space.maximal())


def _standard(module: nn.Module, example_inputs: Sequence[Any], reason: str, dims: Dims) -> ModelProto:
    if find_spec("onnxscript") is None:
        raise LoweringError(
            f"{reason}. torch.onnx.export could export the whole graph, but needs onnxscript: "
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
            f"{reason}. torch.onnx.export was tried for the whole graph and failed: {type(cause).__name__}: {told}"
        ) from error
    return model


def _open(axes: Mapping[int, str]) -> dict[int, Any] | None:
    return {axis: torch.export.Dim.DYNAMIC for axis in axes} or None


def _titled(model: ModelProto, dims: Dims, example_inputs: Sequence[Any]) -> dict[str, int]:
    """Give the dynamic axes of a model the names that bnas has for them, instead of "s77"; return their sizes."""
    graph, titles, sizes = model.graph, {}, {}
    for value, axes, tensor in zip(graph.input, dims, tensors_in(list(example_inputs)), strict=False):
        for axis, title in axes.items():
            titles[value.type.tensor_type.shape.dim[axis].dim_param] = title
            sizes[title] = tensor.shape[axis]
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = titles.get(dim.dim_param, dim.dim_param)
    return sizes


@dataclass(frozen=True)
class OnnxReport:
    """Report of an export: the ONNX file, and how far its outputs differ from PyTorch."""

    path: Path
    bytes: int
    """Size in bytes of the ONNX file, including its separate file of weights if there is one."""
    max_relative_error: float
    """Largest `relative_error` over all outputs and all inputs of the comparison with PyTorch, before quantisation."""
    opset: int
    fallback: str | None = None
    """Why torch.onnx.export exported the model; ``None`` if bnas lowered it."""
    int8: Int8Report | None = None
    """Report of the quantisation, if there was one."""


def export_onnx(
    model: nn.Module | Subnet,
    path: str | os.PathLike[str],
    example_inputs: Any,
    int8: Int8 | None = None,
    *,
    supernet: SuperNetwork | None = None,
    metadata: Mapping[str, str] | None = None,
    rtol: float = 1e-4,
    fixed: bool = False,
) -> OnnxReport:
    """Export a model in evaluation mode to an ONNX file and verify it; after any failure there is no new file.

    Verification: `onnx.checker` checks the model. ONNX Runtime (CPU, all optimisations) runs it on the example inputs
    and on random inputs of other sizes of all dynamic axes. The `relative_error` of every output against PyTorch must
    be at most `rtol` (in float16 the limit is at least `trial.HALF`), or at most `trial.ROUNDING` times the error of
    PyTorch itself against float64: where large numbers cancel, both round.

    If an operator has no lowering rule, torch.onnx.export exports the whole graph: a warning and the report give the
    reason. Of a module on another device, a copy on the CPU is exported. An existing file is replaced atomically.
    Weights of more than 2 GiB are in a second file, ``NAME-CHECKSUM.data``, which must stay next to the first one.

    Args:
        model: A module, such as an extracted sub-network; or a `Subnet` of `supernet`, whose BatchNorm statistics are
            then the shared ones. `bnas.Evaluator.prepare` returns a module with recalibrated statistics.
        path: The file to write; its folder must exist.
        example_inputs: As `SuperNetwork.from_model` takes them: a tensor, a tuple or list of positional inputs, or a
            dict by the names of the arguments; each may be a list, tuple or dict of tensors in turn.
        int8: Settings to quantise the verified model; by default it is not quantised.
        supernet: The super-network of a `Subnet`. The file then contains its choice, costs and origin.
        metadata: Further properties to store in the file; `bnas.runtime.origin` returns those of a sub-network.
        rtol: Largest relative error that is allowed without a comparison with float64.
        fixed: Whether all sizes, including the batch, are those of the example inputs, as some runtimes and
            accelerators need it. `OnnxModule` and `evaluate_onnx` give such a file as many samples at a time.

    Raises:
        LoweringError: the inputs do not fit, the model cannot be expressed, or an output differs from PyTorch.
        QuantisationError: the model cannot be quantised with these settings.
        OnnxWriteError: the file cannot be written.
    """
    if int8 is not None and not isinstance(int8, Int8):
        raise QuantisationError(f"int8: must be a bnas.Int8, such as bnas.Int8(loader), not {type(int8).__name__}")
    module, properties = _resolved(model, supernet)
    module = on_cpu(module)
    inputs = _positional(module, example_inputs)
    _check_types(module, inputs)
    with eval_mode(module), staged(Path(path)) as place:
        first = outputs_of(module, inputs)
        known = graph_of(module, inputs)
        dims = dims_of(known[0], inputs)
        if fixed:
            properties |= _fixed_batch(dims, inputs, first)
            dims = [{} for _ in dims]
        others = trial_inputs(inputs, dims, partial(fits, module))[1:]
        trials = [(inputs, first), *((one, outputs_of(module, one)) for one in others)]
        properties |= form_property(trials[0][1])
        proto, fallback = to_onnx(module, inputs, {**properties, **(metadata or {})}, known, dims)
        opset = next(one.version for one in proto.opset_import if not one.domain)
        write_model(proto, place)
        try:
            worst = _verified(place, module, trials, rtol)
        except LoweringError as error:
            if fallback is None:
                raise
            raise LoweringError(
                f"{fallback}. torch.onnx.export exported the whole graph instead, and its file is wrong: {error}"
            ) from error
        quantised = None if int8 is None else quantise(place, int8, inputs, dims)
        size = model_bytes(place)
    return OnnxReport(Path(path), size, worst, opset, fallback, quantised)


def _fixed_batch(dims: Dims, inputs: Sequence[Any], outputs: Any) -> dict[str, str]:
    """Return the property that tells the number of samples, if axis 0 of all inputs and outputs is the batch."""
    given, made = tensors_in(list(inputs)), tensors_in([outputs])
    known = all(one.get(0) == "batch" for one in dims) and all(one.ndim and len(one) == len(given[0]) for one in made)
    return {BATCH: str(len(given[0]))} if known else {}


def _positional(module: nn.Module, example_inputs: Any) -> list[Any]:
    """Return the example inputs in the order of the arguments of ``forward``, on the CPU."""
    args, kwargs = as_call(example_inputs)
    if kwargs:
        try:
            bound = inspect.signature(module.forward).bind(*args, **kwargs)
        except TypeError as error:
            raise LoweringError(f"example_inputs do not fit the arguments of the model: {error}") from error
        bound.apply_defaults()
        args = tuple(bound.arguments.values())
    if not tensors_in(args):
        raise LoweringError(
            "example_inputs must be a tensor, or a list, tuple or dict with tensors in it, not "
            f"{type(example_inputs).__name__}"
        )
    return map_tensors(list(args), torch.Tensor.cpu)  # type: ignore[no-any-return]


def _check_types(module: nn.Module, inputs: Sequence[Any]) -> None:
    tensors = [*module.parameters(), *module.buffers(), *tensors_in(inputs)]
    if any(one.dtype == torch.bfloat16 for one in tensors):
        raise LoweringError(
            "the model or its input is in bfloat16, which ONNX Runtime cannot run on a CPU, so the file could not be "
            "verified: export model.float() with inputs in float32"
        )


def _resolved(model: nn.Module | Subnet, supernet: SuperNetwork | None) -> tuple[nn.Module, dict[str, str]]:
    """Return the module to export, and the properties to store in its file."""
    if not isinstance(model, Subnet):
        return model, {VERSION: version("bnas")}
    if supernet is None:
        raise LoweringError("a Subnet has no weights: also give its super-network (supernet=...)")
    return supernet.extract(model), origin(supernet, model)


def _verified(path: Path, module: nn.Module, trials: Sequence[tuple[list[Any], Any]], rtol: float) -> float:
    """Check the ONNX file at `path`; return its largest relative error on `trials` (pairs of inputs and outputs)."""
    try:
        # By the path: a model of more than 2 GiB cannot be checked in memory.
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:
        raise LoweringError(f"the lowered model is not valid ONNX: {type(error).__name__}: {error}") from error
    try:
        session = open_session(path, threads=torch.get_num_threads())
    except SessionError as error:
        raise not_verified(module, error) from error
    return max(compare(session, inputs, module, expected, rtol) for inputs, expected in trials)
