"""The compiler: from a model to a typed graph, its skippable blocks and its search space."""

if __name__ != "bnas.passes":
    raise ImportError(f"import 'bnas.passes', not {__name__!r}: a second copy would register every rule twice")

from typing import TYPE_CHECKING

from .lazy import attach

if TYPE_CHECKING:
    from . import rules
    from .analysis import Analysis
    from .axes import AxisTypes, analyse, register_rule
    from .blocks import Block, Blocks, find_blocks
    from .calls import Call, ModuleForm, TensorRef, canonical, register_module
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
        ModuleFormError,
        PassError,
        RuleError,
        SubnetError,
        VerificationError,
    )
    from .frontend.front import trace
    from .ir import IR
    from .kernels import Kernel, Kernels, find_kernels
    from .patterns import Scopes, find_scopes
    from .pipeline import Pass, PassResult, Pipeline
    from .space import SearchSpace, Subnet, Variable
    from .standard import PIPELINE, Choose, FindBlocks, FindKernels, Trace, TypeAxes
    from .vetoes import Vetoes, find_vetoes
    from .widths import Width, Widths, find_widths, tie_groups

__getattr__ = attach(
    __name__,
    {
        "bnas.passes": ("rules",),
        "bnas.passes.analysis": ("Analysis",),
        "bnas.passes.axes": (
            "AxisTypes",
            "analyse",
            "register_rule",
        ),
        "bnas.passes.blocks": (
            "Block",
            "Blocks",
            "find_blocks",
        ),
        "bnas.passes.calls": (
            "Call",
            "ModuleForm",
            "TensorRef",
            "canonical",
            "register_module",
        ),
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
            "ModuleFormError",
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
    "LoweringError",
    "ModuleForm",
    "ModuleFormError",
    "Pass",
    "PassError",
    "PassResult",
    "Pipeline",
    "RuleError",
    "Scopes",
    "SearchSpace",
    "Subnet",
    "SubnetError",
    "TensorRef",
    "Trace",
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
    "register_module",
    "register_rule",
    "rules",
    "skippable_blocks",
    "tie_groups",
    "trace",
]
