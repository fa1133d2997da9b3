"""Trust in code: bnas only imports code that the user has named.

A configuration names code, for the model and the data, and every run folder contains a configuration. Code in a
configuration that the user starts a run with, or passes as a file, is remembered as trusted in the user's state folder.
A run folder may come from somebody else. So code that it names must be remembered already, or the user must set `trust`
after reading it.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bnas.config.configuration import Configuration
from bnas.config.file import with_changes
from bnas.config.section import ConfigurationError, ConfigurationWarning
from bnas.data.factories import EXPORTED, SourceError, is_own_model
from bnas.passes.errors import BnasError
from bnas.passes.wording import shown
from bnas.runtime.storage import state

from .ledger import Ledger
from .names import CONFIG, MARK


class TrustError(BnasError):
    """A run folder names code that the user has not named before; bnas did not import it."""


@dataclass(frozen=True)
class Code:
    """Code that a configuration names: a factory with its arguments, or a file of an exported program."""

    name: str
    """The name in the configuration, with the absolute path of a file."""
    place: str
    """The file of the code, or of the module's top package; empty if there is none."""
    options: Mapping[str, Any]
    """The arguments of the factory. A factory may be harmless with one argument and run code with another."""

    def is_in(self, folder: Path) -> bool:
        """Whether the code lies in a folder."""
        return bool(self.place) and Path(self.place).is_relative_to(_resolved(folder))


ROLES = {
    "model": ("model_options", "num_classes"),
    "data": ("data_options", "dataset", "batch_size", "batch_size_val"),
    "criterion": (),
    "metric": (),
}
"""Keys that name code, each with the keys of the factory's arguments. Without ``data``, ``dataset`` names code."""


def code_in(data: Any, folder: Path) -> dict[str, Code]:
    """Return the code that a configuration names, by key. File names are relative to `folder`."""
    data = data if isinstance(data, dict) else {}
    found = {}
    for role, keys in ROLES.items():
        source = "dataset" if role == "data" and data.get("data") is None else role
        name = data.get(source)
        name = name.get("function") if role == "metric" and isinstance(name, dict) else name
        if isinstance(name, str) and (is_own_model(name) if role == "model" else ":" in name):
            options = {key: data[key] for key in keys if key != source and data.get(key) not in (None, {})}
            found[role] = _code(name, role, folder, options)
    return found | dict(_programs(data))


def _programs(data: Any, place: str = "") -> Iterator[tuple[str, Code]]:
    """Yield the programs that measure latencies, with their places. The program depends on the folder, too."""
    if isinstance(data, dict):
        words = data.get("command") if data.get("kind") == "command" else None
        if told := [str(word) for word in ([words] if isinstance(words, str) else words or ())]:
            yield place, Code(" ".join(told), shutil.which(told[0]) or "", {"command": told, "from": str(Path.cwd())})
        inside: Iterable[tuple[object, Any]] = data.items()
    else:
        inside = enumerate(data) if isinstance(data, list) else ()
    for key, one in inside:
        yield from _programs(one, f"{place}.{key}" if place else str(key))


def _code(name: str, role: str, folder: Path, options: Mapping[str, Any]) -> Code:
    module, _, factory = name.rpartition(":")
    exported = role == "model" and name.endswith(EXPORTED)
    if not exported and not module.endswith(".py"):
        return Code(name, _package(module.partition(".")[0]), options)
    place = folder / (name if exported else module)
    place = _resolved(place.parent) / place.name  # not resolved: modules beside the link can be imported too
    return Code(str(place) if exported else f"{place}:{factory}", str(place), options)


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError, ValueError):  # circular links, or an invalid name
        return path.absolute()


def _package(name: str) -> str:
    """Return the location of a module's top package, without importing it."""
    if name == "__main__":
        return str(getattr(sys.modules[name], "__file__", None) or "")
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError, AttributeError):
        return ""
    if spec is None:
        return ""
    return str(spec.origin or next(iter(spec.submodule_search_locations or ()), ""))


# Remembering the code that the user named.

NAMED = "named"


def remember(codes: Iterable[Code]) -> None:
    """Remember that the user named this code."""
    for code in codes:
        if code.place and not remembered(code):
            state.remember(NAMED, asdict(code), True)


def remembered(code: Code) -> bool:
    """Whether the user named this code with these arguments, and it is at the same location as then."""
    return bool(code.place) and state.recall(NAMED, asdict(code)) is True


# Checking whether the code of a configuration may be imported.


def remember_configuration(configuration: Configuration, folder: Path) -> None:
    """Remember the code of a configuration that the user gave."""
    remember(code_in(configuration.model_dump(mode="json"), folder).values())


def admit(path: Path, configuration: Configuration, changes: Sequence[str], *, trust: bool = False) -> None:
    """Remember the code of the configuration read from `path`; if `path` is in a run folder, check the code instead.

    Raises:
        TrustError, SourceError: as `check_code`.
    """
    if path.name.casefold() == CONFIG and (path.parent / MARK).is_file() and not trust:
        check_code(path.parent, configuration, changes, path.parent)
    remember_configuration(configuration, path.parent)


MOVED = "use --from DIR with the folder where it is now"
BESIDE = "its file names are relative to its folder: give the configuration file that the run began with"
"""Remedies for a missing file, for a run folder and for a configuration file in it."""


def check_code(run: Path, configuration: Configuration, changes: Sequence[str], folder: Path) -> None:
    """Raise unless the user named all code of the configuration of a run.

    Args:
        run: The run folder. Code inside it is never trusted: it may have come with the folder, and it can import other
            files there, also compiled ones.
        configuration: The configuration, including the changes.
        changes: ``KEY=VALUE`` from the command line. Code named here is trusted.
        folder: The folder to which file names are relative.

    Raises:
        TrustError: The code is not trusted; the message names code and folder.
        SourceError: A file is missing.
    """
    written, said = code_in(Ledger(run).json(CONFIG), folder), code_in(_said(changes), folder)
    for role, code in code_in(configuration.model_dump(mode="json"), folder).items():
        before = written.get(role)
        own = said.get(role) == code or _is_own(code, run)
        if not own and not (before and before.name == code.name and _is_own(before, run)):
            _refuse(run, role, code, MOVED if folder != run else BESIDE)


def _said(changes: Sequence[str]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConfigurationWarning)  # shown when the configuration is read
        try:
            return with_changes({}, changes)
        except ConfigurationError:  # an entry of a list, which `changes` cannot add
            return {}


def _is_own(code: Code, run: Path) -> bool:
    return not code.is_in(run) and remembered(code)


def _refuse(run: Path, role: str, code: Code, missing: str) -> None:
    is_file = code.name.startswith(code.place) and bool(code.place)
    if is_file and not Path(code.place).is_file():
        raise SourceError(f"there is no file {shown(code.place)}, which {run / CONFIG} names as its {role}; {missing}")
    given = f" with the arguments {json.dumps(code.options)}" if code.options else ""
    why = "which is inside the run folder" if code.is_in(run) else "which you have not named before"
    raise TrustError(
        f"{run / CONFIG}: {role} is the code {shown(code.name)}{given}, {why}: bnas did not run it. Read it; if you "
        "trust it, use --trust (in Python trust=True)"
    )
