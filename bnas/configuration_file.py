"""Configuration files: JSON, JSON5 or YAML, with keys set from the command line, and every fault told at once."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bnas.configuration import OWN, PEER, Configuration
from bnas.overrides import with_changes
from bnas.passes.errors import BnasError
from bnas.passes.faults import faults, places, written
from bnas.passes.settings import FILE
from bnas.section import ConfigurationError, ConfigurationWarning


def load_config(path: str | Path, changes: Sequence[str] = ()) -> Configuration:
    """The configuration in the file `path`: ``.json`` or ``.json5`` (comments, trailing commas), ``.yaml`` or ``.yml``.

    Args:
        path: the file; the files that it names are relative to its folder.
        changes: ``KEY=VALUE``, in order, such as ``bootstrapNAS.search.num_evals=40``.

    Raises:
        ConfigurationError: the file is missing or has a fault of syntax, with line and column; or names all keys and
            values that are wrong, and all that contradict each other.
    """
    path = Path(path)
    place = f"{path} with --set {' --set '.join(changes)}" if changes else str(path)
    return parse_configuration(with_changes(_read(path), changes), place, path.parent)


def parse_configuration(data: Any, place: str, folder: Path | None = None) -> Configuration:
    """The configuration in `data`; `place` is named in errors.

    With a `folder`, which the names of files are relative to, its keys are also checked against one another, and
    against what this machine has.

    Raises:
        ConfigurationError: names all keys and values that are wrong, and all that contradict each other.
    """
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
            yield f"{key} stands beside {given[0]}, which is BootstrapNAS's layout of the same; give one of the two"


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


def _read(path: Path) -> Any:
    if path.suffix not in FORMATS:
        raise ConfigurationError(str(path), [f"the ending {path.suffix!r} is none of {', '.join(FORMATS)}"])
    try:
        return FORMATS[path.suffix](path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigurationError(str(path), ["there is no such configuration file"]) from None
    except OSError as error:
        raise ConfigurationError(str(path), [f"cannot be read: {error.strerror}"]) from None
    except ValueError as error:
        raise ConfigurationError(str(path), [str(error)]) from None


JSON5_FAULT = re.compile(r"<string>:(\d+) (.*?)(?: at)? column (\d+)", re.DOTALL)


def _json(text: str) -> Any:
    """BootstrapNAS allows comments in ``.json`` files too."""
    import json5

    try:
        return json5.loads(text, allow_duplicate_keys=False)
    except ValueError as error:
        found = JSON5_FAULT.fullmatch(str(error))
        told = f"line {found[1]}, column {found[3]}: {found[2]}" if found else str(error)
        raise ValueError(f"is no JSON: {told}") from None


def _yaml(text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        told = f"line {mark.line + 1}, column {mark.column + 1}: {problem}" if mark else str(error)
        raise ValueError(f"is no YAML: {told}") from None


FORMATS: dict[str, Callable[[str], Any]] = {".json": _json, ".json5": _json, ".yaml": _yaml, ".yml": _yaml}


def _contradictions(configuration: Configuration, folder: Path, wrong: Sequence[str]) -> Iterator[str]:
    """What the parts of bnas say of settings that are right by themselves, as far as those are not `wrong`."""
    from bnas.checks import checks_of

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
