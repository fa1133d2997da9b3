"""The choice of skippable blocks, by the settings in `Elasticity`."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

from torch.fx import Node

from bnas.passes.axes.analysis import analyse
from bnas.passes.axes.types import AxisTypes
from bnas.passes.errors import Diagnostic, ElasticityError
from bnas.passes.frontend.ir import IR
from bnas.passes.ops.registry import OPERATORS, operator_name

from .blocks import Block, Blocks, find_blocks, fused_end, given_values, named
from .elasticity import Elasticity
from .regions import find_regions, match_region, rigid_if_tied, tie
from .scopes import find_vetoes, module_path, near_names

# Names of values: graph nodes, module paths, and BootstrapNAS's scope names.


def find_value(ir: IR, name: str) -> Node:
    """Return the value called `name`.

    The name may be a graph node (``layer1_1_relu_2``), the path of a module (``layer1.1``, meaning the last value
    computed in it), or a scope of BootstrapNAS (``Net/Sequential[layer1]/Block[1]/ReLU[relu]/relu__2``, meaning the
    third call of ``relu_`` in the module ``layer1.1.relu``; class names are not compared).

    Raises:
        ElasticityError: There is no such value; the message has the nearest names.
    """
    nodes = [node for node in ir.graph.nodes if node.op not in ("output", "get_attr")]
    found = _scoped(ir, nodes, name) if "/" in name else _named(nodes, name)
    if found is None:
        known = list(dict.fromkeys(_spelling_of(node) for node in nodes))
        near = ", ".join(near_names(spelling(name), known))
        raise ElasticityError(f"skipped_blocks: there is no value {name!r} in the model; the nearest are {near}")
    return found


def _named(nodes: list[Node], name: str) -> Node | None:
    inside = [n for n in nodes if _is_in(n, name)]
    return next((node for node in nodes if node.name == name), inside[-1] if inside else None)


def _is_in(node: Node, path: str) -> bool:
    scope = str(node.meta.get("scope", ""))
    return scope == path or scope.startswith(f"{path}.")


def _scoped(ir: IR, nodes: list[Node], name: str) -> Node | None:
    """Return the call that a BootstrapNAS scope names: modules in brackets, the operator, the number of the call."""
    path, call = module_path(ir.root, name), name.rpartition("/")[2]
    op, _, number = call.rpartition("_")
    if not number.isdecimal():
        return None
    calls = [node for node in nodes if str(node.meta.get("scope", "")) == path]
    calls = [node for node in calls if node.op == "call_module" or _operator(ir, node) == _peer_operator(op)]
    return calls[int(number)] if int(number) < len(calls) else None


def _operator(ir: IR, node: Node) -> str:
    call = ir.calls.get(node)
    return "" if call is None else operator_name(call.op)


def _peer_operator(name: str) -> str:
    """Return BootstrapNAS's operator name without in-place markers: ``relu_`` is relu, ``__iadd__`` is add."""
    plain = name.strip("_")
    return operator_name(OPERATORS.canonical(getattr(operator, plain, plain)))


def spelling(name: str) -> str:
    """Turn a scope of BootstrapNAS into a path that can be compared with bnas's paths."""
    parts = re.findall(r"\[([^\]]*)\]", name)
    return ".".join(parts) if parts else name


def _spelling_of(node: Node) -> str:
    return str(node.meta.get("scope") or node.name)


def skippable_blocks(types: AxisTypes, elasticity: Elasticity) -> Blocks:
    """Return all blocks that `elasticity` allows to skip, in network order; no two of them share a node.

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
    """Tie and return the candidates that overlap no earlier one; if widths are elastic, their ties may pin no width."""
    vetoes = find_vetoes(types.ir, elasticity)
    found, refused, ties, taken, told = list[Block](), list[Diagnostic](), list[Diagnostic](), set[Node](), set[Node]()
    for block in candidates:
        if not taken.isdisjoint(block.nodes) or vetoes.on_block(types, block):
            continue
        rigid = rigid_if_tied(types, block)
        if rigid and "width" in elasticity.dimensions:
            if told.isdisjoint(block.nodes):  # one reason for each piece of code
                why = f"making it skippable would make {len(rigid)} axes rigid, the first: {rigid[0]}"
                refused.append(Diagnostic(block.name, why))
            told |= block.nodes
            continue
        ties += [note for note in [tie(types, block)] if note is not None]
        taken |= block.nodes
        found.append(block)
    types.settle()
    return Blocks(tuple(found), tuple(refused), tuple(ties))


def _listed(types: AxisTypes, entries: Sequence[str | tuple[str, str]], elasticity: Elasticity) -> Blocks:
    """Return the blocks that a user lists, by name or by start and end. Widths that their ties pin are in the pins."""
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
    """Return the blocks found without a list, and those found if widths could become rigid; `types` do not change."""
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
    """Return the block after `start` up to and including `end`. The activation after a residual sum is kept."""
    entry, out = find_value(types.ir, start), find_value(types.ir, end)
    for block in known:
        if block.entry is entry and (block.out is out or (block.residual and fused_end(types.ir, block.out) is out)):
            return block
    found = match_region(types, entry, out, given_values(types.ir))
    if isinstance(found, Diagnostic):
        why = f"{found.place}: {found.reason}"
        raise ElasticityError(f"skipped_blocks: {[start, end]} is not a block ({why}); {_nearest(known, end)}")
    return found


def _nearest(known: Sequence[Block], name: str) -> str:
    near = near_names(spelling(name), [block.name for block in known])
    return f"the nearest are {', '.join(near)}" if near else "there are none in this model"


def _in_order(ir: IR, blocks: Iterable[Block]) -> list[Block]:
    place = {node: number for number, node in enumerate(ir.graph.nodes)}
    return sorted(blocks, key=lambda block: place[block.out])
