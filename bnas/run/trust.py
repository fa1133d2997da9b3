"""Whose code a run imports: only code that the user named himself.

A configuration names the code of a model and of its data, and the folder of a run has a configuration. Where the user
begins a run, or gives a configuration file, its code is his own word and is remembered in his state folder. What the
folder of a run names has to be among that, or the user says `trust` after he read it: the folder may be a stranger's.
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
from .mark import MARK
from .output import CONFIG


class TrustError(BnasError):
    """A run folder names code that the user has not named before; bnas did not import it."""


@dataclass(frozen=True)
class Code:
    """Code that a configuration names: a factory with its arguments, or a file of an exported program."""

    name: str
    """As the configuration has it, with the whole path of a file."""
    place: str
    """The file, or that of the module's top package; empty where there is none."""
    options: Mapping[str, Any]
    """The arguments of the factory: what is harmless with one argument may run code with another."""

    def is_in(self, folder: Path) -> bool:
        """Whether the code lies in a folder."""
        return bool(self.place) and Path(self.place).is_relative_to(_resolved(folder))


ROLES = {
    "model": ("model_options", "num_classes"),
    "data": ("data_options", "dataset", "batch_size", "batch_size_val"),
    "criterion": (),
    "metric": (),
}
"""The keys that name code, each with those of its factory's arguments; ``dataset`` stands in where ``data`` is none."""


def code_in(data: Any, folder: Path) -> dict[str, Code]:
    """The code that a configuration names, by its key; names of files are relative to `folder`."""
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
    """The programs that measure latencies, with their places; the same words may start another one elsewhere."""
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
    place = _resolved(place.parent) / place.name  # a link counts where it lies: modules beside it are imported too
    return Code(str(place) if exported else f"{place}:{factory}", str(place), options)


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError, ValueError):  # links in a circle, or no name at all
        return path.absolute()


def _package(name: str) -> str:
    """Where the top package of a module lies, which is not imported."""
    if name == "__main__":
        return str(getattr(sys.modules[name], "__file__", None) or "")
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError, AttributeError):
        return ""
    if spec is None:
        return ""
    return str(spec.origin or next(iter(spec.submodule_search_locations or ()), ""))


# What the user named.

NAMED = "named"


def remember(codes: Iterable[Code]) -> None:
    """Remember that the user named this code."""
    for code in codes:
        if code.place and not remembered(code):
            state.remember(NAMED, asdict(code), True)


def remembered(code: Code) -> bool:
    """Whether the user named this code with these arguments, and the package lies where it lay."""
    return bool(code.place) and state.recall(NAMED, asdict(code)) is True


# Whether what a configuration names may be imported.


def remember_configuration(configuration: Configuration, folder: Path) -> None:
    """Remember the code of a configuration that the user gave."""
    remember(code_in(configuration.model_dump(mode="json"), folder).values())


def admit(path: Path, configuration: Configuration, changes: Sequence[str], *, trust: bool = False) -> None:
    """Remember the code of the configuration that was read from `path`; check it if `path` is in the folder of a run.

    Raises:
        TrustError, SourceError: as `check_code`.
    """
    if path.name.casefold() == CONFIG and (path.parent / MARK).is_file() and not trust:
        check_code(path.parent, configuration, changes, path.parent)
    remember_configuration(configuration, path.parent)


def check_code(run: Path, configuration: Configuration, changes: Sequence[str], folder: Path) -> None:
    """Raise unless the user named all code of the configuration of a run.

    Args:
        run: the folder of the run. Code that lies in it is never the user's own: it may have come with the folder, and
            imports what lies beside it, compiled files too.
        configuration: with the changes.
        changes: ``KEY=VALUE`` of the command line: the user's word, too.
        folder: what the names of files are relative to.

    Raises:
        TrustError: names the code and the folder.
        SourceError: a file is missing.
    """
    written, said = code_in(Ledger(run).json(CONFIG), folder), code_in(_said(changes), folder)
    for role, code in code_in(configuration.model_dump(mode="json"), folder).items():
        before = written.get(role)
        own = said.get(role) == code or _is_own(code, run)
        if not own and not (before and before.name == code.name and _is_own(before, run)):
            _refuse(run, role, code)


def _said(changes: Sequence[str]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConfigurationWarning)  # told where the configuration is read
        try:
            return with_changes({}, changes)
        except ConfigurationError:  # of an entry of a list, which only the file has
            return {}


def _is_own(code: Code, run: Path) -> bool:
    return not code.is_in(run) and remembered(code)


def _refuse(run: Path, role: str, code: Code) -> None:
    is_file = code.name.startswith(code.place) and bool(code.place)
    if is_file and not Path(code.place).is_file():
        told = "use --from DIR with the folder where it is now"
        raise SourceError(f"there is no file {shown(code.place)}, which {run / CONFIG} names as its {role}; {told}")
    given = f" with the arguments {json.dumps(code.options)}" if code.options else ""
    why = "which is inside the run folder" if code.is_in(run) else "which you have not named before"
    raise TrustError(
        f"{run / CONFIG}: {role} is the code {shown(code.name)}{given}, {why}: bnas did not run it. Read it; if you "
        "trust it, use --trust (in Python trust=True)"
    )
