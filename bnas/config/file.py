"""Configuration files: JSON, JSON5 or YAML, with keys set from the command line, and every fault told at once."""

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

# Keys of a configuration that the command line sets: ``bootstrapNAS.search.num_evals=40``.

KEY = re.compile(r"\w+(\[\d+\])*(\.\w+(\[\d+\])*)*")
SEARCH = "bootstrapNAS.search"
PART = re.compile(r"\w+|\[\d+\]")


PLANNED = ("search.num_evals", f"{SEARCH}.num_evals", "fine_tune.epochs")
"""Numbers that a budget decides, beside the epochs of stages."""


def with_changes(data: Any, changes: Sequence[str]) -> Any:
    """`data` with ``KEY=VALUE`` set in order; the value is JSON, or else a string. A section may be null in `data`.

    Where ``num_evals`` is set below the population that `data` has, and that is not set too, it is left out, with a
    warning. A warning names each number that has no effect, since a budget decides it.

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
    """Make a section that is null in the file an empty one, so that a change may add to it."""
    for part in place:
        if not isinstance(data, dict) or part not in data:
            return
        data[part] = {} if data[part] is None else data[part]
        data = data[part]


def _follow(data: Any, places: list[str]) -> None:
    """Fewer evaluations than the file's population are asked for: then it is as if the file said none."""
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
    """Warn of numbers that a budget decides."""
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
        raise ConfigurationError(f"--set {change}", [f"{here} is {short(data)}, which has no keys"])
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
    """Return what errors call a configuration: its file, and what ``--set`` says."""
    return " --set ".join([f"{shown(path)} with" if changes else shown(path), *(shown(one, 80) for one in changes)])


def parse_configuration(data: Any, place: str, folder: Path | None = None) -> Configuration:
    """The configuration in `data`; `place` is named in errors.

    With a `folder`, which the names of files are relative to, its keys are also checked against one another, and
    against what this machine has.

    Raises:
        ConfigurationError: names all keys and values that are wrong, and all that contradict each other.
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
    """What stands in both layouts."""
    given = [key for key in PEER if isinstance(data, dict) and key in data]
    for key in OWN:
        if given and key in data:
            yield f"{key} and {given[0]} (BootstrapNAS's layout) set the same things; give only one of the two"


def _without(data: Any, error: ValidationError) -> Configuration | None:
    """The configuration that is left without what is wrong, so that the rest can be checked; None if nothing is."""
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
    """Take a place out of `data`: of a list all of it, since other entries would move."""
    keys = list(place)
    while keys and (isinstance(keys[-1], int) or not _has(data, keys)):
        keys.pop()  # what is missing makes wrong what it is missing in
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
"""Stands for what a file must have."""
ROUNDS = 9
"""Taking something out may make something else wrong; so often it is looked again."""


def _contradictions(configuration: Configuration, folder: Path, wrong: Sequence[str]) -> Iterator[str]:
    """What the parts of bnas say of settings that are right by themselves, as far as those are not `wrong`."""
    from .settings import checks_of

    for check in checks_of(configuration, folder):
        if any(_overlap(read, one) for read in check.reads for one in wrong):
            continue
        try:
            check.check()
        except BnasError as error:
            yield f"{check.place}: {error}"


def _overlap(one: str, other: str) -> bool:
    """Whether one place is the other, or in it."""
    short, long = sorted((one, other), key=len)
    return not short or long == short or long.startswith((f"{short}.", f"{short}["))
