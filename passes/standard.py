"""The passes of bnas itself, and the pipeline of them that every super-network goes through."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .analysis import Analysis
from .axes import analyse
from .choices import choose
from .depth import skippable_blocks
from .frontend.front import trace
from .kernels import Kernels, find_kernels
from .pipeline import Pass, PassResult, Pipeline
from .training_mode import in_training
from .widths import tie_groups


@dataclass(frozen=True)
class Trace(Pass):
    """Before: a model. After: its graph, with the value of every node on meta tensors."""

    name: ClassVar[str] = "trace"
    needs: ClassVar[tuple[str, ...]] = ()
    gives: ClassVar[tuple[str, ...]] = ("ir",)

    def apply(self, analysis: Analysis) -> PassResult:
        """Trace the model with its example inputs."""
        if analysis.has("ir"):
            return PassResult(analysis, False)
        ir = trace(analysis.model, analysis.example_inputs, analysis.dynamic, check=analysis.check)
        return PassResult(analysis.having(ir=ir), True, ir.diagnostics)


@dataclass(frozen=True)
class TypeAxes(Pass):
    """Before: a graph. After: the type of every axis of every tensor; groups that the settings name are tied."""

    name: ClassVar[str] = "type-axes"
    gives: ClassVar[tuple[str, ...]] = ("types",)

    def apply(self, analysis: Analysis) -> PassResult:
        """Type the graph by the registered rules."""
        if analysis.has("types"):
            return PassResult(analysis, False)
        types = analyse(analysis.ir)
        tie_groups(types, analysis.elasticity.overwrite_groups or ())
        return PassResult(analysis.having(types=types), True, tuple(types.pins))


@dataclass(frozen=True)
class FindBlocks(Pass):
    """Before: a typed graph. After: the blocks that may be skipped; the types at the ends of regions are tied."""

    name: ClassVar[str] = "find-blocks"
    needs: ClassVar[tuple[str, ...]] = ("types",)
    gives: ClassVar[tuple[str, ...]] = ("blocks",)

    def apply(self, analysis: Analysis) -> PassResult:
        """Match the blocks."""
        if analysis.has("blocks"):
            return PassResult(analysis, False)
        blocks = in_training(analysis.ir, skippable_blocks(analysis.types, analysis.elasticity))
        return PassResult(analysis.having(blocks=blocks), True, (*blocks.refused, *blocks.ties))


@dataclass(frozen=True)
class FindKernels(Pass):
    """Before: a typed graph. After: the convolutions whose kernel can get smaller."""

    name: ClassVar[str] = "find-kernels"
    needs: ClassVar[tuple[str, ...]] = ("types",)
    gives: ClassVar[tuple[str, ...]] = ("kernels",)

    def apply(self, analysis: Analysis) -> PassResult:
        """Match the convolutions; none where the settings leave kernels alone."""
        if analysis.has("kernels"):
            return PassResult(analysis, False)
        settings, kernels = analysis.elasticity, Kernels()
        if "kernel" in settings.dimensions:
            kernels = find_kernels(analysis.types, settings.min_kernel, settings.max_num_kernels)
        return PassResult(analysis.having(kernels=kernels), True, kernels.refused)


@dataclass(frozen=True)
class Choose(Pass):
    """Before: axis types, blocks and kernels. After: the search space that the settings make of them."""

    name: ClassVar[str] = "choose"
    needs: ClassVar[tuple[str, ...]] = ("types", "blocks", "kernels")
    gives: ClassVar[tuple[str, ...]] = ("choices",)

    def apply(self, analysis: Analysis) -> PassResult:
        """Apply the policy."""
        if analysis.has("choices"):
            return PassResult(analysis, False)
        choices = choose(analysis.types, analysis.blocks, analysis.elasticity, analysis.kernels)
        return PassResult(analysis.having(choices=choices), True, choices.refused)


PIPELINE = Pipeline((Trace(), TypeAxes(), FindBlocks(), FindKernels(), Choose()))
"""From a model to its search space."""
