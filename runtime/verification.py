"""Whether a sub-network computes what the original model computes on the entries that it keeps."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from bnas.passes import Subnet, VerificationError
from bnas.passes.detour import detour
from bnas.passes.ir import as_call, as_program_call
from bnas.passes.oracle import InDouble, kept_without_weight, over_kept, randomise, skipped_blocks
from bnas.passes.slot import Copies

from .supernetwork import SuperNetwork


def verify(
    model: nn.Module, supernet: SuperNetwork, subnet: Subnet, example_inputs: Any, *, tolerance: float = 1e-12
) -> float:
    """Compare the extracted `subnet` with the zero-parameter oracle, in float64 on random statistics and biases.

    The oracle zeroes what is dropped in a copy of `model`, lets hooks hand the entry of a skipped region on as its
    output, and runs the model's own forward, so it is independent of typing and rewriting. Neither `model` nor
    `supernet` is changed.

    Returns:
        The largest error relative to how much the outputs vary over the batch (at least 1e-3 of their size).

    Raises:
        VerificationError: the error is above `tolerance`.
    """
    args, kwargs = as_call(tree_map(lambda v: v.double() if _is_float(v) else v, example_inputs))
    twin = copy.deepcopy(model).eval().double()
    generator = torch.Generator().manual_seed(0)
    batch = _batch((args, kwargs), generator)
    with InDouble():
        randomise(twin, lambda: twin(*batch[0], **batch[1]), generator)
    part = supernet.skeleton.build(subnet, Copies(), twin).eval()
    oracle = detour(twin, supernet.ir, skipped_blocks(supernet.skeleton, subnet, zeroed=False))
    tensors, named = as_program_call(kwargs or args)
    with torch.no_grad(), InDouble():
        measure = kept_without_weight(twin, supernet.skeleton, subnet, lambda: oracle(*args, **kwargs))
        found = tree_leaves(part(*tensors, **named))
        with over_kept(twin, supernet.skeleton, subnet, measure):
            expected = tree_leaves(oracle(*args, **kwargs))
    error = max(_error(a, b) for a, b in zip(found, expected, strict=True))
    if not error <= tolerance:
        raise VerificationError(
            f"sub-network {subnet.to_json()} differs from the original model on its kept entries by {error:.2e}, "
            f"allowed is {tolerance:.0e}: a rule is wrong, or a skipped branch is not zero for zero parameters"
        )
    return error


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _batch(inputs: Any, generator: torch.Generator) -> Any:
    """Four samples for each of the example's, of noise where they are not whole numbers: for batch statistics."""
    size = next((len(v) for v in tree_leaves(inputs) if isinstance(v, Tensor) and v.ndim), 0)

    def several(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.ndim:
            return value
        value = torch.cat([value] * 4) if len(value) == size else value
        if not _is_float(value):
            return value
        return torch.randn(value.shape, generator=generator, dtype=value.dtype).to(value.device)

    return tree_map(several, inputs)


def _error(found: Tensor, expected: Tensor) -> float:
    if found.shape != expected.shape:
        return float("inf")
    size, variation = expected.abs().max(), (expected - expected[:1]).abs().max()
    scale = torch.maximum(variation if len(expected) > 1 else size, 1e-3 * size).clamp_min(1e-30)
    return float((found - expected).abs().max() / scale)
