"""`Analysis`, which is handed from pass to pass, and its checks after each pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph
from torch.utils._pytree import tree_leaves

from bnas.passes.assembly.frames import GraphInterpreter
from bnas.passes.axes.analysis import fits
from bnas.passes.axes.terms import resolve
from bnas.passes.axes.types import AxisTypes
from bnas.passes.errors import Diagnostic, PassError
from bnas.passes.frontend.copies import deep_copy
from bnas.passes.frontend.ir import IR, as_program_call
from bnas.passes.space.blocks import Blocks
from bnas.passes.space.choices import Choices
from bnas.passes.space.elasticity import Elasticity
from bnas.passes.space.kernels import Kernels

# The state that goes through a pipeline of passes.

PARTS = ("ir", "types", "blocks", "kernels", "choices")
"""The parts of an analysis, by name, with their classes. Passes declare which parts they need and provide."""


@dataclass(frozen=True)
class Analysis:
    """A model with the results of the passes so far.

    A pass declares the parts that it needs, so it can rely on them. `has` checks for a part; reading a missing part
    raises `PassError`.
    """

    model: nn.Module
    """The user's own model; no pass changes it."""
    example_inputs: Any
    """A tensor, a tuple of positional or a dict of keyword inputs."""
    elasticity: Elasticity = field(default_factory=Elasticity)
    dynamic: Mapping[str, Mapping[int, str]] | None = None
    """Names of axes that must be dynamic besides the batch, by input and axis; None for all axes that can."""
    check: bool = True
    """Whether the graph is compared with the model before it is used."""
    found: Mapping[str, Any] = field(default_factory=dict)
    """The parts that passes provided, by their names in `PARTS`."""
    rewritten: bool = False
    """Whether a pass changed what the model computes. The graph then defines the result, not the model's forward."""
    refusals: Mapping[str, tuple[Diagnostic, ...]] = field(default_factory=dict)
    """What each pass left unchanged or made rigid, with the reason."""

    @property
    def ir(self) -> IR:
        """The traced graph."""
        return self._part("ir")  # type: ignore[no-any-return]

    @property
    def types(self) -> AxisTypes:
        """The axis types of `ir`; passes only refine them, in place."""
        return self._part("types")  # type: ignore[no-any-return]

    @property
    def blocks(self) -> Blocks:
        """The blocks that may be skipped."""
        return self._part("blocks")  # type: ignore[no-any-return]

    @property
    def kernels(self) -> Kernels:
        """The convolutions whose kernel can get smaller."""
        return self._part("kernels")  # type: ignore[no-any-return]

    @property
    def choices(self) -> Choices:
        """The search space, with the symbols, blocks and kernels behind its names."""
        return self._part("choices")  # type: ignore[no-any-return]

    def _part(self, name: str) -> Any:
        if name not in self.found:
            raise PassError(
                f"no pass has provided {name} yet: run a pass that provides it first, or check with has({name!r})"
            )
        return self.found[name]

    def has(self, name: str) -> bool:
        """Whether a pass has found the part."""
        return name in self.found

    def having(self, **parts: Any) -> Analysis:
        """Return the analysis with changed or additional parts."""
        return replace(self, found={**self.found, **parts})

    def without(self, *names: str) -> Analysis:
        """Return the analysis without some parts."""
        return replace(self, found={name: part for name, part in self.found.items() if name not in names})

    @property
    def diagnostics(self) -> tuple[Diagnostic, ...]:
        """The refusals of all passes."""
        return tuple(one for refusals in self.refusals.values() for one in refusals)

    def with_graph(self, graph: Graph, modules: Mapping[str, nn.Module] = MappingProxyType({})) -> Analysis:
        """Return the analysis with another graph (see `IR.with_graph`), without the results for the old graph."""
        return replace(self, found={"ir": self.ir.with_graph(graph, modules)})


# Consistency checks of an analysis, made after every pass.


def problems(analysis: Analysis) -> Iterator[str]:
    """Return the inconsistencies of an analysis: inside the graph, or between the graph and other parts."""
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
    yield from (f"the graph's own module {name} has tensors, which would be neither trained nor saved" for name in own)
    nodes = set(ir.graph.nodes)
    yield from (f"a call of {node.name}, which is not in the graph" for node in ir.calls if node not in nodes)
    for node in ir.graph.nodes:
        target = str(node.target)
        if node.op != "output" and "value" not in node.meta:
            yield f"{node.name} has no value: add the graph to the analysis with with_graph"
        elif node.op == "call_module" and target not in modules:
            yield f"{node.name} calls {target!r}, which is not a module of the model"
        elif node.op == "get_attr" and target not in ir.constants and target not in ir.aliases:
            yield f"{node.name} reads {target!r}, which is not a tensor of the model"


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


# Comparison of two graphs over one model, on random inputs in double precision.


def difference(before: Analysis, after: Analysis) -> float:
    """Return the largest difference of two graphs' outputs in evaluation mode, relative to the largest output.

    Both run on a copy of the model. The result is infinite if the outputs differ in number or shape.
    """
    tensors, named = as_program_call(before.example_inputs)
    generator = torch.Generator().manual_seed(0)
    inputs = [_random(tensor, generator) for tensor in (*tensors, *named.values())]
    outputs = []
    for analysis in (before, after):
        twin = deep_copy(analysis.ir.root).eval().double()
        with torch.no_grad():
            outputs.append(tree_leaves(GraphInterpreter(analysis.ir, twin).run(*(one.clone() for one in inputs))))
    if [_shape(one) for one in outputs[0]] != [_shape(one) for one in outputs[1]]:
        return float("inf")
    pairs = [pair for pair in zip(*outputs, strict=True) if isinstance(pair[0], Tensor)]
    return max((_distance(one, other) for one, other in pairs), default=0.0)


def _random(example: Tensor, generator: torch.Generator) -> Tensor:
    if not example.is_floating_point():
        return example
    return torch.randn(example.shape, generator=generator, dtype=torch.float64).to(example.device)


def _shape(value: Any) -> Any:
    return value.shape if isinstance(value, Tensor) else value


def _distance(one: Tensor, other: Tensor) -> float:
    size = float(one.abs().max()) if one.numel() else 0.0
    return float((one - other).abs().max()) / max(size, 1e-30) if one.numel() else 0.0
