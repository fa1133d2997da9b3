"""Example inputs: the notation for shapes and types, and the tensors that follow from it."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from bnas.passes.errors import BnasError
from bnas.passes.frontend.ir import as_call, floating
from bnas.passes.frontend.session import parameter_names
from bnas.passes.frontend.state import preserved
from bnas.passes.settings import LARGEST
from bnas.passes.wording import count
from bnas.runtime.nested import device_of

DTYPES = {
    "float": None,  # the floating-point type of the model
    "long": torch.int64,
    "int": torch.int32,
    "half": torch.float16,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
    "uint8": torch.uint8,
    "int8": torch.int8,
    "int16": torch.int16,
    "int32": torch.int32,
    "int64": torch.int64,
    "bool": torch.bool,
}
"""Number types of inputs, by name."""

TRIED = 81
"""Largest number of combinations of number types that are tried on a model."""

SEED = 0
"""Seed of the random values of example inputs, so that every process has the same."""

WRITTEN = re.compile(
    r"(?:(?P<name>[^\W\d]\w*)=)?(?P<shape>[^:=]*)"
    r"(?::(?P<type>\w+)(?:\[(?P<low>-?\d+(?:\.\d+)?)\.\.(?P<high>-?\d+(?:\.\d+)?)\])?)?"
)


def limits(kind: str | None) -> tuple[float, float]:
    """Return the smallest and the largest value of a number type, a key of `DTYPES`; with None those of floats."""
    return _limits(DTYPES[kind or "float"] or torch.float32)


def _limits(dtype: torch.dtype) -> tuple[float, float]:
    if dtype is torch.bool:
        return 0, 1
    known = torch.finfo(dtype) if dtype.is_floating_point else torch.iinfo(dtype)
    return known.min, known.max


def _holds(dtype: torch.dtype, ends: tuple[float, float] | None) -> bool:
    least, most = _limits(dtype)
    return ends is None or least <= ends[0] <= ends[1] <= most


class ShapeError(BnasError, ValueError):
    """The shape, type or axis of an input is not written correctly."""


@dataclass(frozen=True)
class Input:
    """One input of a model."""

    shape: tuple[int, ...]
    name: str | None = None
    """The keyword argument of ``forward``; a positional one if None."""
    type: str | None = None
    """A key of `DTYPES`; None for floating-point numbers or, if the model refuses those, integers."""
    range: tuple[float, float] | None = None
    """Smallest and largest value; by default 0 and 1 for whole numbers, and normally distributed floats."""

    @property
    def text(self) -> str:
        """The input in the notation of users."""
        shape = ",".join(map(str, self.shape))
        ends = "" if self.range is None else f"[{self.range[0]:g}..{self.range[1]:g}]"
        return f"{f'{self.name}=' if self.name else ''}{shape}{f':{self.type}' if self.type else ''}{ends}"

    def tensor(self, floats: torch.dtype, generator: torch.Generator) -> Tensor:
        """Return random values of this shape and type; `floats` is the floating-point type of the model.

        Raises:
            ShapeError: The range does not fit the type, or memory is too small for the shape.
        """
        dtype = DTYPES[self.type or "float"] or floats
        if not _holds(dtype, self.range):
            least, most = _limits(dtype)
            raise ShapeError(f"input {self.text}: {dtype} holds values from {least:g} to {most:g}")
        try:
            return self._random(dtype, generator)
        except (RuntimeError, MemoryError):
            raise ShapeError(
                f"input {self.text}: not enough memory for {count(math.prod(self.shape))} values"
            ) from None

    def _random(self, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
        if dtype.is_floating_point:
            if self.range is None:
                return torch.randn(self.shape, generator=generator).to(dtype)
            low, high = self.range
            return (torch.rand(self.shape, generator=generator) * (high - low) + low).to(dtype)
        low, high = map(int, self.range or (0, 1))
        made = torch.randint(low, high + 1, self.shape, generator=generator)
        if made.numel():
            made.view(-1)[0], made.view(-1)[-1] = low, high  # both occur: the range is read from them
        return made.to(dtype)


def parse_shape(text: str) -> tuple[int, ...]:
    """``"1,3,224,224"`` as numbers.

    Raises:
        ShapeError: it is something else.
    """
    parts = text.split(",")
    if not all(re.fullmatch(r"\s*\d{1,10}\s*", part) and 0 < int(part) <= LARGEST for part in parts):
        raise ShapeError(f"input {text!r} is not a shape; write positive numbers with commas, such as 1,3,224,224")
    return tuple(int(part) for part in parts)


def parse_input(text: str) -> Input:
    """An input as ``[NAME=]SHAPE[:TYPE[LOW..HIGH]]``: ``2,3,32,32``, ``input_ids=2,16:int64[0..999]``.

    Raises:
        ShapeError: it is something else.
    """
    found = WRITTEN.fullmatch(text.strip())
    if found is None:
        raise ShapeError(
            f"input {text!r} is not a shape; write SHAPE, SHAPE:TYPE or NAME=SHAPE:TYPE[LOW..HIGH], such as "
            "1,3,224,224 or input_ids=2,16:int64[0..999]"
        )
    shape, kind = parse_shape(found["shape"]), found["type"]
    if kind is not None and kind not in DTYPES:
        raise ShapeError(f"input {text!r}: {kind!r} is not a number type; write one of {', '.join(DTYPES)}")
    ends = None if found["low"] is None else (float(found["low"]), float(found["high"]))
    if ends is not None and ends[0] > ends[1]:
        raise ShapeError(f"input {text!r}: the lower end of the range is above the upper end")
    return Input(shape, found["name"], kind, ends)


def parse_dynamic(texts: Sequence[str]) -> dict[str, dict[int, str]] | None:
    """Dynamic axes as ``NAME:AXIS=TITLE``: ``["input_ids:1=length"]`` is ``{"input_ids": {1: "length"}}``.

    Raises:
        ShapeError: one of them is something else.
    """
    named: dict[str, dict[int, str]] = {}
    for text in texts:
        found = re.fullmatch(r"(\w+):(-?\d{1,9})=(\w+)", text.strip())
        if found is None:
            raise ShapeError(f"dynamic axis {text!r}: write NAME:AXIS=TITLE, such as input_ids:1=length")
        named.setdefault(found[1], {})[int(found[2])] = found[3]
    return named or None


def parse_sizes(texts: Sequence[str]) -> dict[str, int]:
    """Sizes of dynamic axes as ``TITLE=SIZE``: ``["height=64"]`` is ``{"height": 64}``.

    Raises:
        ShapeError: one of them is something else.
    """
    found = [re.fullmatch(r"(\w+)=([1-9]\d{0,8})", text.strip()) for text in texts]
    for text, one in zip(texts, found, strict=True):
        if one is None:
            raise ShapeError(f"size {text!r}: write the title of a dynamic axis and a size, such as height=64")
    return {one[1]: int(one[2]) for one in found if one is not None}


@dataclass(frozen=True)
class Example:
    """Example inputs of a model, and how their types were determined."""

    value: Any
    """A tensor, a tuple of positional or a dict of keyword inputs."""
    inputs: tuple[Input, ...]
    """The inputs with their names and types."""
    chosen: bool = False
    """Whether some inputs are integers because the model refused floating-point numbers."""
    refused: str = ""
    """The model's error for floating-point numbers, if integers were chosen."""

    @property
    def told(self) -> list[str]:
        """A line for each input."""
        return [f"{one.name}: {replace(one, name=None).text}" for one in self.inputs]


