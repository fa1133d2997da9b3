"""The keys of a configuration file as tables in Markdown, made from its schema: ``docs/configuration.md`` has them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from bnas.passes.settings import LARGEST, LARGEST_SEED

from .schema import json_schema, sections

EVERYWHERE = (LARGEST, LARGEST_SEED)
"""Bounds that the tables omit: the general upper bounds of integers."""
BOUNDS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}


def tables() -> str:
    """Return a table for each section: key, kind of value, default, example, meaning."""
    whole = json_schema()
    return "\n\n".join(_tables("", whole, whole["$defs"]))


def _tables(place: str, section: dict[str, Any], known: dict[str, Any], chosen: str = "") -> Iterator[str]:
    keys, needed = section["properties"], section.get("required", ())
    rows = [_row(key, one, "needed" if key in needed else _default(one)) for key, one in keys.items()]
    title = f"`{place}`{chosen}" if place else "The first level"
    yield "\n".join([f"### {title}\n", "| key | value | default | example | meaning |", "|---|---|---|---|---|", *rows])
    for key, one in keys.items():
        inner: dict[str, str] = {}
        for name, many in sections(one):
            if known[name].get("properties"):
                inner.setdefault(name, many)  # a section, or a list of this section: described once
        for name, many in inner.items():
            chosen = f" `{json.dumps(known[name]['properties']['name']['const'])}`" if len(inner) > 1 else ""
            yield from _tables(f"{place}.{key}{many}".removeprefix("."), known[name], known, chosen)


def _row(key: str, one: dict[str, Any], default: str) -> str:
    meaning = one.get("description", "see below").replace("``", "`").replace("\n", " ").rstrip(".")
    kind = _kind(one)
    return f"| `{key}` | {kind} | {default} | {_example(one)} | {meaning} |"


def _default(one: dict[str, Any]) -> str:
    default = one.get("default")
    plain = default is not None and default != [] and default != {} and not list(sections(one))
    return f"`{json.dumps(default)}`" if plain else ""


def _example(one: dict[str, Any]) -> str:
    """Return the value in an example file; for a section only a hint, since it has its own table."""
    value = one["examples"][0]
    if not any(sections(one)):
        return f"`{json.dumps(value)}`"
    return "`[{...}]`" if isinstance(value, list) else "`{...}`"


def _kind(one: dict[str, Any]) -> str:
    if "$ref" in one:
        return "section"
    if "const" in one or "enum" in one:
        return ", ".join(f"`{json.dumps(value)}`" for value in one.get("enum", [one.get("const")]))
    if "anyOf" in one:
        return " or ".join(dict.fromkeys(_kind(kind) for kind in one["anyOf"] if kind.get("type") != "null"))
    if one.get("type") == "array":
        entries = one.get("prefixItems") or [one["items"]]
        return f"list of {' and '.join(dict.fromkeys(map(_kind, entries)))}"
    if one.get("type") == "object":
        return "mapping"
    bounds = [f"{sign} {one[name]:g}" for name, sign in BOUNDS.items() if one.get(name, LARGEST) not in EVERYWHERE]
    return " ".join([one.get("type", "anything"), ", ".join(bounds)]).strip()
