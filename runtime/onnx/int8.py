"""Int8 quantisation of ONNX files by ONNX Runtime: static (QDQ format, calibrated on the user's data), or dynamic."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from difflib import get_close_matches
from fnmatch import fnmatchcase
from io import StringIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import torch
from pydantic import field_validator
from torch import Tensor

from bnas.passes.errors import BnasError
from bnas.passes.onnx.lower import named_tensors
from bnas.passes.settings import Count, Names, NotInFile, settings
from bnas.runtime.errors import BatchError
from bnas.runtime.evaluate.evaluation import Batch, Metric, accuracy, first_samples, measured
from bnas.runtime.feed import FILL, again, drawn
from bnas.runtime.nested import as_batch, batch_size, in_pieces, tensors_in
from bnas.runtime.storage.files import WriteError, why

from .file import BATCH
from .quantisable import is_of_sequences, masked, store_transposed
from .session import OnnxModule, as_array
from .trial import Dims, batch_dims
from .weights import weight_files

METHODS = {"minmax": "MinMax", "entropy": "Entropy", "percentile": "Percentile"}
"""Methods to find the range of an activation, with ONNX Runtime's names for them."""


class QuantisationError(BnasError, ValueError):
    """A model cannot be quantised with these settings."""


@settings(QuantisationError)
class Int8:
    """Settings of int8 quantisation; see https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html.

    Raises:
        QuantisationError: names every setting that is out of its bounds.
    """

    calibration: NotInFile[Iterable[Batch] | None] = field(default=None, repr=False)
    """Batches to find the ranges of activations on: a few hundred samples, transformed as when deployed. A run uses
    its training data."""
    samples: Count = 512
    """Number of calibration samples."""
    activations: Literal["auto", "static", "dynamic"] = "auto"
    """How ranges of activations are found. "static": from calibration data. "dynamic": in each run, for linear layers
    of transformers, while convolutions stay in float. "auto": "dynamic" if most layers are of that kind."""
    exclude: Names = ()
    """Layers that stay in float: module paths or globs."""
    exclude_operators: Names = ()
    """ONNX operators that stay in float, such as "Gemm"."""
    per_channel: bool = True
    """Use one scale per output channel of the weights."""
    method: Literal["minmax", "entropy", "percentile"] = "minmax"
    """How the range of an activation is computed from the calibration data."""
    reduce_range: bool = False
    """Use 7 bits for weights: on CPUs with AVX2 or AVX-512 but without VNNI, sums of 8-bit products saturate."""
    validation: NotInFile[Iterable[Batch] | None] = field(default=None, repr=False)
    """Batches to measure the metric on, before and after the quantisation."""
    metric: NotInFile[Metric] = accuracy
    """The metric to report."""

    @field_validator("calibration")
    @classmethod
    def _batches(cls, calibration: Any) -> Any:
        if calibration is not None and not isinstance(calibration, Iterable):
            raise ValueError(f"must be batches of inputs and targets, not {type(calibration).__name__}")
        return calibration


@dataclass(frozen=True)
class Int8Report:
    """Result of a quantisation: the quantised layers, and the metric before and after."""

    layers: tuple[str, ...]
    """Number of nodes of the original model that read only quantised numbers."""
    excluded: tuple[str, ...]
    """Number of nodes that stayed in floating point as requested."""
    samples: int
    """Number of calibration samples."""
    metric_fp32: float | None
    """The metric of the model before, on ONNX Runtime; ``None`` without validation data."""
    metric_int8: float | None


