"""Skippable blocks: without its branch, a residual block is exactly the identity."""

from __future__ import annotations

import operator
import sys
from collections import Counter
from collections.abc import Container, Iterable
from dataclasses import dataclass, replace
from itertools import takewhile

import torch
from torch import nn
from torch.fx import Node

from bnas.passes.axes.terms import normalise
from bnas.passes.axes.types import AxisTypes
from bnas.passes.errors import Diagnostic
from bnas.passes.frontend.ir import IR
from bnas.passes.ops.calls import TensorRef, writes_in_place
from bnas.passes.ops.record import Trait
from bnas.passes.ops.registry import OPERATORS

# Operators that run as one: a linear operator or sum, its BatchNorm and its activation.


def fused_next(ir: IR, node: Node) -> Node | None:
    """Return the BatchNorm or activation that runs fused with `node` and is its only reader, else None."""
    call, users = ir.calls.get(node), list(node.users)
    after = ir.calls.get(users[0]) if len(users) == 1 else None
    if call is None or after is None:
        return None
    this, other = OPERATORS.of(call.op), OPERATORS.of(after.op)
    norm = other.has(Trait.BATCH_NORM) and this.has(Trait.FUSES_NORM)
    return users[0] if norm or (other.has(Trait.ACTIVATION) and this.has(Trait.FUSES_ACTIVATION)) else None


def fused_end(ir: IR, node: Node) -> Node:
    """Return the last operator of the fused group of `node`."""
    while (after := fused_next(ir, node)) is not None:
        node = after
    return node


@dataclass(frozen=True)
class Block:
    """A skippable block: skipping it makes `out` the value of `entry`."""

    name: str
    entry: Node
    out: Node
    body: frozenset[Node]
    residual: bool = True
    """Whether the block is a sum of a branch and its input; otherwise it is a region (see `regions`)."""

    @property
    def nodes(self) -> frozenset[Node]:
        """All nodes that disappear if the block is skipped."""
        return self.body | {self.out}

    @property
    def size(self) -> int:
        """Number of operators minus one, as BootstrapNAS counts: the distance from the first operator to the last."""
        return sum(not (is_constant(node) or _is_item(node)) for node in self.nodes) - 1


@dataclass(frozen=True)
class Blocks:
    """The skippable blocks of a graph in order, and the candidates left unchanged, with the reason."""

    found: tuple[Block, ...]
    refused: tuple[Diagnostic, ...]
    ties: tuple[Diagnostic, ...] = ()
    """Widths that were tied to make regions skippable, with the reason."""


ANY_SIZE = range(sys.maxsize)


def find_blocks(types: AxisTypes, sizes: range = ANY_SIZE) -> Blocks:
    """Find every minimal residual block ``out = add(body(x), x)`` whose two operands have the same axis types.

    With equal types, the block can be skipped for every choice of widths. Of nested blocks, the inner one is taken,
    because it allows finer choices. Blocks whose `Block.size` is not in `sizes` are left unchanged.
    """
    refused: list[Diagnostic] = []
    matches: list[Block] = []
    given = given_values(types.ir)
    for node, call in types.ir.calls.items():
        if OPERATORS.of(call.op).has(Trait.SUM):
            match = match_residual(types, node, given)
            if isinstance(match, Diagnostic):
                refused.append(match)
            elif match.size in sizes:
                matches.append(match)
            else:
                refused.append(Diagnostic(node.name, f"its size {match.size} is not allowed by the settings"))
    minimal = [b for b in matches if not any(o is not b and o.body < b.body for o in matches)]
    refused += [Diagnostic(b.out.name, "encloses a smaller skippable block") for b in matches if b not in minimal]
    return Blocks(named(minimal), tuple(refused))


def match_residual(types: AxisTypes, add: Node, given: frozenset[Node]) -> Block | Diagnostic:
    """Match ``add(body(x), x)`` whose body reads only ``x`` and `given` values, and whose inner values stay inside."""
    call = types.ir.calls[add]
    added = call.argument(0, "input"), call.argument(1, "other")
    operands = [arg for arg in added if isinstance(arg, Node)]
    if len(operands) != 2 or operands[0] is operands[1]:
        return Diagnostic(add.name, "needs two different values to add")
    for entry, tail in (operands, operands[::-1]):
        body = nodes_between(entry, tail, given)
        if body:
            break
    else:
        return Diagnostic(add.name, "not a skippable residual block: both branches change the tensor")
    if entry is added[1] and call.kwargs.get("alpha", 1) != 1:
        return Diagnostic(add.name, "the shortcut is scaled")
    if [normalise(t) for t in types.type(entry)] != [normalise(t) for t in types.type(add)]:
        return Diagnostic(add.name, f"shortcut {types.shape(entry)} and sum {types.shape(add)} differ in their axes")
    body |= dead_ends(body, add)
    leaks = [node for node in body if set(node.users) - body - {add}]
    if leaks:
        return Diagnostic(leaks[0].name, "is also read outside the block")
    block = Block(add.name, entry, add, frozenset(body))
    if writes_into(types.ir, block):
        return Diagnostic(add.name, "the block writes into its own input")
    if not any(has_tensors(types.ir, node) for node in body):
        return Diagnostic(add.name, "no parameter inside the block")
    return block


