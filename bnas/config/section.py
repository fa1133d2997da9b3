"""Base classes of the sections of a configuration: known keys, aliases, and keys without effect."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_type_hints

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    TypeAdapter,
    ValidationError,
    create_model,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema

from bnas.passes.errors import BnasError
from bnas.passes.wording import shown


class ConfigurationError(BnasError, ValueError):
    """A configuration has errors; the message lists all of them with place, value and what is allowed."""

    told: ClassVar[int] = 40
    """Number of errors that the message lists; further errors are only counted."""

    def __init__(self, place: str | Path, faults: list[str]) -> None:
        many = f"{len(faults)} faults\n  " if len(faults) > 1 else ""
        more = [f"and {len(faults) - self.told} more"] if len(faults) > self.told else []
        super().__init__(
            f"{shown(place, 300)}: {many}" + "\n  ".join([*(shown(one, 600) for one in faults[: self.told]), *more])
        )
        self.faults = tuple(faults)


class ConfigurationWarning(UserWarning):
    """A key of BootstrapNAS has another name in bnas, or has no effect."""


@dataclass(frozen=True)
class Unneeded:
    """A key of BootstrapNAS that has no effect in bnas."""

    warning: str
    """The warning about the key."""
    kind: TypeAdapter[Any]
    """The values that BootstrapNAS documents for the key."""
    allowed: str
    """These values in words, for the error about another value."""

    def allows(self, value: Any) -> bool:
        """Return whether BootstrapNAS documents this value."""
        try:
            self.kind.validate_python(value, strict=True)
        except ValidationError:
            return False
        return True


class Section(BaseModel):
    """A section of a configuration. Unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    other_names: ClassVar[dict[str, str]] = {}
    """Aliases: other names of keys."""
    unneeded: ClassVar[dict[str, Any]] = {}
    """Keys of BootstrapNAS without effect, as `Unneeded`. Values that BootstrapNAS does not document are errors."""
    warned: ClassVar[dict[str, str]] = {}
    """Warnings for some of the aliases."""
    no_limit: ClassVar[tuple[str, ...]] = ()
    """Keys for which -1 means no limit."""
    needed: ClassVar[tuple[str, ...]] = ()
    """Keys that are required here although their settings class has a default."""
    defaults: ClassVar[Mapping[str, Any]] = {}
    """Defaults that differ from those of the settings class."""

    @model_validator(mode="before")
    @classmethod
    def _known_names(cls, data: Any) -> Any:
        """Rename aliases to their keys. If both are given, the alias stays and is reported as an error."""
        if not isinstance(data, dict):
            return data
        ignored = {key: one for key, one in cls.unneeded.items() if key in data and one.allows(data[key])}
        kept = {key: value for key, value in data.items() if key not in ignored}
        names = {old: new for old, new in cls.other_names.items() if old in kept and new not in kept}
        told = [cls.warned[old] for old in names if old in cls.warned]
        for text in [*told, *(one.warning for key, one in ignored.items() if data[key])]:
            warnings.warn(text, ConfigurationWarning, stacklevel=2)
        return {names.get(key, key): value for key, value in kept.items()}

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Add the keys that only some files have to the schema, for completion in editors."""
        schema = handler.resolve_ref_schema(handler(core))
        keys = schema["properties"]
        for old, new in cls.other_names.items():
            keys[old] = {**keys[new], "description": f"Another name of {new}.", "deprecated": True}
        for key, one in cls.unneeded.items():
            keys[key] = {**one.kind.json_schema(), "description": one.warning, "deprecated": True}
        return schema


# Sections whose keys come from settings classes.

S = TypeVar("S", bound=type[Section])


def takes(settings: type, *names: str, **renamed: str) -> Callable[[S], S]:
    """Add fields of a settings class to a section as keys; those in `renamed` get another name."""
    hints, known = get_type_hints(settings, include_extras=True), settings.__pydantic_fields__  # type: ignore[attr-defined]

    def decorate(section: S) -> S:
        taken = {name: name for name in names} | renamed
        fields: Any = {key: _field(section, key, hints[name], known[name]) for key, name in taken.items()}
        kept: Any = {"__base__": section, "__doc__": section.__doc__, "__module__": section.__module__}
        made: Any = create_model(section.__name__, **kept, __validators__=_checks(settings, set(names)), **fields)
        return made  # type: ignore[no-any-return]

    return decorate


def _field(section: type[Section], key: str, kind: Any, info: FieldInfo) -> tuple[Any, Any]:
    """Turn a field of a settings class into a field of a section."""
    default = ... if key in section.needed else section.defaults.get(key, info.default)
    return _or_no_limit(kind) if key in section.no_limit else kind, Field(default, description=info.description)


def _checks(settings: type, names: set[str]) -> dict[str, Any]:
    """Return the checks of a settings class that also apply to a section with these of its fields."""
    known = settings.__pydantic_decorators__.field_validators  # type: ignore[attr-defined]
    copied = {name: one for name, one in known.items() if set(one.info.fields) <= names}
    return {name: field_validator(*one.info.fields)(_unbound(one.func)) for name, one in copied.items()}


def _unbound(check: Any) -> Any:
    """Return a check without the class to which it may be bound."""
    return classmethod(getattr(check, "__func__", check))


def _or_no_limit(kind: Any) -> Any:
    """Accept -1 for no limit, as BootstrapNAS does."""
    return Annotated[
        kind, BeforeValidator(lambda value: None if value == -1 else value, json_schema_input_type=kind | Literal[-1])
    ]
