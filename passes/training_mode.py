"""Models that call something else in training mode: the graph of that mode beside the one of evaluation mode.

Both graphs are typed over the same parameters, so that every equation of either holds in both. A block may be skipped
if it is a block of the training graph too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from difflib import SequenceMatcher
from typing import Any

from torch.fx import Node

from .blocks import Block, Blocks, is_constant, nodes_between, writes_elsewhere
from .choices import Choices
from .errors import Diagnostic
from .frontend.structure import tensors_of
from .ir import IR, module_calls


def counterparts(ir: IR) -> dict[Node, Node]:
    """The node of the training graph that is the same call as a node of the graph, for those that have one."""
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
    """What two calls have in common that are the same: function, place in the model, and line."""
    return node.op, str(node.target), module_calls(node), node.meta.get("line")


def _shapes(node: Node) -> list[Any]:
    return [tensor.shape for tensor in tensors_of(node.meta.get("value"))]


def in_training(ir: IR, blocks: Blocks) -> Blocks:
    """The blocks that may be skipped in training mode too; the others are refused with the reason."""
    if ir.trained is None:
        return blocks
    twins, found, refused = counterparts(ir), [], list(blocks.refused)
    for block in blocks.found:
        if trained_block(block, twins) is not None:
            found.append(block)
        else:
            refused.append(
                Diagnostic(block.name, "training mode has no such block: its values are read elsewhere there")
            )
    return Blocks(tuple(found), tuple(refused), blocks.ties)


def trained_block(block: Block, twins: Mapping[Node, Node]) -> Block | None:
    """The block of the training graph between the counterparts of its ends; None where that is none."""
    entry, out = twins.get(block.entry), twins.get(block.out)
    if entry is None or out is None:
        return None
    body: set[Node] = set()
    for operand in out.all_input_nodes:
        if operand is not entry and not is_constant(operand):
            body |= nodes_between(entry, operand)
    body |= _side_effects(body, out)
    inside = body | {out}
    if not body or any(set(node.users) - inside for node in body):
        return None
    return replace(block, entry=entry, out=out, body=frozenset(body))


def _side_effects(body: Iterable[Node], out: Node) -> set[Node]:
    """Nodes that only inner values lead to and that lead nowhere: statistics that are updated in training."""
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
    """The same choices in the nodes of the training graph."""
    twins = counterparts(ir)
    blocks = {name: trained_block(block, twins) for name, block in choices.blocks.items()}
    return replace(choices, blocks={name: block for name, block in blocks.items() if block is not None})