def quantise(path: Path, int8: Int8, example_inputs: Sequence[Any], dims: Dims | None = None) -> Int8Report:
    """Replace the model at `path` by its quantised version; the original becomes ``fp32.onnx`` in the same folder.

    Raises:
        QuantisationError: Calibration data are missing or do not fit, or an exclusion matches nothing.
        WriteError: The file, or a temporary file of ONNX Runtime, cannot be written.
    """
    from onnxruntime.quantization import CalibrationMethod

    model = onnx.load(path)
    plain = path.with_name("fp32.onnx")
    path.rename(plain)
    external, source = bool(weight_files(plain)), plain
    if store_transposed(model):
        source = path.with_name("stored.onnx")
        onnx.save(model, source, save_as_external_data=external, location="stored.data")
    excluded = _excluded(model, int8)
    dynamic = int8.activations == "dynamic" or (int8.activations == "auto" and is_of_sequences(model))
    reader = None if dynamic else _reader(model, int8, tensors_in(list(example_inputs)), dims)
    how = {"per_channel": int8.per_channel, "reduce_range": int8.reduce_range, "use_external_data_format": external}
    try:
        with _quiet():
            if reader is None:
                _dynamically(source, path, nodes_to_exclude=excluded, **how)
            else:
                method = CalibrationMethod[METHODS[int8.method]]
                unranged = [*excluded, *masked(model)]
                _statically(source, path, reader, nodes_to_exclude=unranged, calibrate_method=method, **how)
    except OSError as error:
        raise WriteError(f"{path}: the int8 file cannot be written: {why(error)}") from error
    except Exception as error:
        raise QuantisationError(f"ONNX Runtime cannot quantise the model: {type(error).__name__}: {error}") from error
    before, after = _metrics(int8, plain, path)
    samples = 0 if reader is None else reader.samples
    return Int8Report(_quantised(path, model, excluded), tuple(excluded), samples, before, after)


def _statically(source: Path, path: Path, reader: _Reader, **how: Any) -> None:
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    types = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
    quantize_static(source, path, reader, quant_format=QuantFormat.QDQ, **types, **how)


def _dynamically(source: Path, path: Path, **how: Any) -> None:
    """Quantise linear layers on sequences and embeddings; operators without a faster int8 kernel stay in float."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(source, path, weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul", "Gather"], **how)


def _reader(model: onnx.ModelProto, int8: Int8, examples: Sequence[Tensor], dims: Dims | None) -> _Reader:
    """Return the calibration data as ONNX Runtime reads them."""
    names = [one.name for one in model.graph.input]
    if int8.calibration is None:
        raise QuantisationError("calibration: give batches of inputs and targets, such as bnas.Int8(loader)")
    data = first_samples(_pairs(int8.calibration, names), int8.samples)
    if fixed := next((int(one.value) for one in model.metadata_props if one.key == BATCH), 0):
        parts = (part for inputs, _ in data for part in in_pieces(inputs, fixed))
        data = [(part, None) for part in parts if batch_size((part, None)) == fixed]
    return _Reader(names, data, examples, dims or batch_dims(examples))


def _pairs(batches: Iterable[Any], names: Sequence[str]) -> Iterator[Batch]:
    """Return the batches as pairs of inputs and targets, for a model with inputs of these names."""
    try:
        for batch in drawn(batches, "the calibration data"):
            yield as_batch(batch, names)
    except BatchError as error:
        raise QuantisationError(f"calibration: {error}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence ONNX Runtime: its advice to optimise first (bnas has done it), its histograms, and numpy warnings.

    The numpy warnings come from scales that ONNX Runtime computes and never uses.
    """
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with np.errstate(invalid="ignore"), redirect_stdout(StringIO()):
            yield
    finally:
        logging.disable(before)


def _metrics(int8: Int8, *paths: Path) -> list[float | None]:
    if int8.validation is None:
        return [None for _ in paths]
    validation = again(int8.validation)
    return [measured(int8.metric, OnnxModule(path), validation) for path in paths]


def _excluded(model: onnx.ModelProto, int8: Int8) -> list[str]:
    """Return the names of the nodes that stay in float."""
    names = {node.name: node.op_type for node in model.graph.node}
    found = [name for name, kind in names.items() if kind in int8.exclude_operators]
    _check_known("exclude_operators", int8.exclude_operators, set(names.values()))
    paths = {name.rpartition("/")[0] or name for name in names}
    for pattern in int8.exclude:
        inside = [name for name in names if _is_inside(name.rpartition("/")[0] or name, pattern)]
        if not inside:
            _check_known("exclude", (pattern,), paths)
        found += inside
    return list(dict.fromkeys(found))


