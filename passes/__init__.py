"""The compiler: from a model to a typed graph, its skippable blocks and its search space."""

if __name__ != "bnas.passes":
    raise ImportError(f"import 'bnas.passes', not {__name__!r}: a second copy would register every rule twice")

from typing import TYPE_CHECKING

from .lazy import attach

if TYPE_CHECKING:
    from .analysis import Analysis
    from .axes import AxisTypes, analyse
    from .blocks import Block, Blocks, find_blocks
    from .choices import Choices, choose
    from .depth import skippable_blocks
    from .dump import describe
    from .elasticity import Elasticity
    from .errors import (
        BnasError,
        CaptureError,
        Diagnostic,
        ElasticityError,
        InputError,
        LoweringError,
        PassError,
        RuleError,
        SubnetError,
        VerificationError,
    )
    from .frontend.front import trace
    from .ir import IR
    from .kernels import Kernel, Kernels, find_kernels
    from .ops.calls import Call, TensorRef
    from .ops.record import Layer, Operator, Sample, Trait
    from .ops.registry import OPERATORS, canonical, register
    from .patterns import Scopes, find_scopes
    from .pipeline import Pass, PassResult, Pipeline
    from .space import SearchSpace, Subnet, Variable
    from .standard import PIPELINE, Choose, FindBlocks, FindKernels, Trace, TypeAxes
    from .vetoes import Vetoes, find_vetoes
    from .widths import Width, Widths, find_widths, tie_groups

__getattr__ = attach(
    __name__,
    {
        "bnas.passes.analysis": ("Analysis",),
        "bnas.passes.axes": (
            "AxisTypes",
            "analyse",
        ),
        "bnas.passes.blocks": (
            "Block",
            "Blocks",
            "find_blocks",
        ),
        "bnas.passes.ops.calls": ("Call", "TensorRef"),
        "bnas.passes.ops.record": ("Layer", "Operator", "Sample", "Trait"),
        "bnas.passes.ops.registry": ("OPERATORS", "canonical", "register"),
        "bnas.passes.choices": (
            "Choices",
            "choose",
        ),
        "bnas.passes.depth": ("skippable_blocks",),
        "bnas.passes.dump": ("describe",),
        "bnas.passes.elasticity": ("Elasticity",),
        "bnas.passes.errors": (
            "BnasError",
            "CaptureError",
            "Diagnostic",
            "ElasticityError",
            "InputError",
            "LoweringError",
            "PassError",
            "RuleError",
            "SubnetError",
            "VerificationError",
        ),
        "bnas.passes.frontend.front": ("trace",),
        "bnas.passes.ir": ("IR",),
        "bnas.passes.kernels": (
            "Kernel",
            "Kernels",
            "find_kernels",
        ),
        "bnas.passes.patterns": (
            "Scopes",
            "find_scopes",
        ),
        "bnas.passes.pipeline": (
            "Pass",
            "PassResult",
            "Pipeline",
        ),
        "bnas.passes.space": (
            "SearchSpace",
            "Subnet",
            "Variable",
        ),
        "bnas.passes.standard": (
            "PIPELINE",
            "Choose",
            "FindBlocks",
            "FindKernels",
            "Trace",
            "TypeAxes",
        ),
        "bnas.passes.vetoes": (
            "Vetoes",
            "find_vetoes",
        ),
        "bnas.passes.widths": (
            "Width",
            "Widths",
            "find_widths",
            "tie_groups",
        ),
    },
)

__all__ = [
    "IR",
    "OPERATORS",
    "PIPELINE",
    "Analysis",
    "AxisTypes",
    "Block",
    "Blocks",
    "BnasError",
    "Call",
    "CaptureError",
    "Choices",
    "Choose",
    "Diagnostic",
    "Elasticity",
    "ElasticityError",
    "FindBlocks",
    "FindKernels",
    "InputError",
    "Kernel",
    "Kernels",
    "Layer",
    "LoweringError",
    "Operator",
    "Pass",
    "PassError",
    "PassResult",
    "Pipeline",
    "RuleError",
    "Sample",
    "Scopes",
    "SearchSpace",
    "Subnet",
    "SubnetError",
    "TensorRef",
    "Trace",
    "Trait",
    "TypeAxes",
    "Variable",
    "VerificationError",
    "Vetoes",
    "Width",
    "Widths",
    "analyse",
    "canonical",
    "choose",
    "describe",
    "find_blocks",
    "find_kernels",
    "find_scopes",
    "find_vetoes",
    "find_widths",
    "register",
    "skippable_blocks",
    "tie_groups",
    "trace",
]
