"""The section ``input_info``: the example inputs with which a model is captured."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationInfo,
    WrapSerializer,
    field_validator,
)

from bnas.data.inputs import limits
from bnas.passes.settings import LARGEST, Count
from bnas.passes.wording import count

from .section import Section, Unneeded

AxisNumber = Annotated[str, StringConstraints(pattern=r"^-?[0-9]{1,9}$")]


def _text_keys(value: Any) -> Any:
    """Turn integer keys, which YAML allows and JSON does not, into text."""
    return {str(key): one for key, one in value.items()} if isinstance(value, dict) else value


def _name(text: str) -> str:
    if not text.isidentifier():
        raise ValueError("must be a name of letters, digits and underscores")
    return text


Name = Annotated[str, AfterValidator(_name)]


class InputInfo(Section):
    """``input_info``, or an entry of it."""

    unneeded: ClassVar[dict[str, Any]] = {
        "filler": Unneeded(
            "filler has no effect: example inputs have random values; `range` bounds them",
            TypeAdapter(Literal["ones", "zeros", "random"] | None),
            "must be 'ones', 'zeros' or 'random'",
        )
    }

    sample_size: Annotated[tuple[Count, ...], Field(min_length=1)]
    """Shape of an input, the batch first."""
    type: (
        Literal[
            "float", "long", "int", "half", "float16", "bfloat16", "float32", "float64", "uint8", "int8", "int16",
            "int32", "int64", "bool",
        ]
        | None
    ) = None  # fmt: skip
    """Number type; "float" is the model's. By default float, or whole numbers if the model accepts only those."""
    range: tuple[float, float] | None = None
    """Smallest and largest value of the example; by default 0 and 1 for whole numbers."""
    keyword: Name | None = None
    """Keyword argument of the model's forward; by default inputs are positional, in order."""
    dynamic: Annotated[dict[AxisNumber, Name] | None, BeforeValidator(_text_keys)] = None
    """Names of axes whose size may change, such as {"1": "length"}; by default all axes that can."""

    @field_validator("sample_size")
    @classmethod
    def _of_a_tensor(cls, shape: tuple[int, ...]) -> tuple[int, ...]:
        if (entries := math.prod(shape)) > LARGEST:
            raise ValueError(f"an input of {count(entries)} entries is too large; allowed are {count(LARGEST)}")
        return shape

    @field_validator("range")
    @classmethod
    def _ordered(cls, ends: tuple[float, float] | None, known: ValidationInfo) -> tuple[float, float] | None:
        if ends is not None and ends[0] > ends[1]:
            raise ValueError("must begin with the smaller value")
        least, most = limits(known.data.get("type"))
        if ends is not None and not least <= ends[0] <= ends[1] <= most:
            raise ValueError(f"must lie between {least:g} and {most:g}, the range of the type")
        return ends


def _several(value: Any) -> Any:
    """Turn a single input into a list with one entry."""
    return value if isinstance(value, list | tuple) else (value,)


def _as_written(value: Any, handler: Callable[[Any], Any]) -> Any:
    """Write a list with one input as a single input, as most files do."""
    entries = handler(value)
    return entries[0] if len(entries) == 1 else entries


Inputs = Annotated[
    tuple[InputInfo, ...],
    Field(min_length=1),
    BeforeValidator(_several, json_schema_input_type=InputInfo | Annotated[tuple[InputInfo, ...], Field(min_length=1)]),
    WrapSerializer(_as_written),
]
