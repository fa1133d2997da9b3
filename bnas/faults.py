"""What is wrong with a configuration, in words: the place in the file, what came, what is allowed."""

from __future__ import annotations

import difflib
import re
import reprlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import ValidationError

from bnas.section import Section

SHOULD = re.compile(r"^(Input|Tuple|List|Dictionary|String|Value) should ")


def faults(error: ValidationError, root: type[Section], data: Any) -> list[str]:
    """One text for each wrong place of `data`, which is not a `root`."""
    reasons: dict[Found, list[dict[str, Any]]] = {}
    for one in error.errors(include_url=False):
        if one["type"] == "too_short" and len(one["input"]) >= one["ctx"]["min_length"]:
            continue  # its entries are at fault, which have errors of their own
        reasons.setdefault(_find(one["loc"], data, root), []).append(dict(one))
    return [_told(found, several, root) for found, several in reasons.items()]


def written(place: Sequence[str | int]) -> str:
    """A place as it is written: ``("a", "b", 2)`` is ``a.b[2]``."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).removeprefix(".")


def sections(section: type[Section], place: tuple[str | int, ...] = ()) -> Iterator[tuple[str, type[Section]]]:
    """`section` and all in it, each with its place; entries of a list are ``[n]``."""
    yield written(place), section
    for name, info in section.model_fields.items():
        inner = section_in(info.annotation)
        if inner is not None:
            many = "[n]" if "tuple" in str(info.annotation) else ""
            yield from sections(inner, (*place, name + many))


def section_in(annotation: Any) -> type[Section] | None:
    """The section that a value of this type is or has entries of."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next(filter(None, map(section_in, get_args(annotation))), None)


@dataclass(frozen=True)
class Found:
    """A wrong place."""

    place: tuple[str | int, ...]
    """As the file has it: not as pydantic does, which names kinds of values too."""
    section: type[Section]
    """The one that the last key is of."""

    @property
    def key(self) -> str:
        """The last key."""
        return next((part for part in reversed(self.place) if isinstance(part, str)), "")


def _find(loc: Sequence[str | int], data: Any, section: type[Section]) -> Found:
    place: list[str | int] = []
    inside: type[Section] | None = section
    for part in loc:
        if (
            isinstance(part, str) and isinstance(data, list) and len(data) == 1 and isinstance(data[0], dict)
        ):  # one entry where a list is allowed
            place, data = [*place, 0], data[0]
        if isinstance(part, str) and isinstance(data, dict):
            section = inside or section
            part = _as_given(part, section, data)
            if part not in data and part not in section.model_fields:
                break  # not a key: pydantic's name for a kind of value
            info = section.model_fields.get(section.other_names.get(part, part))
            inside = section_in(info.annotation) if info is not None else None
            data = data.get(part)
        elif isinstance(part, int) and isinstance(data, list | tuple) and part < len(data):
            data = data[part]
        elif part == 0 and place and not isinstance(data, list | tuple):
            continue  # one value where a list is allowed
        else:
            break
        place.append(part)
    return Found(tuple(place), section)


def _as_given(key: str, section: type[Section], data: dict[str, Any]) -> str:
    """The name that the file has for a key."""
    others = [old for old, new in section.other_names.items() if new == key and old in data]
    return others[0] if others and key not in data else key


def _told(found: Found, errors: list[dict[str, Any]], root: type[Section]) -> str:
    place, kinds = written(found.place) or "the file", {one["type"] for one in errors}
    if kinds == {"extra_forbidden"}:
        return f"{place} {_unknown(found, root)}"
    if kinds == {"missing"} and found.key in found.section.model_fields and isinstance(found.place[-1], str):
        info = found.section.model_fields[found.key]
        return f"{place} is missing; {(info.description or 'a section').replace('`', '').rstrip('.')}"
    allowed = " or ".join(dict.fromkeys(_allowed(one) for one in errors))
    return f"{place} is {_short(errors[0]['input'])}: {allowed}"


def _allowed(error: dict[str, Any]) -> str:
    if error["type"] == "missing":
        return "too short"
    text = SHOULD.sub("must ", error["msg"].removeprefix("Value error, "))
    text = re.sub(" after validation, not .*", "", text)
    if error["type"] == "model_type":
        return "must be a mapping of keys"
    if error["type"] == "literal_error" and isinstance(error["input"], str):
        near = difflib.get_close_matches(error["input"], re.findall("'([^']*)'", error["ctx"]["expected"]), n=1)
        return text + (f"; did you mean {near[0]!r}?" if near else "")
    return text


def _unknown(found: Found, root: type[Section]) -> str:
    key, section = found.key, found.section
    if key in section.other_names:
        return f"is given twice: {key} is another name of {section.other_names[key]}; give one of them"
    near = difflib.get_close_matches(key, [*section.model_fields, *section.other_names], n=1)
    if near:
        return f"is not a key of bnas; did you mean {near[0]!r}?"
    homes = [place or "the first level" for place, other in sections(root) if key in other.model_fields]
    if homes:
        return f"is not a key of bnas; {key!r} belongs to {' or '.join(homes)}"
    return f"is not a key of bnas; there are {', '.join(section.model_fields) or 'none here'}"


def _short(value: Any) -> str:
    short = reprlib.Repr()
    short.maxstring = short.maxother = 80
    return short.repr(value)
