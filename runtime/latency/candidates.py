"""From a candidate to the network that a target builds a file from, and to the arrays that it runs on."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from onnx import ModelProto, TensorProto, ValueInfoProto, load_model, load_model_from_string
from torch import Tensor, nn
from torch.fx import GraphModule

from bnas.passes import Subnet
from bnas.passes.errors import InputError
from bnas.passes.onnx.lower import SIZES
from bnas.runtime.example import one_sample
from bnas.runtime.nested import on_cpu, tensors_in
from bnas.runtime.onnx.export import export_onnx, to_onnx
from bnas.runtime.onnx.file import content
from bnas.runtime.onnx.int8 import QuantisationError
from bnas.runtime.onnx.session import Array, Source
from bnas.runtime.onnx.trial import eval_mode
from bnas.runtime.onnx.weights import ExternalDataError, check_content, weight_files
from bnas.runtime.supernetwork import SuperNetwork
from bnas.runtime.targets.target import Network, takes_onnx

from .settings import LatencyError, LatencySettings

Candidate: TypeAlias = Source | Network | GraphModule | Subnet
"""An ONNX model (path or serialised content, also together with its module), or a module or sub-network to export."""
Inputs: TypeAlias = Mapping[str, Array] | Array | Sequence[int] | None
"""Arrays by input name; for a model with one input, the array or its shape; None for the shapes of the model."""

DTYPES: dict[int, Any] = {
    TensorProto.FLOAT: np.float32,
    TensorProto.DOUBLE: np.float64,
    TensorProto.FLOAT16: np.float16,
    TensorProto.INT64: np.int64,
    TensorProto.INT32: np.int32,
    TensorProto.INT16: np.int16,
    TensorProto.INT8: np.int8,
    TensorProto.UINT8: np.uint8,
    TensorProto.BOOL: np.bool_,
}
"""Number types for which random inputs can be made."""


def network_of(
    name: str, candidate: Candidate, supernet: SuperNetwork | None, folder: Path, settings: LatencySettings
) -> Network:
    """Return the network from which a target builds its file.

    Args:
        name: Name of the candidate in error messages.
        candidate: The candidate; a sub-network or module is lowered to ONNX.
        supernet: The super-network of a sub-network.
        folder: An empty folder for a model that is too large for memory.
        settings: Settings with the batch size and the sizes of dynamic axes.

    Raises:
        LatencyError: The candidate is not an ONNX model, or a sub-network has no super-network.
    """
    if settings.int8 is not None and isinstance(candidate, Network | str | bytes | os.PathLike):
        raise LatencyError(
            f"{name}: a file cannot be quantised before measuring; int8 is only for sub-networks and modules"
        )
    if isinstance(candidate, Network):
        return candidate
    if isinstance(candidate, str | bytes | os.PathLike):
        return _read(name, candidate if isinstance(candidate, bytes) else Path(candidate))
    if supernet is None:
        raise LatencyError(
            f"{name}: a {type(candidate).__name__} needs the super-network that it comes from (supernet=...), whose "
            "example inputs it is exported with; of any other module measure the file that bnas.export_onnx writes"
        )
    module = on_cpu(supernet.extract(candidate) if isinstance(candidate, Subnet) else candidate)
    try:
        sized = tensors_in(one_sample(supernet, settings.sizes, settings.batch))
    except InputError as error:
        raise LatencyError(f"{name}: {error}") from error
    inputs = tuple(one.cpu() for one in sized)
    if settings.int8 is not None:
        return _quantised(name, module, inputs, settings, folder)
    example = [one.cpu() for one in supernet.example()]
    with eval_mode(module):
        graph = to_onnx(module, example, {})[0]
    return Network(name, content(graph, folder), graph, module, inputs)


def _quantised(
    name: str, module: nn.Module, inputs: tuple[Tensor, ...], settings: LatencySettings, folder: Path
) -> Network:
    """Return the network in int8. Targets that build from modules cannot use it."""
    if not takes_onnx(settings.target):
        raise LatencyError(f"{name}: int8 files are ONNX files, which {type(settings.target).__name__} cannot run")
    batch: Any = (inputs if len(inputs) > 1 else inputs[0], torch.zeros(len(inputs[0]), dtype=torch.long))
    path = folder / "int8.onnx"
    try:
        export_onnx(module, path, inputs, replace(settings.int8, calibration=[batch]))
    except QuantisationError as error:
        raise LatencyError(f"{name}: cannot be quantised to int8: {error}") from error
    return Network(name, path, load_model(str(path), load_external_data=False), None, inputs)


def _read(name: str, source: bytes | Path) -> Network:
    """Read an ONNX model from a file or its content, without external weights."""
    try:
        data = source if isinstance(source, bytes) else source.read_bytes()
    except OSError as error:
        raise LatencyError(f"{name}: ONNX Runtime cannot load it: {error}") from error
    try:  # before any target reads the file: external weights must lie in the same folder
        check_content(source) if isinstance(source, bytes) else weight_files(source)
    except ExternalDataError as error:
        raise LatencyError(f"{name}: {error}") from error
    try:
        graph = load_model_from_string(data)
    except Exception as error:  # of protocol buffers, which has several implementations
        raise LatencyError(f"{name}: is not an ONNX model: {type(error).__name__}: {error}") from error
    return Network(name, source, graph)


@dataclass(frozen=True)
class Input:
    """An input that a model declares."""

    name: str
    shape: tuple[int | str | None, ...]
    """An open axis is a name, or None."""
    kind: int
    """An element type of ONNX."""


def inputs_of(graph: ModelProto) -> dict[str, Input]:
    """Return the declared inputs of a model by name, without its weights."""
    weights = {one.name for one in graph.graph.initializer}
    found = [one for one in graph.graph.input if one.name not in weights]
    return {one.name: Input(one.name, _axes(one), one.type.tensor_type.elem_type) for one in found}


def _axes(declared: ValueInfoProto) -> tuple[int | str | None, ...]:
    axes = declared.type.tensor_type.shape.dim
    return tuple(one.dim_value if one.HasField("dim_value") else one.dim_param or None for one in axes)


def feed_of(name: str, graph: ModelProto, inputs: Inputs, settings: LatencySettings) -> dict[str, Array]:
    """Return the arrays to run a model on, by input name.

    Dynamic axes have the sizes in ``settings.sizes``, else the sizes of the example inputs of the export.

    Raises:
        LatencyError: `inputs` do not fit the model, or random inputs cannot be made for it.
    """
    batch, seed, sizes = settings.batch, settings.seed, settings.sizes
    declared = inputs_of(graph)
    known = next((one.value for one in graph.metadata_props if one.key == SIZES), "{}")
    open_axes = {**json.loads(known), **(sizes or {}), "batch": batch}
    if isinstance(inputs, Mapping):
        given = dict(inputs)
    elif inputs is None:
        _check_titles(name, declared.values(), sizes or {})
        given = {
            key: _filled(name, _shape(name, one, batch, open_axes), one.kind, seed) for key, one in declared.items()
        }
    else:
        first = next(iter(declared.values()))
        array = inputs if isinstance(inputs, np.ndarray) else _filled(name, inputs, first.kind, seed)
        given = {first.name: array}
    if set(given) != set(declared):
        raise LatencyError(f"{name}: takes the inputs {sorted(declared)} but got {sorted(given)}")
    return {key: given[key] for key in declared}


def _check_titles(name: str, declared: Iterable[Input], sizes: Mapping[str, int]) -> None:
    """Raise LatencyError unless each key of `sizes` names a dynamic axis."""
    titles = {axis: None for one in declared for axis in one.shape if isinstance(axis, str)}
    for title in sizes:
        if title not in titles:
            raise LatencyError(f"{name}: there is no dynamic axis {title!r}; there are {', '.join(titles) or 'none'}")


def _shape(name: str, declared: Input, batch: int, sizes: Mapping[str, int]) -> list[int]:
    """Return the shape of an input, with the given sizes of dynamic axes and `batch` for a dynamic first axis."""
    first, *rest = declared.shape or [batch]
    missing = [axis for axis in rest if not isinstance(axis, int) and axis not in sizes]
    if missing:
        raise LatencyError(
            f"{name}: input {declared.name!r} has no fixed size for {missing[0]!r}; give inputs, their shape or "
            f"sizes={{{missing[0]!r}: ...}} (on the command line: --sizes {missing[0]}=...)"
        )
    if not declared.shape:
        return []
    if isinstance(first, int) and first != batch:
        raise LatencyError(f"{name}: input {declared.name!r} has a fixed batch size of {first}, not {batch}")
    return [size if isinstance(size, int) else sizes.get(size or "", batch) for size in declared.shape]


def _filled(name: str, shape: Sequence[int], kind: int, seed: int) -> Array:
    if kind not in DTYPES:
        told = TensorProto.DataType.Name(kind) if kind in TensorProto.DataType.values() else "another type"
        raise LatencyError(f"{name}: bnas cannot generate an input of {told}; give arrays by input name")
    generator = np.random.default_rng(seed)
    if not np.issubdtype(DTYPES[kind], np.floating):  # maybe indices: 0 and 1 fit nearly all tables
        return generator.integers(0, 2, tuple(shape)).astype(DTYPES[kind])
    return generator.standard_normal(tuple(shape)).astype(DTYPES[kind])
