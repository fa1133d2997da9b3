"""ONNX files that were run on ONNX Runtime and found to compute what the PyTorch model computes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from bnas.passes import Subnet
from bnas.passes.errors import LoweringError

from .layout import on_cpu
from .onnx_fallback import to_onnx
from .onnx_file import model_bytes, staged, write_model
from .onnx_session import SessionError, open_session
from .onnx_trial import compare, eval_mode, outputs_of, trial_inputs
from .origin import VERSION, origin
from .output_form import form_property
from .quantisation import Int8, Int8Report, QuantisationError, quantise
from .supernetwork import SuperNetwork


@dataclass(frozen=True)
class OnnxReport:
    """An ONNX file that was written, and how far its numbers are from PyTorch's."""

    path: Path
    bytes: int
    """Of the file, with its file of weights if it has one."""
    max_relative_error: float
    """The largest `relative_error` of any output on any of the inputs that were tried, before quantisation."""
    opset: int
    fallback: str | None = None
    """Why torch.onnx.export made it; ``None`` if bnas lowered it."""
    int8: Int8Report | None = None
    """What quantisation did, if it was asked for."""


def export_onnx(
    model: nn.Module | Subnet,
    path: str | os.PathLike[str],
    example_inputs: Tensor | Sequence[Tensor],
    int8: Int8 | None = None,
    *,
    supernet: SuperNetwork | None = None,
    metadata: Mapping[str, str] | None = None,
    rtol: float = 1e-4,
) -> OnnxReport:
    """Write a model in eval mode to an ONNX file that was verified; after any failure there is no new file.

    The model is checked by `onnx.checker` and run on ONNX Runtime (CPU, all optimisations), on the example inputs and
    on random ones of another batch size. Every output must have a `relative_error` of at most `rtol` to PyTorch's. The
    training flags of the module are put back; of one on another device a copy on the CPU is exported, and a file that
    was there before is replaced in one step or kept. What has no lowering rule makes torch.onnx.export take the whole
    graph: a warning and the report say why. Weights of more than 2 GiB stand in a file beside it,
    ``NAME-CHECKSUM.data``, which goes where the model goes.

    Args:
        model: A module, best an extracted sub-network; or a `Subnet` of `supernet`, whose BatchNorm statistics are
            then those of the super-network. `bnas.Evaluator.prepare` gives a module with recalibrated ones.
        path: Where the file goes; its folder must exist.
        example_inputs: A tensor for each input, with the batch as axis 0.
        int8: How to quantise it, once it was verified; by default not at all.
        supernet: Where a `Subnet` comes from. The file then carries its choice, costs and origin.
        metadata: Further properties that are stored with the model; `bnas.runtime.origin` makes those of a sub-network.
        rtol: The bound of the relative error.

    Raises:
        LoweringError: the inputs do not fit, the model cannot be expressed, or an output is not what it must be.
        QuantisationError: it cannot be quantised as asked for.
        OnnxWriteError: the file cannot be written.
    """
    inputs = [one.cpu() for one in _tensors(example_inputs)]
    if int8 is not None and not isinstance(int8, Int8):
        raise QuantisationError(f"int8: must be a bnas.Int8, such as bnas.Int8(loader), not {type(int8).__name__}")
    module, properties = _resolved(model, supernet)
    module = on_cpu(module)
    with eval_mode(module), staged(Path(path)) as place:
        trials = [(one, outputs_of(module, one)) for one in trial_inputs(inputs)]
        properties |= form_property(trials[0][1])
        proto, fallback = to_onnx(module, inputs, {**properties, **(metadata or {})})
        opset = next(one.version for one in proto.opset_import if not one.domain)
        write_model(proto, place)
        worst = _verified(place, trials, rtol)
        quantised = None if int8 is None else quantise(place, int8, inputs)
        size = model_bytes(place)
    return OnnxReport(Path(path), size, worst, opset, fallback, quantised)


def _tensors(given: Any) -> tuple[Tensor, ...]:
    inputs = (given,) if isinstance(given, Tensor) else tuple(given) if isinstance(given, list | tuple) else None
    if inputs is None or not all(isinstance(one, Tensor) for one in inputs):
        raise LoweringError(f"example_inputs must be a tensor or a sequence of tensors, not {type(given).__name__}")
    return inputs


def _resolved(model: nn.Module | Subnet, supernet: SuperNetwork | None) -> tuple[nn.Module, dict[str, str]]:
    """The module to export, and the properties that its file carries."""
    if not isinstance(model, Subnet):
        return model, {VERSION: version("bnas")}
    if supernet is None:
        raise LoweringError("a Subnet has no weights: give the super-network that it belongs to as well (supernet=...)")
    return supernet.extract(model), origin(supernet, model)


def _verified(path: Path, trials: Sequence[tuple[list[Tensor], Any]], rtol: float) -> float:
    """The largest relative error on `trials`, inputs and outputs, of the model at `path`, which is valid ONNX."""
    try:
        # By the path: a model of more than 2 GiB cannot be checked in memory.
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:
        raise LoweringError(f"the lowered model is not valid ONNX: {type(error).__name__}: {error}") from error
    try:
        session = open_session(path, threads=torch.get_num_threads())
    except SessionError as error:
        raise LoweringError(f"the lowered model cannot be verified: {error}") from error
    return max(compare(session, inputs, expected, rtol) for inputs, expected in trials)
