"""The compiler: from a model to a typed graph, its skippable blocks and its search space."""

if __name__ != "bnas.passes":
    raise ImportError(f"import 'bnas.passes', not {__name__!r}: a second copy would register every rule twice")

from . import rules
from .axes import AxisTypes, analyse, register_rule
from .blocks import Block, Blocks, find_blocks
from .calls import Call, TensorRef, canonical, register_module
from .elasticity import Choices, Elasticity, choose
from .errors import (
    BnasError,
    Diagnostic,
    ElasticityError,
    LoweringError,
    RuleError,
    SubnetError,
    TraceError,
    VerificationError,
)
from .ir import IR, trace
from .kernels import Kernel, Kernels, find_kernels
from .space import SearchSpace, Subnet, Variable

__all__ = [
    "IR",
    "AxisTypes",
    "Block",
    "Blocks",
    "BnasError",
    "Call",
    "Choices",
    "Diagnostic",
    "Elasticity",
    "ElasticityError",
    "Kernel",
    "Kernels",
    "LoweringError",
    "RuleError",
    "SearchSpace",
    "Subnet",
    "SubnetError",
    "TensorRef",
    "TraceError",
    "Variable",
    "VerificationError",
    "analyse",
    "canonical",
    "choose",
    "find_blocks",
    "find_kernels",
    "register_module",
    "register_rule",
    "rules",
    "trace",
]
