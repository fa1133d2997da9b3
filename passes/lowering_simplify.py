"""Transposes and reshapes that undo or repeat one another, found as the nodes are made.

Only what holds for every batch is used: the entries of a tensor stand in row-major order whatever its shape was before,
and an order of axes applied after another one is an order of axes. What nothing reads any more is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from onnx import NodeProto, helper

Producer = Callable[[str], NodeProto | None]
"""Gives the node that makes a value; ``None`` for inputs and stored tensors."""

RESHAPES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")
"""Operators that keep all entries in their row-major order."""


def through_transposes(producer: Producer, source: str, perm: Sequence[int]) -> tuple[str, list[int]]:
    """What `source` is a transpose of, and the order of axes that does both at once."""
    before = producer(source)
    if before is None or before.op_type != "Transpose":
        return source, list(perm)
    first = next(helper.get_attribute_value(one) for one in before.attribute if one.name == "perm")
    return before.input[0], [first[axis] for axis in perm]


def through_reshapes(producer: Producer, source: str) -> str:
    """What `source` was before it was reshaped, if it was."""
    before = producer(source)
    return source if before is None or before.op_type not in RESHAPES else through_reshapes(producer, before.input[0])


def needed(nodes: Sequence[NodeProto], outputs: Sequence[str]) -> list[NodeProto]:
    """The nodes that some output depends on, in order."""
    wanted, kept = set(outputs), list[NodeProto]()
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            wanted.update(node.input)
            kept.append(node)
    return kept[::-1]
