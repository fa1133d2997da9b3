"""Keys of a configuration that the command line sets: ``bootstrapNAS.search.num_evals=40``."""

from __future__ import annotations

import copy
import json
import re
import warnings
from collections.abc import Sequence
from typing import Any

from bnas.passes.faults import written
from bnas.section import ConfigurationError, ConfigurationWarning

KEY = re.compile(r"\w+(\[\d+\])*(\.\w+(\[\d+\])*)*")
SEARCH = "bootstrapNAS.search"
PART = re.compile(r"\w+|\[\d+\]")


def with_changes(data: Any, changes: Sequence[str]) -> Any:
    """`data` with ``KEY=VALUE`` set in order; the value is JSON, or else a string.

    Where ``num_evals`` is set below the population that `data` has, and that is not set too, it is left out, with a
    warning.

    Raises:
        ConfigurationError: a change has another form, or goes into what is no section or has no such entry.
    """
    data, places = copy.deepcopy(data), list[str]()
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals or not KEY.fullmatch(key):
            raise ConfigurationError(
                f"--set {change}", ["is not KEY=VALUE, with a KEY such as optimizer.base_lr or a[0].b"]
            )
        _set(data, [int(p[1:-1]) if p.startswith("[") else p for p in PART.findall(key)], _value(value), change)
        places.append(key)
    _follow(data, places)
    return data


def _follow(data: Any, places: list[str]) -> None:
    """Fewer evaluations than the file's population are asked for: then it is as if the file said none."""
    for section, home in ((SEARCH, SEARCH), ("search", "search.algorithm")):
        if f"{section}.num_evals" not in places or f"{home}.population" in places:
            continue
        count, inside = _at(data, f"{section}.num_evals"), _at(data, home)
        population = inside.get("population") if isinstance(inside, dict) else None
        if isinstance(population, int) and isinstance(count, int) and population > count:
            del inside["population"]
            told = f"{home}.population {population} is left out: it is larger than the num_evals {count} of --set"
            warnings.warn(f"{told}; --set {home}.population=N sets it", ConfigurationWarning, stacklevel=4)


def _at(data: Any, place: str) -> Any:
    for key in place.split("."):
        data = data.get(key) if isinstance(data, dict) else None
    return data


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _set(data: Any, place: list[str | int], value: Any, change: str) -> None:
    for number, part in enumerate(place):
        _check(data, place[:number], part, change)
        if number == len(place) - 1:
            data[part] = value
        else:
            data = data[part] if isinstance(part, int) else data.setdefault(part, {})


def _check(data: Any, place: list[str | int], part: str | int, change: str) -> None:
    here = written(place) or "the file"
    if isinstance(part, str) and not isinstance(data, dict):
        raise ConfigurationError(f"--set {change}", [f"{here} is {data!r:.80}, which has no keys"])
    if isinstance(part, int) and not isinstance(data, list):
        raise ConfigurationError(f"--set {change}", [f"{here} is {data!r:.80}, which has no entries"])
    if isinstance(part, int) and part >= len(data):
        raise ConfigurationError(f"--set {change}", [f"{here} has {len(data)} entries; the first is [0]"])
