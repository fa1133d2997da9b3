"""One capture of a model: its inputs, facts about their axes, and the recordings so far."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence, Set
from copy import copy
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bnas.passes.errors import CaptureError

from .entry import Axis
from .exported.modules import Exports
from .exported.parts import ExportedAxes, Limits
from .exported.program import ExportedModel
from .merging import same_calls
from .methods import Method, Methods
from .recording import WRAPPERS, Recording, inner_of, preparing, record
from .state import ModelState
from .structure import Path, holds_tensors, leaves_of, tensor_name


@dataclass
class Session:
    """One capture of a model, with its recordings so far."""

    model: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    modes: dict[nn.Module, bool] = field(default_factory=dict)
    names: dict[Path, str] = field(default_factory=dict)
    plans: dict[Any, list[dict[Axis, int]]] = field(default_factory=dict)
    """The recorded sizes, for each set of axes that gives one graph."""
    norms: Set[nn.Module] = frozenset()
    """Modules that compute a batch norm of their own tensors in training mode."""
    apart: bool = True
    """Whether axes may be recorded without the example's size."""
    wrong_at: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Sizes of axes, by name, at which the graph of an earlier capture differed from the model."""
    opaque: frozenset[str] = frozenset()
    """Paths of modules that are one step each."""
    hot_lines: set[Any] = field(default_factory=set)
    """Lines that made a tensor too large to be computed for real at some size; they are not computed at any size."""
    exports: Exports = field(default_factory=Exports)
    """Programs of modules that cannot be recorded."""
    methods: dict[tuple[str, str], Method] = field(default_factory=dict)
    """Methods that cannot be recorded at some size; they are one opaque step at all sizes."""
    trial: bool = False
    """Whether no further part of the model may become opaque."""
    _turns: dict[Any, int] = field(default_factory=dict)
    _known: dict[Any, Recording | CaptureError] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Name the placeholders."""
        self.state = ModelState(self.model)
        positional = parameter_names(self.model, len(self.args))
        for place, (name, value) in enumerate(zip(positional, self.args, strict=True)):
            if holds_tensors(value):
                self.names[0, place] = name
        for name, value in self.kwargs.items():
            if holds_tensors(value):
                self.names[1, name] = name

    @property
    def inputs(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword inputs."""
        return self.args, self.kwargs

    @property
    def tensors(self) -> dict[Path, Tensor]:
        """The tensors among the inputs, by path."""
        return {path: leaf for path, leaf in leaves_of(self.inputs) if isinstance(leaf, Tensor)}

    @property
    def exported(self) -> ExportedAxes | None:
        """The axes of the inputs of an exported program; None for other models."""
        return self.model.axes if isinstance(self.model, ExportedModel) else None

    def place(self, path: Path) -> Path:
        """Return the name of the argument that holds a tensor, and the path inside it."""
        return (self.names[path[:2]], *path[2:])

    def size(self, path: Path, axis: int) -> int | str | None:
        """Return the size of an axis; for an exported program a name, shared by equal axes, or None if it is fixed."""
        if self.exported is None:
            return self.tensors[path].shape[axis]
        return self.exported.size(self.place(path), axis)

    def why_fixed(self, path: Path, axis: int) -> str:
        """Return why an axis of an exported program cannot change; empty if it can."""
        if self.exported is None or self.size(path, axis) is not None:
            return ""
        return self.exported.why_fixed(self.place(path), axis)

    def limits(self, path: Path, axis: int) -> Limits | None:
        """Return the least and the largest size of an axis of an exported program; None without limits."""
        size = self.size(path, axis)
        return self.exported.limits.get(size) if self.exported is not None and isinstance(size, str) else None

    def name_of(self, path: Path) -> str:
        """Return the name of a tensor among the inputs."""
        return tensor_name(self.names, path)

    def recorded(self, sizes: Mapping[Axis, int], *, training: bool = False, typed: bool = False) -> Recording:
        """Return the recording with axes of the given sizes; a failed recording raises its error again."""
        key = frozenset((axis.name, size) for axis, size in sizes.items() if size != axis.size), training, typed
        count = self._learnt
        if key not in self._known:
            try:
                self._known[key] = self._record(sizes, training, typed)
            except CaptureError as error:
                self._known[key] = error
        found = self._known[key]
        if self._learnt != count and self.trial:
            raise CaptureError("forward makes tensors there that are too large to be computed")
        if self._learnt != count:
            self._known = {key: found}  # other recordings computed or called things that are one node here
        if isinstance(found, CaptureError):
            raise found
        return found

    def all(self, plan: Sequence[Mapping[Axis, int]], *, training: bool = False) -> list[Recording]:
        """Return the recordings at several sizes, all with the same tensors computed for real.

        Raises:
            CaptureError: A recording fails, or has other calls than the first.
        """
        while True:
            count = self._learnt
            found = [self.recorded(plan[0], training=training)]
            for sizes in plan[1:]:
                found.append(self.recorded(sizes, training=training))
                if self._learnt == count:
                    same_calls(found[0], found[-1])
            if self._learnt == count:
                return found

    def aside(self) -> Session:
        """Return a copy for trials at sizes far from the example's; its recordings do not change this one.

        They fail where a new part of the model would become opaque, since that part would run on real tensors, and
        where a tensor is too large to be computed for real and was not at the example's size.
        """
        other = copy(self)  # with the same snapshot of the model
        other.hot_lines, other.trial = set(self.hot_lines), True
        other._turns, other._known = dict(self._turns), dict(self._known)
        return other

    @property
    def _learnt(self) -> tuple[int, int]:
        """Number of facts found so far that hold for all recordings: lines with large tensors, opaque methods."""
        return len(self.hot_lines), len(self.methods)

    def keep_preparing(self, sizes: Mapping[Axis, int]) -> None:
        """Make modules that only prepare the inputs opaque, if the model has an opaque method at these sizes.

        Such models take lists of images, and resize them by numbers that Python computes from their sizes.
        """
        known = self.recorded(sizes)
        self.opaque = preparing(known) if self.methods else self.opaque
        if not self.opaque:
            return
        self._known = {}
        try:
            self.recorded(sizes)
        except CaptureError:
            self.opaque, self._known = frozenset(), {}

    def _turn(self, sizes: Mapping[Axis, int]) -> int:
        """Return the number of these sizes, in order of their first use."""
        key = frozenset((axis.name, size) for axis, size in sizes.items() if size != axis.size)
        return self._turns.setdefault(key, len(self._turns))

    def _record(self, sizes: Mapping[Axis, int], training: bool, typed: bool) -> Recording:
        shapes = {path: list(tensor.shape) for path, tensor in self.tensors.items()}
        batch = 1 << 62
        for axis, size in sizes.items():
            batch = size if axis.name == "batch" else batch
            for path, place in axis.places:
                shapes[path][place] = size
        fixed = {path: tuple(shape) for path, shape in shapes.items()}
        return record(
            self.model,
            self.state,
            self.inputs,
            self.names,
            fixed,
            batch=batch,
            training=training,
            modes=self.modes,
            layers=None if training else self.norms,
            hot_lines=self.hot_lines,
            types=self._types if typed else {},
            exports=self.exports,
            methods=Methods(self.methods, opaque=self.opaque, trial=self.trial),
            turn=self._turn(sizes),
        )

    @property
    def _types(self) -> dict[torch.dtype, torch.dtype]:
        """The floating-point type of the model, or of its inputs, with another type as its replacement."""
        floating = (one for one in (*self.model.parameters(), *self.tensors.values()) if one.is_floating_point())
        dtype = next((one.dtype for one in floating), torch.get_default_dtype())
        return {dtype: torch.float32 if dtype == torch.float64 else torch.float64}


def parameter_names(model: nn.Module, count: int) -> list[str]:
    """Return the names of the first `count` positional parameters of a forward; unnamed ones get their position."""
    model = inner_of(model)
    if isinstance(model, ExportedModel):
        return list(model.input_names[:count])
    model = model.module if isinstance(model, WRAPPERS) else model
    forward: Any = model.forward
    while isinstance(forward, partial) or hasattr(forward, "__wrapped__"):
        forward = forward.func if isinstance(forward, partial) else forward.__wrapped__
    code = getattr(forward, "__code__", None)
    skip = int(inspect.ismethod(forward) or (code is not None and code.co_varnames[:1] == ("self",)))
    names = list(code.co_varnames[skip : code.co_argcount]) if code else []
    return [names[i] if i < len(names) else f"input_{i}" for i in range(count)]
