"""Create or refuse the folder of a run, and write its description files."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnas.runtime.latency.machine import machine
from bnas.runtime.storage.files import read_file, there, write_json, writing

from .ledger import Ledger
from .lock import OWN, check_place, kept
from .mark import OutputError
from .names import ARCHITECTURE, CONFIG, DATA, ENVIRONMENT, SEARCH, SOURCE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bnas.passes.cost.architecture import Architecture
    from bnas.search import Constraint, Objective


# The folder of a run. A folder that holds a run already is refused, unless that run is resumed or overwritten.

Free = Callable[[str], bool]
"""Returns whether a setting of the configuration may change, given its place (``a.b``)."""


@dataclass(frozen=True)
class Output:
    """A folder that holds one run; made by `open_output` or `bnas.run.folder`."""

    folder: Path
    resumed: bool = False
    """Whether the folder has files of an interrupted run with the same configuration, to be reused."""

    @property
    def ledger(self) -> Ledger:
        """The files that the run wrote."""
        return Ledger(self.folder)

    def path(self, name: str) -> Path:
        """Return the path for the file `name`, and create its folder.

        Raises:
            OutputError: The path is behind a symbolic link.
            WriteError: The folder cannot be created.
        """
        path = self.folder / name
        self.ledger.refuse_links(name)
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        return path


def open_output(
    folder: Path,
    config: Any,
    *,
    resume: bool = False,
    overwrite: bool = False,
    free: Free = lambda _: False,
    sources: Iterable[Path] = (),
) -> Output:
    """Prepare `folder` for a run of `config` (JSON data), and write `config` there first.

    Overwriting removes the files that the former run wrote, and no others. A new run also removes them if the former
    run was refused or stopped before it did anything.

    Args:
        folder: The folder.
        config: The configuration of the run.
        resume: Continue the run in the folder.
        overwrite: Replace the run in the folder.
        free: Returns whether a setting, such as ``a.b``, may change when the run is resumed.
        sources: Files and folders that the new run reads.

    Raises:
        OutputError: As `check_output`; or another process holds the folder; or overwriting would remove one of the
            `sources`, or a file that was changed after the run wrote it.
        WriteError: The folder cannot be written to.
    """
    with kept(folder) as ledger:
        check_output(folder, config, resume=resume, overwrite=overwrite, free=free)
        holds_run = ledger.exists
        if holds_run and not resume:
            removed = ledger.removable()
            _refuse_sources(folder, removed, sources)
            ledger.remove(removed)
        ledger.begin()
        write_json(folder / CONFIG, config)
    return Output(folder, resume and holds_run)


def _refuse_sources(folder: Path, removed: Iterable[str], sources: Iterable[Path]) -> None:
    """Raise OutputError if a file that overwriting would remove is a source of the new run."""
    needed = [one.resolve() for one in sources]
    for name in removed:
        path = (folder / name).resolve()
        if any(path == one or path.is_relative_to(one) for one in needed):
            raise OutputError(
                f"{folder / name} belongs to the run that you want to overwrite, but the new run reads it: "
                "copy it to another folder and name the copy, or choose a new folder"
            )


def check_output(
    folder: Path, config: Any, *, resume: bool = False, overwrite: bool = False, free: Free = lambda _: False
) -> None:
    """Raise OutputError if `open_output` cannot use the folder; change nothing.

    That is so if it holds a run or other files, or if a run with another configuration should be resumed.
    """
    check_way(resume=resume, overwrite=overwrite)
    check_place(folder)
    ledger = Ledger(folder)
    holds_run = ledger.exists
    if holds_run and not (resume or overwrite) and has_begun(ledger):
        raise OutputError(
            f"{folder} holds a run already; use --resume to continue it or --overwrite to replace it "
            "(in Python resume=True or overwrite=True)"
        )
    if not holds_run and folder.is_dir() and any(one.name not in OWN for one in folder.iterdir()):
        raise OutputError(f"{folder} holds files that do not belong to a run of bnas; choose a new folder")
    if resume and there(folder / CONFIG) and (told := changed(folder, config, free)):
        raise OutputError(
            f"{folder / CONFIG} has other settings: {told}; resume with those settings, or use --overwrite "
            "(in Python overwrite=True)"
        )


def check_way(*, resume: bool, overwrite: bool) -> None:
    """Raise OutputError if both ways to deal with a former run are asked for."""
    if resume and overwrite:
        raise OutputError("resume and overwrite exclude each other: give only one of them")


NOTED = (CONFIG, SOURCE, ENVIRONMENT, ARCHITECTURE, DATA, "original")
"""Files that a run writes before its first phase; a run may still be refused then (budget too small)."""


def has_begun(ledger: Ledger) -> bool:
    """Whether the run in a folder has results that would be lost."""
    try:
        return any(name.partition("/")[0] not in NOTED for name in ledger.files())
    except OutputError:  # unknown, so assume results
        return True


def changed(folder: Path, config: Any, free: Free) -> str:
    """Return a text with the settings that differ between the run in `folder` and `config` and are not free; or ''."""
    before = Ledger(folder).json(CONFIG)
    return "; ".join(text for place, text in differences(before, config) if not free(place))


def differences(before: Any, now: Any) -> Iterator[tuple[str, str]]:
    """Yield the differences of two configurations: the place, and a text such as ``a.b is 1, and was 2``."""
    for place, was, is_now in differing(before, json.loads(json.dumps(now))):
        found = in_lists([(place, was, is_now)])
        yield place, "; ".join(f"{one or 'it'} was {_short(old)} and is now {_short(new)}" for one, old, new in found)


def differing(first: Any, second: Any, place: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Return the places at which two configurations (JSON data) differ, each with both values."""
    if isinstance(first, dict) and isinstance(second, dict):
        for key in dict.fromkeys([*first, *second]):
            yield from differing(first.get(key), second.get(key), f"{place}.{key}".removeprefix("."))
    elif first != second:
        yield place, first, second


