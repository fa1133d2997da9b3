"""From a plain sub-network to an ONNX model, without running it and without torch.onnx."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from onnx import ModelProto
from torch import Tensor
from torch.fx import GraphModule

from bnas.passes.errors import LoweringError
from bnas.passes.frontend.opaque import OpaqueMethod

from .builder import OnnxBuilder
from .steps import SampleError
from .values import DimSizes, Size, Value, dim_sizes
from .walk import GraphWalk, Scope, bound_inputs

SIZES = "bnas.sizes"
"""Name of the property in ``metadata_props`` with the example's sizes of dynamic axes, as JSON."""

Dims = Mapping[str, Mapping[int, str]]
"""For each input, the names of its dynamic axes by axis. Equal names mean equal sizes."""


def lower(
    module: GraphModule,
    example_inputs: Sequence[Any],
    *,
    metadata: Mapping[str, str] | None = None,
    fixed: bool = False,
) -> ModelProto:
    """Lower `module` in eval mode to an ONNX model for all sizes of its dynamic axes.

    `module` is not run, copied or changed. Dynamic axes come from ``module.meta["dynamic"]`` (with the steps between
    allowed sizes in ``meta["steps"]``); by default axis 0 of every input is dynamic, with the name ``batch``. Inputs
    keep their names; `named_outputs` determines the names of outputs. A BatchNorm directly after a convolution is
    folded into it, if nothing else reads the convolution.

    Args:
        module: A graph of ordinary layers and functions, in eval mode.
        example_inputs: A tensor for each input, or lists, tuples and dicts of them: only shapes and dtypes matter.
        metadata: Properties that are stored with the model.
        fixed: Whether the model is for the sizes of the example only: no axis is dynamic.

    Raises:
        LoweringError: An operator has no rule, or its rule cannot express this call. The message names the operator,
            the node and the module.
    """
    builder = lowered_graph(module, example_inputs, fixed=fixed)
    known = sizes_property(builder.example_sizes)
    return builder.model(type(module).__name__, {**known, **(metadata or {})})


def sizes_property(sizes: Mapping[str, int]) -> dict[str, str]:
    """Return the property of a file with the example's sizes of its dynamic axes; none if only the batch is dynamic."""
    return {} if set(sizes) <= {"batch"} else {SIZES: json.dumps(dict(sizes))}


def lowered_graph(module: GraphModule, example_inputs: Sequence[Any], *, fixed: bool = False) -> OnnxBuilder:
    """Return the builder with all nodes, from which `lower` makes the model; weights are not copied yet.

    Raises:
        LoweringError: As `lower`.
    """
    _check_eval(module)
    _check_methods(module)
    args, kwargs = ((), dict(example_inputs)) if isinstance(example_inputs, Mapping) else (example_inputs, {})
    inputs = list(bound_inputs(module.graph, args, kwargs, "the model"))
    names = [str(node.target) for node in module.graph.nodes if node.op == "placeholder"]
    given = dict(zip(names, inputs, strict=True))
    dims = dynamic_dims(module, given)
    dims = {path: {} for path in dims} if fixed else dims
    pairs = [(tensor, dims[path]) for name, value in given.items() for path, tensor in named_tensors(value, name)]
    examples = example_sizes([tensor for tensor, _ in pairs], [axes for _, axes in pairs])
    failed: SampleError | None = None
    for sizes in dim_sizes(examples, module.meta.get("steps", {})):
        builder = OnnxBuilder()
        builder.example_sizes = examples
        try:
            return _graph(builder, module, given, dims, sizes)
        except SampleError as error:
            failed = failed or error
    assert failed is not None
    raise failed


def _graph(
    builder: OnnxBuilder, module: GraphModule, given: Mapping[str, Any], dims: Dims, sizes: DimSizes
) -> OnnxBuilder:
    """Lower the graph into an empty builder, with `sizes` as the two sizes of each dynamic axis."""
    builder.examples = {sizes[name]: size for name, size in builder.example_sizes.items()}
    with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # shapes are computed again, and PyTorch's warnings were shown before
        values = [_input(builder, name, one, dims, sizes) for name, one in given.items()]
        result = GraphWalk(builder).run(Scope(module), module.graph, values)
        for name, value in named_outputs(result):
            _output(builder, name, value, sizes)
    return builder


def dynamic_dims(module: GraphModule, given: Mapping[str, Any]) -> dict[str, dict[int, str]]:
    """Return the dynamic axes of each input tensor, by its name in the ONNX graph."""
    known = module.meta.get("dynamic")
    tensors = {path: one for name, value in given.items() for path, one in named_tensors(value, name)}
    if known is None:
        return {name: {0: "batch"} if one.ndim else {} for name, one in tensors.items()}
    return {name: {int(axis): str(dim) for axis, dim in known.get(name, {}).items()} for name in tensors}


