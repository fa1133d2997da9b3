"""Compare an ONNX model with a PyTorch module, on the example inputs and on random inputs of other sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bnas.passes.errors import LoweringError
from bnas.passes.frontend.copies import deep_copy
from bnas.passes.frontend.state import set_modes
from bnas.passes.onnx.lower import example_sizes, named_outputs
from bnas.runtime.nested import map_tensors, tensors_in

from .session import Array, SessionError, as_array, run_session

SMALLEST = 1e-6
"""Lower bound for the largest absolute value by which errors are divided."""

HALF = 1e-2
"""Lower bound for the allowed relative error of float16 outputs: each operator rounds to three digits."""

ROUNDING = 10.0
"""The error of an output may also be up to this many times PyTorch's own error against float64.

If large numbers cancel, two correct programs round differently. Example: the scores near zero of a fine-tuned text
classifier differed by 1.1e-4.
"""


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Inside, `module` is in eval mode; afterwards each of its parts is in its former mode."""
    before = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        set_modes(before)


Dims = Sequence[Mapping[int, str]]
"""For each input tensor, in order, the names of its dynamic axes by axis."""


def trial_inputs(
    example_inputs: Sequence[Any], dims: Dims | None = None, accepts: Callable[[Any], bool] = lambda inputs: True
) -> list[list[Any]]:
    """Return the example inputs and up to two inputs with other sizes of the dynamic axes.

    Random floating-point inputs have the mean and the spread of the example. Integers, and floats that are not finite,
    are drawn from the entries of the example, so that indices stay within their tables. Without dynamic axes there are
    no other inputs; if only the batch is dynamic, there is one, with a batch of 2 (3 if the example has 2).

    Args:
        example_inputs: Tensors, or lists, tuples and dicts of them, in the order of the model's inputs.
        dims: The dynamic axes, by default axis 0 of every tensor.
        accepts: Whether the model can be run on given inputs.

    Raises:
        LoweringError: The example inputs have no sample or contain NaN, so outputs cannot be compared.
    """
    tensors = tensors_in(example_inputs)
    _check_comparable(tensors)
    dims = batch_dims(tensors) if dims is None else dims
    generator = torch.Generator().manual_seed(0)
    known = example_sizes(tensors, dims)
    trials, wanted = [list(example_inputs)], 2 if set(known) - {"batch"} else 1
    for sizes in _other_sizes(known):
        if len(trials) > wanted:
            break
        axes = iter(dims)
        other = map_tensors(list(example_inputs), lambda one: _another(one, next(axes), sizes, generator))  # noqa: B023
        if accepts(other):
            trials.append(other)
    return trials


def _check_comparable(tensors: Sequence[Tensor]) -> None:
    for place, given in enumerate(tensors):
        if given.ndim and not given.numel():
            raise LoweringError(
                f"example input {place} is empty ({tuple(given.shape)}), so the file could not be verified"
            )
        if given.is_floating_point() and bool(given.isnan().any()):
            raise LoweringError(f"example input {place} contains NaN, so the file could not be verified")


def batch_dims(tensors: Sequence[Tensor]) -> Dims:
    """Return axis 0 of every tensor as the batch axis."""
    return [{0: "batch"} if one.ndim else {} for one in tensors]