def example_of(model: nn.Module, inputs: Sequence[Input]) -> Example:
    """Example inputs for `model`, with random values that are the same in every process.

    Inputs without a type are floating-point numbers of the model's type. If the model raises an error on those, whole
    numbers and booleans are tried, for as few inputs as possible. The model is left as it was, but for lazy modules,
    which get their shapes.

    Raises:
        ShapeError: positional inputs come with keyword ones whose names are not known, or a name is given twice.
    """
    like = floating(model)
    floats = torch.get_default_dtype() if like is None else like.dtype
    device = device_of(model)
    names = _names(model, inputs)
    first: Example | None = None
    refused = ""
    for types in _types(inputs):
        typed = tuple(replace(one, name=name, type=kind) for one, name, kind in zip(inputs, names, types, strict=True))
        example = Example(_value(inputs, typed, floats, device), _spelled(typed, floats))
        first = first or example
        if all(one.type for one in inputs) and not _is_lazy(model):
            return example
        if (error := error_on(model, example.value)) is None:
            return replace(example, chosen=bool(refused), refused=refused)
        refused = refused or error
    assert first is not None
    return first  # the capture reports what is wrong


def _spelled(typed: Sequence[Input], floats: torch.dtype) -> tuple[Input, ...]:
    """Return the inputs with full names of types."""
    full = (str(DTYPES[one.type or "float"] or floats).removeprefix("torch.") for one in typed)
    ends = [(0.0, 1.0) if one.type in ("int64", "long") and one.range is None else one.range for one in typed]
    return tuple(replace(one, type=kind, range=end) for one, kind, end in zip(typed, full, ends, strict=True))


