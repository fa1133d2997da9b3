"""The zero-parameter oracle: what a sub-network must compute, by the original model's own forward.

Independent of tracing and rewriting: every parameter entry outside the kept index sets is set to zero, and the
original module runs. Zeros pass through convolutions, normalisation, activations and gates, so that a wrong tie or
order shows as a wrong number.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .blocks import Block
from .errors import VerificationError
from .selection import index
from .skeleton import Skeleton
from .space import Subnet


def zero_dropped(model: nn.Module, skeleton: Skeleton, subnet: Subnet) -> None:
    """Set to zero, in place, all entries of `model`'s parameters that `subnet` does not keep.

    A skipped block gets zero parameters altogether, so that its branch adds nothing.

    Raises:
        VerificationError: a parameter of a skipped block is also used outside it: zeroing cannot tell them apart.
    """
    assignment, parameters = skeleton.assignment(subnet), dict(model.named_parameters())
    for name, axes in skeleton.types.tensors.items():
        if name in parameters:
            for axis, term in enumerate(axes):
                keep = torch.zeros(term.size, dtype=torch.bool)
                keep[torch.from_numpy(index(term, assignment))] = True
                shape = [-1 if a == axis else 1 for a in range(len(axes))]
                parameters[name].data.mul_(keep.view(shape).to(parameters[name].device))
    for block in (skeleton.choices.blocks[name] for name in subnet.skipped):
        for name in _parameters_of(skeleton, block):
            if name in parameters:
                parameters[name].data.zero_()


def _parameters_of(skeleton: Skeleton, block: Block) -> set[str]:
    names = {name for name, users in skeleton.types.users.items() if users & block.body}
    shared = [name for name in sorted(names) if not skeleton.types.users[name] <= block.body]
    if shared:
        raise VerificationError(f"block {block.name}: {shared[0]} is also used outside it, zeroing cannot verify that")
    opaque = [str(n.target) for n in block.body if n.op == "call_module" and n not in skeleton.ir.calls]
    inside = {f"{p}.{n}" for p in opaque for n, _ in skeleton.ir.root.get_submodule(p).named_parameters()}
    return names | inside


def randomise(model: nn.Module, generator: torch.Generator) -> None:
    """Give statistics, biases and scales random values, in place: at their initial ones many mistakes are hidden."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point() and tensor.ndim == 1:
            noise: Tensor = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
            positive = name.endswith(("running_var", "weight"))
            tensor.data.copy_(noise + 0.5 if positive else 0.4 * noise - 0.2)
