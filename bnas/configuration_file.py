"""Configuration files: JSON, JSON5 or YAML, with keys set from the command line, and every fault told at once."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bnas.configuration import Configuration
from bnas.faults import faults
from bnas.overrides import with_changes
from bnas.passes.errors import BnasError
from bnas.section import ConfigurationError


def load_config(path: str | Path, changes: Sequence[str] = ()) -> Configuration:
    """The configuration in the file `path`: ``.json`` or ``.json5`` (comments, trailing commas), ``.yaml`` or ``.yml``.

    Args:
        path: the file; the files that it names are relative to its folder.
        changes: ``KEY=VALUE``, in order, such as ``bootstrapNAS.search.num_evals=40``.

    Raises:
        ConfigurationError: the file is missing or has a fault of syntax, with line and column; or names all keys and
            values that are wrong, and then all that contradict each other.
    """
    path = Path(path)
    place = f"{path} with --set {' --set '.join(changes)}" if changes else str(path)
    configuration = parse_configuration(with_changes(_read(path), changes), place)
    check_configuration(configuration, path.parent, place)
    return configuration


def parse_configuration(data: Any, place: str) -> Configuration:
    """The configuration in `data`; `place` is named in errors.

    Raises:
        ConfigurationError: names all keys and values that are wrong.
    """
    try:
        return Configuration.model_validate(data)
    except ValidationError as error:
        raise ConfigurationError(place, faults(error, Configuration, data)) from None


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


def check_configuration(configuration: Configuration, folder: Path, place: str) -> None:
    """Check the keys against one another, and against what this machine has.

    Raises:
        ConfigurationError: names all that contradict each other, or that cannot be here.
    """
    if told := list(_contradictions(configuration, folder)):
        raise ConfigurationError(place, told)


def _contradictions(configuration: Configuration, folder: Path) -> Iterator[str]:
    """What the parts of bnas say of settings that are right by themselves."""
    from bnas.checks import checks_of

    for place, check in checks_of(configuration, folder):
        try:
            check()
        except BnasError as error:
            yield f"{place}: {error}"
