"""`verify`: compare a sub-network with the original model whose removed entries are zero."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from bnas.passes import Subnet, VerificationError
from bnas.passes.alone import alone
from bnas.passes.frontend.exported.program import as_module
from bnas.passes.frontend.ir import as_call, as_program_call
from bnas.passes.frontend.recording import inner_of
from bnas.passes.frontend.state import preserved
from bnas.passes.frontend.structure import Path, leaves_of, map_leaves, tensors_of
from bnas.passes.oracle.dependence import kept_without_weight
from bnas.passes.oracle.detour import Skipped, detour
from bnas.passes.oracle.norms import over_kept
from bnas.passes.oracle.oracle import ONLY_SINGLE, InDouble, in_double, randomise

from .supernetwork import SuperNetwork

DOUBLE, SINGLE = 1e-12, 1e-5
"""Allowed errors: in double precision, and with tables in single precision."""


@alone
def verify(
    model: nn.Module | ExportedProgram,
    supernet: SuperNetwork,
    subnet: Subnet,
    example_inputs: Any,
    *,
    tolerance: float | None = None,
) -> float:
    """Compare the extracted `subnet` with an oracle, in float64, with random statistics and biases.

    The oracle is a copy of `model` in which dropped parameters are zero, and in which hooks pass the input of a skipped
    block on as its output. It runs the model's own forward, so it does not depend on the compiler. Neither `model`
    nor `supernet` is changed. If forward draws random numbers, both draw the same ones. Calls in several threads run
    one after another.

    Args:
        model: the original, with any weights; or the exported program that the super-network was created from.
        supernet: the super-network of `model`.
        subnet: the sub-network to verify.
        example_inputs: as for `SuperNetwork.from_model`.
        tolerance: the largest allowed error; by default 1e-12. It is 1e-5 for a model whose forward creates constant
            tables (the graph has them in their captured precision), or that uses an operator which PyTorch has only
            in single precision.

    Returns:
        The largest error relative to how much the outputs vary over the batch (at least 1e-3 of their size).

    Raises:
        VerificationError: the error is above `tolerance`.
    """
    model = as_module(model)
    args, kwargs = map_leaves(as_call(example_inputs), lambda _, v: v.double() if _is_float(v) else v)
    twin = in_double(model)
    generator = torch.Generator().manual_seed(0)
    with InDouble():
        batch = _batch(twin, (args, kwargs), generator)
        randomise(twin, lambda: inner_of(twin)(*batch[0], **batch[1]), generator)
    part = supernet.extract(subnet, twin)
    found, expected = _outputs(twin, supernet, subnet, part, (args, kwargs))
    if strange := [path for path in found if path not in expected]:
        raise VerificationError(f"the sub-network returns a tensor at {strange[0]}, but the model does not")
    error = max((_error(tensor, expected[path]) for path, tensor in found.items()), default=0.0)
    if tolerance is None:
        tables = any(one.is_floating_point() and one.numel() > 1 for one in supernet.ir.constants.values())
        single = any(node.target in ONLY_SINGLE for node in supernet.ir.graph.nodes)
        tolerance = SINGLE if tables or single else DOUBLE
    if not error <= tolerance:
        raise VerificationError(
            f"sub-network {subnet.to_json()} differs from the original model on its kept entries by {error:.2e} "
            f"(allowed: {tolerance:.0e}): {DRAWS if _draws(twin, (args, kwargs)) else WRONG}"
        )
    return error


WRONG = "a rule is wrong: please report it with the model"
DRAWS = (
    "forward draws random numbers in evaluation mode, and a sub-network may draw fewer. Make them an input of forward, "
    "or pin the layers whose outputs have their shape"
)


def _outputs(
    twin: nn.Module, supernet: SuperNetwork, subnet: Subnet, part: nn.Module, inputs: Any
) -> tuple[dict[Path, Tensor], dict[Path, Tensor]]:
    """What the sub-network `part` and the oracle of `twin` return; both draw the same random numbers."""
    args, kwargs = inputs
    tensors, named = as_program_call(kwargs or args)
    with preserved(twin, inputs) as state, torch.no_grad(), InDouble():
        skipped = Skipped.of(twin, supernet.skeleton, subnet, inputs)
        oracle = detour(twin, supernet.ir, skipped.others)

        def expected() -> Any:
            state.seed()
            return oracle(*args, **kwargs)

        measure = kept_without_weight(twin, supernet.skeleton, subnet, skipped.vanishing, expected)
        state.seed()
        found = part(*tensors, **named)
        with over_kept(twin, supernet.skeleton, subnet, measure):
            return _by_path(found), _by_path(expected())


def _draws(model: nn.Module, inputs: Any) -> bool:
    """Whether a model computes something else in a second call."""
    args, kwargs = inputs
    with preserved(model, inputs), torch.no_grad(), InDouble():
        first, second = (_by_path(inner_of(model)(*args, **kwargs)) for _ in range(2))
    return any(_error(second[path], tensor) > 0.0 for path, tensor in first.items())


def _by_path(value: Any) -> dict[Path, Tensor]:
    """Return the tensors in a model's output, by their path."""
    return {path: leaf for path, leaf in leaves_of(value) if isinstance(leaf, Tensor)}


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _batch(model: nn.Module, inputs: Any, generator: torch.Generator) -> Any:
    """Make random inputs for batch statistics: four times the example's samples, or as many as the model accepts."""
    args, kwargs = several = _several(inputs, generator)
    try:
        with torch.no_grad():
            inner_of(model)(*args, **kwargs)
    except Exception:  # the batch size is fixed, or integers among the inputs are counts
        return inputs
    return several


def _several(inputs: Any, generator: torch.Generator) -> Any:
    size = next((len(v) for v in tensors_of(inputs) if v.ndim), 0)

    def several(_: Any, value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.ndim:
            return value
        value = torch.cat([value] * 4) if len(value) == size else value
        if not _is_float(value):
            return value
        return torch.randn(value.shape, generator=generator, dtype=value.dtype).to(value.device)

    return map_leaves(inputs, several)


def _error(found: Tensor, expected: Tensor) -> float:
    if found.shape != expected.shape:
        return float("inf")
    if not expected.numel():
        return 0.0
    if not expected.is_floating_point():
        return 0.0 if torch.equal(found, expected) else float("inf")
    if not torch.equal(found.isnan(), expected.isnan()):
        return float("inf")
    found, expected = torch.nan_to_num(found), torch.nan_to_num(expected)
    size = expected.abs().max()
    varies = expected.ndim > 0 and len(expected) > 1
    variation = (expected - expected[:1]).abs().max() if varies else size
    return float((found - expected).abs().max() / torch.maximum(variation, 1e-3 * size).clamp_min(1e-30))
