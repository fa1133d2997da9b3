"""Random networks and checks of super-networks: for the tests of bnas, and for those of your own models and rules.

A `Network` is made from a plan of plain values, and its ``repr`` is the plan: a failing example shrinks to something
readable that can be pasted into a test. The checks raise `AssertionError` (or `bnas.passes.VerificationError`) and
leave the super-network as they found it.
"""

try:
    import hypothesis as _hypothesis  # noqa: F401
except ImportError as error:
    raise ImportError("bnas.testing needs hypothesis, which is optional: pip install 'bnas[test]'") from error

from .assertions import (
    assert_extracted_is_oracle,
    assert_gradients_match,
    assert_maximal_is_original,
    assert_maximal_trains_as_original,
    assert_onnx_is_extracted,
    assert_program_is_extracted,
)
from .channels import Einsum, Gated, Norm, Padded, Parts, Shuffle, Tied, Unshuffle, Upsample
from .convolutions import Around, Branches, Downsample, Head, Layer, Pool, Residual, Twice
from .networks import Network, networks, subnets
from .plain import Plain, Recurrent
from .stage import Stage
from .tokens import Attention, Mix, Mlp, Tokens

__all__ = [
    "Around",
    "Attention",
    "Branches",
    "Downsample",
    "Einsum",
    "Gated",
    "Head",
    "Layer",
    "Mix",
    "Mlp",
    "Network",
    "Norm",
    "Padded",
    "Parts",
    "Plain",
    "Pool",
    "Recurrent",
    "Residual",
    "Shuffle",
    "Stage",
    "Tied",
    "Tokens",
    "Twice",
    "Unshuffle",
    "Upsample",
    "assert_extracted_is_oracle",
    "assert_gradients_match",
    "assert_maximal_is_original",
    "assert_maximal_trains_as_original",
    "assert_onnx_is_extracted",
    "assert_program_is_extracted",
    "networks",
    "subnets",
]