def example_sizes(tensors: Sequence[Tensor], dims: Sequence[Mapping[int, str]]) -> dict[str, int]:
    """Return the size of each dynamic axis in the example inputs; `dims` has the names of each tensor's axes."""
    sizes: dict[str, int] = {}
    for tensor, axes in zip(tensors, dims, strict=True):
        for axis, name in axes.items():
            sizes.setdefault(name, tensor.shape[axis])
    return sizes


def named_tensors(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors in a (nested) input called `name`, with the names of the ONNX graph's inputs."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from named_tensors(item, f"{name}_{key}")
    elif isinstance(value, list | tuple):
        for place, item in enumerate(value):
            yield from named_tensors(item, f"{name}_{place}")


def named_outputs(value: Any, name: str = "output") -> Iterator[tuple[str, Any]]:
    """Yield the tensors that a model returns, flattened, with their names in the ONNX model.

    A single tensor is called ``output``; entries of a tuple or list are ``output_0``, ``output_1``, ...; entries of a
    dict, named tuple or data class have their keys; nested names are joined by ``_``. ``None`` gives no output.
    """
    fields = fields_of(value)
    if fields is not None:
        for key, item in fields.items():
            yield from named_outputs(item, str(key) if name == "output" else f"{name}_{key}")
    elif isinstance(value, list | tuple):
        for place, item in enumerate(value):
            yield from named_outputs(item, f"{name}_{place}")
    elif value is not None:
        yield name, value


def fields_of(value: Any) -> dict[Any, Any] | None:
    """Return the fields of a dict, named tuple or data class by name; ``None`` for other values."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return dict(zip(value._fields, value, strict=True))
    if is_dataclass(value) and not isinstance(value, type | Value):
        return {one.name: getattr(value, one.name) for one in fields(value)}
    return None


def _check_methods(module: GraphModule) -> None:
    method = next((one for one in module.modules() if isinstance(one, OpaqueMethod)), None)
    if method is not None:
        raise LoweringError(
            f"{method.place} is an opaque method, which has no lowering rule: it reads tensor values in Python. "
            "Export the part of the model before this method as a model of its own"
        )


def _check_eval(module: GraphModule) -> None:
    training = [path or type(module).__name__ for path, one in module.named_modules() if one.training]
    if training:
        raise LoweringError(f"{training[0]}: is in training mode, but only eval mode can be lowered; call eval() first")


def _input(builder: OnnxBuilder, name: str, given: Any, dims: Dims, sizes: DimSizes) -> Any:
    """`given` with a `Value`, an input of the graph, for each tensor in it."""
    if isinstance(given, Mapping):
        return {key: _input(builder, f"{name}_{key}", one, dims, sizes) for key, one in given.items()}
    if isinstance(given, list | tuple):
        items = [_input(builder, f"{name}_{place}", one, dims, sizes) for place, one in enumerate(given)]
        return tuple(items) if isinstance(given, tuple) else items
    if not isinstance(given, Tensor):
        return given
    own = {axis: sizes[dim] for axis, dim in dims[name].items()}
    shapes = [[own[axis][turn] if axis in own else size for axis, size in enumerate(given.shape)] for turn in (0, 1)]
    tensor, twin = (torch.empty(shape, dtype=given.dtype, device="meta") for shape in shapes)
    shown = [dims[name].get(axis, size) for axis, size in enumerate(given.shape)]
    value = Value(tensor, builder.add_input(name, tensor, shown), twin=twin)
    builder.dims += [size for size in value.sizes if isinstance(size, Size)]
    return value


def _output(builder: OnnxBuilder, name: str, value: Any, sizes: DimSizes) -> None:
    if not isinstance(value, Value):
        raise LoweringError(
            f"{name}: the model returns {value!r}, but only tensors can be lowered: return tensors only"
        )
    source = value.name
    if value.constant:
        source = builder.initializer(value.tensor, value.name, copy=not value.state)
    builder.add_output(name, source, value.tensor, _dims(name, value, sizes))


def _dims(output: str, value: Value, sizes: DimSizes) -> list[int | str]:
    """Return the axes of an output: dynamic ones as names, others as sizes."""
    named = enumerate(value.sizes)
    return [_dim(output, axis, size, sizes) if isinstance(size, Size) else size for axis, size in named]


def _dim(output: str, axis: int, size: Size, sizes: DimSizes) -> str:
    for name, (sample, twin) in sizes.items():
        count, rest = divmod(size.sample, sample)
        if not rest and count and size.twin == count * twin:
            return name if count == 1 else f"{name}_times_{count}"
    return f"{output}_axis_{axis}"
