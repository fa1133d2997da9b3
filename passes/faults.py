"""Messages about wrong settings: the place, the given value, and the allowed values; the same in Python and files."""

from __future__ import annotations

import difflib
import re
import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from .wording import shown

SHOULD = re.compile(r"^(Input|Tuple|List|Dictionary|String|Value) should ")
PLAIN = re.compile(r"[^\s'\"]+")
LONGEST = 80
"""Largest number of characters of a key or text in a message."""
UNKNOWN = {"extra_forbidden", "unexpected_keyword_argument"}
"""Pydantic's error type for an unknown key."""


def faults(error: ValidationError, root: type, data: Any) -> list[str]:
    """Return a message for each wrong place of `data`, which failed the validation as a `root`."""
    reasons: dict[Found, list[dict[str, Any]]] = {}
    for one in error.errors(include_url=False):
        if one["type"] == "default_factory_not_called":
            continue  # other fields are wrong
        if one["type"] == "too_short" and len(one["input"]) >= one["ctx"]["min_length"]:
            continue  # its entries are wrong and have their own errors
        reasons.setdefault(_find(one["loc"], data, root), []).append(dict(one))
    return list(_merged(_told(found, several, root) for found, several in reasons.items()))


LISTED = "; there are "
"""What follows in a message is the list of all known keys."""


def _merged(messages: Iterable[str]) -> Iterator[str]:
    """Yield the messages; several unknown keys of one section share a message, since the list of known keys is long."""
    alike: dict[str, list[str]] = {}
    for one in messages:
        alike.setdefault(one.partition(LISTED)[2] or one, []).append(one)
    for known, several in alike.items():
        if len(several) == 1:
            yield several[0]
            continue
        places = [one.partition(" is not ")[0] for one in several]
        noun, _, of = several[0].partition(LISTED)[0].partition(" is not a ")[2].partition(" ")
        yield f"{', '.join(places[:-1])} and {places[-1]} are not {noun}s {of}{LISTED}{known}"


def places(error: ValidationError, root: type, data: Any, *, unknown: bool = True) -> list[tuple[str | int, ...]]:
    """Return the wrong places of `data`, in the spelling of the data; without `unknown`, unknown keys are omitted."""
    every = error.errors(include_url=False)
    return [_find(one["loc"], data, root).place for one in every if unknown or one["type"] not in UNKNOWN]


def written(place: Sequence[str | int]) -> str:
    """Write a place: ``("a", "b", 2)`` is ``a.b[2]``; a key that is no word is in quotes."""
    return "".join(map(_step, place)).removeprefix(".")


def _step(part: str | int) -> str:
    if isinstance(part, int):
        return f"[{part}]"
    return f".{part}" if len(part) <= LONGEST and PLAIN.fullmatch(part) and part.isprintable() else f".{short(part)}"


def fields_of(section: type) -> Mapping[str, FieldInfo]:
    """Return the fields of a pydantic model or dataclass that a file can have, by name."""
    known: Mapping[str, FieldInfo] = getattr(section, "__pydantic_fields__", {})
    return {name: info for name, info in known.items() if not info.exclude}


def other_names(section: type) -> Mapping[str, str]:
    """Return the aliases of keys in `section`."""
    names: Mapping[str, str] = getattr(section, "other_names", {})
    return names


def sections(section: type, place: tuple[str | int, ...] = ()) -> Iterator[tuple[str, type]]:
    """Return `section` and all sections in it, each with its place; entries of a list are ``[n]``."""
    yield written(place), section
    for name, info in fields_of(section).items():
        many = "[n]" if "tuple" in str(info.annotation) else ""
        for inner in sections_in(info.annotation):
            yield from sections(inner, (*place, name + many))


def sections_in(annotation: Any) -> list[type]:
    """Return the sections that a value of this type can be, or can have as entries."""
    if isinstance(annotation, type) and (is_dataclass(annotation) or issubclass(annotation, BaseModel)):
        return [annotation]
    return list(dict.fromkeys(one for inner in get_args(annotation) for one in sections_in(inner)))


@dataclass(frozen=True)
class Found:
    """A wrong place."""

    place: tuple[str | int, ...]
    """The place in the data. (Pydantic's place also has names of types.)"""
    section: type
    """The section that has the last key."""

    @property
    def key(self) -> str:
        """The last key."""
        return next((part for part in reversed(self.place) if isinstance(part, str)), "")


