"""What is timed: a candidate loaded by ONNX Runtime, and the arrays that it is run on."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from onnx import ModelProto
from torch.fx import GraphModule

from bnas.passes import Subnet
from bnas.passes.lowering import SIZES

from .latency_settings import LatencyError, LatencySettings
from .layout import on_cpu
from .onnx_fallback import to_onnx
from .onnx_file import loadable
from .onnx_session import Array, SessionError, Source, open_session
from .onnx_trial import eval_mode
from .supernetwork import SuperNetwork

Candidate: TypeAlias = Source | GraphModule | Subnet
"""An ONNX model (the path of its file, or its serialised content), or what is lowered to one in memory first."""
Inputs: TypeAlias = Mapping[str, Array] | Array | Sequence[int] | None
"""Arrays by input name; or the array, or its shape, for models with one input; or what the model declares."""

DTYPES = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(int16)": np.int16,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
}
"""Number types of inputs that can be filled."""


def session_of(name: str, candidate: Candidate, supernet: SuperNetwork | None, settings: LatencySettings) -> Any:
    """The session that runs `candidate`, with the `settings` of `open_session`.

    Raises:
        LatencyError: it cannot be loaded, or a sub-network has no super-network; says which by `name`.
    """
    try:
        if isinstance(candidate, str | bytes | os.PathLike):
            return open_session(candidate, settings)
        with loadable(_lowered(name, candidate, supernet)) as source:
            return open_session(source, settings)
    except SessionError as error:
        raise LatencyError(f"{name}: {error}") from error


def _lowered(name: str, candidate: GraphModule | Subnet, supernet: SuperNetwork | None) -> ModelProto:
    """A sub-network or a module as an ONNX model in memory."""
    if supernet is None:
        raise LatencyError(f"{name}: a {type(candidate).__name__} needs the super-network it is from (supernet=...)")
    module = on_cpu(supernet.extract(candidate) if isinstance(candidate, Subnet) else candidate)
    with eval_mode(module):
        return to_onnx(module, [one.cpu() for one in supernet.example()], {})[0]


def feed_of(name: str, session: Any, inputs: Inputs, settings: LatencySettings) -> dict[str, Array]:
    """The arrays that a model is run on, by input name.

    Dynamic axes have the sizes that `sizes` names, else those of the example inputs that the file was made with.

    Raises:
        LatencyError: `inputs` are not those of the model, or cannot be made up.
    """
    batch, seed, sizes = settings.batch, settings.seed, settings.sizes
    declared = {one.name: one for one in session.get_inputs()}
    known = session.get_modelmeta().custom_metadata_map.get(SIZES, "{}")
    open_axes = {**json.loads(known), **(sizes or {}), "batch": batch}
    if isinstance(inputs, Mapping):
        given = dict(inputs)
    elif inputs is None:
        _check_titles(name, declared.values(), sizes or {})
        given = {
            key: _filled(name, _shape(name, one, batch, open_axes), one.type, seed) for key, one in declared.items()
        }
    else:
        first = next(iter(declared.values()))
        array = inputs if isinstance(inputs, np.ndarray) else _filled(name, inputs, first.type, seed)
        given = {first.name: array}
    if set(given) != set(declared):
        raise LatencyError(f"{name}: takes the inputs {sorted(declared)} but was given {sorted(given)}")
    return given


def _check_titles(name: str, declared: Iterable[Any], sizes: Mapping[str, int]) -> None:
    """Raise unless each of `sizes` is that of a dynamic axis."""
    titles = {axis: None for one in declared for axis in one.shape if isinstance(axis, str)}
    for title in sizes:
        if title not in titles:
            raise LatencyError(f"{name}: there is no dynamic axis {title!r}; there are {', '.join(titles) or 'none'}")


def _shape(name: str, declared: Any, batch: int, sizes: Mapping[str, int]) -> list[int]:
    """The shape of an input, with known sizes for its dynamic axes and `batch` for an open first one."""
    first, *rest = declared.shape or [batch]
    missing = [axis for axis in rest if not isinstance(axis, int) and axis not in sizes]
    if missing:
        raise LatencyError(
            f"{name}: input {declared.name!r} leaves {missing[0]!r} open; give inputs, their shape or "
            f"sizes={{{missing[0]!r}: ...}}"
        )
    if not declared.shape:
        return []
    if isinstance(first, int) and first != batch:
        raise LatencyError(f"{name}: input {declared.name!r} is made for a batch of {first}, not {batch}")
    return [size if isinstance(size, int) else sizes.get(size, batch) for size in declared.shape]


def _filled(name: str, shape: Sequence[int], kind: str, seed: int) -> Array:
    if kind not in DTYPES:
        raise LatencyError(f"{name}: an input of {kind} cannot be made up; give arrays by input name")
    generator = np.random.default_rng(seed)
    if not np.issubdtype(DTYPES[kind], np.floating):  # indices: a table of any size has the first two entries
        return generator.integers(0, 2, tuple(shape)).astype(DTYPES[kind])
    return generator.standard_normal(tuple(shape)).astype(DTYPES[kind])
