"""The compiler: from a model to a typed graph, its skippable blocks and its search space."""

if __name__ != "bnas.passes":
    raise ImportError(f"import 'bnas.passes', not {__name__!r}: a second copy would register every rule twice")

from typing import TYPE_CHECKING

from .lazy import attach

if TYPE_CHECKING:
    from .axes.analysis import analyse
    from .axes.terms import Cat, K, Perm, Prod, Sym, Term, leaves, symbols
    from .axes.types import AxisTypes, Replacement, Rewrite
    from .axes.unifier import Unifier
    from .cost.architecture import Architecture, ArchitectureError, LayerSize, SizedLayer
    from .cost.costs import Costs
    from .errors import (
        BnasError,
        CaptureError,
        CopyError,
        Diagnostic,
        ElasticityError,
        InputError,
        LoweringError,
        ModuleFormError,
        PassError,
        RuleError,
        StateError,
        SubnetError,
        VerificationError,
    )
    from .frontend.entry import Axis, Check, Sizes
    from .frontend.front import trace
    from .frontend.ir import IR
    from .onnx.builder import OnnxBuilder
    from .onnx.site import Site
    from .onnx.values import Memory, Size, Value
    from .ops.calls import Call, TensorRef
    from .ops.record import Layer, Operator, Sample, Trait
    from .ops.registry import OPERATORS, Operators, canonical, register
    from .oracle.detour import OracleWarning
    from .pipeline.analysis import Analysis
    from .pipeline.dump import describe
    from .pipeline.passes import PIPELINE, Choose, FindBlocks, FindKernels, Pass, PassResult, Pipeline, Trace, TypeAxes
    from .rigidity import rigid_share
    from .space.blocks import Block, Blocks, find_blocks
    from .space.choices import Choices, choose
    from .space.depth import skippable_blocks
    from .space.elasticity import Elasticity
    from .space.kernels import Kernel, Kernels, find_kernels
    from .space.scopes import Scopes, find_scopes
    from .space.space import SearchSpace, Variable
    from .space.subnet import Subnet
    from .space.widths import Width

__getattr__, __dir__ = attach(
    __name__,
    {
        "bnas.passes.axes.analysis": ("analyse",),
        "bnas.passes.axes.terms": (
            "Cat",
            "K",
            "Perm",
            "Prod",
            "Sym",
            "Term",
            "leaves",
            "symbols",
        ),
        "bnas.passes.axes.types": (
            "AxisTypes",
            "Replacement",
            "Rewrite",
        ),
        "bnas.passes.axes.unifier": ("Unifier",),
        "bnas.passes.cost.architecture": (
            "Architecture",
            "ArchitectureError",
            "LayerSize",
            "SizedLayer",
        ),
        "bnas.passes.cost.costs": ("Costs",),
        "bnas.passes.errors": (
            "BnasError",
            "CaptureError",
            "CopyError",
            "Diagnostic",
            "ElasticityError",
            "InputError",
            "LoweringError",
            "StateError",
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
        "bnas.passes.frontend.ir": ("IR",),
        "bnas.passes.onnx.builder": ("OnnxBuilder",),
        "bnas.passes.onnx.site": ("Site",),
        "bnas.passes.onnx.values": (
            "Memory",
            "Size",
            "Value",
        ),
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
        "bnas.passes.oracle.detour": ("OracleWarning",),
        "bnas.passes.pipeline.analysis": ("Analysis",),
        "bnas.passes.pipeline.dump": ("describe",),
        "bnas.passes.pipeline.passes": (
            "Choose",
            "FindBlocks",
            "FindKernels",
            "PIPELINE",
            "Pass",
            "PassResult",
            "Pipeline",
            "Trace",
            "TypeAxes",
        ),
        "bnas.passes.rigidity": ("rigid_share",),
        "bnas.passes.space.blocks": (
            "Block",
            "Blocks",
            "find_blocks",
        ),
        "bnas.passes.space.choices": (
            "Choices",
            "choose",
        ),
        "bnas.passes.space.depth": ("skippable_blocks",),
        "bnas.passes.space.elasticity": ("Elasticity",),
        "bnas.passes.space.kernels": (
            "Kernel",
            "Kernels",
            "find_kernels",
        ),
        "bnas.passes.space.scopes": (
            "Scopes",
            "find_scopes",
        ),
        "bnas.passes.space.space": (
            "SearchSpace",
            "Variable",
        ),
        "bnas.passes.space.subnet": ("Subnet",),
        "bnas.passes.space.widths": ("Width",),
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
    "CopyError",
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
    "StateError",
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
    "rigid_share",
    "skippable_blocks",
    "symbols",
    "trace",
]
