"""The share of a model's parameters that stays in every sub-network, and the reasons."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence

from bnas.passes.axes.selection import active
from bnas.passes.axes.terms import K, Term, leaves, normalise
from bnas.passes.axes.types import AxisTypes

ONE_LEFT = "each width keeps at least one entry"


def rigid_share(types: AxisTypes) -> dict[str, float]:
    """Return the shares of the parameters that cannot be removed, by reason, the largest first.

    These are the parameters left if every symbol keeps one entry. Parameters that evaluation mode uses count, also
    inside opaque modules, but not those of auxiliary heads. Each parameter counts for the reason that keeps most of
    it.
    """
    parameters = dict(types.ir.root.named_parameters())
    ones, left, total = dict.fromkeys(types.free_symbols(), 1), Counter[str](), 0
    for name in (name for name in types.tensors if name in parameters and name in types.users):
        total += parameters[name].numel()
        left[_reason(types.tensors[name])] += math.prod(active(axis, ones) for axis in types.tensors[name])
    for reason, count in _opaque(types):
        total += count
        left[reason] += count
    return {reason: count / total for reason, count in left.most_common() if count}


def _reason(axes: Sequence[Term]) -> str:
    """Return the reason that keeps most of a tensor."""
    kept: dict[str, int] = {}
    for run in (run for axis in axes for run in rigid_runs(axis) if run.n > 1):
        kept[run.why] = kept.get(run.why, 1) * run.n
    return (max(kept, key=lambda why: kept[why]) or "nothing makes it elastic") if kept else ONE_LEFT


def _opaque(types: AxisTypes) -> Iterator[tuple[str, int]]:
    """Return the parameters inside opaque modules that nothing else reads."""
    counted = set(types.tensors)
    for node in types.ir.graph.nodes:
        if node.op == "call_module" and node not in types.ir.calls:
            inside = types.ir.module(str(node.target)).named_parameters()
            named = {types.ir.aliases[f"{node.target}.{name}"]: tensor.numel() for name, tensor in inside}
            yield "it is inside an opaque module", sum(n for name, n in named.items() if name not in counted)
            counted |= named.keys()


def rigid_runs(term: Term) -> Iterator[K]:
    """Return the rigid runs of an axis, with adjacent runs merged."""
    return (leaf for leaf in leaves(normalise(term)) if isinstance(leaf, K))
