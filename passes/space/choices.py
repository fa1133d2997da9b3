"""The search space of a typed graph, with the symbols, blocks and kernels behind its names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch.fx import Node

from bnas.passes.axes.terms import Sym
from bnas.passes.axes.types import AxisTypes
from bnas.passes.errors import Diagnostic
from bnas.passes.frontend.ir import IR

from .blocks import Block, Blocks, fused_end
from .elasticity import Elasticity
from .kernels import Kernels
from .scopes import find_vetoes
from .space import SearchSpace
from .widths import Width, Widths, find_widths

# Chains of skippable blocks: each block reads the output of the one before.


def find_chains(ir: IR, blocks: Iterable[Block]) -> tuple[tuple[str, ...], ...]:
    """Return the names of `blocks` (in network order) by chains; every block is in one chain.

    A block follows another one if its entry is the other's output, or the activation of that output.
    """
    chains: list[list[str]] = []
    ends: dict[object, list[str]] = {}
    for block in blocks:
        chain = ends.pop(fused_end(ir, block.entry), None)
        if chain is None:
            chain = []
            chains.append(chain)
        chain.append(block.name)
        ends[fused_end(ir, block.out)] = chain
    return tuple(tuple(chain) for chain in chains)


@dataclass(frozen=True)
class Choices:
    """A search space, with the symbols, blocks and kernels behind its names."""

    space: SearchSpace
    widths: Mapping[str, Width]
    blocks: Mapping[str, Block]
    kernels: Kernels
    """The elastic kernels, and those left unchanged, with the reason."""
    refused: tuple[Diagnostic, ...] = ()
    """Parts that the settings keep from changing, with the reason."""

    @property
    def symbols(self) -> dict[str, Sym]:
        """The symbol of each width."""
        return {name: width.symbol for name, width in self.widths.items()}


def choose(types: AxisTypes, blocks: Blocks, elasticity: Elasticity, kernels: Kernels | None = None) -> Choices:
    """Return the search space that the settings define for a typed graph.

    Raises:
        ElasticityError: A setting names something that does not exist, or an impossible size.
    """
    vetoes, refused = find_vetoes(types.ir, elasticity), list[Diagnostic]()

    def allowed(name: str, veto: str | None) -> bool:
        refused.extend([Diagnostic(name, veto)] if veto else [])
        return veto is None

    skippable = blocks.found if "depth" in elasticity.dimensions else ()
    found = {b.name: b for b in skippable if allowed(b.name, vetoes.on_block(types, b))}
    kernels = kernels or Kernels()
    shrinkable = {n: k for n, k in kernels.found.items() if allowed(n, vetoes.on_kernel(k))}
    elastic = find_widths(types, elasticity, vetoes) if "width" in elasticity.dimensions else Widths({}, ())
    readers = {n: {node for t in w.members for node in types.users.get(t, ())} for n, w in elastic.found.items()}
    space = SearchSpace(
        {name: width.sizes for name, width in elastic.found.items()},
        tuple(found),
        {name: uses for name, nodes in readers.items() if (uses := _around(nodes, found))},
        {name: kernel.choices for name, kernel in shrinkable.items()},
        {name: uses for name, kernel in shrinkable.items() if (uses := _around(kernel.nodes, found))},
        find_chains(types.ir, found.values()),
    )
    kept = Kernels(shrinkable, kernels.refused)
    return Choices(space, elastic.found, found, kept, (*refused, *elastic.refused))


def _around(nodes: Iterable[Node], blocks: Mapping[str, Block]) -> tuple[frozenset[str], ...]:
    """Return the blocks around each of `nodes`; empty if one of the nodes is in no block."""
    around = [frozenset(b.name for b in blocks.values() if node in b.nodes) for node in nodes]
    return tuple(sorted(set(around), key=sorted)) if all(around) else ()
