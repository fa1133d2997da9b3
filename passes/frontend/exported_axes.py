"""What an exported program says of the axes of its inputs: which may change, together with which, and how far."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.export import ExportedProgram
from torch.utils._pytree import tree_unflatten

from .structure import Path, leaves_of

FIXED = "it was exported with a fixed size"
TIED = "it was exported with a size that is computed from that of another axis"

Range = tuple[int, int | None]
"""The least and the largest size of an axis; None where there is no largest."""


@dataclass(frozen=True)
class ExportedAxes:
    """The axes of the tensors among the inputs of a program, by name of the input and the path inside it."""

    sizes: Mapping[Path, tuple[Any, ...]]
    """The size of each axis: a name for one that may change, the same for axes that are equal; a number for others."""
    tied: frozenset[str]
    """Names of sizes that do not change by themselves."""
    ranges: Mapping[str, Range]

    def size(self, path: Path, place: int) -> str | None:
        """The name of the size of an axis that may change; None for one that may not."""
        found = self.sizes[path][place]
        return found if isinstance(found, str) and found not in self.tied else None

    def why_fixed(self, path: Path, place: int) -> str:
        """Why an axis may not change."""
        return TIED if isinstance(self.sizes[path][place], str) else FIXED


def axes_of(program: ExportedProgram, names: tuple[str, ...]) -> ExportedAxes:
    """What `program` says of its inputs, which are called `names` in order."""
    known = {node.name: node.meta.get("val") for node in program.graph.find_nodes(op="placeholder")}
    values = [known.get(name) if isinstance(name, str) else name for name in program.graph_signature.user_inputs]
    assert program.call_spec.in_spec is not None
    args, kwargs = tree_unflatten(values, program.call_spec.in_spec)
    given = dict(zip(names, (*args, *kwargs.values()), strict=False))
    shapes = {path: leaf.shape for path, leaf in leaves_of(given) if isinstance(leaf, Tensor)}
    terms = {str(size.node.expr): size.node.expr for shape in shapes.values() for size in shape if _symbolic(size)}
    uses = Counter(symbol for term in terms.values() for symbol in term.free_symbols)
    tied = {text for text, term in terms.items() if len(term.free_symbols) > 1 or any(uses[one] > 1 for one in term.free_symbols)}
    ranges = {str(symbol): _range(limits) for symbol, limits in program.range_constraints.items()}
    named = {path: tuple(str(n.node.expr) if _symbolic(n) else int(n) for n in shape) for path, shape in shapes.items()}
    return ExportedAxes(named, frozenset(tied), ranges)


def _symbolic(size: Any) -> bool:
    """Whether a size stands for more than one number."""
    return not isinstance(size, int) and bool(size.node.expr.free_symbols)


def _range(limits: Any) -> Range:
    lower, upper = (int(one) if one.is_Integer else None for one in (limits.lower, limits.upper))
    return lower or 0, upper
