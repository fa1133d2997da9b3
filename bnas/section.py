"""What every section of a configuration has in common: known keys, and other names of them."""

from __future__ import annotations

import warnings
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler, model_validator
from pydantic_core import CoreSchema

from bnas.passes.errors import BnasError


class ConfigurationError(BnasError, ValueError):
    """A configuration cannot be used; names every fault with its place, what came and what is allowed."""

    def __init__(self, place: str, faults: list[str]) -> None:
        many = f"{len(faults)} faults\n  " if len(faults) > 1 else ""
        super().__init__(f"{place}: {many}" + "\n  ".join(faults))
        self.faults = tuple(faults)


class ConfigurationWarning(UserWarning):
    """A key of BootstrapNAS that is known by another name, or that needs nothing here."""


class Section(BaseModel):
    """A part of a configuration: only known keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    other_names: ClassVar[dict[str, str]] = {}
    """Keys that are read as another one."""
    unneeded: ClassVar[dict[str, str]] = {}
    """Keys of BootstrapNAS that say nothing here, each with the warning that it gets."""
    warned: ClassVar[dict[str, str]] = {}
    """Warnings for some of the other names."""
    no_limit: ClassVar[tuple[str, ...]] = ()
    """Keys in which -1 stands for no limit."""
    needed: ClassVar[tuple[str, ...]] = ()
    """Keys without a default, though the class of settings has one."""

    @model_validator(mode="before")
    @classmethod
    def _known_names(cls, data: Any) -> Any:
        """Other names become the known ones; where both are given, the other one stays and is a fault."""
        if not isinstance(data, dict):
            return data
        kept = {key: value for key, value in data.items() if key not in cls.unneeded}
        names = {old: new for old, new in cls.other_names.items() if old in kept and new not in kept}
        for text in (cls.warned.get(key) if key in names else data[key] and cls.unneeded.get(key) for key in data):
            if text:
                warnings.warn(text, ConfigurationWarning, stacklevel=2)
        return {names.get(key, key): value for key, value in kept.items()}

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """The schema with the keys that only some files have, as editors complete from it."""
        schema = handler.resolve_ref_schema(handler(core))
        keys = schema["properties"]
        for old, new in cls.other_names.items():
            keys[old] = {**keys[new], "description": f"Another name of {new}.", "deprecated": True}
        for key, reason in cls.unneeded.items():
            keys[key] = {"description": reason, "deprecated": True}
        return schema
