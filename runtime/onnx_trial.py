"""Whether an ONNX model computes what a PyTorch module computes: tried on examples and on random inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bnas.passes.errors import LoweringError
from bnas.passes.lowering import named_outputs

from .onnx_session import Array, SessionError, as_array, run_session

SMALLEST = 1e-6
"""What a largest absolute value below it counts as, where errors are related to it."""


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Put `module` in eval mode, and each of its parts back into the mode that it was in."""
    before = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, training in before.items():
            part.training = training


def trial_inputs(example_inputs: Sequence[Tensor]) -> list[list[Tensor]]:
    """The example inputs, and others with a batch of 2 (of 3 if the examples have 2).

    The others have normally distributed numbers with the mean and the spread of the example, or, if they are no
    floating-point numbers or not finite, rows of the example: indices stay within their tables. Without any batch
    there are none.

    Raises:
        LoweringError: nothing could be compared, since there is no sample, or there is NaN in one.
    """
    for place, given in enumerate(example_inputs):
        if given.ndim and not given.numel():
            raise LoweringError(f"example input {place} is empty ({tuple(given.shape)}): nothing would be verified")
        if given.is_floating_point() and bool(given.isnan().any()):
            raise LoweringError(f"example input {place} has NaN in it: nothing would be verified")
    batches = [given.shape[0] for given in example_inputs if given.ndim]
    trials = [list(example_inputs)]
    if batches:
        generator = torch.Generator().manual_seed(0)
        batch = 3 if batches[0] == 2 else 2
        trials.append([_another(given, batch, generator) for given in example_inputs])
    return trials


def _another(given: Tensor, batch: int, generator: torch.Generator) -> Tensor:
    if not given.ndim:
        return given
    if not given.is_floating_point() or not bool(given.isfinite().all()):
        rows = torch.randint(given.shape[0], (batch,), generator=generator)
        return given[rows.to(given.device)]
    plain = given.double()
    spread = float(plain.std(correction=0)) or 1.0
    noise = torch.randn((batch, *given.shape[1:]), generator=generator, dtype=torch.float64).to(given.device)
    return (noise * spread + plain.mean()).to(given.dtype)


def outputs_of(module: Callable[..., Any], inputs: Sequence[Tensor]) -> Any:
    """What `module` returns.

    Raises:
        LoweringError: the inputs do not fit.
    """
    try:
        with torch.no_grad():
            return module(*(given.clone() for given in inputs))
    except Exception as error:
        shapes = ", ".join(f"{tuple(given.shape)} {given.dtype}" for given in inputs)
        raise LoweringError(
            f"the example inputs ({shapes}) do not fit the model, which fails on them in PyTorch: "
            f"{type(error).__name__}: {error}"
        ) from error


def compare(session: Any, inputs: Sequence[Tensor], expected: Any, rtol: float) -> float:
    """The largest relative error of any output of `session` to `expected`, which the module returns.

    Raises:
        LoweringError: one is above `rtol`, or ONNX Runtime cannot run the model.
    """
    worst = 0.0
    try:
        right = [(name, as_array(name, tensor)) for name, tensor in named_outputs(expected)]
        found = run_session(session, inputs)
    except SessionError as error:
        raise LoweringError(f"the lowered model cannot be verified: {error}") from error
    for (name, one), got in zip(right, found, strict=True):
        distance = relative_error(got, one)
        if not distance <= rtol:
            raise LoweringError(
                f"output {name!r}: the relative error of ONNX Runtime against PyTorch is {distance:.3g}, above "
                f"the bound of {rtol:.3g} (shape {got.shape} against {one.shape})"
            )
        worst = max(worst, distance)
    return worst


def relative_error(found: Array, expected: Array) -> float:
    """``max|found - expected| / max(max|expected|, SMALLEST)`` over all finite entries.

    It is infinite if shapes or dtypes differ, or if an entry that is not finite is not the same in both; and 0 without
    entries.
    """
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return float("inf")
    left, right = found.astype(np.float64), expected.astype(np.float64)
    finite = np.isfinite(right)
    if not np.array_equal(left[~finite], right[~finite], equal_nan=True) or not np.isfinite(left[finite]).all():
        return float("inf")
    distance = np.abs(left[finite] - right[finite]).max(initial=0.0)
    return float(distance / max(np.abs(right[finite]).max(initial=0.0), SMALLEST))
