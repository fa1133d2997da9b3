"""The compiler: from a model to a typed graph, its skippable blocks and its search space."""

if __name__ != "bnas.passes":
    raise ImportError(f"import 'bnas.passes', not {__name__!r}: a second copy would register every rule twice")

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
    Diagnostic,
    ElasticityError,
    LoweringError,
    PassError,
    RuleError,
    SubnetError,
    TraceError,
    VerificationError,
)
from .ir import IR, trace
from .kernels import Kernel, Kernels, find_kernels
from .patterns import Scopes, find_scopes
from .pipeline import Pass, PassResult, Pipeline
from .space import SearchSpace, Subnet, Variable
from .standard import PIPELINE, Choose, FindBlocks, FindKernels, Trace, TypeAxes
from .vetoes import Vetoes, find_vetoes
from .widths import Width, Widths, find_widths, tie_groups

__all__ = [
    "IR",
    "PIPELINE",
    "Analysis",
    "AxisTypes",
    "Block",
    "Blocks",
    "BnasError",
    "Call",
    "Choices",
    "Choose",
    "Diagnostic",
    "Elasticity",
    "ElasticityError",
    "FindBlocks",
    "FindKernels",
    "Kernel",
    "Kernels",
    "LoweringError",
    "ModuleForm",
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
    "TraceError",
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
