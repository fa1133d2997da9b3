"""Nodes for numbers that vary between recordings: sizes of tensors, expressions in sizes, results of opaque steps."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from itertools import combinations, product
from math import prod
from typing import Any

from torch import fx
from torch.fx import Node

from .chains import FAMILIES, Chain, Vector, chains, exact
from .merging import Differs, Merged, Varying
from .structure import Attribute, Path, at, leaves_of
from .tape import Step


class Numbers:
    """The part of an `Emitter` that finds an expression for a varying number."""

    def __init__(self) -> None:
        self.graph = fx.Graph()
        self._nodes: dict[Step, Node] = {}
        self._inputs: dict[Vector, tuple[Node, int]] = {}
        """Sizes of inputs that vary, with a placeholder and an axis that have them."""
        self._first_with: dict[Vector, tuple[Node, int]] = {}
        """For every size the first tensor in the outermost module that has it; it is outside of the blocks that read
        the size."""
        self._vectors: dict[tuple[Node, int], Vector] = {}
        """The sizes of each axis of a node in the recordings."""
        self._given: dict[tuple[Any, ...], tuple[Node, Path]] = {}
        """Varying numbers in the results of opaque steps, with their node and path."""
        self._sizes: dict[Vector, Node] = {}
        self.guesses = 0
        """Number of expressions that are neither the size of a tensor nor a product of sizes."""
        self._last_input: Node | None = None

    def _note_sizes(self, node: Node, values: Sequence[Any]) -> None:
        """Note the sizes of a tensor that vary between the recordings."""
        columns = list(zip(*(value.shape for value in values), strict=False))
        node.meta["varies"] = tuple(axis for axis, vector in enumerate(columns) if len(set(vector)) > 1)
        for axis in node.meta["varies"]:
            self._vectors[node, axis] = columns[axis]
            if node.meta.get("input"):
                self._inputs.setdefault(columns[axis], (node, axis))
            known = self._first_with.get(columns[axis])
            if known is None or _depth(node) < _depth(known[0]):
                self._first_with[columns[axis]] = node, axis

    def _note_numbers(self, node: Node, values: Sequence[Any]) -> None:
        """Note the varying numbers in the result of a call, and their paths."""
        for path, leaf in leaves_of(values[0]):
            if type(leaf) in (int, float):
                vector = tuple(at(one, path) for one in values)
                if len(set(vector)) > 1:
                    self._given.setdefault(vector, (node, path))

    def _taken(self, node: Node, path: Path) -> Node:
        """Add nodes that read a number inside the value of a node."""
        value = node.meta["value"]
        for step in path:
            function, key = (getattr, step.name) if isinstance(step, Attribute) else (operator.getitem, step)
            value = function(value, key)
            node = self.graph.call_function(function, (node, key))
            node.meta.update(value=value, scope="", nn_module_stack={})
        return node

    def _number(self, value: Varying, merged: Merged | None, operands: Sequence[Step]) -> Node:
        """Return a node that has the value of this number in every recording.

        The size of a tensor is preferred to an expression in other sizes: halves that are rounded up and down, for
        example, agree only at few sizes. A multiple of input sizes is safe, too, and does not depend on a tensor.
        """
        vector = value.values
        if isinstance(vector[0], int):
            direct = self._direct(vector, operands)
            if direct is not None:
                return self._size(*direct, shared=direct in self._inputs.values())
        if vector in self._given:
            return self._taken(*self._given[vector])
        if isinstance(vector[0], int):
            for count in (1, 2):
                for places in combinations(self._inputs.items(), count):
                    sizes = [prod(column) for column in zip(*(one for one, _ in places), strict=True)]
                    number = vector[0] // sizes[0] if sizes[0] else 0
                    if number > 0 and tuple(size * number for size in sizes) == vector:
                        chain: Chain = () if number == 1 else ((operator.mul, number),)
                        return self._apply(chain, [place for _, place in places])
            if vector in self._first_with:
                return self._size(*self._first_with[vector], shared=False)
        found = self._expression(vector, operands)
        if found is None:
            raise Differs(
                merged.step if merged else None,
                f"a number changes with the size, and no expression in sizes gives it: {vector}",
            )
        return found

    def _direct(self, vector: Vector, operands: Sequence[Step]) -> tuple[Node, int] | None:
        """Return an input or operand, and its axis, that has this size; None if there is none."""
        if vector in self._inputs:
            return self._inputs[vector]
        for step in operands:
            node = self._nodes[step]
            for axis in node.meta.get("varies", ()):
                if self._vectors[node, axis] == vector:
                    return node, axis
        return None

    def _size(self, node: Node, axis: int, *, shared: bool) -> Node:
        """Return a node that reads a size. All readers of an input's size share one node, behind the last input."""
        vector = self._vectors.get((node, axis), ())
        if shared and vector in self._sizes:
            return self._sizes[vector]
        if shared:
            with self.graph.inserting_after(self._last_input):
                made = self.graph.call_method("size", (node, axis))
        else:
            made = self.graph.call_method("size", (node, axis))
        made.meta.update(value=int(node.meta["value"].shape[axis]), scope="", nn_module_stack=_outer(node, shared))
        if shared:
            self._sizes[vector] = made
        return made

    def _expression(self, vector: tuple[Any, ...], operands: Sequence[Step]) -> Node | None:
        """Return an expression in one, two or three sizes with these values, or None; count it in `guesses`.

        Many expressions fit a few numbers, so simple expressions in any sizes are tried before complicated ones.
        """
        known = self._known(operands)
        whole = [(sizes, place) for sizes, place in known if all(type(one) is int for one in vector)]
        for (left, one), (right, other) in product(whole, whole):
            if tuple(a * b for a, b in zip(left, right, strict=True)) == vector:
                return self._apply((), [one, other])
        for (a, one), (b, two), (c, three) in product(whole, whole, whole):
            if tuple(x * y * z for x, y, z in zip(a, b, c, strict=True)) == vector:
                return self._apply((), [one, two, three])
        self.guesses += 1
        for family in FAMILIES:
            for sizes, place in [*known, *self._first_with.items()]:
                for chain in chains(family, vector, sizes):
                    return self._apply(chain, [place])
            if family is not FAMILIES[0]:
                continue
            for (left, one), (right, other) in product(known, known):
                both = tuple(a * b for a, b in zip(left, right, strict=True))
                for chain in exact(chains(family, vector, both), both):
                    return self._apply(chain, [one, other])
                if tuple(a / b if b else None for a, b in zip(left, right, strict=True)) == vector:
                    return self._quotient(one, other)
            for (a, one), (b, two), (c, three) in product(whole, whole, whole):
                all_three = tuple(x * y * z for x, y, z in zip(a, b, c, strict=True))
                for chain in exact(chains(family, vector, all_three), all_three):
                    return self._apply(chain, [one, two, three])
            if (found := self._fits(vector) or self._missing(vector, operands)) is not None:
                return found
        return None

    def _known(self, operands: Sequence[Step]) -> list[tuple[Vector, tuple[Node, int]]]:
        """Return the sizes of operands and of inputs."""
        found: dict[Vector, tuple[Node, int]] = {}
        for step in operands:
            node = self._nodes[step]
            for axis in node.meta.get("varies", ()):
                vector = self._vectors[node, axis]
                found.setdefault(vector, self._inputs.get(vector, (node, axis)))
        return list((found | self._inputs).items())

    def _apply(self, chain: Chain, places: Sequence[tuple[Node, int]]) -> Node:
        """Return a node with the product of sizes, followed by a chain of operators."""
        sizes = [self._size(*place, shared=place in self._inputs.values()) for place in places]
        node = sizes[0]
        for size in sizes[1:]:
            node = self._computed(operator.mul, node, size)
        for function, number in chain:
            node = self._computed(function, node, number)
        return node

    def _fits(self, vector: tuple[Any, ...]) -> Node | None:
        """Return how often one size fits into another one, such as the stride of a feature map; None if none fits."""
        if type(vector[0]) is not int or not vector[0]:
            return None
        sizes = self._first_with | self._inputs
        for (whole, one), (part, other) in product(sizes.items(), sizes.items()):
            if all(b and a // b == number for a, b, number in zip(whole, part, vector, strict=True)):
                return self._computed(operator.floordiv, *(self._apply((), [place]) for place in (one, other)))
        return None

    def _missing(self, vector: tuple[Any, ...], operands: Sequence[Step]) -> Node | None:
        """Return how much smaller an operand is than another tensor: its padding, or a negative number for a cut."""
        sizes = self._first_with | self._inputs
        for node in (self._nodes[step] for step in operands):
            for axis in node.meta.get("varies", ()):
                whole = tuple(map(operator.add, self._vectors[node, axis], vector))
                if whole in sizes:
                    ends = (self._apply((), [place]) for place in (sizes[whole], (node, axis)))
                    return self._computed(operator.sub, *ends)
        return None

    def _quotient(self, one: tuple[Node, int], other: tuple[Node, int]) -> Node:
        sizes = [self._size(*place, shared=place in self._inputs.values()) for place in (one, other)]
        return self._computed(operator.truediv, *sizes)

    def _computed(self, function: Any, node: Node, operand: Any) -> Node:
        made = self.graph.call_function(function, (node, operand))
        value = operand.meta["value"] if isinstance(operand, Node) else operand
        made.meta.update(value=function(node.meta["value"], value), scope="", nn_module_stack={})
        return made


def _depth(node: Node) -> int:
    return len(node.meta.get("nn_module_stack", ()))


def _outer(node: Node, shared: bool) -> dict[str, Any]:
    return {} if shared else dict(node.meta.get("nn_module_stack", {}))
