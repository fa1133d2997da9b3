"""What an exported program says of the axes of its inputs: which may change, together with which, and how far."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.export import ExportedProgram
from torch.utils._pytree import tree_unflatten

from .entry import Allowed, Check
from .structure import Path, leaves_of

FIXED = "it was exported with a fixed size"
LIMITED = "the program was exported for such sizes only"
TIED = "it was exported with a size that is computed from that of another axis"

Limits = tuple[int, int | None]
"""The least and the largest size of an axis; None where there is no largest."""

SMALLEST = 2
"""Programs do not check that a size is at least this: they are exported as if it was."""


@dataclass(frozen=True)
class ExportedAxes:
    """The axes of the tensors among the inputs of a program, by name of the input and the path inside it."""

    sizes: Mapping[Path, tuple[int | str, ...]]
    """The size of each axis: a name for one that may change, the same for axes that are equal; a number for others."""
    tied: frozenset[str]
    """Names of sizes that do not change by themselves."""
    limits: Mapping[str, Limits]
    """Those of sizes that have any."""
    plain: Mapping[Path, Any]
    """Inputs that are no tensors: the program was exported for these values."""

    def size(self, path: Path, place: int) -> str | None:
        """The name of the size of an axis that may change; None for one that may not."""
        found = self.sizes[path][place]
        return found if isinstance(found, str) and found not in self.tied else None

    def why_fixed(self, path: Path, place: int) -> str:
        """Why an axis may not change."""
        return TIED if isinstance(self.sizes[path][place], str) else FIXED

    @property
    def checks(self) -> list[Check]:
        """What the program checks of its inputs, one by one."""
        return [
            Check.of(path[0], tuple(map(self._allowed, sizes)), (LIMITED,) * len(sizes), path[1:])
            for path, sizes in self.sizes.items()
        ]

    def _allowed(self, size: int | str) -> Allowed:
        limits = self.limits.get(size) if isinstance(size, str) else None
        return size if isinstance(size, int) else None if limits is None else (0, 1, *limits)


def axes_of(program: ExportedProgram, names: tuple[str, ...]) -> ExportedAxes:
    """What `program` says of its inputs, which are called `names` in order."""
    leaves = dict(leaves_of(_inputs(program, names)))
    shapes = {path: leaf.shape for path, leaf in leaves.items() if isinstance(leaf, Tensor)}
    terms = {str(term): term for shape in shapes.values() for size in shape if (term := _term(size)) is not None}
    limits = {name: found for name, term in terms.items() if (found := _limits(term, program)) is not None}
    plain = {path: leaf for path, leaf in leaves.items() if isinstance(leaf, bool | int | float | str)}
    sizes = {path: tuple(_size(size) for size in shape) for path, shape in shapes.items()}
    return ExportedAxes(sizes, _tied(terms), limits, plain)


def _inputs(program: ExportedProgram, names: tuple[str, ...]) -> dict[str, Any]:
    """The inputs that `program` was exported with, by name: tensors without numbers, and plain values."""
    known = {node.name: node.meta.get("val") for node in program.graph.find_nodes(op="placeholder")}
    values = [known.get(name) if isinstance(name, str) else name for name in program.graph_signature.user_inputs]
    assert program.call_spec.in_spec is not None
    args, kwargs = tree_unflatten(values, program.call_spec.in_spec)
    return dict(zip(names, (*args, *kwargs.values()), strict=False))


def _tied(terms: Mapping[str, Any]) -> frozenset[str]:
    """The names of sizes that have symbols in common with others, or several."""
    uses = Counter(symbol for term in terms.values() for symbol in term.free_symbols)
    alone = {name for name, term in terms.items() if [uses[symbol] for symbol in term.free_symbols] == [1]}
    return frozenset(terms) - alone


def _size(size: Any) -> int | str:
    term = _term(size)
    return int(size) if term is None else str(term)


def _term(size: Any) -> Any:
    """The expression of a size that stands for more than one number; None for a number."""
    term = None if isinstance(size, int) else size.node.expr
    return term if term is not None and term.free_symbols else None


def _limits(term: Any, program: ExportedProgram) -> Limits | None:
    """Within which limits the size `term` of one symbol must be; None where it may be any."""
    (symbol, *others) = term.free_symbols
    known = program.range_constraints.get(symbol)
    if others or known is None:
        return None
    ends = [int(term.subs(symbol, int(end))) if end.is_Integer else None for end in (known.lower, known.upper)]
    least = (ends[0] or 0) if int(known.lower) > SMALLEST else 0
    return None if least == 0 and ends[1] is None else (least, ends[1])