def _find(loc: Sequence[str | int], data: Any, section: type) -> Found:
    place: list[str | int] = []
    inside: list[type] = [section]
    for part in loc:
        if isinstance(part, int) and isinstance(data, dict) and not place:
            part = [*data][part]  # an argument by its position
        if (
            isinstance(part, str) and isinstance(data, list) and len(data) == 1 and isinstance(data[0], dict)
        ):  # one entry where a list is allowed
            place, data = [*place, 0], data[0]
        if isinstance(part, str) and isinstance(data, dict):
            if (chosen := _named(inside, part)) is not None:
                inside = [chosen]  # pydantic's name for one of several sections
                continue
            section = inside[0] if inside else section
            part = _as_given(part, section, data)
            if part not in data and part not in fields_of(section):
                break  # not a key: pydantic's name for a kind of value
            info = fields_of(section).get(other_names(section).get(part, part))
            inside = sections_in(info.annotation) if info is not None else []
            data = data.get(part)
        elif isinstance(part, int) and isinstance(data, list | tuple) and part < len(data):
            data = data[part]
        elif part == 0 and place and not isinstance(data, list | tuple):
            continue  # one value where a list is allowed
        else:
            break
        place.append(part)
    return Found(tuple(place), section)


def _named(inside: Sequence[type], name: str) -> type | None:
    """Return the section of several that is chosen by its ``name``."""
    if len(inside) < 2:
        return None
    return next((one for one in inside if getattr(fields_of(one).get("name"), "default", None) == name), None)


def _as_given(key: str, section: type, data: dict[str, Any]) -> str:
    """Return the name that the data have for a key."""
    others = [old for old, new in other_names(section).items() if new == key and old in data]
    return others[0] if others and key not in data else key


def _told(found: Found, errors: list[dict[str, Any]], root: type) -> str:
    place, kinds = written(found.place) or "the file", {one["type"] for one in errors}
    ignored: Mapping[str, Any] = getattr(found.section, "unneeded", {})
    if kinds <= UNKNOWN and found.key in ignored:
        return f"{place} is {short(errors[0]['input'])}: {ignored[found.key].allowed}"
    if kinds <= UNKNOWN:
        return f"{place} {_unknown(found, root)}"
    known = fields_of(found.section)
    if kinds == {"missing"} and found.key in known and isinstance(found.place[-1], str):
        return f"{place} is missing; {(known[found.key].description or 'a section').replace('`', '').rstrip('.')}"
    if kinds == {"union_tag_invalid"}:
        return f"{place} is {short(errors[0]['ctx']['tag'])}: {_tags(errors[0]['ctx'])}"
    allowed = " or ".join(dict.fromkeys(_allowed(one) for one in errors))
    return f"{place} is {short(errors[0]['input'])}: {allowed}"


def _allowed(error: dict[str, Any]) -> str:
    if error["type"] == "missing":
        return "too short"
    if error["type"] in ("model_type", "dataclass_type"):
        return "must be a mapping of keys"
    if error["type"] == "union_tag_not_found":
        return "must have a name"
    text = SHOULD.sub("must ", error["msg"].removeprefix("Value error, "))
    text = re.sub(" after validation, not .*", "", text)
    if error["type"] == "literal_error" and isinstance(error["input"], str):
        near = difflib.get_close_matches(
            error["input"][:LONGEST], re.findall("'([^']*)'", error["ctx"]["expected"]), n=1
        )
        return text + (f"; did you mean {near[0]!r}?" if near else "")
    return text


def _tags(context: Mapping[str, str]) -> str:
    """Return the allowed names, and the one that was probably meant."""
    known = re.findall("'([^']*)'", context["expected_tags"])
    near = difflib.get_close_matches(str(context["tag"])[:LONGEST], known, n=1)
    allowed = f"must be {', '.join(map(repr, known[:-1]))} or {known[-1]!r}"
    return allowed + (f"; did you mean {near[0]!r}?" if near else "")


def _unknown(found: Found, root: type) -> str:
    key, section, known = found.key, found.section, fields_of(found.section)
    kind = "a key of bnas" if issubclass(root, BaseModel) else f"a setting of {section.__name__}"
    if key in other_names(section):
        return f"is given twice: {key} is another name of {other_names(section)[key]}; give one of them"
    near = difflib.get_close_matches(key[:LONGEST], [*known, *other_names(section)], n=1)
    if near:
        return f"is not {kind}; did you mean {near[0]!r}?"
    homes = [place or "the first level" for place, other in sections(root) if key in fields_of(other)]
    homes = [home for home in homes if home.startswith(str(found.place[0]))] or homes  # of the same layout
    if homes:
        return f"is not {kind}; {key!r} belongs to {' or '.join(dict.fromkeys(homes))}"
    return f"is not {kind}{LISTED}{', '.join(known) or 'none here'}"


def short(value: Any) -> str:
    """Return a value in few words: ``[1, 2, 3, ...]``."""
    made = reprlib.Repr()
    made.maxstring = made.maxother = made.maxlong = LONGEST
    return shown(made.repr(value), 2 * LONGEST)
