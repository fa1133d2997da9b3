"""Chains of skippable blocks, each of which reads what the one before it hands on."""

from __future__ import annotations

from collections.abc import Iterable

from .blocks import Block
from .fusion import fused_end
from .ir import IR


def find_chains(ir: IR, blocks: Iterable[Block]) -> tuple[tuple[str, ...], ...]:
    """The names of `blocks`, which are in network order, chain by chain; every block is in one chain.

    A block follows another if its entry is the other's output, or the activation of that.
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
