"""Preparation of an ONNX model before ONNX Runtime quantises it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
import onnx
from onnx import numpy_helper

LAYERS = ("Conv", "ConvTranspose", "Gemm")
"""Layers whose output has a fixed range."""

ENORMOUS = 1e9
"""Constants of at least this size mask entries before a softmax. In an int8 range they would make all others equal."""


def store_transposed(model: onnx.ModelProto) -> bool:
    """Store transposed weights in place of Transpose nodes, because ONNX Runtime quantises stored tensors only.

    Returns:
        Whether there was such a weight.
    """
    stored = {one.name: one for one in model.graph.initializer}
    reads = Counter(name for node in model.graph.node for name in node.input)
    found = [node for node in model.graph.node if node.op_type == "Transpose" and node.input[0] in stored]
    for node in found:
        weight = stored[node.input[0]]
        order = next((list(one.ints) for one in node.attribute if one.name == "perm"), None)
        array = np.ascontiguousarray(numpy_helper.to_array(weight).transpose(order))
        model.graph.initializer.append(numpy_helper.from_array(array, node.output[0]))
        model.graph.node.remove(node)
        reads[weight.name] -= 1
        if not reads[weight.name]:
            model.graph.initializer.remove(weight)
    return bool(found)


def is_of_sequences(model: onnx.ModelProto) -> bool:
    """Whether most layers are linear layers on sequences, as in a transformer."""
    stored = {one.name for one in model.graph.initializer}
    kinds = Counter(str(node.op_type) for node in model.graph.node if stored.intersection(node.input[1:2]))
    return kinds["MatMul"] > sum(kinds[one] for one in LAYERS)


def masked(model: onnx.ModelProto) -> list[str]:
    """Return the nodes without a useful int8 range: from an enormous mask constant up to and including the softmax."""
    enormous = set(_enormous(model))
    found = []
    for node in model.graph.node:  # in the order in which they run
        if enormous.intersection(node.input):
            found.append(node.name)
            enormous.update(node.output if node.op_type not in ("Softmax", "LogSoftmax") else ())
    return found


def _enormous(model: onnx.ModelProto) -> Iterator[str]:
    """Return the floating-point constants with an entry that is enormous or not finite."""
    for one in model.graph.initializer:
        array = numpy_helper.to_array(one)
        if array.dtype.kind == "f" and array.size and not np.abs(array).max() < ENORMOUS:
            yield one.name
