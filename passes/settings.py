"""Settings classes: frozen dataclasses that validate their values, in Python and in configuration files."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import field
from numbers import Integral, Real
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    ValidationError,
    ValidationInfo,
    validate_call,
)
from pydantic.dataclasses import dataclass
from pydantic_core import CoreSchema, PydanticKnownError, PydanticOmit, core_schema
from typing_extensions import dataclass_transform

from .errors import BnasError
from .faults import faults

T = TypeVar("T")

FILE = "a configuration file"
"""Validation context for values from a file."""

CHECKED = ConfigDict(extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


@dataclass_transform(frozen_default=True, field_specifiers=(field, Field))
def settings(error: type[BnasError], *, kw_only: bool = False) -> Callable[[type[T]], type[T]]:
    """Make a class a frozen pydantic dataclass. Invalid values raise an `error` that lists all of them.

    In a configuration file, the same class is a section, and its errors are reported with those of the whole file.
    """

    def decorate(cls: type[T]) -> type[T]:
        made: Any = dataclass(frozen=True, kw_only=kw_only, config=CHECKED)(cls)
        made.__init__ = _told(made, made.__init__, error)
        return made  # type: ignore[no-any-return]

    return decorate


def _told(cls: type, init: Callable[..., None], error: type[BnasError]) -> Callable[..., None]:
    @functools.wraps(init)
    def checked(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            init(self, *args, **kwargs)
        except ValidationError as found:
            names = list(inspect.signature(cls).parameters)
            told = faults(found, cls, {**dict(zip(names, args, strict=False)), **kwargs})
            many = f"{cls.__name__}: {len(told)} faults\n  " if len(told) > 1 else ""
            raise error(many + "\n  ".join(told)) from None

    return checked


F = TypeVar("F", bound=Callable[..., Any])


def checked(function: F, error: type[BnasError]) -> F:
    """Return `function` with arguments that are validated by its annotations; one `error` lists all invalid values."""
    made = validate_call(config=CHECKED)(function)

    @functools.wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        try:
            return made(*args, **kwargs)
        except ValidationError as found:
            given = {**dict(zip(inspect.signature(function).parameters, args, strict=False)), **kwargs}
            raise error("\n  ".join(faults(found, object, given))) from None

    return called  # type: ignore[return-value]


def _number(value: Any, info: ValidationInfo) -> Any:
    """Turn numpy numbers into plain ones. Text counts as a number only in files, because YAML reads 1e-4 as text."""
    if isinstance(value, str) and info.context != FILE:
        raise ValueError("must be a number, not text")
    if isinstance(value, Integral) and not isinstance(value, bool):
        return int(value)
    return float(value) if isinstance(value, Real) and not isinstance(value, bool) else value


def _several(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


NUMBER = BeforeValidator(_number)
"""Validator for numbers with individual bounds: ``Annotated[int, Field(ge=4), NUMBER]``."""

LARGEST = 2**31 - 1
"""Upper bound of all integers in settings; larger numbers are not meaningful counts."""
LARGEST_SEED = 2**63 - 1
"""A seed that the generators of torch, numpy and Python all accept."""

Number: TypeAlias = Annotated[float, NUMBER]
Count: TypeAlias = Annotated[int, Field(ge=1, le=LARGEST), NUMBER]
Whole: TypeAlias = Annotated[int, Field(ge=0, le=LARGEST), NUMBER]
Seed: TypeAlias = Annotated[int, Field(ge=0, le=LARGEST_SEED), NUMBER]
Positive: TypeAlias = Annotated[float, Field(gt=0), NUMBER]
NotNegative: TypeAlias = Annotated[float, Field(ge=0), NUMBER]
Probability: TypeAlias = Annotated[float, Field(ge=0, le=1), NUMBER]
Fraction: TypeAlias = Annotated[float, Field(ge=0, lt=1), NUMBER]
Share: TypeAlias = Annotated[float, Field(gt=0, le=1), NUMBER]
Dimension: TypeAlias = Literal["depth", "width", "kernel"]
Names: TypeAlias = Annotated[tuple[str, ...], BeforeValidator(_several, json_schema_input_type=str | tuple[str, ...])]
"""A list of names; a single name counts as a list with one entry."""


class _NotInFile:
    """Marks a field that holds an object of the running process."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.with_info_plain_validator_function(_from_python)

    def __get_pydantic_json_schema__(self, *_: Any) -> Any:
        raise PydanticOmit


def _from_python(value: Any, info: ValidationInfo) -> Any:
    if info.context == FILE:
        raise PydanticKnownError("extra_forbidden")
    return value


NotInFile = Annotated[T, _NotInFile(), Field(exclude=True)]
"""A field that can only be set in Python, not in a file."""
