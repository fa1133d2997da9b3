"""What is known of a model: the state that goes through a pipeline of passes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from torch import nn
from torch.fx import Graph

from .axes import AxisTypes
from .blocks import Blocks
from .choices import Choices
from .elasticity import Elasticity
from .errors import Diagnostic, PassError
from .ir import IR
from .kernels import Kernels

PARTS = ("ir", "types", "blocks", "kernels", "choices")
"""What passes find, by name: what they may declare to need and to give."""


@dataclass(frozen=True)
class Analysis:
    """A model with what the passes found so far.

    A pass declares which parts it needs, so that it may rely on finding them. `has` tells whether a part is there;
    reading one that is not there is a `PassError`.
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
    found: Mapping[str, Any] = field(default_factory=dict)
    """The parts that passes found, by their names in `PARTS`."""
    rewritten: bool = False
    """Whether a pass changed what the model computes: the graph, not the model's forward, then says what that is."""
    refusals: Mapping[str, tuple[Diagnostic, ...]] = field(default_factory=dict)
    """What each pass left alone or made rigid, with the reason."""

    @property
    def ir(self) -> IR:
        """The graph."""
        return self._part("ir")  # type: ignore[no-any-return]

    @property
    def types(self) -> AxisTypes:
        """The axis types of `ir`; they are only ever refined, in place."""
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
        """The search space and what its names stand for."""
        return self._part("choices")  # type: ignore[no-any-return]

    def _part(self, name: str) -> Any:
        if name not in self.found:
            raise PassError(f"no pass has found {name} yet: let a pass that gives it run before, or ask has({name!r})")
        return self.found[name]

    def has(self, name: str) -> bool:
        """Whether a pass has found the part."""
        return name in self.found

    def having(self, **parts: Any) -> Analysis:
        """The analysis with other or more parts."""
        return replace(self, found={**self.found, **parts})

    def without(self, *names: str) -> Analysis:
        """The analysis without some parts."""
        return replace(self, found={name: part for name, part in self.found.items() if name not in names})

    @property
    def diagnostics(self) -> tuple[Diagnostic, ...]:
        """The refusals of all passes."""
        return tuple(one for refusals in self.refusals.values() for one in refusals)

    def with_graph(self, graph: Graph, modules: Mapping[str, nn.Module] = MappingProxyType({})) -> Analysis:
        """The analysis with another graph (see `IR.with_graph`); what was found in the old one is forgotten."""
        return replace(self, found={"ir": self.ir.with_graph(graph, modules)})
