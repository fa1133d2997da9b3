"""Variants of a graph: the graph of training mode, and the typed graph at other sizes of its dynamic axes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from difflib import SequenceMatcher
from typing import Any

from torch.fx import Node

from bnas.passes.axes.analysis import analyse
from bnas.passes.axes.types import AxisTypes
from bnas.passes.errors import Diagnostic, InputError
from bnas.passes.frontend.ir import IR, module_calls
from bnas.passes.frontend.structure import tensors_of
from bnas.passes.frontend.values import resize_inputs
from bnas.passes.space.blocks import Block, Blocks, given_values, is_constant, nodes_between, writes_elsewhere
from bnas.passes.space.choices import Choices

# Models that call other operators in training mode have a second graph for that mode.
#
# Both graphs are typed over the same parameters, so every equation of one holds in the other. A block may only be
# skipped if it is a block of the training graph too.


def counterparts(ir: IR) -> dict[Node, Node]:
    """Return, for each node with the same call in the training graph, that node of the training graph."""
    assert ir.trained is not None
    mine, theirs = list(ir.graph.nodes), list(ir.trained.graph.nodes)
    matcher = SequenceMatcher(None, [_key(node) for node in mine], [_key(node) for node in theirs], autojunk=False)
    found = {}
    for run in matcher.get_matching_blocks():
        for left, right in zip(mine[run.a : run.a + run.size], theirs[run.b : run.b + run.size], strict=True):
            if _shapes(left) == _shapes(right):
                found[left] = right
    return found


def _key(node: Node) -> tuple[Any, ...]:
    """Return the key by which equal calls are found: function, place in the model, and line."""
    return node.op, str(node.target), module_calls(node), node.meta.get("line")


def _shapes(node: Node) -> list[Any]:
    return [tensor.shape for tensor in tensors_of(node.meta.get("value"))]


def in_training(ir: IR, blocks: Blocks) -> Blocks:
    """Keep the blocks that can be skipped in training mode too; refuse the others with the reason."""
    if ir.trained is None:
        return blocks
    twins, given = counterparts(ir), given_values(ir.trained)
    found, refused = [], list(blocks.refused)
    for block in blocks.found:
        if trained_block(block, twins, given) is not None:
            found.append(block)
        else:
            refused.append(
                Diagnostic(block.name, "it is not a block in training mode, where its values are also read elsewhere")
            )
    return Blocks(tuple(found), tuple(refused), blocks.ties)


def trained_block(block: Block, twins: Mapping[Node, Node], given: frozenset[Node]) -> Block | None:
    """Return the block of the training graph between the counterparts of a block's ends; None if there is none."""
    entry, out = twins.get(block.entry), twins.get(block.out)
    if entry is None or out is None:
        return None
    body: set[Node] = set()
    for operand in out.all_input_nodes:
        if operand is not entry and not is_constant(operand):
            body |= nodes_between(entry, operand, given)
    body |= _side_effects(body, out)
    inside = body | {out}
    if not body or any(set(node.users) - inside for node in body):
        return None
    return replace(block, entry=entry, out=out, body=frozenset(body))


def _side_effects(body: Iterable[Node], out: Node) -> set[Node]:
    """Return nodes that depend on inner values and that nothing reads: statistics that are updated in training."""
    inside, found = set(body), set[Node]()
    waiting = [user for node in body for user in node.users if user is not out]
    while waiting:
        node = waiting.pop()
        if node in found or node.op == "output":
            continue
        if all(user in found for user in node.users) and not writes_elsewhere(node, inside):
            found.add(node)
            inside.add(node)
    return found


def trained_choices(ir: IR, choices: Choices) -> Choices:
    """Return the same choices, in terms of nodes of the training graph."""
    assert ir.trained is not None
    twins, given = counterparts(ir), given_values(ir.trained)
    blocks = {name: trained_block(block, twins, given) for name, block in choices.blocks.items()}
    return replace(choices, blocks={name: block for name, block in blocks.items() if block is not None})


# A typed graph at other sizes of its dynamic axes, for its costs there.


def at_sizes(types: AxisTypes, choices: Choices, sizes: Mapping[str, int]) -> tuple[AxisTypes, Choices]:
    """Return the axis types of the same graph at other sizes, with the symbols of `types`, and its choices.

    Args:
        types: The typed graph at the sizes of the example.
        choices: Its search space.
        sizes: Sizes of dynamic axes by name; other axes keep their size.

    Raises:
        InputError: There is no such axis, it does not accept that size, or the graph cannot run at these sizes.
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
    """Return the graph with inputs of other sizes, and the copy of each node."""
    wanted = {}
    for name, size in sizes.items():
        axis = ir.sizes.axis(name)
        if name == "batch":
            raise InputError("costs are for one sample, so the size of the batch cannot be given")
        if size < 1 or (size - axis.size) % axis.step:
            raise InputError(f"{name}: cannot be {size}; it is {axis.size} plus a multiple of {axis.step}")
        wanted[axis] = size
    graph, copies = ir.copy_graph()
    resize_inputs(graph, ir.names, wanted)
    try:
        return ir.with_graph(graph), copies
    except Exception as error:
        told = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise InputError(f"the model does not accept {told}: {type(error).__name__}: {error}") from error
