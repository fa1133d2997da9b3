"""ONNX files that were run on ONNX Runtime and found to compute what the PyTorch model computes."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from bnas.passes.errors import BnasError, LoweringError
from bnas.passes.lowering import OPSET, lower, named_outputs

SMALLEST = 1e-6
"""What a largest absolute value below it counts as, where errors are related to it."""


class OnnxWriteError(BnasError, OSError):
    """An ONNX file could not be written; names the file."""


@dataclass(frozen=True)
class OnnxReport:
    """An ONNX file that was written, and how far its numbers are from PyTorch's."""

    path: Path
    bytes: int
    max_relative_error: float
    """The largest `relative_error` of any output on any of the inputs that were tried."""
    opset: int


def export_onnx(
    module: GraphModule,
    path: str | os.PathLike[str],
    example_inputs: Sequence[Tensor],
    *,
    metadata: Mapping[str, str] | None = None,
    rtol: float = 1e-4,
) -> OnnxReport:
    """Write `module` in eval mode to an ONNX file that was verified; after any failure there is no new file.

    The model is checked by `onnx.checker` and run on ONNX Runtime (CPU, all optimisations), on the example inputs and
    on random ones of another batch size. Every output must have a `relative_error` of at most `rtol` to PyTorch's. The
    training flags of the module are put back, and a file that was there before is replaced in one step or kept.

    Args:
        module: A plain graph of ordinary layers, such as an extracted sub-network.
        path: Where the file goes; its folder must exist.
        example_inputs: One tensor for each input, with the batch as axis 0.
        metadata: Properties that are stored with the model.
        rtol: The bound of the relative error.

    Raises:
        LoweringError: if an operator has no rule, the file would exceed 2 GiB, or an output is not what it must be.
        OnnxWriteError: if the file cannot be written.
    """
    with eval_mode(module):
        model = lower(module, example_inputs, metadata=metadata)
        content = _checked(model)
        worst = 0.0
        for inputs in trial_inputs(example_inputs):
            worst = max(worst, _compared(module, content, inputs, rtol))
    target = Path(path)
    _write(target, content)
    return OnnxReport(target, len(content), worst, OPSET)


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
    floating-point numbers, rows of the example: indices stay within their tables. Without any batch there are none.
    """
    batches = [given.shape[0] for given in example_inputs if given.ndim]
    trials = [list(example_inputs)]
    if batches and min(batches) > 0:
        generator = torch.Generator().manual_seed(0)
        batch = 3 if batches[0] == 2 else 2
        trials.append([_another(given, batch, generator) for given in example_inputs])
    return trials


def _another(given: Tensor, batch: int, generator: torch.Generator) -> Tensor:
    if not given.ndim:
        return given
    if not given.is_floating_point():
        rows = torch.randint(given.shape[0], (batch,), generator=generator)
        return given[rows.to(given.device)]
    plain = given.double()
    spread = float(plain.std(correction=0)) or 1.0
    noise = torch.randn((batch, *given.shape[1:]), generator=generator, dtype=torch.float64).to(given.device)
    return (noise * spread + plain.mean()).to(given.dtype)


def _checked(model: onnx.ModelProto) -> bytes:
    """The serialised model, which is valid ONNX with shapes that agree."""
    try:
        onnx.checker.check_model(model, full_check=True)
        content: bytes = model.SerializeToString()
    except Exception as error:
        raise LoweringError(f"the lowered model is not valid ONNX: {type(error).__name__}: {error}") from error
    return content


def _compared(module: GraphModule, content: bytes, inputs: Sequence[Tensor], rtol: float) -> float:
    """The largest relative error of any output, none of which is above `rtol`."""
    with torch.no_grad():
        expected = list(named_outputs(module(*(given.clone() for given in inputs))))
    found = run_onnx(content, inputs)
    worst = 0.0
    for (name, right), got in zip(expected, found, strict=True):
        error = relative_error(got, as_array(name, right))
        if not error <= rtol:
            raise LoweringError(
                f"output {name!r}: the relative error of ONNX Runtime against PyTorch is {error:.3g}, above the bound "
                f"of {rtol:.3g} (shape {tuple(got.shape)} against {tuple(right.shape)})"
            )
        worst = max(worst, error)
    return worst


def run_onnx(content: bytes, inputs: Sequence[Tensor]) -> list[np.ndarray[Any, Any]]:
    """The outputs of a serialised model on ONNX Runtime's CPU provider, with all optimisations.

    Raises:
        LoweringError: if ONNX Runtime refuses the model or fails in it.
    """
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # what goes wrong is raised: nothing needs to be printed as well
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        names = [one.name for one in session.get_inputs()]
        feed = {name: as_array(name, given) for name, given in zip(names, inputs, strict=True)}
        return list(session.run(None, feed))
    except LoweringError:
        raise
    except Exception as error:
        raise LoweringError(f"ONNX Runtime cannot run the lowered model: {type(error).__name__}: {error}") from error


def as_array(name: str, tensor: Tensor) -> np.ndarray[Any, Any]:
    """`tensor` as a numpy array; a `LoweringError` that names it if numpy has no such dtype."""
    try:
        return tensor.detach().cpu().numpy()
    except TypeError as error:
        raise LoweringError(
            f"{name}: {tensor.dtype} cannot be passed to ONNX Runtime, so it is not verified"
        ) from error


def relative_error(found: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> float:
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


def _write(target: Path, content: bytes) -> None:
    """Replace `target` in one step; a failure leaves it as it was and nothing beside it."""
    # In the same folder: a rename is one step only within a file system.
    temporary = target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OnnxWriteError(f"{target}: the ONNX file cannot be written: {error}") from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
