"""Whether the parts of an analysis belong together: checked after every pass."""

from __future__ import annotations

from collections.abc import Iterator

from .analysis import Analysis
from .axes import fits
from .ir import IR
from .terms import resolve


def problems(analysis: Analysis) -> Iterator[str]:
    """What is inconsistent in an analysis: the graph in itself, or what was found with the graph."""
    if analysis.has("ir"):
        yield from _of_graph(analysis.ir)
    if analysis.has("types"):
        yield from _of_types(analysis)
    if analysis.has("blocks"):
        inside = set(analysis.ir.graph.nodes)
        strangers = (b.name for b in analysis.blocks.found if not {b.entry, b.out, *b.body} <= inside)
        yield from (f"block {name} is not of this graph" for name in strangers)
    if analysis.has("kernels"):
        inside = set(analysis.ir.graph.nodes)
        strangers = (name for name, kernel in analysis.kernels.found.items() if not kernel.nodes <= inside)
        yield from (f"the kernel {name} is not of this graph" for name in strangers)
    if analysis.has("choices"):
        bound = (name for name, symbol in analysis.choices.symbols.items() if resolve(symbol) is not symbol)
        yield from (f"the width {name} was bound after it had become a choice" for name in bound)


def _of_graph(ir: IR) -> Iterator[str]:
    try:
        ir.graph.lint()
    except (RuntimeError, ValueError, AssertionError) as error:
        yield f"the graph is damaged: {error}"
        return
    modules = {name for name, _ in ir.root.named_modules(remove_duplicate=False)} | ir.modules.keys()
    own = (name for name, module in ir.modules.items() if [*module.parameters(), *module.buffers()])
    yield from (f"the graph's own module {name} has tensors, which nobody would train or save" for name in own)
    nodes = set(ir.graph.nodes)
    yield from (f"a call of {node.name}, which is not in the graph" for node in ir.calls if node not in nodes)
    for node in ir.graph.nodes:
        target = str(node.target)
        if node.op != "output" and "value" not in node.meta:
            yield f"{node.name} has no value: make the graph the analysis's by with_graph"
        elif node.op == "call_module" and target not in modules:
            yield f"{node.name} calls {target!r}, which is no module of the model"
        elif node.op == "get_attr" and target not in ir.constants and target not in ir.aliases:
            yield f"{node.name} reads {target!r}, which is no tensor of the model"


def _of_types(analysis: Analysis) -> Iterator[str]:
    ir, types = analysis.ir, analysis.types
    if types.ir is not ir:
        yield "the axis types are those of another graph"
        return
    for node in ir.graph.nodes:
        if (
            node.op != "output"
            and not isinstance(node.target, type)
            and not fits(types.values.get(node), node.meta["value"])
        ):
            yield f"the axis types of {node.name} are not of its shape: the rule of its operator is wrong"
    for name, axes in types.tensors.items():
        if not fits(axes, ir.tensor(name)):
            yield f"the axis types of {name} are not of its shape"
