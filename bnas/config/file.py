"""Read configuration files (JSON, JSON5 or YAML) with changes from the command line; report all errors together."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bnas.passes.errors import BnasError
from bnas.passes.faults import faults, places, short, written
from bnas.passes.settings import FILE
from bnas.passes.wording import shown

from .configuration import OWN, PEER, Configuration
from .formats import TOO_DEEP, json_value, plain, read_file
from .section import ConfigurationError, ConfigurationWarning

# Changes from the command line, such as ``bootstrapNAS.search.num_evals=40``.

KEY = re.compile(r"\w+(\[\d+\])*(\.\w+(\[\d+\])*)*")
SEARCH = "bootstrapNAS.search"
PART = re.compile(r"\w+|\[\d+\]")


PLANNED = ("search.num_evals", f"{SEARCH}.num_evals", "fine_tune.epochs")
"""Settings that a budget determines, besides the epochs of stages."""


def with_changes(data: Any, changes: Sequence[str]) -> Any:
    """Return `data` after applying changes ``KEY=VALUE`` in order. A value is JSON or, if it is not valid JSON, a text.

    If ``num_evals`` is set below the population in `data`, and the changes do not set the population, the population is
    dropped with a warning. A warning also names each changed number that has no effect because of a budget.

    Raises:
        ConfigurationError: A change has another form, or its place is not in a section or list of `data`.
    """
    data, places = copy.deepcopy(data), list[str]()
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals or not KEY.fullmatch(key):
            raise ConfigurationError(
                f"--set {change}", ["is not KEY=VALUE, with a KEY such as optimizer.base_lr or a[0].b"]
            )
        places.append(key)
    for key in places:
        _begin_sections(data, key.split(".")[:-1])
    for change in changes:
        key, _, value = change.partition("=")
        _set(data, [int(p[1:-1]) if p.startswith("[") else p for p in PART.findall(key)], _value(value, change), change)
    _follow(data, places)
    _tell_planned(data, places)
    return data


def _begin_sections(data: Any, place: list[str]) -> None:
    """Replace a section that is null by an empty one, so that a change can add to it."""
    for part in place:
        if not isinstance(data, dict) or part not in data:
            return
        data[part] = {} if data[part] is None else data[part]
        data = data[part]


def _follow(data: Any, places: list[str]) -> None:
    """Drop the file's population if the changes ask for fewer evaluations."""
    for section, home in ((SEARCH, SEARCH), ("search", "search.algorithm")):
        if f"{section}.num_evals" not in places or f"{home}.population" in places:
            continue
        count, inside = _at(data, f"{section}.num_evals"), _at(data, home)
        population = inside.get("population") if isinstance(inside, dict) else None
        if isinstance(population, int) and isinstance(count, int) and population > count:
            del inside["population"]
            told = f"{home}.population {population} is ignored: it is larger than num_evals={count} of --set"
            warnings.warn(f"{told}; to set it, use --set {home}.population=N", ConfigurationWarning, stacklevel=4)


def _tell_planned(data: Any, places: list[str]) -> None:
    """Warn of changed numbers that a budget determines."""
    budget = data.get("budget") if isinstance(data, dict) else None
    for place in places if budget is not None else ():
        if place in PLANNED or (place.startswith("stages") and place.endswith("epochs")):
            told = f"{place} of --set has no effect: the budget of {shown(budget)} decides it"
            remedy = "to decide it yourself, begin a run without a budget (budget=null)"
            warnings.warn(f"{told}; {remedy}", ConfigurationWarning, stacklevel=4)


def _at(data: Any, place: str) -> Any:
    for key in place.split("."):
        data = data.get(key) if isinstance(data, dict) else None
    return data


def _value(text: str, change: str) -> Any:
    try:
        return json_value(text)
    except ValueError:
        return text
    except RecursionError:
        raise ConfigurationError(f"--set {change}", [TOO_DEEP]) from None


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
        entry = f"; write {here}[{part}] for an entry" if isinstance(data, list) and part.isdigit() else ""
        raise ConfigurationError(f"--set {change}", [f"{here} is {short(data)}, which has no keys{entry}"])
    if isinstance(part, int) and not isinstance(data, list):
        raise ConfigurationError(f"--set {change}", [f"{here} is {short(data)}, which has no entries"])
    if isinstance(part, int) and part >= len(data):
        raise ConfigurationError(f"--set {change}", [f"{here} has {len(data)} entries; the first is [0]"])


