"""A typed graph at other sizes of its dynamic axes: for what it costs there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from torch.fx import Node

from .axes import AxisTypes, analyse
from .blocks import Block
from .choices import Choices
from .errors import InputError
from .frontend.values import resize_inputs
from .ir import IR


def at_sizes(types: AxisTypes, choices: Choices, sizes: Mapping[str, int]) -> tuple[AxisTypes, Choices]:
    """The axis types of the same graph at other sizes, in the symbols of `types`, and the choices in its nodes.

    Args:
        types: the graph at the sizes of the example.
        choices: the search space in it.
        sizes: the size of dynamic axes by name; others keep theirs.

    Raises:
        InputError: there is no such axis, it does not take that size, or the graph cannot be run there.
    """
    ir, copies = _resized(types.ir, sizes)
    other = analyse(ir)
    for name, axes in other.tensors.items():
        for mine, known in zip(axes, types.tensor(name), strict=True):
            other.unify(mine, known)
    other.settle()
    return other, replace(choices, blocks=_blocks(choices, copies), kernels=_kernels(choices, copies))


def _blocks(choices: Choices, copies: Mapping[Node, Node]) -> Mapping[str, Block]:
    def moved(nodes: Iterable[Node]) -> frozenset[Node]:
        return frozenset(copies[node] for node in nodes)

    return {
        name: replace(block, entry=copies[block.entry], out=copies[block.out], body=moved(block.body))
        for name, block in choices.blocks.items()
    }


def _kernels(choices: Choices, copies: Mapping[Node, Node]) -> Any:
    found = {
        name: replace(kernel, nodes=frozenset(copies[node] for node in kernel.nodes))
        for name, kernel in choices.kernels.found.items()
    }
    return replace(choices.kernels, found=found)


def _resized(ir: IR, sizes: Mapping[str, int]) -> tuple[IR, dict[Node, Node]]:
    """The graph with inputs of other sizes, and which of its nodes is the copy of which."""
    wanted = {}
    for name, size in sizes.items():
        axis = ir.sizes.axis(name)
        if name == "batch":
            raise InputError("costs are those of one sample: no size of the batch can be given")
        if size < 1 or (size - axis.size) % axis.step:
            raise InputError(f"{name}: cannot be {size}; it is {axis.size} plus a multiple of {axis.step}")
        wanted[axis] = size
    graph, copies = ir.copy_graph()
    resize_inputs(graph, ir.names, wanted)
    try:
        return ir.with_graph(graph), copies
    except Exception as error:
        told = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise InputError(f"the model does not take {told}: {type(error).__name__}: {error}") from error
