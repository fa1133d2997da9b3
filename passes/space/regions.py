"""Skippable regions that are not residual blocks: one entry, one exit, and the same shape at both.

A region can be skipped if both ends keep the same entries. Choosing a region therefore *ties* the types of its ends.
This reduces the freedom of widths, which a diagnostic reports; `depth` decides how much is acceptable.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import takewhile

import torch
from torch.fx import Node

from bnas.passes.axes.terms import Cat, K, Perm, Prod, Sym, Term, normalise, symbols
from bnas.passes.axes.types import AxisTypes
from bnas.passes.axes.unifier import Unifier
from bnas.passes.errors import Diagnostic
from bnas.passes.frontend.ir import IR, module_calls, path_of
from bnas.passes.ops.record import Trait
from bnas.passes.ops.registry import OPERATORS

from .blocks import Block, following, fused_next, given_values, has_tensors, is_constant, nodes_between, writes_into


@dataclass(frozen=True)
class Flow:
    """Positions and dependencies of the values in a graph."""

    ir: IR

    @cached_property
    def nodes(self) -> list[Node]:
        """All nodes of the graph in order."""
        return list(self.ir.graph.nodes)

    @cached_property
    def place(self) -> Mapping[Node, int]:
        """The place of each node."""
        return {node: place for place, node in enumerate(self.nodes)}

    @cached_property
    def sources(self) -> list[frozenset[int]]:
        """For each node the values from which it is computed; empty for inputs and for values that need no input."""
        found: list[frozenset[int]] = []
        for node in self.nodes:
            inputs = () if is_constant(node) else node.all_input_nodes
            places = ((self.place[n], n) for n in inputs)
            found.append(frozenset(p for p, n in places if n.op == "placeholder" or found[p]))
        return found

    @cached_property
    def last(self) -> list[int]:
        """For each node the last position at which it is read."""
        last = list(range(len(self.nodes)))
        for place, sources in enumerate(self.sources):
            for source in sources:
                last[source] = place
        return last

    @cached_property
    def spine(self) -> frozenset[int]:
        """The values through which all paths from the inputs to the outputs go."""
        found, until = [], -1
        for place, last in enumerate(self.last):
            if self.sources[place]:
                if until <= place:
                    found.append(place)
                until = max(until, last)
            elif self.nodes[place].op == "placeholder":
                until = max(until, last)
        return frozenset(found)

    @cached_property
    def given(self) -> frozenset[Node]:
        """The values that are computed from the inputs without parameters."""
        return given_values(self.ir)

    @cached_property
    def modules(self) -> Counter[str]:
        """The number of values computed in each call of a module, including calls inside it."""
        computed = (node for place, node in enumerate(self.nodes) if self.sources[place])
        return Counter(call for node in computed for call in module_calls(node))

    def module_path(self, block: Block) -> str | None:
        """Return the path of the module that equals the block, or of its first and last child modules; else None."""
        stacks = [module_calls(node) for node in block.nodes if self.sources[self.place[node]]]
        depth = len(list(takewhile(lambda calls: len(set(calls)) == 1, zip(*stacks, strict=False))))
        around = stacks[0][depth - 1] if depth else ""
        if len(stacks) == self.modules[around]:
            return path_of(around)
        if any(len(stack) == depth for stack in stacks):  # some operators of the module itself
            return None
        parts = Counter(stack[depth] for stack in stacks)
        if any(self.modules[part] != count for part, count in parts.items()):
            return None
        ends = [path_of(module_calls(node)[depth]) for node in (next(iter(block.entry.users)), block.out)]
        names = [ends[0], *(end.rpartition(".")[2] for end in ends[1:] if end != ends[0])]
        return "-".join(names)

    def exits(self, entry: int, closed: frozenset[int], most: int) -> Iterator[int]:
        """Yield the values through which all paths from `entry` go, as long as no value from elsewhere is read.

        Stops before a `closed` node, at the output, and after `most` + 1 operators.
        """
        inside, until = {entry}, self.last[entry]
        for place in range(entry + 1, len(self.nodes)):
            if place > until:
                return
            sources = self.sources[place]
            if inside.isdisjoint(sources):
                continue
            if not inside.issuperset(sources) or place in closed or self.nodes[place].op == "output":
                return
            inside.add(place)
            if len(inside) - 2 > most:
                return
            if until <= place:
                yield place
            until = max(until, self.last[place])

    def is_summed(self, place: int) -> bool:
        """Whether the value goes directly into a sum or a concatenation.

        A branch that ends in a product is a gate, which is not skipped.
        """
        while True:
            users = [user for user in self.nodes[place].users if self.sources[self.place[user]]]
            if len(users) != 1:
                return False
            place = self.place[users[0]]
            if len(self.sources[place]) > 1:
                call = self.ir.calls.get(users[0])
                return call is not None and OPERATORS.of(call.op).has(Trait.JOIN)


def find_regions(types: AxisTypes, covered: frozenset[Node], sizes: range, fused: bool = True) -> list[Block]:
    """Find the smallest regions of allowed size after each value, in the order in which they should be taken.

    The order is: regions through which all paths go before regions on a branch; among these, whole modules first; among
    these, by their end. Regions may overlap. They contain no node of `covered`. With `fused`, no region cuts between a
    linear operator, its BatchNorm and its activation.
    """
    flow = Flow(types.ir)
    closed = frozenset(flow.place[node] for node in covered)
    found = [
        (out not in flow.spine, not modular, out, -entry, block)
        for entry in range(len(flow.nodes))
        for out, modular, block in _smallest(types, flow, entry, closed, sizes, fused)
    ]
    return [block for *_, block in sorted(found, key=lambda one: one[:-1])]


def _smallest(
    types: AxisTypes, flow: Flow, entry: int, closed: frozenset[int], sizes: range, fused: bool
) -> Iterator[tuple[int, bool, Block]]:
    """Return the smallest region after `entry`, and the smallest one that consists of whole modules, with its exit."""
    node, first = flow.nodes[entry], True
    if not flow.sources[entry] or (fused and fused_next(types.ir, node)):
        return
    for place in flow.exits(entry, closed, sizes.stop - 1):
        out = flow.nodes[place]
        if (fused and fused_next(types.ir, out)) or not (place in flow.spine or flow.is_summed(place)):
            continue
        block = match_region(types, node, out, flow.given)
        if isinstance(block, Block) and block.size in sizes:
            path = flow.module_path(block)
            if path is not None:
                yield place, True, replace(block, name=path)
                return
            if first:
                yield place, False, block
            first = False


def match_region(types: AxisTypes, entry: Node, out: Node, given: frozenset[Node]) -> Block | Diagnostic:
    """Match the region after `entry` up to `out`: its ends have equal shapes, and it reads only `entry` and `given`."""
    values = entry.meta["value"], out.meta["value"]
    if not all(isinstance(value, torch.Tensor) for value in values):
        return Diagnostic(out.name, "its ends are not tensors")
    if values[0].shape != values[1].shape or values[0].dtype != values[1].dtype:
        shapes = " and ".join(str(tuple(value.shape)) for value in values)
        return Diagnostic(out.name, f"its ends {shapes} differ in shape")
    there = types.ir.shapes_elsewhere
    if there and there[entry] != there[out]:
        shapes = " and ".join(str(tuple(there[node])) for node in (entry, out))
        return Diagnostic(out.name, f"at other sizes of the input, its ends {shapes} differ in shape")
    if entry.op == "placeholder" or any(user.op == "output" for user in out.users):
        return Diagnostic(out.name, "a region begins after the inputs and ends before the outputs of the model")
    between = nodes_between(entry, out, given)
    if not between:
        return Diagnostic(out.name, f"it is not computed from {entry.name} alone")
    leaks = [node for node in between - {out} if set(node.users) - between]
    if leaks:
        return Diagnostic(leaks[0].name, "is also read outside the region")
    weighted = [node for node in between if has_tensors(types.ir, node)]
    if not weighted:
        return Diagnostic(out.name, "no parameter inside the region")
    path = following(entry, between)
    if all(_only_scales(types, node) for node in path if node in weighted or _reads(node, between - path - given)):
        return Diagnostic(out.name, "only a normalisation, a scale or a table that is added is inside the region")
    block = Block(f"{entry.name}-{out.name}", entry, out, frozenset(between - {out}), residual=False)
    if writes_into(types.ir, block):
        return Diagnostic(out.name, "the region writes into its own input")
    return block


def _reads(node: Node, values: set[Node]) -> bool:
    return not values.isdisjoint(node.all_input_nodes)


def _only_scales(types: AxisTypes, node: Node) -> bool:
    """Whether the operator only scales, normalises or shifts a stream, so that later operators rely on it.

    That includes norms written by hand, and the addition of learned values such as positions. A batch norm does not
    count: it belongs to one layer and may be skipped with its activation.
    """
    call = types.ir.calls.get(node)
    return call is not None and OPERATORS.of(call.op).has(Trait.SCALE, Trait.STREAM_NORM, Trait.SUM)


def rigid_if_tied(types: AxisTypes, block: Block) -> list[Diagnostic]:
    """Return what would become rigid if the types at both ends of `block` were unified; change nothing."""
    twins: dict[Sym, Sym] = {}
    trial = Unifier()
    for left, right in zip(types.type(block.entry), types.type(block.out), strict=True):
        trial.unify(_twin(left, twins), _twin(right, twins))
    return trial.pins


def _twin(term: Term, twins: dict[Sym, Sym]) -> Term:
    term = normalise(term)
    if isinstance(term, Sym):
        return twins.setdefault(term, Sym(term.n, term.origin))
    if isinstance(term, Prod | Cat):
        return type(term)(tuple(_twin(part, twins) for part in term.terms))
    if isinstance(term, Perm):
        return Perm(_twin(term.term, twins), term.order)
    assert isinstance(term, K)
    return term


def tie(types: AxisTypes, block: Block) -> Diagnostic | None:
    """Unify the types at both ends of `block`, so that it can be skipped for every choice of widths.

    The caller settles the types of parameters once after all ties.

    Returns:
        The effect on widths, or None if the types were equal already.
    """
    ends = types.type(block.entry), types.type(block.out)
    if [normalise(t) for t in ends[0]] == [normalise(t) for t in ends[1]]:
        return None
    before, pinned = _symbols_of(ends), len(types.pins)
    for left, right in zip(*ends, strict=True):
        types.unify(left, right, f"it is tied by the skippable block {block.name}")
    after, rigid = _symbols_of(ends), len(types.pins) - pinned
    told = f"skippable: the widths at {block.entry.name} and {block.out.name} are tied"
    return Diagnostic(block.name, f"{told}; {before} free symbols became {after}, {rigid} of them rigid")


def _symbols_of(ends: Iterable[Sequence[Term]]) -> int:
    """Return the number of free symbols in two types."""
    return len({symbol for axes in ends for term in axes for symbol in symbols(term)})
