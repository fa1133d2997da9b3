"""What is known of a model: the state that goes through a pipeline of passes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any

from torch import nn
from torch.fx import Graph

from .axes import AxisTypes
from .blocks import Blocks
from .choices import Choices
from .elasticity import Elasticity
from .errors import Diagnostic
from .ir import IR
from .kernels import Kernels


@dataclass(frozen=True)
class Analysis:
    """A model with what the passes found so far; what no pass has found is None.

    A pass declares what it needs, so that it may rely on finding that.
    """

    model: nn.Module
    """The user's own: no pass changes it."""
    example_inputs: Any
    """A tensor, a tuple of positional or a dict of keyword inputs."""
    elasticity: Elasticity = field(default_factory=Elasticity)
    dynamic: Mapping[str, Mapping[int, str]] | None = None
    """Names of axes that must be dynamic beside the batch, by input and axis; None for all that can be."""
    check: bool = True
    """Whether the graph is compared with the model before it is used."""
    ir: IR = None  # type: ignore[assignment]
    """The graph."""
    types: AxisTypes = None  # type: ignore[assignment]
    """The axis types of `ir`; they are only ever refined, in place."""
    blocks: Blocks = None  # type: ignore[assignment]
    kernels: Kernels = None  # type: ignore[assignment]
    choices: Choices = None  # type: ignore[assignment]
    """The search space and what its names stand for."""
    rewritten: bool = False
    """Whether a pass changed what the model computes: the graph, not the model's forward, then says what that is."""
    refusals: Mapping[str, tuple[Diagnostic, ...]] = field(default_factory=dict)
    """What each pass left alone or made rigid, with the reason."""

    @property
    def diagnostics(self) -> tuple[Diagnostic, ...]:
        """The refusals of all passes."""
        return tuple(one for refusals in self.refusals.values() for one in refusals)

    def with_graph(self, graph: Graph, modules: Mapping[str, nn.Module] = MappingProxyType({})) -> Analysis:
        """The analysis with another graph (see `IR.with_graph`); what was found in the old one is forgotten."""
        found = {name: None for name in PARTS if name != "ir"}
        return replace(self, ir=self.ir.with_graph(graph, modules), **found)  # type: ignore[arg-type]


PARTS = tuple(one.name for one in fields(Analysis) if one.default is None and one.name != "dynamic")
"""What passes find, by name: what they may declare to need and to give."""