def load_config(path: str | Path, changes: Sequence[str] = ()) -> Configuration:
    """Read the configuration file `path`: ``.json`` or ``.json5`` (comments, trailing commas), ``.yaml`` or ``.yml``.

    Args:
        path: the file; file names in it are relative to its folder.
        changes: ``KEY=VALUE``, in order, such as ``bootstrapNAS.search.num_evals=40``.

    Raises:
        ConfigurationError: the file is missing or has a syntax error (with line and column); or keys or values are
            wrong or contradict each other (the message lists all of them).
    """
    path = Path(path)
    return parse_configuration(with_changes(read_file(path), changes), place_of(path, changes), path.parent)


def place_of(path: Path, changes: Sequence[str] = ()) -> str:
    """Return the name of a configuration in error messages: its file, and the changes of ``--set``."""
    return " --set ".join([f"{shown(path)} with" if changes else shown(path), *(shown(one, 80) for one in changes)])


def parse_configuration(data: Any, place: str, folder: Path | None = None) -> Configuration:
    """Return the configuration in `data`; `place` names it in errors.

    With a `folder`, to which file names are relative, keys are also checked against each other and against the devices
    and libraries of this machine.

    Raises:
        ConfigurationError: The message lists all wrong keys and values, and all contradictions.
    """
    try:
        data = plain(data)
    except ValueError as error:
        raise ConfigurationError(place, [str(error)]) from None
    told, wrong = list(_beside(data)), list[tuple[str | int, ...]]()
    found: Configuration | None
    try:
        found = Configuration.model_validate(data, context=FILE)
    except ValidationError as error:
        told += faults(error, Configuration, data)
        wrong, found = places(error, Configuration, data, unknown=False), _without(data, error)
    if folder is not None and found is not None:
        told += _contradictions(found, folder, ["" if not one else written(one) for one in wrong])
    if told or found is None:
        raise ConfigurationError(place, told)
    return found


def _beside(data: Any) -> Iterator[str]:
    """Yield an error for each key that is given in both layouts."""
    given = [key for key in PEER if isinstance(data, dict) and key in data]
    for key in OWN:
        if given and key in data and key == "metric":
            yield (
                f"metric and {given[0]}: BootstrapNAS's layout searches for accuracy only; write its settings as "
                "elasticity, stages, recipe and search, or remove metric"
            )
        elif given and key in data:
            yield f"{key} and {given[0]} (BootstrapNAS's layout) set the same things; give only one of the two"


def _without(data: Any, error: ValidationError) -> Configuration | None:
    """Return the configuration without its wrong parts, so that the rest can be checked; None if nothing is left."""
    left = {**SMALLEST, **copy.deepcopy(data)} if isinstance(data, dict) else None
    for _ in range(ROUNDS):
        if left is None:
            return None
        for place in places(error, Configuration, left):
            _drop(left, place)
        left = {**SMALLEST, **left}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConfigurationWarning)
            try:
                return Configuration.model_validate(left, context=FILE)
            except ValidationError as other:
                error = other
    return None


def _drop(data: Any, place: Sequence[str | int]) -> None:
    """Remove a place from `data`. From a list, remove the whole list, because later entries would move."""
    keys = list(place)
    while keys and (isinstance(keys[-1], int) or not _has(data, keys)):
        keys.pop()  # a missing key makes its whole section wrong
    if keys:
        inside = data
        for key in keys[:-1]:
            inside = inside[key]
        del inside[keys[-1]]


def _has(data: Any, place: Sequence[str | int]) -> bool:
    for key in place:
        try:
            data = data[key]
        except (KeyError, IndexError, TypeError):
            return False
    return True


SMALLEST = {"model": "", "data": "", "input_info": {"sample_size": [1]}}
"""Placeholders for required keys."""
ROUNDS = 9
"""Number of passes: removing a wrong part may make another part wrong."""


def _contradictions(configuration: Configuration, folder: Path, wrong: Sequence[str]) -> Iterator[str]:
    """Yield the contradictions between settings that are valid by themselves, except for places in `wrong`."""
    from .settings import checks_of

    for check in checks_of(configuration, folder):
        if any(_overlap(read, one) for read in check.reads for one in wrong):
            continue
        try:
            check.check()
        except BnasError as error:
            yield f"{check.place}: {error}"


def _overlap(one: str, other: str) -> bool:
    """Whether two places are equal or one contains the other."""
    short, long = sorted((one, other), key=len)
    return not short or long == short or long.startswith((f"{short}.", f"{short}["))