def _other_sizes(sizes: Mapping[str, int]) -> Iterator[dict[str, int]]:
    """Yield sizes to try: first different ones for all axes, then simpler ones. The batch always differs."""
    batch = {"batch": 3 if sizes["batch"] == 2 else 2} if "batch" in sizes else {}
    rest = {name: size for name, size in sizes.items() if name not in batch}
    if batch or rest:
        shapes: list[Callable[[int], int]] = [lambda n: n // 2, lambda n: n - 1, lambda n: 2 * n, lambda n: n + 1]
        turned = [
            {name: shapes[(turn + place) % 4](size) for place, (name, size) in enumerate(rest.items())}
            for turn in range(4 if rest else 0)
        ]
        alike = [{name: shape(size) for name, size in rest.items()} for shape in shapes] if rest else []
        for found in (*turned, *alike, *((dict(rest),) if batch else ())):
            yield {name: max(size, 1) for name, size in {**found, **batch}.items()}


def _another(given: Tensor, axes: Mapping[int, str], sizes: Mapping[str, int], generator: torch.Generator) -> Tensor:
    if not given.is_floating_point() or not bool(given.isfinite().all()):
        for axis, name in axes.items():
            places = torch.randint(given.shape[axis], (sizes[name],), generator=generator)
            given = given.index_select(axis, places.to(given.device))
        return given
    if not axes:
        return given
    plain = given.double()
    spread = float(plain.std(correction=0)) or 1.0
    shape = [sizes[axes[axis]] if axis in axes else size for axis, size in enumerate(given.shape)]
    noise = torch.randn(shape, generator=generator, dtype=torch.float64).to(given.device)
    return (noise * spread + plain.mean()).to(given.dtype)


def fits(module: Callable[..., Any], inputs: Sequence[Any]) -> bool:
    """Whether `module` can be run on `inputs`, and what it returns are numbers.

    A size that the original model refuses, such as an image that is too small for its pyramid, may give NaN.
    """
    try:
        outputs = outputs_of(module, inputs)
    except LoweringError:
        return False
    return not any(bool(one.isnan().any()) for one in tensors_in([outputs]))


def outputs_of(module: Callable[..., Any], inputs: Sequence[Any]) -> Any:
    """Return the outputs of `module`.

    Raises:
        LoweringError: the inputs do not fit.
    """
    try:
        with torch.no_grad():
            return module(*map_tensors(list(inputs), torch.clone))
    except Exception as error:
        shapes = ", ".join(f"{tuple(given.shape)} {given.dtype}" for given in tensors_in(inputs))
        raise LoweringError(
            f"the example inputs ({shapes}) do not fit the model, which fails on them in PyTorch: "
            f"{type(error).__name__}: {error}"
        ) from error


def not_verified(module: nn.Module, error: SessionError) -> LoweringError:
    """The error for a file that ONNX Runtime cannot load or run; says what to do about a module in double precision."""
    wide = any(one.dtype == torch.float64 for one in (*module.parameters(), *module.buffers()))
    advice = ". It has many operators in float32 only: export model.float() with inputs in float32" if wide else ""
    return LoweringError(f"the lowered model cannot be verified: {error}{advice}")


def compare(session: Any, inputs: Sequence[Any], module: nn.Module, expected: Any, rtol: float) -> float:
    """Return the largest relative error of the outputs of `session` against `expected`, the outputs of the module.

    Raises:
        LoweringError: one is above `rtol` and above `ROUNDING` times PyTorch's own error, the module computes another
            output in each call, or ONNX Runtime cannot run the model.
    """
    worst = 0.0
    try:
        right = [(name, as_array(name, tensor)) for name, tensor in named_outputs(expected)]
        found = run_session(session, tensors_in(inputs))
    except SessionError as error:
        raise not_verified(module, error) from error
    for place, ((name, one), got) in enumerate(zip(right, found, strict=True)):
        distance, bound = relative_error(got, one), max(rtol, HALF) if one.dtype == np.float16 else rtol
        if bound < distance < float("inf"):
            _check_repeats(module, inputs, place, name, bound)
            bound = max(bound, ROUNDING * rounding_of(module, inputs, place))
        if not distance <= bound:
            raise LoweringError(
                f"output {name!r}: the relative error of ONNX Runtime against PyTorch is {distance:.3g}, above "
                f"the bound of {bound:.3g} (shape {got.shape} against {one.shape})"
            )
        worst = max(worst, distance)
    return worst


def _check_repeats(module: nn.Module, inputs: Sequence[Any], place: int, name: str, bound: float) -> None:
    """Raise a `LoweringError` if the module computes another output in each call."""
    own, again = (as_array(*list(named_outputs(outputs_of(module, inputs)))[place]) for _ in range(2))
    error = relative_error(again, own)
    if error > bound:
        raise LoweringError(
            f"output {name!r}: two calls of the model itself differ by {error:.3g} in PyTorch, so the file cannot be "
            "verified: forward draws random numbers in evaluation mode, or keeps something from call to call. Make "
            "the random numbers, or what is kept, an input of forward"
        )


def rounding_of(module: nn.Module, inputs: Sequence[Any], place: int) -> float:
    """Return the relative error of one output of the module against float64; 0 if float64 is no help."""
    wide = [map_tensors(one, lambda given: given.double() if given.is_floating_point() else given) for one in inputs]
    try:  # run both now, since the module may have changed after `expected` was computed
        own, exact = (
            as_array(*list(named_outputs(outputs_of(one, given)))[place])
            for one, given in ((module, inputs), (deep_copy(module).double(), wide))
        )
    except (LoweringError, SessionError):
        return 0.0
    error = relative_error(own, exact.astype(own.dtype))
    return error if np.isfinite(error) else 0.0


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
