"""Parse configuration files in JSON, JSON5 or YAML, restricted to JSON's values and to a reasonable size."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from bnas.passes.faults import short, written
from bnas.passes.wording import count

from .section import ConfigurationError

# Parsing text. Plain JSON is parsed in C; a million characters of YAML or JSON5 take up to half a minute.

LARGEST, LARGEST_BY_HAND = 4_000_000, 100_000
"""Largest size of a file in bytes, and of YAML and JSON5 text in characters."""
WRITES_ONE = "`bnas init` writes one"
DIGITS = 40
"""Largest number of digits."""


def read_file(path: Path) -> Any:
    """Return the data in a file, whose name ends in one of `FORMATS`.

    Raises:
        ConfigurationError: The file is missing, too large, not text, has a syntax error (with line and column), or
            contains a value that a configuration cannot have.
    """
    if path.is_dir():
        raise ConfigurationError(path, [f"is a folder; give a configuration file ({WRITES_ONE})"])
    if path.suffix not in FORMATS:
        raise ConfigurationError(path, [f"the ending {short(path.suffix)} is not one of {', '.join(FORMATS)}"])
    try:
        return plain(FORMATS[path.suffix](_text(path)))
    except FileNotFoundError:
        raise ConfigurationError(path, [f"there is no such configuration file ({WRITES_ONE})"]) from None
    except OSError as error:
        raise ConfigurationError(path, [f"cannot be read: {error.strerror}"]) from None
    except RecursionError:
        raise ConfigurationError(path, [TOO_DEEP]) from None
    except ValueError as error:
        raise ConfigurationError(path, [str(error)]) from None


def _text(path: Path) -> str:
    if "\0" in str(path):
        raise ValueError("is not a valid file name: it has a NUL character")
    with path.open("rb") as file:
        data = file.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise ValueError(f"is too large for a configuration: more than {count(LARGEST)} bytes")
    if not data.strip():
        raise ValueError(f"is empty ({WRITES_ONE})")
    try:
        return data.decode("utf-8-sig")  # skips the byte order mark of editors on Windows
    except UnicodeDecodeError as error:
        raise ValueError(f"is not valid UTF-8 text: see byte {count(error.start)}, line {_line(data, error)}") from None


def _line(data: bytes, error: UnicodeDecodeError) -> int:
    return data.count(b"\n", 0, error.start) + 1


JSON5_FAULT = re.compile(r"<string>:(\d+) (.*?)(?: at)? column (\d+)", re.DOTALL)


def json_value(text: str) -> Any:
    """Return the value of a JSON text.

    Raises:
        ValueError: The text is not JSON, has a duplicate key, or a number with more than `DIGITS` digits.
        RecursionError: The text is nested too deep.
    """
    return json.loads(text, object_pairs_hook=_once, parse_int=_whole)


def _json(text: str) -> Any:
    """BootstrapNAS allows comments in ``.json`` files too."""
    try:
        return json_value(text)
    except _Unusable:
        raise
    except ValueError:
        return _json5(text)


class _Unusable(ValueError):
    """The text has something that JSON allows and a configuration does not."""


def _json5(text: str) -> Any:
    import json5

    _check_length(text)
    try:
        return json5.loads(text, object_pairs_hook=_once, parse_int=_whole)
    except _Unusable:
        raise
    except ValueError as error:
        found = JSON5_FAULT.fullmatch(str(error))
        told = f"line {found[1]}, column {found[3]}: {found[2]}" if found else str(error)
        raise ValueError(f"is not valid JSON: {told}") from None


def _check_length(text: str) -> None:
    if len(text) > LARGEST_BY_HAND:
        told = f"is too large: YAML and JSON5 files may have {count(LARGEST_BY_HAND)} characters"
        raise ValueError(f"{told}; write it as plain JSON, without comments")


def _once(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    entries = list(pairs)
    made = dict(entries)
    if len(made) < len(entries):
        keys = [key for key, _ in entries]
        raise _Unusable(f"the key {short(next(key for key in keys if keys.count(key) > 1))} appears twice in a mapping")
    return made


def _whole(text: str, base: int = 10) -> int:
    if len(text) > DIGITS:
        raise _Unusable(f"the number {short(text)} has {count(len(text))} digits; allowed are {DIGITS}")
    return int(text, base)


def _yaml(text: str) -> Any:
    import yaml

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        """Refuses duplicate keys, and reports the place of each invalid value."""

        depth = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            self.depth += 1
            if self.depth > DEEPEST:
                raise RecursionError
            node = super().compose_node(parent, index)
            self.depth -= 1
            return node

        def compose_mapping_node(self, anchor: Any) -> Any:
            node, seen = super().compose_mapping_node(anchor), set()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode) and (key.tag, key.value) in seen:
                    raise yaml.MarkedYAMLError(problem="the key appears twice", problem_mark=key.start_mark)
                seen.add((key.tag, key.value if isinstance(key, yaml.ScalarNode) else id(key)))
            return node

        def construct_object(self, node: Any, deep: bool = False) -> Any:
            try:
                return super().construct_object(node, deep)
            except (yaml.YAMLError, RecursionError):
                raise
            except Exception:
                told = f"{short(node.value)} cannot be read as {node.tag.rpartition(':')[2]}"
                raise yaml.MarkedYAMLError(problem=told, problem_mark=node.start_mark) from None

    _check_length(text)
    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        told = f"line {mark.line + 1}, column {mark.column + 1}: {problem}" if mark else str(error).split("\n")[0]
        raise ValueError(f"is not valid YAML: {told}") from None


FORMATS: dict[str, Callable[[str], Any]] = {".json": _json, ".json5": _json, ".yaml": _yaml, ".yml": _yaml}

# The values that a configuration can have in all formats. YAML also has dates, sets and values that contain themselves.

HALF = re.compile("[\ud800-\udfff]")
"""One half of a surrogate pair of UTF-16."""
DEEPEST, MOST = 30, 200_000
"""Largest depth of nesting, and number of values; the largest configuration of bnas has 9 levels."""
TOO_DEEP = f"is nested too deep; allowed are {DEEPEST} levels"


def plain(data: Any) -> Any:
    """Return a copy of `data` without shared parts, in which integer keys are text.

    Raises:
        ValueError: The data are nested deeper than `DEEPEST`, have more than `MOST` values, a text with a NUL character
            or half a surrogate pair, or a value that JSON does not have. The message has the place.
    """
    return _plain(data, (), [MOST])


def _plain(value: Any, place: tuple[str | int, ...], left: list[int]) -> Any:
    left[0] -= 1
    if left[0] < 0:
        raise ValueError(f"has more than {count(MOST)} values")
    if len(place) > DEEPEST:
        raise ValueError(f"{written(place[:3])} {TOO_DEEP}")
    if isinstance(value, dict):
        return {_key(key, place): _plain(one, (*place, _key(key, place)), left) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one, (*place, number), left) for number, one in enumerate(value)]
    if not isinstance(value, str | int | float | None):
        allowed = "allowed are text, numbers, true, false, null, lists and mappings"
        raise ValueError(f"{_here(place)} is {short(value)}, a {type(value).__name__}; {allowed}")
    if isinstance(value, str):
        _check_text(value, place)
    return value


def _key(key: Any, place: Sequence[str | int]) -> str:
    if isinstance(key, bool) or not isinstance(key, str | int):
        raise ValueError(f"{_here(place)} has the key {short(key)}; keys must be text")
    _check_text(str(key), place)
    return str(key)


def _check_text(text: str, place: Sequence[str | int]) -> None:
    if "\0" in text or (not text.isprintable() and HALF.search(text)):
        raise ValueError(
            f"{_here(place)} has the text {short(text)}; text must not contain NUL or half of a surrogate pair"
        )


def _here(place: Sequence[str | int]) -> str:
    return written(place) or "the file"
