"""An analysis as readable text: one line for each node, with its axis types, and rigid parts with their reasons."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.fx import Node

from bnas.passes.axes.terms import Cat, K, Prod, Sym, Term, normalise
from bnas.passes.frontend.functions import BATCH
from bnas.passes.ops.calls import TensorRef
from bnas.passes.ops.registry import operator_name
from bnas.passes.rigidity import rigid_runs
from bnas.passes.space.widths import symbol_names

from .analysis import Analysis


def describe(analysis: Analysis) -> str:
    """Return a text with the graph, the blocks and the choices, as far as known; lines end with rigid parts and why.

    Notation: numbers are rigid sizes, ``B`` is the batch, ``name:size`` a symbol, ``a*b`` a product, ``(a+b)`` a
    concatenation.
    """
    return "\n".join((*_graph(analysis), *_choices(analysis)))


def _graph(analysis: Analysis) -> Iterator[str]:
    if not analysis.has("ir"):
        yield f"{type(analysis.model).__name__}: not traced yet"
        return
    names = {} if not analysis.has("types") else symbol_names(analysis.types)
    for node in analysis.ir.graph.nodes:
        line = f"{node.name} = {_call(analysis, node)}" if node.op != "output" else f"return {_text(node.args[0])}"
        types = None if not analysis.has("types") else analysis.types.values.get(node)
        if node.op != "output":
            line += f" : {_type(node.meta.get('value'), types, names)}"
        yield line + _rigid(analysis, node)


def _rigid(analysis: Analysis, node: Node) -> str:
    """Return the rigid runs of a node's value and tensors, by reason, without the batch."""
    if not analysis.has("types") or node.op == "placeholder":
        return ""
    call = analysis.ir.calls.get(node)
    own = [analysis.types.tensor(ref.name) for ref in call.tensors() if isinstance(ref, TensorRef)] if call else []
    sizes: dict[str, list[str]] = {}
    for run in _runs([*own, analysis.types.values.get(node)]):
        if run.why and run.n % BATCH:
            known = sizes.setdefault(run.why, [])
            known += [str(run.n)] if str(run.n) not in known else []
    told = "; ".join(f"{', '.join(runs)}: {why}" for why, runs in sizes.items())
    return f"  # rigid {told}" if told else ""


def _choices(analysis: Analysis) -> Iterator[str]:
    if analysis.has("blocks"):
        yield from (f"block {b.name}: {b.entry.name} -> {b.out.name}" for b in analysis.blocks.found)
    if analysis.has("choices"):
        for name, sizes in analysis.choices.space.widths.items():
            yield f"width {name}: {', '.join(map(str, sizes))}"
        for name, sizes in analysis.choices.space.kernels.items():
            yield f"kernel {name}: {', '.join(map(str, sizes))}"
    yield from (f"left unchanged by {name}: {one}" for name, told in analysis.refusals.items() for one in told)


def _call(analysis: Analysis, node: Node) -> str:
    call = analysis.ir.calls.get(node)
    if node.op in ("placeholder", "get_attr"):
        return {"placeholder": "input", "get_attr": str(node.target)}[node.op]
    if call is None:
        return f"opaque {node.target}({_text(node.args)})"
    own = [f"{node.target}.*"] if any(isinstance(ref, TensorRef) for ref in call.tensors()) else []
    return f"{operator_name(call.op)}({', '.join([*map(_text, call.args), *own])})"


def _text(value: Any) -> str:
    if isinstance(value, Node | TensorRef):
        return value.name
    if isinstance(value, list | tuple):
        return f"({', '.join(_text(item) for item in value)})"
    return str(value)


def _type(value: Any, axes: Any, names: Mapping[Sym, str]) -> str:
    """Return the axis types if known, else the shape."""
    if isinstance(value, Tensor):
        sizes = [_size(n) for n in value.shape] if axes is None else [_term(normalise(t), names) for t in axes]
        return f"[{', '.join(sizes)}]"
    if isinstance(value, list | tuple):
        parts = axes or [None] * len(value)
        return f"({', '.join(_type(item, part, names) for item, part in zip(value, parts, strict=True))})"
    return str(value)


def _term(term: Term, names: Mapping[Sym, str]) -> str:
    if isinstance(term, Prod):
        return "*".join(_term(part, names) for part in term.terms)
    if isinstance(term, Cat):
        return f"({'+'.join(_term(part, names) for part in term.terms)})"
    return f"{names.get(term, term.origin)}:{term.n}" if isinstance(term, Sym) else _size(term.size)


def _size(n: int) -> str:
    if not n or n % BATCH:
        return str(n)
    return "B" if n == BATCH else f"{n // BATCH}*B"


def _runs(axes: Any) -> Iterator[K]:
    """The rigid runs in a type."""
    if isinstance(axes, Term):
        yield from rigid_runs(axes)
    for item in axes if isinstance(axes, list | tuple) else ():
        yield from _runs(item)
