"""Operators that run as one: a linear operator or sum, its BatchNorm and its activation."""

from __future__ import annotations

from torch.fx import Node

from .ir import IR
from .ops.record import Trait
from .ops.registry import OPERATORS


def fused_next(ir: IR, node: Node) -> Node | None:
    """The operator that runs fused with `node` and reads it alone: its BatchNorm or activation; else None."""
    call, users = ir.calls.get(node), list(node.users)
    after = ir.calls.get(users[0]) if len(users) == 1 else None
    if call is None or after is None:
        return None
    this, other = OPERATORS.of(call.op), OPERATORS.of(after.op)
    norm = other.has(Trait.BATCH_NORM) and this.has(Trait.FUSES_NORM)
    return users[0] if norm or (other.has(Trait.ACTIVATION) and this.has(Trait.FUSES_ACTIVATION)) else None


def fused_end(ir: IR, node: Node) -> Node:
    """The last operator of the group that `node` runs in."""
    while (after := fused_next(ir, node)) is not None:
        node = after
    return node