def in_lists(found: Iterable[tuple[str, Any, Any]]) -> Iterator[tuple[str, Any, Any]]:
    """The same, where lists of one length, such as stages, are compared entry by entry."""
    for place, one, other in found:
        if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
            for number, pair in enumerate(zip(one, other, strict=True)):
                yield from in_lists(differing(*pair, f"{place}[{number}]"))
        else:
            yield place, one, other


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def read_json(path: Path) -> Any:
    """Return the content of a JSON file.

    Raises:
        ReadError: The file cannot be read.
        OutputError: The file is damaged.
    """
    try:
        return json.loads(read_file(path))
    except (ValueError, RecursionError) as error:
        raise OutputError(f"{path} is not a JSON file: {error}") from error


# Description files of a run, so that its report needs neither the model nor the data.

LIBRARIES = ("bnas", "torch", "torchvision", "numpy", "deap", "onnx", "onnxruntime", "safetensors", "pydantic")
"""Libraries whose versions are recorded."""


def note_environment(output: Output) -> None:
    """Add this process to ``environment.json``: its start time, machine and versions."""
    path = output.path(ENVIRONMENT)
    known = output.ledger.json(ENVIRONMENT) if output.resumed and there(path) else []
    if not isinstance(known, list):
        raise OutputError(f"{path} is damaged: it has no list of processes; remove it to continue without that list")
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    write_json(path, [*known, {"began": now, "machine": machine(), "versions": versions()}])


def versions() -> dict[str, str]:
    """The versions of `LIBRARIES` that are installed."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def note_architecture(output: Output, architecture: Architecture) -> None:
    """Write ``architecture.json``: the layers and their widths in every sub-network."""
    write_json(output.path(ARCHITECTURE), architecture.to_json())


def note_data(output: Output, record: Mapping[str, Any] | None) -> None:
    """Write ``data.json``, if the data have a record."""
    if record is not None:
        write_json(output.path(DATA), dict(record))


def note_search(
    output: Output,
    objectives: Sequence[Objective],
    constraints: Sequence[str | Constraint],
    maximal: Mapping[str, int],
    targets: Mapping[str, Constraint] | None = None,
    **settings: Any,
) -> None:
    """Write ``search.json`` before the search: objectives, constraints and further settings.

    `maximal` has the costs of the maximal sub-network, to which bounds in percent refer.
    """
    asked = [{"name": one.name, "direction": one.direction} for one in objectives]
    bounds, aims = [str(one) for one in constraints], {name: str(one) for name, one in (targets or {}).items()}
    noted = {"objectives": asked, "constraints": bounds, "targets": aims, "maximal": dict(maximal)}
    write_json(output.path(SEARCH), {**noted, **settings})
