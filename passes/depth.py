"""Which blocks of a model may be skipped: the policy that `Elasticity` states."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from torch.fx import Node

from .axes import AxisTypes, analyse
from .blocks import Block, Blocks, find_blocks, named
from .elasticity import Elasticity
from .errors import Diagnostic, ElasticityError
from .fusion import fused_end
from .ir import IR
from .patterns import near_names
from .regions import find_regions, match_region, rigid_if_tied, tie
from .scopes import find_value, spelling
from .vetoes import find_vetoes


def skippable_blocks(types: AxisTypes, elasticity: Elasticity) -> Blocks:
    """All blocks that `elasticity` lets skip, in network order; none has a node in common with another.

    Residual blocks come first; regions are looked for where no residual block covers the code. Choosing a region ties
    the types of its ends in `types`: call it once, before the search space is made. The ties are in the diagnostics.

    Raises:
        ElasticityError: an entry of ``skipped_blocks`` is not a block of the model; names the nearest ones.
    """
    if "depth" not in elasticity.dimensions:
        return Blocks((), ())
    if elasticity.skipped_blocks is not None:
        return _listed(types, elasticity.skipped_blocks, elasticity)
    residual = find_blocks(types, elasticity.block_sizes(residual=True))
    covered = frozenset(node for block in residual.found for node in block.nodes)
    candidates = find_regions(types, covered, elasticity.block_sizes(residual=False), elasticity.hw_fused_ops)
    regions = _tied(types, candidates, elasticity)
    found = _in_order(types.ir, (*residual.found, *regions.found))
    return Blocks(named(found), (*residual.refused, *regions.refused), regions.ties)


def _tied(types: AxisTypes, candidates: Iterable[Block], elasticity: Elasticity) -> Blocks:
    """The candidates that do not overlap an earlier one, and whose tie makes no width rigid where widths matter."""
    vetoes = find_vetoes(types.ir, elasticity)
    found, refused, ties, taken, told = list[Block](), list[Diagnostic](), list[Diagnostic](), set[Node](), set[Node]()
    for block in candidates:
        if not taken.isdisjoint(block.nodes) or vetoes.on_block(types, block):
            continue
        rigid = rigid_if_tied(types, block)
        if rigid and "width" in elasticity.dimensions:
            if told.isdisjoint(block.nodes):  # one reason for each piece of code
                why = f"{len(rigid)} axes would be rigid if it were skippable, the first: {rigid[0]}"
                refused.append(Diagnostic(block.name, why))
            told |= block.nodes
            continue
        ties += [note for note in [tie(types, block)] if note is not None]
        taken |= block.nodes
        found.append(block)
    types.settle()
    return Blocks(tuple(found), tuple(refused), tuple(ties))


def _listed(types: AxisTypes, entries: Sequence[str | tuple[str, str]], elasticity: Elasticity) -> Blocks:
    """The blocks that a user lists, by name or by start and end; what their ties make rigid is in the types' pins."""
    known = _offered(types, elasticity)
    blocks = [_by_name(known, e) if isinstance(e, str) else _by_ends(types, known, *e) for e in entries]
    ties, taken = list[Diagnostic](), dict[Node, Block]()
    for block in blocks:
        other = next((taken[node] for node in block.nodes if node in taken), None)
        if other is not None:
            raise ElasticityError(f"skipped_blocks: {block.name} overlaps {other.name}: no two may share an operator")
        ties += [note for note in [tie(types, block)] if note is not None]
        taken.update(dict.fromkeys(block.nodes, block))
    types.settle()
    return Blocks(tuple(_in_order(types.ir, blocks)), (), tuple(ties))


def _offered(types: AxisTypes, elasticity: Elasticity) -> list[Block]:
    """What is found without a list, and what would be found if widths did not matter; `types` are left alone."""
    free = replace(elasticity, skipped_blocks=None)
    settings = [free, replace(free, dimensions=("depth",))]
    found = [block for one in settings for block in skippable_blocks(analyse(types.ir), one).found]
    return list({block.name: block for block in reversed(found)}.values())[::-1]


def _by_name(known: Sequence[Block], name: str) -> Block:
    found = next((block for block in known if block.name == name), None)
    if found is None:
        raise ElasticityError(f"skipped_blocks: there is no block {name!r}; {_nearest(known, name)}")
    return found


def _by_ends(types: AxisTypes, known: Sequence[Block], start: str, end: str) -> Block:
    """What stands after `start` up to and including `end`; the activation of a residual block's sum is kept."""
    entry, out = find_value(types.ir, start), find_value(types.ir, end)
    for block in known:
        if block.entry is entry and (block.out is out or (block.residual and fused_end(types.ir, block.out) is out)):
            return block
    found = match_region(types, entry, out)
    if isinstance(found, Diagnostic):
        why = f"{found.place}: {found.reason}"
        raise ElasticityError(f"skipped_blocks: {[start, end]} is no block ({why}); {_nearest(known, end)}")
    return found


def _nearest(known: Sequence[Block], name: str) -> str:
    near = near_names(spelling(name), [block.name for block in known])
    return f"the nearest are {', '.join(near)}" if near else "there are none in this model"


def _in_order(ir: IR, blocks: Iterable[Block]) -> list[Block]:
    place = {node: number for number, node in enumerate(ir.graph.nodes)}
    return sorted(blocks, key=lambda block: place[block.out])
