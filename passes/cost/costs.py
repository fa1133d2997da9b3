"""Costs of sub-networks as functions of their widths, blocks and kernels, and as sympy expressions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np
import sympy
from torch.fx import Node
from torch.utils._pytree import tree_leaves

from bnas.passes.axes.selection import active
from bnas.passes.axes.terms import Sym, Term
from bnas.passes.axes.types import AxisTypes
from bnas.passes.space.blocks import Block
from bnas.passes.space.choices import Choices
from bnas.passes.space.kernels import Kernel
from bnas.passes.space.subnet import Subnet

from .arithmetic import Algebra, Numeric, Symbolic, Tape
from .lifetimes import Lifetime, lifetimes

NAMES = ("macs", "parameters", "activations", "peak_memory")
"""Names of the costs."""


class _Expressions(Mapping[str, sympy.Expr]):
    """A mapping that builds each expression at first use, because those of large networks take seconds."""

    def __init__(self, stated: Stated) -> None:
        self._stated, self._made = stated, dict[str, sympy.Expr]()

    def __getitem__(self, name: str) -> sympy.Expr:
        if name not in NAMES:
            raise KeyError(name)
        if name not in self._made:
            self._made[name] = sympy.sympify(getattr(self._stated, name)())
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(NAMES)

    def __len__(self) -> int:
        return len(NAMES)


class Costs:
    """Costs of sub-networks, at the traced input size and for one sample.

    - "macs": multiply-accumulates of convolutions, linear layers and matrix products;
    - "parameters": the exact number of parameters of the extracted module;
    - "activations": number of entries of all tensors that operators allocate (no views, no writes in place);
    - "peak_memory": the largest number of bytes that input and activations occupy at a time, if each tensor is freed
      after its last use. It is never too small. It is too large if the entry of a skipped block is also read later,
      because that entry counts twice.

    Costs inside an operator or an opaque module are not counted. ``expressions`` has these keys. Its symbols have the
    names of widths, ``keep:NAME`` for a block (1 kept, 0 skipped) and ``kernel:NAME`` for the size of a kernel.
    """

    def __init__(self, types: AxisTypes, choices: Choices) -> None:
        self._types, self._choices = types, choices

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without compiled functions, which cannot be pickled and are compiled again when needed."""
        return {"_types": self._types, "_choices": self._choices}

    @cached_property
    def expressions(self) -> Mapping[str, sympy.Expr]:
        """The cost expressions."""
        return _Expressions(self._symbolic)

    @cached_property
    def layers(self) -> sympy.Expr:
        """Number of operators with MACs that a sub-network runs; latency depends on it too."""
        return sympy.sympify(self._symbolic.layers())

    @cached_property
    def _symbolic(self) -> Stated:
        return Stated(self._types, self._choices, Symbolic())

    @cached_property
    def _functions(self) -> Mapping[str, Callable[..., Any]]:
        numeric = Numeric(self._choices.space)
        stated = Stated(self._types, self._choices, numeric)
        sums = {name: getattr(stated, name)() for name in (*NAMES, "layers") if name != "peak_memory"}
        return {
            **{name: _only(numeric.tape.compiled([number])) for name, number in sums.items()},
            "peak_memory": _compiled_peak(numeric.tape, stated),
        }

    def __call__(self, subnet: Subnet) -> dict[str, int]:
        """The costs of one sub-network."""
        space = self._choices.space
        keeps = [int(name not in subnet.skipped) for name in space.blocks]
        widths = [subnet.widths.get(name, choices[-1]) for name, choices in space.widths.items()]
        kernels = [subnet.kernels.get(name, choices[-1]) for name, choices in space.kernels.items()]
        return {name: int(self._functions[name](*keeps, *widths, *kernels)) for name in NAMES}

    def many(
        self, subnets: Iterable[Subnet], names: Iterable[str] | None = None, multiple: int = 1
    ) -> dict[str, np.ndarray[Any, np.dtype[np.int64]]]:
        """Return the costs of many sub-networks as int64 arrays: all costs, or those in `names` or "layers".

        With `multiple`, elastic widths count as rounded up to multiples of it: kernels that fill vectors of so many
        channels compute as much.
        """
        space = self._choices.space
        variables, vectors = space.variables(), [space.encode(s) for s in subnets]
        columns = np.array(vectors, dtype=np.int64).reshape(len(vectors), len(variables)).T
        values = [np.array(v.choices, dtype=np.int64)[c] for v, c in zip(variables, columns, strict=True)]
        if multiple > 1:
            widths = slice(len(space.blocks), len(space.blocks) + len(space.widths))
            values[widths] = [-(-one // multiple) * multiple for one in values[widths]]
        full = np.zeros(len(vectors), dtype=np.int64)
        return {name: full + self._functions[name](*values) for name in names or NAMES}


def _only(function: Callable[..., list[Any]]) -> Callable[..., Any]:
    """Turn a function that returns a list with one number into one that returns the number."""
    return lambda *values: function(*values)[0]


def _compiled_peak(tape: Tape, stated: Stated) -> Callable[..., Any]:
    """Track the live bytes at each allocated tensor: add new tensors, subtract freed ones, and return the maximum."""
    lives = [life for life, _ in stated.taken]
    sizes = tape.compiled([size for _, size in stated.taken])
    there = tape.compiled([stated.keep(life.node) for life in lives])
    first = np.array([life.first for life in lives], dtype=np.int64)
    gone = np.array([life.last + 1 for life in lives], dtype=np.int64)

    def peak(*values: Any) -> Any:
        taken, switches = (np.stack(np.broadcast_arrays(*values, *f(*values))[len(values) :]) for f in (sizes, there))
        change = np.zeros((gone.max(initial=0) + 1, *taken.shape[1:]), dtype=np.int64)
        np.add.at(change, first, taken)
        np.subtract.at(change, gone, taken)
        return (switches * change.cumsum(axis=0)[first]).max(axis=0)

    return peak


@dataclass(frozen=True)
class Stated:
    """Computes the costs as numbers of an algebra."""

    types: AxisTypes
    choices: Choices
    algebra: Algebra

    @cached_property
    def _sizes(self) -> dict[Sym, Any]:
        return {self.choices.symbols[name]: self.algebra.symbol("width", name) for name in self.choices.space.widths}

    @cached_property
    def _around(self) -> Mapping[Node, list[str]]:
        """The blocks that contain each node."""
        found: dict[Node, list[str]] = {}
        for name, block in self.choices.blocks.items():
            for node in block.nodes:
                found.setdefault(node, []).append(name)
        return found

    def keep(self, node: Node, without: Block | None = None) -> Any:
        """Return 1 if the node is in the network, else 0: the product of the switches of the blocks that contain it."""
        around = (name for name in self._around.get(node, ()) if self.choices.blocks[name] is not without)
        return math.prod((self.algebra.symbol("keep", name) for name in around), start=1)

    def _share(self, kernel: Kernel | None) -> Any:
        """Return the share of its entries that a kernel keeps."""
        if kernel is None:
            return 1
        size, (least, *_, largest) = self.algebra.symbol("kernel", kernel.name), kernel.choices
        axes = [size if a == largest else a if a <= least else self.algebra.minimum(size, a) for a in kernel.sizes]
        return math.prod(axes, start=Fraction(1, math.prod(kernel.sizes)))

    def macs(self) -> Any:
        """Multiply-accumulates."""
        kernels = {node: kernel for kernel in self.choices.kernels.found.values() for node in kernel.nodes}
        terms = []
        for node, axes in self.types.macs:
            share = self._share(kernels.get(node)) * Fraction(1, self._samples(node))
            terms.append(self.keep(node) * self._product(axes, share))
        return self.algebra.sum(terms)

    def _samples(self, node: Node) -> int:
        """Return the number of samples for which a node computes; 1 if its result has no batch axis."""
        first = tree_leaves(node.meta["value"])[0]
        samples = self.types.ir.samples
        return samples if first.numel() % samples == 0 else 1

    def layers(self) -> Any:
        """Number of operators that "macs" counts."""
        return self.algebra.sum(map(self.keep, dict.fromkeys(node for node, _ in self.types.macs)))

    def _product(self, axes: Iterable[Term], share: Any) -> Any:
        """Return the product of the sizes of `axes` and of `share`, an integer for every choice."""
        return self.algebra.content(math.prod((active(axis, self._sizes) for axis in axes), start=share))

    def _entries(self, axes: Iterable[Term]) -> Any:
        """Return the number of entries of a tensor, for one sample if it has a batch axis."""
        samples = self.types.ir.samples
        batched = math.prod(axis.size for axis in axes) % samples == 0
        return self._product(axes, Fraction(1, samples) if batched else 1)

    @cached_property
    def _lifetimes(self) -> list[Lifetime]:
        return lifetimes(self.types, self.choices.blocks)

    def activations(self) -> Any:
        """Number of entries of all allocated tensors."""
        made = (life for life in self._lifetimes if life.node.op != "placeholder" and self._makes(life))
        return self.algebra.sum(self.keep(life.node) * self._entries(life.axes) for life in made)

    def _makes(self, life: Lifetime) -> bool:
        """Whether a lifetime allocates a tensor (and does not merely begin because it replaces a skipped block)."""
        return life.stands_in is None or not self.types.ir.writes(life.node)

    @cached_property
    def taken(self) -> list[tuple[Lifetime, Any]]:
        """Return the allocated tensors, with their bytes while they are alive."""
        return [
            (life, self.keep(life.node, life.stands_in) * life.itemsize * self._entries(life.axes))
            for life in self._lifetimes
        ]

    def peak_memory(self) -> sympy.Expr:
        """Return the largest memory over all nodes of the network that allocate a tensor."""
        at = (
            self.keep(life.node) * sympy.Add(*(size for other, size in self.taken if other.alive_at(life)))
            for life, _ in self.taken
        )
        return sympy.Max(*dict.fromkeys(at), evaluate=False)

    def parameters(self) -> Any:
        """Number of parameters that operators of the sub-network read, and of all parameters of opaque modules."""
        ir, terms = self.types.ir, []
        parameters = {name for name, _ in ir.root.named_parameters()}
        for name, axes in self.types.tensors.items():
            if name in parameters:
                absent = math.prod((1 - keep for keep in self._keeps_of(name)), start=1)
                share = self._share(self.choices.kernels.by_weight.get(name))
                terms.append((1 - absent) * self._product(axes, share))
        for node in ir.graph.nodes:
            if node.op == "call_module" and node not in ir.calls:
                module = ir.module(str(node.target))
                terms.append(self.keep(node) * sum(p.numel() for p in module.parameters()))
        return self.algebra.sum(terms)

    def _keeps_of(self, name: str) -> list[Any]:
        """Return the distinct switches of the operators that read a parameter; only 1 if one of them always runs."""
        keeps = {tuple(self._around.get(node, ())): self.keep(node) for node in self.types.users.get(name, ())}
        return [keeps[()]] if () in keeps else list(keeps.values())
