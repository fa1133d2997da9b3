"""Costs of a sub-network as sympy expressions in the widths and block switches, compiled to numpy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import sympy
from torch.fx import Node

from .axes import AxisTypes
from .blocks import Block
from .choices import Choices
from .kernels import Kernel
from .lifetimes import Lifetime, lifetimes
from .selection import active
from .space import Subnet
from .terms import Sym, Term
from .frontend.recorder import BATCH


class Costs:
    """What a sub-network costs, at the traced input size and for one sample.

    - "macs": multiply-accumulates of convolutions, linear layers and products of matrices;
    - "parameters": those of the extracted module, exactly;
    - "activations": entries of all tensors that its operators make, no views and nothing that is written in place;
    - "peak_memory": the most bytes that its input and activations take at a time, if each goes after its last reader.
      Never too small; too large where the entry of a skipped block is read later too, which counts twice.

    What happens inside of an operator or an opaque module counts nowhere. ``expressions`` has these keys; symbols are
    named as the widths of the space, as ``keep:NAME`` for a block (1 kept, 0 skipped) and as ``kernel:NAME`` for the
    size of a kernel.
    """

    def __init__(self, types: AxisTypes, choices: Choices) -> None:
        self._types, self._choices = types, choices
        space = choices.space
        self._widths = {name: sympy.Symbol(name, integer=True, positive=True) for name in space.widths}
        self._keeps = {name: sympy.Symbol(f"keep:{name}", integer=True, nonnegative=True) for name in space.blocks}
        self._kernels = {name: sympy.Symbol(f"kernel:{name}", integer=True, positive=True) for name in space.kernels}
        self._sizes: dict[Sym, Any] = {choices.symbols[name]: symbol for name, symbol in self._widths.items()}

    @cached_property
    def expressions(self) -> Mapping[str, sympy.Expr]:
        """The cost expressions."""
        return {
            "macs": self._macs(),
            "parameters": self._parameters(),
            "activations": self._activations(),
            "peak_memory": self._peak_memory(),
        }

    @cached_property
    def layers(self) -> sympy.Expr:
        """How many operators a sub-network runs of those that "macs" counts: what a latency also depends on."""
        return sympy.Add(*map(self._keep, dict.fromkeys(node for node, _ in self._types.macs)))

    @cached_property
    def _functions(self) -> Mapping[str, Callable[..., Any]]:
        sums = {name: e for name, e in self.expressions.items() if name != "peak_memory"} | {"layers": self.layers}
        return {**{name: self._compiled(e) for name, e in sums.items()}, "peak_memory": self._compiled_peak()}

    def _compiled(self, expression: sympy.Expr | list[sympy.Expr]) -> Callable[..., Any]:
        arguments = [*self._keeps.values(), *self._widths.values(), *self._kernels.values()]
        function: Callable[..., Any] = sympy.lambdify(arguments, expression, "numpy", cse=True)
        return function

    def _compiled_peak(self) -> Callable[..., Any]:
        """As the expression says; sympy would compare all terms of the maximum with one another, for minutes."""
        sizes = self._compiled([size for _, size in self._taken])
        there = self._compiled([self._keep(life.node) for life, _ in self._taken])
        alive = np.array(
            [[other.alive_at(life) for other, _ in self._taken] for life, _ in self._taken], dtype=np.int64
        )

        def peak(*values: Any) -> Any:
            taken, switches = (
                np.stack(np.broadcast_arrays(*values, *f(*values))[len(values) :]) for f in (sizes, there)
            )
            return (switches * (alive @ taken)).max(axis=0)

        return peak

    def __call__(self, subnet: Subnet) -> dict[str, int]:
        """The costs of one sub-network."""
        space = self._choices.space
        keeps = [int(name not in subnet.skipped) for name in self._keeps]
        widths = [subnet.widths.get(name, choices[-1]) for name, choices in space.widths.items()]
        kernels = [subnet.kernels.get(name, choices[-1]) for name, choices in space.kernels.items()]
        return {name: int(self._functions[name](*keeps, *widths, *kernels)) for name in self.expressions}

    def many(
        self, subnets: Iterable[Subnet], names: Iterable[str] | None = None
    ) -> dict[str, np.ndarray[Any, np.dtype[np.int64]]]:
        """The costs of many sub-networks at once, as int64 arrays: all of them, or those in `names` or "layers"."""
        space = self._choices.space
        variables, vectors = space.variables(), [space.encode(s) for s in subnets]
        columns = np.array(vectors, dtype=np.int64).reshape(len(vectors), len(variables)).T
        values = [np.array(v.choices, dtype=np.int64)[c] for v, c in zip(variables, columns, strict=True)]
        full = np.zeros(len(vectors), dtype=np.int64)
        return {name: full + self._functions[name](*values) for name in names or self.expressions}

    def _keep(self, node: Node, without: Block | None = None) -> Any:
        """1 while the node is in the network: the product of the switches of the blocks around it."""
        blocks = self._choices.blocks.items()
        around = [self._keeps[name] for name, block in blocks if node in block.nodes and block is not without]
        return math.prod(around, start=sympy.Integer(1))

    def _share(self, kernel: Kernel | None) -> Any:
        """The share of its entries that a kernel keeps."""
        if kernel is None:
            return sympy.Integer(1)
        size, (least, *_, largest) = self._kernels[kernel.name], kernel.choices
        axes = [size if a == largest else a if a <= least else sympy.Min(a, size) for a in kernel.sizes]
        return math.prod(axes, start=sympy.Rational(1, math.prod(kernel.sizes)))

    def _macs(self) -> sympy.Expr:
        kernels = {node: kernel for kernel in self._choices.kernels.found.values() for node in kernel.nodes}
        terms = []
        for node, axes in self._types.macs:
            share = self._share(kernels.get(node)) / BATCH
            terms.append(self._keep(node) * self._product(axes, share))
        return sympy.Add(*terms)

    def _product(self, axes: Iterable[Term], share: Any) -> sympy.Expr:
        """The sizes of `axes` and `share` multiplied: a whole number for every choice."""
        number, rest = math.prod((active(axis, self._sizes) for axis in axes), start=share).as_content_primitive()
        return number * rest  # else a fraction would stay, computed in floating point

    def _entries(self, axes: Iterable[Term]) -> sympy.Expr:
        """The entries of a tensor, for one sample where it has a batch."""
        batched = math.prod(axis.size for axis in axes) % BATCH == 0
        return self._product(axes, sympy.Rational(1, BATCH) if batched else sympy.Integer(1))

    @cached_property
    def _lifetimes(self) -> list[Lifetime]:
        return lifetimes(self._types, self._choices.blocks)

    def _activations(self) -> sympy.Expr:
        made = (life for life in self._lifetimes if life.node.op != "placeholder" and self._makes(life))
        return sympy.Add(*(self._keep(life.node) * self._entries(life.axes) for life in made))

    def _makes(self, life: Lifetime) -> bool:
        """Whether a tensor is made, and not only begins to stand for a block."""
        return life.stands_in is None or not self._types.ir.writes(life.node)

    @cached_property
    def _taken(self) -> list[tuple[Lifetime, Any]]:
        """The tensors that are made, and the bytes of each while it is there."""
        return [
            (life, self._keep(life.node, life.stands_in) * life.itemsize * self._entries(life.axes))
            for life in self._lifetimes
        ]

    def _peak_memory(self) -> sympy.Expr:
        """The memory at each node that makes something, while it is in the network: the largest of them."""
        at = (
            self._keep(life.node) * sympy.Add(*(size for other, size in self._taken if other.alive_at(life)))
            for life, _ in self._taken
        )
        return sympy.Max(*dict.fromkeys(at), evaluate=False)

    def _parameters(self) -> sympy.Expr:
        ir, terms = self._types.ir, []
        parameters = {name for name, _ in ir.root.named_parameters()}
        for name, axes in self._types.tensors.items():
            if name in parameters:
                absent = math.prod((1 - self._keep(n) for n in self._types.users[name]), start=sympy.Integer(1))
                share = self._share(self._choices.kernels.by_weight.get(name))
                terms.append((1 - absent) * self._product(axes, share))
        for node in ir.graph.nodes:
            if node.op == "call_module" and node not in ir.calls:
                module = ir.module(str(node.target))
                terms.append(self._keep(node) * sum(p.numel() for p in module.parameters()))
        return sympy.Add(*terms)
