"""What is timed: a candidate as a network that a target builds a file of, and the arrays that it is run on."""

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
"""An ONNX model (the path of its file, or its serialised content), also with its module, or what is lowered to one."""
Inputs: TypeAlias = Mapping[str, Array] | Array | Sequence[int] | None
"""Arrays by input name; or the array, or its shape, for models with one input; or what the model declares."""

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
"""Number types of inputs that can be filled."""


def network_of(
    name: str, candidate: Candidate, supernet: SuperNetwork | None, folder: Path, settings: LatencySettings
) -> Network:
    """What a target builds its file of.

    Args:
        name: As errors call it.
        candidate: A sub-network or a module is lowered first.
        supernet: Where it comes from.
        folder: An empty one for a model that is too large to stay in memory.
        settings: Say the batch and the sizes of dynamic axes.

    Raises:
        LatencyError: It is no ONNX model, or a sub-network has no super-network.
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
    """The network in int8; a target that builds its files of modules has none."""
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
    """A file that is there, or its content; without the weights beside it."""
    try:
        data = source if isinstance(source, bytes) else source.read_bytes()
    except OSError as error:
        raise LatencyError(f"{name}: ONNX Runtime cannot load it: {error}") from error
    try:  # whatever target reads the file: none may read what is not beside it
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
    """What a model declares, by name, without its weights."""
    weights = {one.name for one in graph.graph.initializer}
    found = [one for one in graph.graph.input if one.name not in weights]
    return {one.name: Input(one.name, _axes(one), one.type.tensor_type.elem_type) for one in found}


def _axes(declared: ValueInfoProto) -> tuple[int | str | None, ...]:
    axes = declared.type.tensor_type.shape.dim
    return tuple(one.dim_value if one.HasField("dim_value") else one.dim_param or None for one in axes)


def feed_of(name: str, graph: ModelProto, inputs: Inputs, settings: LatencySettings) -> dict[str, Array]:
    """The arrays that a model is run on, by input name.

    Dynamic axes have the sizes that `sizes` names, else those of the example inputs that the file was made with.

    Raises:
        LatencyError: `inputs` are not those of the model, or cannot be made up.
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
    """Raise unless each of `sizes` is that of a dynamic axis."""
    titles = {axis: None for one in declared for axis in one.shape if isinstance(axis, str)}
    for title in sizes:
        if title not in titles:
            raise LatencyError(f"{name}: there is no dynamic axis {title!r}; there are {', '.join(titles) or 'none'}")


def _shape(name: str, declared: Input, batch: int, sizes: Mapping[str, int]) -> list[int]:
    """The shape of an input, with known sizes for its dynamic axes and `batch` for an open first one."""
    first, *rest = declared.shape or [batch]
    missing = [axis for axis in rest if not isinstance(axis, int) and axis not in sizes]
    if missing:
        raise LatencyError(
            f"{name}: input {declared.name!r} has no fixed size for {missing[0]!r}; give inputs, their shape or "
            f"sizes={{{missing[0]!r}: ...}}"
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
    if not np.issubdtype(DTYPES[kind], np.floating):  # indices: a table of any size has the first two entries
        return generator.integers(0, 2, tuple(shape)).astype(DTYPES[kind])
    return generator.standard_normal(tuple(shape)).astype(DTYPES[kind])
