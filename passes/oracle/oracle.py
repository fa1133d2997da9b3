"""The zero-parameter oracle: the expected results of a sub-network, from the original model's own forward.

It does not depend on tracing and rewriting: all parameter entries that are not kept become zero, and the original
module runs. Zeros pass through convolutions, normalisations, activations and gates, so a wrong tie or order of entries
gives wrong numbers.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from bnas.passes.assembly.skeleton import Skeleton
from bnas.passes.axes.selection import index
from bnas.passes.axes.terms import Sym, Term
from bnas.passes.frontend.copies import deep_copy
from bnas.passes.frontend.state import ModelState, with_statistics
from bnas.passes.frontend.structure import map_leaves, tensors_of
from bnas.passes.space.blocks import Block
from bnas.passes.space.kernels import Kernel
from bnas.passes.space.subnet import Subnet


def zero_dropped(model: nn.Module, skeleton: Skeleton, subnet: Subnet, vanishing: Sequence[Block]) -> None:
    """Set to zero, in place, all entries of `model`'s parameters that `subnet` does not keep.

    A smaller kernel is placed in the centre of a zero kernel of full size, so that padding and settings stay the same.
    All parameters of the skipped blocks `vanishing` become zero, so that their branches add nothing (`detour.Skipped`).
    """
    assignment, parameters = skeleton.assignment(subnet), dict(model.named_parameters())
    for name, axes in skeleton.types.tensors.items():
        if name in parameters:
            parameters[name].data.mul_(kept_mask(parameters[name], axes, assignment))
    for kernel in (skeleton.choices.kernels.found[name] for name in subnet.kernels):
        shrink_in_place(parameters[kernel.weight], kernel, subnet.kernels[kernel.name], skeleton.matrices)
    zero_blocks(model, skeleton, vanishing)


def zero_blocks(model: nn.Module, skeleton: Skeleton, blocks: Sequence[Block]) -> None:
    """Set all parameters of `blocks` to zero, in place."""
    names = set[str]().union(*(_parameters_of(skeleton, block) for block in blocks))
    for name, parameter in model.named_parameters():
        if name in names:
            parameter.data.zero_()


def saved(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of all parameters by name, for `load`."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def load(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Give all parameters the values that `saved` returned, in place."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(values[name])


def kept_mask(parameter: Tensor, axes: Sequence[Term], assignment: Mapping[Sym, int]) -> Tensor:
    """Return a mask of the kept entries of a parameter, in its shape."""
    mask = torch.ones(parameter.shape, dtype=torch.bool)
    for axis, term in enumerate(axes):
        keep = torch.zeros(term.size, dtype=torch.bool)
        keep[torch.from_numpy(index(term, assignment))] = True
        mask &= keep.view([-1 if a == axis else 1 for a in range(len(axes))])
    return mask.to(parameter.device)


def shrink_in_place(weight: torch.Tensor, kernel: Kernel, choice: int, matrices: nn.Module) -> None:
    """Replace `weight` by its small kernel surrounded by zeros; written entry by entry, independent of `Shrink`."""
    held = {name: matrix.detach().double().cpu().numpy() for name, matrix in matrices.named_parameters()}
    values, size = weight.detach().double().cpu().numpy(), kernel.choices[-1]
    channels: tuple[Any, ...] = (slice(None), slice(None))
    while size > choice:
        centre = itertools.product(*(_central(n, size - 2) for n in kernel.sizes))
        places = [channels + place for place in centre]
        matrix, smaller = held[f"{kernel.name}.{size}to{size - 2}"], np.zeros_like(values)
        for row, target in zip(matrix, places, strict=True):
            for factor, source in zip(row, places, strict=True):
                smaller[target] += factor * values[source]
        values, size = smaller, size - 2
    weight.data.copy_(torch.from_numpy(values))


def _central(entries: int, choice: int) -> range:
    """Return the positions of the central `choice` entries of an axis, or all if it has no more."""
    margin = max(0, entries - choice) // 2
    return range(margin, entries - margin)


def owns_parameters(skeleton: Skeleton, block: Block) -> bool:
    """Whether the parameters that a block reads are read nowhere else."""
    parameters = dict(skeleton.ir.root.named_parameters())
    users = (nodes for name, nodes in skeleton.types.users.items() if name in parameters and nodes & block.body)
    return all(nodes <= block.body for nodes in users)


def _parameters_of(skeleton: Skeleton, block: Block) -> set[str]:
    names = {name for name, users in skeleton.types.users.items() if users & block.body}
    opaque = [str(n.target) for n in block.body if n.op == "call_module" and n not in skeleton.ir.calls]
    return names | {f"{p}.{n}" for p in opaque for n, _ in skeleton.ir.module(p).named_parameters()}


def in_double(model: nn.Module) -> nn.Module:
    """Return a copy of a model in evaluation mode and double precision, with the tensors that are plain attributes."""
    twin, own = deep_copy(model).eval().double(), {id(one) for one in ModelState(model).tensors}
    for tensor in ModelState(twin).tensors:
        if tensor.is_floating_point() and id(tensor) not in own:  # what Python cannot copy is the model's, too
            tensor.data = tensor.data.double()
    return twin


class InDouble(TorchFunctionMode):
    """Inside, everything is computed in double precision, whatever type a model asks for: rounding would hide errors.

    This applies to the thread that enters; PyTorch's default type, which all threads share, does not change.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called for every function of torch."""
        if func in LESS_PRECISE:
            return args[0].to(torch.float64, copy=True)
        if func in ONLY_SINGLE:
            args, kwargs = map_leaves((args, kwargs or {}), lambda _, leaf: _single(leaf))
            return func(*args, **kwargs).double()
        made = func(*map(_double, args), **{name: _double(value) for name, value in (kwargs or {}).items()})
        return made.double() if _is_single(made) and not any(map(_is_single, tensors_of((args, kwargs)))) else made


LESS_PRECISE = frozenset({Tensor.float, Tensor.half, Tensor.bfloat16})

ONLY_SINGLE = frozenset(
    getattr(owner, name) for owner in (torch, F) for name in ("_grouped_mm", "grouped_mm") if hasattr(owner, name)
)
"""Operators that PyTorch does not have in double precision."""


def _is_single(value: Any) -> bool:
    """Whether `value` is a tensor of the default type, which tensors created without a type have."""
    return isinstance(value, Tensor) and value.dtype == torch.get_default_dtype()


def _single(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype == torch.float64 else value


def _double(value: Any) -> Any:
    return torch.float64 if isinstance(value, torch.dtype) and value.is_floating_point else value


def randomise(model: nn.Module, run: Callable[[], object], generator: torch.Generator) -> None:
    """Give statistics, biases and scales random values, in place, because initial values (0, 1) hide many mistakes.

    Batch statistics are first measured by ``run()``, which calls the model on a batch, and then disturbed. With purely
    random statistics the signal would vanish in a deep network, and outputs would depend on the biases only.
    """
    norms = with_statistics(model)
    for name, tensor in model.named_parameters():
        if tensor.ndim == 1:
            noise = torch.rand(tensor.shape, generator=generator, dtype=torch.float64).to(tensor.device)
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
        shift, factor = torch.rand(2, norm.num_features, generator=generator, dtype=torch.float64).to(norm.running_mean)
        norm.running_mean += 0.1 * shift
        norm.running_var.clamp_(min=1e-2).mul_(0.75 + factor / 2)
