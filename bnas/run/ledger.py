"""The mark of a run's folder: which files the run wrote, so that no other file is replaced, removed or believed."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any

import filelock

from bnas.passes.errors import BnasError
from bnas.runtime.storage.files import checksum, discard, file_checksum, reading, there, write_bytes, writing

MARK = "run.json"
"""What tells the folder of a run from one of a user, who may well call a file ``config.json``."""
FORMAT = 2
GUARD = ".bnas-mark.lock"
"""Held for as long as the mark is read and written anew: a report may be written while a search is at work."""
GROWING = ("evaluations.jsonl",)
"""Files that grow line by line: each line has a checksum of its own."""
SCALARS = "*/tensorboard/events.out.tfevents.*"
"""Files that TensorBoard writes, below the folder of a run."""
REPORT = "report"
"""How the names begin of files that a process writes without holding the folder."""
PATIENCE = 60.0
"""Seconds to wait for another process that changes the mark."""


class OutputError(BnasError):
    """The output folder cannot be used."""


@dataclass(frozen=True)
class Ledger:
    """The files that a run wrote in `folder`, by their SHA-256.

    The mark lists a file before the file is written. So it has up to two checksums for each: of the new content, and of
    the content before, which is still there after a crash between the two.
    """

    folder: Path

    @property
    def mark(self) -> Path:
        """The file that lists the others."""
        return self.folder / MARK

    @property
    def exists(self) -> bool:
        """Whether the folder holds a run."""
        return there(self.mark)

    def begin(self) -> None:
        """Mark the folder as that of a run; a mark that is there stays.

        Raises:
            OutputError: There is a mark, and it is damaged or of another version.
            WriteError: It cannot be written.
        """
        with self._changing():
            pass

    def files(self) -> dict[str, list[str]]:
        """The files that the run wrote, relative to the folder, each with its possible checksums.

        Raises:
            OutputError: The mark is damaged, or of another version of bnas.
        """
        if not there(self.mark):
            return {}
        try:
            with reading(self.mark):
                data = json.loads(self.mark.read_bytes())
        except (ValueError, RecursionError) as error:
            raise self._damaged(str(error)) from error
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise OutputError(
                f"{self.mark} has another format than {FORMAT}, the one that this version of bnas reads; "
                "go on with the version that made this run, or give another folder"
            )
        return self._checked(data.get("files"))

    def _checked(self, files: Any) -> dict[str, list[str]]:
        if not isinstance(files, dict):
            raise self._damaged("'files' is missing")
        for name, digests in files.items():
            inside = PurePosixPath(name).parts
            if not inside or ".." in inside or os.path.isabs(name) or "\0" in name:
                raise self._damaged(f"{name!r} is no file in this folder")
            good = isinstance(digests, list) and all(isinstance(one, str) for one in digests)
            if not good or not (digests or name in GROWING):
                raise self._damaged(f"{name!r} has no checksums")
        return files

    def _damaged(self, told: str) -> OutputError:
        return OutputError(
            f"{self.mark} is damaged: {told}; without it bnas cannot tell which files the run wrote: "
            "take it from a copy, or give another folder"
        )

    # What a keeper does (`bnas.runtime.storage.files.Keeper`).

    def claim(self, path: Path, digest: str | None) -> None:
        """Note that the run is about to write `path`.

        Raises:
            OutputError: The file is the user's own, or was changed since the run wrote it, or lies behind a link.
        """
        name = self._name(path)
        if name == MARK or path.name.startswith(".bnas-"):
            return
        self.refuse_links(name)
        with self._changing() as files:
            before = self._before(name, files)
            growing = digest is None or name in GROWING
            files[name] = [] if growing else list(dict.fromkeys([str(digest), *before]))

    def _before(self, name: str, files: Mapping[str, list[str]]) -> list[str]:
        """The checksum of the file that is there, if there is one, which the run wrote."""
        path = self.folder / name
        if not there(path):
            return []
        if name not in files:
            raise OutputError(f"{path} is there, and the run did not write it; move it to another place first")
        return [self._own(name, files)] if files[name] else []

    def forget(self, path: Path) -> None:
        """Note that `path` was removed."""
        with self._changing() as files:
            files.pop(self._name(path), None)

    def _name(self, path: Path) -> str:
        return Path(os.path.relpath(os.path.abspath(path), os.path.abspath(self.folder))).as_posix()

    @contextmanager
    def _changing(self) -> Iterator[dict[str, list[str]]]:
        """The files of the mark, which is written anew where they are changed inside."""
        with writing(self.mark), _guard(self.folder / GUARD):
            files = self.files()
            before = json.dumps(files)
            yield files
            if json.dumps(files) != before or not there(self.mark):
                mark = {"format": FORMAT, "bnas": version("bnas"), "files": files}
                write_bytes(self.mark, (json.dumps(mark, indent=1) + "\n").encode())

    def forget_missing(self) -> None:
        """Forget the files that are not there: a process ended between removing a file and noting that.

        Those of the report stay: another process may be about to write them.
        """
        with self._changing() as files:
            for name in list(files):
                if not name.startswith(REPORT) and not there(self.folder / name):
                    del files[name]

    # Reading what the run wrote.

    def read(self, name: str) -> bytes:
        """The content of a file that the run wrote.

        Raises:
            OutputError: The run did not write it, or not so, or it lies behind a link.
            ReadError: It cannot be read.
        """
        self.refuse_links(name)
        path = self.folder / name
        for _ in range(3):  # a run that is at work replaces files between the two readings
            files = self.files()
            with reading(path):
                data = path.read_bytes()
            if name in files and (not files[name] or checksum(data) in files[name]):
                return data
        raise self._foreign(path, name in files)

    def check(self, name: str) -> Path:
        """The path of a file, which is as the run wrote it; raises as `read`."""
        path = self.folder / name
        self.refuse_links(name)
        self._own(name, self.files())
        return path

    def json(self, name: str) -> Any:
        """The content of a JSON file that the run wrote; raises as `read`."""
        data = self.read(name)
        try:
            return json.loads(data)
        except (ValueError, RecursionError) as error:
            raise OutputError(f"{self.folder / name} is not a JSON file: {error}") from error

    def _own(self, name: str, files: Mapping[str, list[str]]) -> str:
        """The checksum of a file, which is one of those that the run wrote."""
        path = self.folder / name
        with reading(path):
            found = file_checksum(path)
        if name not in files or (files[name] and found not in files[name]):
            raise self._foreign(path, name in files)
        return found

    def _foreign(self, path: Path, listed: bool) -> OutputError:
        if not listed:
            return OutputError(f"{path} was not written by the run, says {MARK}; move it to another place first")
        return OutputError(
            f"{path} is damaged, or was changed after the run wrote it: its checksum is not the one in {MARK}; "
            "take it from a copy, or move it away and repeat the step that writes it"
        )

    def refuse_links(self, name: str) -> None:
        """Raise `OutputError` where a file lies behind a symbolic link in the folder: it is elsewhere, or is shared."""
        place = self.folder
        for part in PurePosixPath(name).parts:
            place = place / part
            if place.is_symlink():
                raise OutputError(
                    f"{place} is a symbolic link; bnas follows no links in the folder of a run: "
                    "put the file or folder itself there, or give another folder"
                )

    # Removing what the run wrote, and nothing else.

    def removable(self, within: Iterable[str] = ()) -> list[str]:
        """The names of the files of the run: all, or those at or below the names `within`.

        Raises:
            OutputError: One of them was changed after the run wrote it, or lies behind a link.
        """
        files, tops = self.files(), tuple(within)
        scalars = [one.relative_to(self.folder).as_posix() for one in self.folder.glob(SCALARS)]
        names = [
            name
            for name in dict.fromkeys([*files, *scalars])
            if not tops or any(name == top or name.startswith(f"{top}/") for top in tops)
        ]
        for name in names:
            self.refuse_links(name)
        for name in names:
            if files.get(name) and there(self.folder / name):
                self._own(name, files)
        return names

    def remove(self, names: Iterable[str]) -> None:
        """Remove files that `removable` gave, as far as they are there, and the folders that are empty then.

        Raises:
            WriteError: One cannot be removed.
        """
        removed = list(names)
        for name in removed:
            discard(self.folder / name)
        folders = {self.folder / one for name in removed for one in PurePosixPath(name).parents if one.name}
        for folder in sorted(folders, key=lambda one: len(one.parts), reverse=True):
            _remove_empty(folder)


def _remove_empty(folder: Path) -> None:
    with writing(folder):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


@contextmanager
def _guard(path: Path) -> Iterator[None]:
    try:
        with filelock.FileLock(path, timeout=PATIENCE, is_singleton=False):
            yield
    except filelock.Timeout as error:
        raise OutputError(f"{path} is held by another process for {PATIENCE:g} s; wait for it, or stop it") from error


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


def check_name(name: object, place: str) -> str:
    """`name`, which becomes part of the names of files.

    Raises:
        OutputError: It has other characters than letters, digits, ``-`` and ``_``.
    """
    if isinstance(name, str) and _NAME.fullmatch(name):
        return name
    raise OutputError(f"{place}: {name!r} is no name for a file: letters, digits, '-' and '_' are allowed")