def _names(model: nn.Module, inputs: Sequence[Input]) -> list[str]:
    positional = iter(parameter_names(model, sum(one.name is None for one in inputs)))
    names = [next(positional) if one.name is None else one.name for one in inputs]
    for name in names:
        if names.count(name) > 1:
            raise ShapeError(f"input {name!r} is given twice: by position and by name, or twice by name")
    return names


def _types(inputs: Sequence[Input]) -> Iterator[tuple[str, ...]]:
    """Yield types of the inputs to try, those with few integers first."""
    kinds = [(one.type,) if one.type else ("float", *_wholes(one.range)) for one in inputs]
    if 3 ** sum(len(one) > 1 for one in kinds) <= TRIED:
        found = sorted(itertools.product(*kinds), key=_oddity)
    else:
        wholes = [tuple(one[min(len(one) - 1, 1)] for one in kinds)]
        found = [tuple(one[0] for one in kinds), *wholes]
        for place, one in enumerate(kinds):
            found += [tuple(kind if p == place else k[0] for p, k in enumerate(kinds)) for kind in one[1:]]
    yield from dict.fromkeys(found)


def _wholes(ends: tuple[float, float] | None) -> Iterator[str]:
    """Return the integer types that can hold a range."""
    yield from (kind for kind, dtype in (("int64", torch.int64), ("bool", torch.bool)) if _holds(dtype, ends))


def _oddity(types: Sequence[str | None]) -> tuple[int, int]:
    return types.count("bool"), types.count("int64")


def _value(given: Sequence[Input], typed: Sequence[Input], floats: torch.dtype, device: torch.device) -> Any:
    generator = torch.Generator().manual_seed(SEED)
    tensors = [one.tensor(floats, generator).to(device) for one in typed]
    if any(one.name is not None for one in given):
        return {str(one.name): tensor for one, tensor in zip(typed, tensors, strict=True)}
    return tensors[0] if len(tensors) == 1 else tuple(tensors)


def _is_lazy(model: nn.Module) -> bool:
    """Whether a model has lazy parameters, which get their shapes from the first inputs."""
    return any(is_lazy(one) for one in (*model.parameters(), *model.buffers()))


def error_on(model: nn.Module, value: Any) -> str | None:
    """Return the model's error for inputs, in one line; None if it accepts them. The model does not change."""
    args, kwargs = as_call(value)
    try:
        with nullcontext() if _is_lazy(model) else preserved(model, data=True), torch.no_grad():
            model(*args, **kwargs)
    except Exception as error:
        return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
    return None
