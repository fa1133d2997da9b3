"""`OnnxBuilder`, which collects the nodes and tensors of an ONNX graph; tensors are stored once, names are unique."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper
from torch import Tensor

from bnas.passes.errors import LoweringError

from .values import Size

# Merging consecutive transposes and reshapes while nodes are made.
#
# Two facts are used, which hold for every batch size: a reshape keeps the row-major order of entries, and two orders of
# axes in a row are one order of axes. Nodes that nothing reads any more are dropped.

Producer = Callable[[str], NodeProto | None]
"""Returns the node that computes a value; ``None`` for inputs and stored tensors."""

RESHAPES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")
"""Operators that keep all entries in their row-major order."""


def through_transposes(producer: Producer, source: str, perm: Sequence[int]) -> tuple[str, list[int]]:
    """If `source` is a transpose, return its input and the combined order of axes."""
    before = producer(source)
    if before is None or before.op_type != "Transpose":
        return source, list(perm)
    first = next(helper.get_attribute_value(one) for one in before.attribute if one.name == "perm")
    return before.input[0], [first[axis] for axis in perm]


def through_reshapes(producer: Producer, source: str) -> str:
    """Follow reshapes backwards from `source`; return the value before the first one."""
    before = producer(source)
    return source if before is None or before.op_type not in RESHAPES else through_reshapes(producer, before.input[0])


def needed(nodes: Sequence[NodeProto], outputs: Sequence[str]) -> list[NodeProto]:
    """Return the nodes on which outputs depend, in order."""
    wanted, kept = set(outputs), list[NodeProto]()
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            wanted.update(node.input)
            kept.append(node)
    return kept[::-1]


OPSET = 20
"""Operator set of every model: the first with GELU; ONNX Runtime supports all of it since 1.17."""

IR_VERSION = 9
"""Oldest file format for `OPSET`, so that as many runtimes as possible can read the files."""

ONNX_TYPES: dict[torch.dtype, int] = {
    torch.float16: TensorProto.FLOAT16,
    torch.bfloat16: TensorProto.BFLOAT16,
    torch.float32: TensorProto.FLOAT,
    torch.float64: TensorProto.DOUBLE,
    torch.bool: TensorProto.BOOL,
    torch.uint8: TensorProto.UINT8,
    torch.int8: TensorProto.INT8,
    torch.int16: TensorProto.INT16,
    torch.int32: TensorProto.INT32,
    torch.int64: TensorProto.INT64,
}

_SMALL = 64


class OnnxBuilder:
    """Collects nodes and tensors under unique names and builds the model.

    Tensors are not copied until `model` is called, and only those that a node reads are written.
    """

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.inputs: list[ValueInfoProto] = []
        self.outputs: list[ValueInfoProto] = []
        self.dims: list[Size] = []
        """The sizes of the inputs' dynamic axes."""
        self.example_sizes: dict[str, int] = {}
        """The sizes of the dynamic axes in the example inputs."""
        self.examples: dict[tuple[int, int], int] = {}
        """The same, by both sizes that the axis has while lowering."""
        self._axis_sizes: dict[tuple[str, int], str] = {}
        self._tensors: dict[str, Tensor] = {}
        self._known: dict[Any, str] = {}
        self._alive: list[Tensor] = []  # an id tells tensors apart only as long as none of them is freed
        self._names: set[str] = set()
        self._node_names: set[str] = set()
        self._producers: dict[str, NodeProto] = {}
        self._renamed: dict[str, str] = {}

    def unique(self, wanted: str) -> str:
        """Return a unique value name: `wanted`, or `wanted` with a number."""
        return _unique(wanted, self._names)

    def emit(
        self, op_type: str, inputs: Sequence[str], scope: str, outputs: int, attributes: Mapping[str, Any]
    ) -> tuple[str, ...]:
        """Append a node, named after `scope`, and return the names of its outputs; attributes ``None`` are omitted.

        Raises:
            LoweringError: An attribute depends on the sizes of the inputs.
        """
        for key, value in attributes.items():
            if any(isinstance(one, Size) for one in (value if isinstance(value, list | tuple) else [value])):
                raise LoweringError(
                    f"{scope}: {op_type} has a {key} that follows the sizes of the inputs, which ONNX fixes in the "
                    "file; for the sizes of the example only: export_onnx(..., fixed=True), `bnas export ... --fixed`"
                )
        names = [self.unique(scope) for _ in range(outputs)]
        kept = {key: value for key, value in attributes.items() if value is not None}
        given = list(inputs)
        while given and not given[-1]:
            given.pop()  # omitted trailing inputs are not listed at all
        node = helper.make_node(op_type, given, names, _unique(f"{scope}/{op_type}", self._node_names), **kept)
        self.nodes.append(node)
        self._producers.update(dict.fromkeys(names, node))
        return tuple(names)

    def initializer(self, tensor: Tensor, wanted: str, *, copy: bool) -> str:
        """Store `tensor` and return its name, which resembles `wanted`; the same object has the same name.

        Args:
            tensor: A tensor that is not on the meta device.
            wanted: Its qualified name, or the wanted name.
            copy: Whether its numbers may change before the model is built.
        """
        key = id(tensor)
        if key not in self._known:
            self._known[key] = self.unique(wanted)
            self._tensors[self._known[key]] = tensor.clone() if copy else tensor
            self._alive.append(tensor)
        return self._known[key]

    def constant(self, tensor: Tensor, wanted: str = "constant") -> str:
        """Store a temporary tensor and return its name; small tensors with equal content are stored once."""
        if tensor.numel() > _SMALL:
            return self.initializer(tensor, wanted, copy=False)
        key = (tensor.dtype, tuple(tensor.shape), _bytes(tensor))
        if key not in self._known:
            self._known[key] = self.unique(wanted)
            self._tensors[self._known[key]] = tensor
        return self._known[key]

    def axis_size(self, name: str, axis: int, scope: str) -> str:
        """Return the name of a vector with the size of an axis of the value `name`."""
        key = name, axis
        if key not in self._axis_sizes:
            (self._axis_sizes[key],) = self.emit("Shape", [name], scope, 1, {"start": axis, "end": axis + 1})
        return self._axis_sizes[key]

    def producer(self, name: str) -> NodeProto | None:
        """Return the node that computes the value `name`; ``None`` for inputs and stored tensors."""
        return self._producers.get(name)

    def tensor(self, name: str) -> Tensor | None:
        """The stored tensor called `name`, if there is one."""
        return self._tensors.get(name)

    def add_input(self, name: str, tensor: Tensor, dims: Sequence[int | str]) -> str:
        """Declare a graph input with the dtype of `tensor` and return its name."""
        unique = self.unique(name)
        self.inputs.append(helper.make_tensor_value_info(unique, onnx_type(tensor.dtype, name), dims))
        return unique

    def add_output(self, name: str, source: str, tensor: Tensor, dims: Sequence[int | str]) -> None:
        """Declare the value `source` as the graph output `name`: rename it if possible, else copy it."""
        unique = self.unique(name)
        source = self._renamed.get(source, source)
        if source in self._producers and source not in {known.name for known in self.outputs}:
            self._rename(source, unique)
        else:
            node = helper.make_node("Identity", [source], [unique], _unique(f"{name}/Identity", self._node_names))
            self.nodes.append(node)
        self.outputs.append(helper.make_tensor_value_info(unique, onnx_type(tensor.dtype, name), dims))

    def model(self, name: str, metadata: Mapping[str, str]) -> ModelProto:
        """Build the model, with `metadata` as its properties; it may be too large for a single file."""
        nodes = needed(self.nodes, [one.name for one in self.outputs])
        used = {name for node in nodes for name in node.input}
        kept = {name: tensor for name, tensor in self._tensors.items() if name in used}
        graph = helper.make_graph(nodes, name, self.inputs, self.outputs)
        opset = helper.make_opsetid("", OPSET)
        model = helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION, producer_name="bnas")
        helper.set_model_props(model, dict(metadata))
        for key, tensor in kept.items():
            # Filled in place, because adding a finished message to another one copies it, and weights are large.
            proto = model.graph.initializer.add(name=key, data_type=onnx_type(tensor.dtype, key), dims=tensor.shape)
            proto.raw_data = _bytes(tensor)
        return model

    def _rename(self, old: str, new: str) -> None:
        for node in self.nodes:
            for names in (node.input, node.output):
                for place, name in enumerate(names):
                    if name == old:
                        names[place] = new
        self._producers[new] = self._producers.pop(old)
        self._renamed[old] = new


def onnx_type(dtype: torch.dtype, place: str) -> int:
    """The ONNX element type of `dtype`; a `LoweringError` that names `place` if there is none."""
    if dtype not in ONNX_TYPES:
        allowed = ", ".join(map(str, ONNX_TYPES))
        raise LoweringError(f"{place}: {dtype} cannot be written to ONNX; allowed are {allowed}")
    return ONNX_TYPES[dtype]


def _unique(wanted: str, taken: set[str]) -> str:
    name, count = wanted, 0
    while name in taken:
        count += 1
        name = f"{wanted}_{count}"
    taken.add(name)
    return name


def _bytes(tensor: Tensor) -> bytes:
    # ONNX raw data is row-major and little-endian, whatever the memory format of the model.
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
