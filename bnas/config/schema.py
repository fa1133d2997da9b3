"""The JSON schema of a configuration file, with an example for each key.

The examples are whole files, in the folder ``examples``, so their values are valid together. Several files are needed,
since some keys exclude each other.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import resources
from typing import Any

from .configuration import Configuration


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of a configuration file; each key has the value of an example file under "examples"."""
    dialect = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    schema = dialect | Configuration.model_json_schema()
    _add_examples(schema, list(examples().values()), schema["$defs"])
    return schema


def examples() -> dict[str, dict[str, Any]]:
    """Return the example files by name, as plain data."""
    files = resources.files("bnas.config").joinpath("examples").iterdir()
    texts = {one.name: one.read_text(encoding="utf-8") for one in files}
    return {name: json.loads(texts[name]) for name in sorted(texts, key=_order)}


def _order(name: str) -> tuple[bool, str]:
    """Files in bnas's own layout come first."""
    return name.startswith("bootstrapnas"), name


def _add_examples(section: dict[str, Any], found: list[dict[str, Any]], known: dict[str, Any]) -> None:
    """Give each key of a section its first value in `found`, the examples of this section."""
    for key, one in section["properties"].items():
        values = [part[key] for part in found if key in part]
        if values:
            one.setdefault("examples", values[:1])
        named = one.get("additionalProperties")  # sections with names of the user's choice
        inner = [part for value in values for part in _parts(value, isinstance(named, dict))]
        for name, _ in sections(named if isinstance(named, dict) else one):
            parts = [part for part in inner if isinstance(part, dict) and _is_of(part, known[name])]
            if known[name].get("properties"):
                _add_examples(known[name], parts, known)


def _parts(value: Any, named: bool) -> list[Any]:
    if named:
        return list(value.values())
    return value if isinstance(value, list) else [value]


def _is_of(part: dict[str, Any], section: dict[str, Any]) -> bool:
    """Whether an example belongs to a section that its ``name`` selects, such as a search algorithm."""
    name = section.get("properties", {}).get("name", {}).get("const")
    return name is None or part.get("name") == name


def sections(one: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the names of sections in the schema of a value, each with ``[n]`` if it is an entry of a list."""
    if "$ref" in one:
        yield one["$ref"].rpartition("/")[2], ""
    for kind in one.get("anyOf", ()):
        yield from sections(kind)
    if isinstance(one.get("items"), dict):
        yield from ((name, "[n]") for name, _ in sections(one["items"]))
