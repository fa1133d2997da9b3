"""The compiler: from a model to a typed graph, its skippable blocks and its search space."""

if __name__ != "bnas.passes":
    raise ImportError(f"import 'bnas.passes', not {__name__!r}: a second copy would register every rule twice")

from typing import TYPE_CHECKING

from .lazy import attach

if TYPE_CHECKING:
    from .analysis import Analysis
    from .architecture import Architecture, ArchitectureError, LayerSize, SizedLayer
    from .axes import AxisTypes, Replacement, Rewrite, analyse
    from .blocks import Block, Blocks, find_blocks
    from .choices import Choices, choose
    from .costs import Costs
    from .depth import skippable_blocks
    from .detour import OracleWarning
    from .dump import describe
    from .elasticity import Elasticity
    from .errors import (
        BnasError,
        CaptureError,
        Diagnostic,
        ElasticityError,
        InputError,
        LoweringError,
        ModuleFormError,
        PassError,
        RuleError,
        SubnetError,
        VerificationError,
    )
    from .frontend.entry import Axis, Check, Sizes
    from .frontend.front import trace
    from .ir import IR
    from .kernels import Kernel, Kernels, find_kernels
    from .lowering_builder import OnnxBuilder
    from .lowering_site import Memory, Site, Value
    from .lowering_sizes import Size
    from .ops.calls import Call, TensorRef
    from .ops.record import Layer, Operator, Sample, Trait
    from .ops.registry import OPERATORS, Operators, canonical, register
    from .patterns import Scopes, find_scopes
    from .pipeline import Pass, PassResult, Pipeline
    from .space import SearchSpace, Subnet, Variable
    from .standard import PIPELINE, Choose, FindBlocks, FindKernels, Trace, TypeAxes
    from .terms import Cat, K, Perm, Prod, Sym, Term, leaves, symbols
    from .unifier import Unifier
    from .widths import Width

__getattr__, __dir__ = attach(
    __name__,
    {
        "bnas.passes.analysis": ("Analysis",),
        "bnas.passes.architecture": (
            "Architecture",
            "ArchitectureError",
            "LayerSize",
            "SizedLayer",
        ),
        "bnas.passes.axes": (
            "AxisTypes",
            "Replacement",
            "Rewrite",
            "analyse",
        ),
        "bnas.passes.blocks": (
            "Block",
            "Blocks",
            "find_blocks",
        ),
        "bnas.passes.choices": (
            "Choices",
            "choose",
        ),
        "bnas.passes.costs": ("Costs",),
        "bnas.passes.depth": ("skippable_blocks",),
        "bnas.passes.detour": ("OracleWarning",),
        "bnas.passes.dump": ("describe",),
        "bnas.passes.elasticity": ("Elasticity",),
        "bnas.passes.errors": (
            "BnasError",
            "CaptureError",
            "Diagnostic",
            "ElasticityError",
            "InputError",
            "LoweringError",
            "ModuleFormError",
            "PassError",
            "RuleError",
            "SubnetError",
            "VerificationError",
        ),
        "bnas.passes.frontend.entry": (
            "Axis",
            "Check",
            "Sizes",
        ),
        "bnas.passes.frontend.front": ("trace",),
        "bnas.passes.ir": ("IR",),
        "bnas.passes.kernels": (
            "Kernel",
            "Kernels",
            "find_kernels",
        ),
        "bnas.passes.lowering_builder": ("OnnxBuilder",),
        "bnas.passes.lowering_site": (
            "Memory",
            "Site",
            "Value",
        ),
        "bnas.passes.lowering_sizes": ("Size",),
        "bnas.passes.ops.calls": (
            "Call",
            "TensorRef",
        ),
        "bnas.passes.ops.record": (
            "Layer",
            "Operator",
            "Sample",
            "Trait",
        ),
        "bnas.passes.ops.registry": (
            "OPERATORS",
            "Operators",
            "canonical",
            "register",
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
        "bnas.passes.terms": (
            "K",
            "Cat",
            "Perm",
            "Prod",
            "Sym",
            "Term",
            "leaves",
            "symbols",
        ),
        "bnas.passes.unifier": ("Unifier",),
        "bnas.passes.widths": ("Width",),
    },
)

__all__ = [
    "IR",
    "OPERATORS",
    "PIPELINE",
    "Analysis",
    "Architecture",
    "ArchitectureError",
    "Axis",
    "AxisTypes",
    "Block",
    "Blocks",
    "BnasError",
    "Call",
    "CaptureError",
    "Cat",
    "Check",
    "Choices",
    "Choose",
    "Costs",
    "Diagnostic",
    "Elasticity",
    "ElasticityError",
    "FindBlocks",
    "FindKernels",
    "InputError",
    "K",
    "Kernel",
    "Kernels",
    "Layer",
    "LayerSize",
    "LoweringError",
    "Memory",
    "ModuleFormError",
    "OnnxBuilder",
    "Operator",
    "Operators",
    "OracleWarning",
    "Pass",
    "PassError",
    "PassResult",
    "Perm",
    "Pipeline",
    "Prod",
    "Replacement",
    "Rewrite",
    "RuleError",
    "Sample",
    "Scopes",
    "SearchSpace",
    "Site",
    "Size",
    "SizedLayer",
    "Sizes",
    "Subnet",
    "SubnetError",
    "Sym",
    "TensorRef",
    "Term",
    "Trace",
    "Trait",
    "TypeAxes",
    "Unifier",
    "Value",
    "Variable",
    "VerificationError",
    "Width",
    "analyse",
    "canonical",
    "choose",
    "describe",
    "find_blocks",
    "find_kernels",
    "find_scopes",
    "leaves",
    "register",
    "skippable_blocks",
    "symbols",
    "trace",
]
