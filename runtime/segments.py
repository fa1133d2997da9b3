"""Cut the graph of a model into segments such that training keeps the least memory (see `recomputation`).

A training step keeps the values that pass from one segment to the next, and the inner values of one segment at a time.
Memory is counted at the sizes of the example inputs, for the maximal sub-network. Sub-networks use the same cuts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from torch import Tensor
from torch.fx import Graph, Node

from bnas.passes.frontend.ir import IR
from bnas.passes.frontend.structure import tensors_of

# The cuts of a model.


class Values:
    """The values of a graph that was made from that of `ir`: when each is computed, read and changed in place."""

    def __init__(self, graph: Graph, ir: IR) -> None:
        known = {node.name: node for node in ir.graph.nodes}
        self.inputs = [node for node in graph.nodes if node.op == "placeholder"]
        *self.steps, self.output = (node for node in graph.nodes if node.op not in ("placeholder", "get_attr"))
        self.place = {node: place for place, node in enumerate((*self.steps, self.output))}
        own = graph is ir.graph
        self.origin = {node: node if own else known.get(node.meta.get("origin", "")) for node in graph.nodes}
        self.last = {node: max((self.place[user] for user in node.users), default=-1) for node in graph.nodes}
        here = {self.origin[step]: place for step, place in self.place.items()}
        self._written = {one: max((here.get(w, -1) for w in ir.writers(one)), default=-1) for one in known.values()}

    def passing(self, place: int) -> Iterator[Node]:
        """Return the values computed before a step and read in it or later, without tensors of the module."""
        return (n for n in (*self.inputs, *self.steps[:place]) if self.last[n] >= place)

    def may_pass(self, node: Node, place: int) -> bool:
        """Whether nothing changes a value in place from a step on, so that it can be used a second time."""
        origin = self.origin[node]
        return origin is not None and self._written[origin] < place

    def size(self, node: Node) -> int:
        """Return the bytes that a step allocates; 0 for a view or a write in place."""
        origin = self.origin[node]
        if origin is None:
            return 0
        before = {_storage(one) for read in origin.all_input_nodes for one in tensors_of(read.meta.get("value"))}
        made = {_storage(one): one for one in tensors_of(origin.meta.get("value"))}
        return sum(one.numel() * one.itemsize for storage, one in made.items() if storage not in before)


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)  # works for meta tensors as well


def cuts_of(ir: IR) -> list[Node]:
    """Return the first node of each segment (except the first segment) of a captured model, for the least memory.

    Values that pass a cut are kept, so nothing may change them in place later.
    """
    values = Values(ir.graph, ir)
    sizes = {node: values.size(node) for node in values.steps}
    passing: dict[int, int] = {}
    for place in range(1, len(values.steps)):
        kept = list(values.passing(place))
        if all(values.may_pass(node, place) for node in kept):
            passing[place] = sum(sizes.get(node, 0) for node in kept)
    return [values.steps[place] for place in least_memory([*sizes.values()], passing)]


def least_memory(sizes: Sequence[int], passing: Mapping[int, int]) -> list[int]:
    """Return the cuts with the least memory: all values that pass cuts, plus the largest segment.

    Args:
        sizes: The bytes that each step allocates.
        passing: The bytes that pass a cut before a step, for each step that may be cut at.
    """
    sums = [0]
    for size in sizes:
        sums.append(sums[-1] + size)
    ends = [0, *(place for place in sorted(passing) if _is_narrow(place, passing)), len(sizes)]
    best: tuple[int, list[int]] = (sums[-1], [])
    count = 2
    while count <= len(ends):
        cuts = _cheapest(sums, ends, passing, sums[-1] // count)
        inner = max(sums[end] - sums[start] for start, end in zip((0, *cuts), (*cuts, len(sizes)), strict=True))
        best = min(best, (sum(passing[one] for one in cuts) + inner, cuts))
        count += 1 + count // 8
    return best[1]


def _is_narrow(place: int, passing: Mapping[int, int]) -> bool:
    """Whether a cut at `place` is at least as narrow as the cuts directly before and after it."""
    return passing[place] <= min(passing.get(place + side, passing[place]) for side in (-1, 1))


def _cheapest(sums: Sequence[int], ends: Sequence[int], passing: Mapping[int, int], largest: int) -> list[int]:
    """Return the cheapest cuts with segments of at most `largest` bytes; larger only if no cut is possible inside."""
    known, first = [(0, 0)], 0  # what passes all cuts up to an end, and the end before it
    for number, end in enumerate(ends[1:], 1):
        while first < number - 1 and sums[end] - sums[ends[first]] > largest:
            first += 1
        known.append(min((known[one][0] + passing.get(end, 0), one) for one in range(first, number)))
    cuts, number = list[int](), known[-1][1]
    while number:
        cuts.append(ends[number])
        number = known[number][1]
    return cuts[::-1]


# The segments of a sub-network.


@dataclass(frozen=True)
class Segment:
    """A part of a graph, as a function of values from earlier parts."""

    nodes: tuple[Node, ...]
    """The nodes in order; nodes that read tensors of the module come first."""
    takes: tuple[Node, ...]
    gives: tuple[Node, ...]
    ends: Mapping[Node, tuple[Node, ...]]
    """For each node the values that can be freed after it."""


@dataclass(frozen=True)
class Plan:
    """The segments of a graph."""

    segments: tuple[Segment, ...]
    inputs: tuple[Node, ...]
    output: Node

    @classmethod
    def of(cls, graph: Graph, ir: IR, cuts: Sequence[Node]) -> Plan:
        """Return the segments of a sub-network; `cuts` are the cuts of the model."""
        values, order = Values(graph, ir), {node: place for place, node in enumerate(ir.graph.nodes)}
        left, places = [order[cut] for cut in cuts], list[int]()
        for place, node in enumerate(values.steps):
            origin = values.origin[node]
            if left and origin is not None and order[origin] >= left[0]:
                left = [one for one in left if one > order[origin]]
                if place and all(values.may_pass(one, place) for one in values.passing(place)):
                    places.append(place)
        bounds = zip((0, *places), (*places, len(values.steps)), strict=True)
        return cls(tuple(_segment(values, *one) for one in bounds), tuple(values.inputs), values.output)


def _segment(values: Values, start: int, end: int) -> Segment:
    nodes = values.steps[start:end]
    read = dict.fromkeys(one for node in nodes for one in node.all_input_nodes)
    tensors = tuple(node for node in read if node.op == "get_attr")
    takes = tuple(node for node in read if node.op != "get_attr" and values.place.get(node, -1) < start)
    gives = tuple(node for node in nodes if values.last[node] >= end)
    ends: dict[Node, tuple[Node, ...]] = {}
    for node in (*takes, *nodes):
        if values.last[node] < end:
            step = values.steps[max(values.last[node], values.place.get(node, -1))]  # the node if nothing reads it
            ends[step] = (*ends.get(step, ()), node)
    return Segment((*tensors, *nodes), takes, gives, ends)


_CUTS: WeakKeyDictionary[Graph, list[Node]] = WeakKeyDictionary()
_PLANS: WeakKeyDictionary[Graph, Plan] = WeakKeyDictionary()


def plan_of(graph: Graph, ir: IR) -> Plan:
    """Return the segments of a graph that was made from that of `ir`. Programs of one structure share the graph."""
    if ir.graph not in _CUTS:
        _CUTS[ir.graph] = cuts_of(ir)
    if graph not in _PLANS:
        _PLANS[graph] = Plan.of(graph, ir, _CUTS[ir.graph])
    return _PLANS[graph]
