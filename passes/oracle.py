"""The zero-parameter oracle: what a sub-network must compute, by the original model's own forward.

Independent of tracing and rewriting: every parameter entry outside the kept index sets is set to zero, and the
original module runs. Zeros pass through convolutions, normalisation, activations and gates, so that a wrong tie or
order shows as a wrong number.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

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


def randomise(model: nn.Module, run: Callable[[], object], generator: torch.Generator) -> None:
    """Give statistics, biases and scales random values, in place: at their initial ones many mistakes are hidden.

    Batch statistics are first set to those of ``run()``, which calls the model on some batch, and then disturbed:
    wholly random ones let the signal die out in a deep network, so that its outputs would be those of the biases.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    for name, tensor in model.named_parameters():
        if tensor.ndim == 1:
            noise = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
            tensor.data.copy_(noise + 0.5 if name.endswith("weight") else 0.4 * noise - 0.2)
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train().momentum = 1.0
    with torch.no_grad():
        run()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.eval().momentum = momentum
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean += 0.1 * torch.rand(norm.num_features, generator=generator, dtype=torch.float64)
        norm.running_var.clamp_(min=1e-2).mul_(0.75 + torch.rand(norm.num_features, generator=generator) / 2)