def dead_ends(body: set[Node], add: Node) -> set[Node]:
    """Return nodes that depend on inner values of a block and lead to no output: writes into these values or views."""
    found: set[Node] = set()
    for user in {user for node in body for user in node.users} - body - {add}:
        after, stack = {user}, [user]
        while stack and stack[-1].op != "output":
            new = set(stack.pop().users) - after
            after |= new
            stack += new
        inside = body | after
        if not stack and not any(writes_elsewhere(node, inside) for node in after):
            found |= after
    return found


def writes_elsewhere(node: Node, inside: Container[Node]) -> bool:
    """Whether an operator writes into a tensor from outside of `inside`, so that later readers depend on the write.

    Buffers do not count, because statistics belong to the layers that update them.
    """
    target = next(iter(node.all_input_nodes), None)
    return writes_in_place(node) and target is not None and target.op != "get_attr" and target not in inside


def nodes_between(entry: Node, tail: Node, given: frozenset[Node]) -> set[Node]:
    """Return the nodes between `entry` and `tail`; empty unless `tail` depends on `entry` and on nothing else.

    Values that are computed from parameters only, such as a bias table, do not count. `given` values may be read too;
    those that nothing else reads are included in the result.
    """
    aside = frozenset[Node]() if entry in given else given
    body: set[Node] = set()
    reached = False
    stack = [tail]
    while stack:
        node = stack.pop()
        reached |= node is entry
        if node is entry or node in body or node in aside or is_constant(node):
            continue
        if node.op == "placeholder":
            return set()
        body.add(node)
        stack += node.all_input_nodes
    apart = body - following(entry, body)
    if not reached or any(aside.intersection(node.all_input_nodes) for node in apart):
        return set()
    return body | _read_by(body, aside)


def following(entry: Node, body: set[Node]) -> set[Node]:
    """Return the nodes in `body` that depend on `entry`."""
    found, waiting = set[Node](), [entry]
    while waiting:
        new = body.intersection(waiting.pop().users) - found
        found |= new
        waiting += new
    return found


def _read_by(body: set[Node], values: frozenset[Node]) -> set[Node]:
    """Return the `values` that only `body` reads and that are not inputs of the model."""
    found: set[Node] = set()
    waiting = [one for node in body for one in node.all_input_nodes]
    while waiting:
        node = waiting.pop()
        if node in values and node not in found and node.op != "placeholder" and (body | found).issuperset(node.users):
            found.add(node)
            waiting += node.all_input_nodes
    return found


def given_values(ir: IR) -> frozenset[Node]:
    """Return the values that are computed from the model's inputs without parameters, such as an attention mask."""
    learned, given = set[Node](), set[Node]()
    for node in ir.graph.nodes:
        inputs = set(node.all_input_nodes)
        if has_tensors(ir, node) or inputs & learned:
            learned.add(node)
        elif node.op == "placeholder" or (inputs & given and not is_constant(node)):
            given.add(node)
    return frozenset(given)


def is_constant(node: Node) -> bool:
    """Whether a node is a parameter or a plain value (size, type, device, mode), which may be read from anywhere."""
    return node.op == "get_attr" or isinstance(node.meta.get("value"), _PLAIN)


_PLAIN = (int, float, str, torch.dtype, torch.device, torch.finfo)


def writes_into(ir: IR, block: Block) -> bool:
    """Whether the block writes into the memory of its entry before its last operator, also through a view of it."""
    return any(node in block.body for node in ir.writers(block.entry))


def _is_item(node: Node) -> bool:
    """Whether a node is one of several results of an operator, and not an operator itself."""
    return node.target is operator.getitem and isinstance(node.all_input_nodes[0].meta["value"], tuple | list)


def has_tensors(ir: IR, node: Node) -> bool:
    """Whether the operator reads a parameter. Buffers and constants, such as anchors, do not count."""
    call = ir.calls.get(node)
    if call is None and node.op == "call_module" and any(True for _ in ir.module(str(node.target)).parameters()):
        return True
    return any(_is_parameter(ir, ref) for ref in (node.all_input_nodes if call is None else call.tensors()))


def _is_parameter(ir: IR, ref: Node | TensorRef) -> bool:
    if isinstance(ref, Node) and ref.op != "get_attr":
        return False
    name = ref.name if isinstance(ref, TensorRef) else str(ref.target)
    return name not in ir.constants and isinstance(ir.tensor(name), nn.Parameter)


def named(blocks: Iterable[Block]) -> tuple[Block, ...]:
    """Name each residual block by the module that contains it; equal names get numbers."""
    blocks = list(blocks)
    paths = [(_common_path(block) if block.residual else "") or block.name for block in blocks]
    count, seen = Counter(paths), Counter[str]()
    found = []
    for block, path in zip(blocks, paths, strict=True):
        seen[path] += 1
        found.append(replace(block, name=path if count[path] == 1 else f"{path}#{seen[path]}"))
    return tuple(found)


def _common_path(block: Block) -> str:
    scopes = [str(node.meta.get("scope", "")).split(".") for node in block.nodes]
    same = takewhile(lambda names: len(set(names)) == 1, zip(*scopes, strict=False))
    return ".".join(names[0] for names in same)
