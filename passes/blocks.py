"""Skippable blocks: residual branches that may be left out, so that the block becomes exactly the identity."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import takewhile

import torch
from torch.fx import Node

from .axes import AxisTypes
from .calls import TensorRef
from .errors import Diagnostic
from .terms import normalise


@dataclass(frozen=True)
class Block:
    """A skippable block: skipping it makes `out` the value of `entry`."""

    name: str
    entry: Node
    out: Node
    body: frozenset[Node]


@dataclass(frozen=True)
class Blocks:
    """The skippable blocks of a graph in order, and the additions that were left alone, with the reason."""

    found: tuple[Block, ...]
    refused: tuple[Diagnostic, ...]


def find_blocks(types: AxisTypes) -> Blocks:
    """Every minimal residual block ``out = add(body(x), x)`` whose two operands have the same axis types.

    Equal types make the skip legal for every choice of widths. Where one block encloses another, the inner one is
    taken, since inner blocks give the finer choice.
    """
    refused: list[Diagnostic] = []
    matches: list[Block] = []
    for node, call in types.ir.calls.items():
        if call.op is torch.add:
            match = match_residual(types, node)
            if isinstance(match, Block):
                matches.append(match)
            else:
                refused.append(match)
    minimal = [b for b in matches if not any(o is not b and o.body < b.body for o in matches)]
    refused += [Diagnostic(b.out.name, "encloses a smaller skippable block") for b in matches if b not in minimal]
    return Blocks(_named(minimal), tuple(refused))


def match_residual(types: AxisTypes, add: Node) -> Block | Diagnostic:
    """Match ``add(body(x), x)`` whose body reads only ``x`` and whose inner values stay inside."""
    call = types.ir.calls[add]
    given = call.argument(0, "input"), call.argument(1, "other")
    operands = [arg for arg in given if isinstance(arg, Node)]
    if len(operands) != 2 or operands[0] is operands[1]:
        return Diagnostic(add.name, "needs two different values to add")
    for entry, tail in (operands, operands[::-1]):
        body = nodes_between(entry, tail)
        if body:
            break
    else:
        return Diagnostic(add.name, "neither operand is computed from the other alone")
    if entry is given[1] and call.kwargs.get("alpha", 1) != 1:
        return Diagnostic(add.name, "the shortcut is scaled")
    if [normalise(t) for t in types.type(entry)] != [normalise(t) for t in types.type(add)]:
        return Diagnostic(add.name, f"shortcut {types.shape(entry)} and sum {types.shape(add)} differ in their axes")
    leaks = [node for node in body if set(node.users) - body - {add}]
    if leaks:
        return Diagnostic(leaks[0].name, "is also read outside the block")
    if any(node in body for node in types.ir.writers(entry)):
        return Diagnostic(add.name, "the block writes into its own input")
    if not any(_has_tensors(types, node) for node in body):
        return Diagnostic(add.name, "no parameter inside the block")
    return Block(add.name, entry, add, frozenset(body))


def nodes_between(entry: Node, tail: Node) -> set[Node]:
    """The nodes that `tail` is computed from after `entry`; empty where it is not, or also depends on other inputs."""
    body: set[Node] = set()
    stack, reached = [tail], False
    while stack:
        node = stack.pop()
        reached |= node is entry
        if node is entry or node in body or _is_constant(node):
            continue
        if node.op == "placeholder":
            return set()
        body.add(node)
        stack += node.all_input_nodes
    return body if reached else set()


def _is_constant(node: Node) -> bool:
    """Parameters and batch sizes may be read from anywhere."""
    return node.op == "get_attr" or isinstance(node.meta.get("value"), int)


def _has_tensors(types: AxisTypes, node: Node) -> bool:
    call = types.ir.calls.get(node)
    if call is None:
        return node.op == "call_module"
    return any(isinstance(r, TensorRef) or r.op == "get_attr" for r in call.tensors())


def _named(blocks: list[Block]) -> tuple[Block, ...]:
    """Name each block by the module that holds it; several in one module are numbered."""
    paths = [_common_path(block) or block.name for block in blocks]
    count, seen = Counter(paths), Counter[str]()
    named = []
    for block, path in zip(blocks, paths, strict=True):
        seen[path] += 1
        name = path if count[path] == 1 else f"{path}#{seen[path]}"
        named.append(Block(name, block.entry, block.out, block.body))
    return tuple(named)


def _common_path(block: Block) -> str:
    scopes = [str(node.meta.get("scope", "")).split(".") for node in (*block.body, block.out)]
    same = takewhile(lambda names: len(set(names)) == 1, zip(*scopes, strict=False))
    return ".".join(names[0] for names in same)