def _is_inside(path: str, pattern: str) -> bool:
    """Whether `pattern` matches the path of a layer or of a module that contains it."""
    return fnmatchcase(path, pattern) or fnmatchcase(path, f"{pattern}.*")


def _check_known(setting: str, wanted: Iterable[str], known: set[str]) -> None:
    for name in wanted:
        if name not in known:
            near = get_close_matches(name, known, n=1) or sorted(known)[:5]
            raise QuantisationError(
                f"{setting}: {name!r} matches nothing in the model; the nearest are {', '.join(near)}"
            )


def _quantised(path: Path, model: onnx.ModelProto, excluded: Sequence[str]) -> tuple[str, ...]:
    """Return the nodes that were quantised: they now read only dequantised values, or were replaced by other nodes."""
    nodes = onnx.load(path, load_external_data=False).graph.node
    if not any(node.op_type == "QuantizeLinear" for node in nodes):
        left = {node.name for node in nodes}
        return tuple(node.name for node in model.graph.node if node.name not in left)
    made = {name for node in nodes if node.op_type == "DequantizeLinear" for name in node.output}
    own = (node for node in nodes if node.op_type != "QuantizeLinear" and node.name not in excluded)
    return tuple(node.name for node in own if made.issuperset(filter(None, node.input)) and any(node.input))


def _fixed_shape(tensor: Tensor, axes: Mapping[int, str]) -> tuple[int | str, ...]:
    """Return the shape with the names of dynamic axes, without the batch axis."""
    named = (axes.get(axis, size) for axis, size in enumerate(tensor.shape))
    return tuple(one for one in named if one != "batch")


def _in_order(names: Sequence[str], inputs: Any) -> list[Tensor]:
    """Return the tensors in the order of the model's inputs; a dict is sorted by names if they are the model's."""
    if not isinstance(inputs, Mapping):
        return tensors_in(inputs)
    found = {path: one for name, value in inputs.items() for path, one in named_tensors(value, str(name))}
    known = [found.pop(name) for name in names if name in found]
    return [*known, *found.values()]


class _Reader:
    """Hands ONNX Runtime one batch after another: the interface of its ``CalibrationDataReader``."""

    def __init__(
        self, names: Sequence[str], data: Sequence[Batch], example_inputs: Sequence[Tensor], dims: Dims
    ) -> None:
        if not data or not any(map(batch_size, data)):
            raise QuantisationError(f"calibration: the data are empty; {FILL}")
        self.samples = sum(map(batch_size, data))
        self._feeds = [
            self._feed(f"calibration: batch {number}", names, inputs, example_inputs, dims)
            for number, (inputs, _) in enumerate(data)
        ]
        self._rest: Iterator[Any] = iter(self._feeds)

    @staticmethod
    def _feed(
        place: str, names: Sequence[str], inputs: Any, example_inputs: Sequence[Tensor], dims: Dims
    ) -> dict[str, Any]:
        given = _in_order(names, inputs)
        axes = [*dims, *({} for _ in given[len(dims) :])]
        shapes, wanted = ([_fixed_shape(*pair) for pair in zip(ones, axes)] for ones in (given, example_inputs))  # noqa: B905
        if len(given) != len(names) or shapes != wanted:
            raise QuantisationError(f"{place}: samples have the shapes {shapes}, but the model takes {wanted}")
        for one, example in zip(given, example_inputs, strict=True):
            if one.dtype != example.dtype:
                raise QuantisationError(f"{place}: samples are {one.dtype}, but the model takes {example.dtype}")
            if not bool(torch.isfinite(one).all()):
                raise QuantisationError(f"{place}: a sample contains NaN or inf, so its range is not finite")
        return {name: as_array(name, one) for name, one in zip(names, given, strict=True)}

    def get_next(self) -> dict[str, Any] | None:
        """Return the next batch by input name, or ``None`` at the end."""
        return next(self._rest, None)

    def rewind(self) -> None:
        """Begin again."""
        self._rest = iter(self._feeds)

    def set_range(self, start_index: int, end_index: int) -> None:
        """Go on with these batches."""
        self._rest = iter(self._feeds[start_index:end_index])

    def __len__(self) -> int:
        return len(self._feeds)
