"""Operators that run as one: a linear operator or sum, its BatchNorm and its activation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.fx import Node

from .calls import CONVOLUTIONS, TRANSPOSED_CONVOLUTIONS
from .ir import IR
from .rules.pointwise import ACTIVATIONS, MORE_ACTIVATIONS

BEFORE_NORM = frozenset({*CONVOLUTIONS, *TRANSPOSED_CONVOLUTIONS, F.linear})
BEFORE_ACTIVATION = BEFORE_NORM | {F.batch_norm, torch.add, torch.sub, torch.mul, torch.div}
NONLINEAR = frozenset({*ACTIVATIONS, *MORE_ACTIVATIONS, F.prelu})


def fused_next(ir: IR, node: Node) -> Node | None:
    """The operator that runs fused with `node` and reads it alone: its BatchNorm or activation; else None."""
    call, users = ir.calls.get(node), list(node.users)
    after = ir.calls.get(users[0]) if len(users) == 1 else None
    if call is None or after is None:
        return None
    norm = after.op is F.batch_norm and call.op in BEFORE_NORM
    return users[0] if norm or (after.op in NONLINEAR and call.op in BEFORE_ACTIVATION) else None


def fused_end(ir: IR, node: Node) -> Node:
    """The last operator of the group that `node` runs in."""
    while (after := fused_next(ir, node)) is not None:
        node = after
    return node
