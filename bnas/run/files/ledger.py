"""The ledger of the files that a run wrote, so that no other file is ever replaced, removed or read as the run's."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

from bnas.runtime.storage.files import checksum, discard, file_checksum, read_file, there, writing
from bnas.search import Evaluation, EvaluationLog, RecordError

from .mark import REPEAT, Mark, OutputError, refuse_link
from .names import CONFIG, EVALUATIONS, GROWING, MARK, REPORT, SCALARS


@dataclass(frozen=True)
class Ledger:
    """The files that a run wrote in `folder`, with their SHA-256.

    The mark (``run.json``) lists a file before it is written, so it may have two checksums for a file: of the new and
    of the old content. The old content is still there after a crash between the two writes.
    """

    folder: Path

    @property
    def mark(self) -> Mark:
        """The list of the files."""
        return Mark(self.folder)

    @property
    def exists(self) -> bool:
        """Whether the folder holds a run."""
        return there(self.mark.path)

    @property
    def missing(self) -> str | None:
        """The file without which this is no run folder: its configuration, or the mark; None if both exist."""
        return next((name for name in (CONFIG, MARK) if not there(self.folder / name)), None)

    def begin(self) -> None:
        """Mark the folder as a run folder, unless it is marked already.

        Raises:
            OutputError: The existing mark is damaged or of another version.
            WriteError: The mark cannot be written.
        """
        with self.mark.changing():
            pass

    def files(self) -> dict[str, list[str]]:
        """The files that the run wrote, relative to the folder, each with its possible checksums.

        Raises:
            OutputError: The mark is damaged, or of another version of bnas.
        """
        return self.mark.files()

    # The methods of a keeper (`bnas.runtime.storage.files.Keeper`).

    def claim(self, path: Path, digest: str | None) -> None:
        """Note that the run is about to write `path`.

        Raises:
            OutputError: The file belongs to the user, was changed after the run wrote it, or is behind a link.
        """
        name = self._name(path)
        if name == MARK or path.name.startswith(".bnas-"):
            return
        self.refuse_links(name)
        with self.mark.changing() as files:
            before = self._before(name, files)
            growing = digest is None or name in GROWING
            files[name] = [] if growing else list(dict.fromkeys([str(digest), *before]))

    def _before(self, name: str, files: Mapping[str, list[str]]) -> list[str]:
        """Return the checksum of the existing file, if there is one, after checking that the run wrote it."""
        path = self.folder / name
        if not there(path):
            return []
        if name not in files:
            raise self._in_the_way(name)
        return [self._own(name, files)] if files[name] else []

    def owns(self, path: Path) -> bool:
        """Whether the run wrote the present content of `path`. Files in TensorBoard's folders count as the run's."""
        name, files = self._name(path), self.files()
        if any(fnmatchcase(name, pattern) for pattern in SCALARS):
            return True
        with suppress(OutputError):
            return name in files and (not there(path) or bool(self._own(name, files)))
        return False

    def refuse_foreign(self, names: Iterable[str]) -> None:
        """Raise `OutputError` if a file of the user has one of these names, which the run will write."""
        files = self.files()
        for name in names:
            self.refuse_links(name)
            if name not in files and (self.folder / name).is_file():
                raise self._in_the_way(name)

    def forget(self, path: Path) -> None:
        """Note that `path` was removed."""
        with self.mark.changing() as files:
            files.pop(self._name(path), None)

    def _name(self, path: Path) -> str:
        return Path(os.path.relpath(os.path.abspath(path), os.path.abspath(self.folder))).as_posix()

    def forget_missing(self) -> None:
        """Forget files that do not exist, because a process ended after removing them and before noting it.

        Files of the report stay in the list, since another process may be about to write them.
        """
        with self.mark.changing() as files:
            for name in list(files):
                if not name.startswith(REPORT) and not there(self.folder / name):
                    del files[name]

    # Reading what the run wrote.

    def read(self, name: str) -> bytes:
        """Return the content of a file that the run wrote.

        Raises:
            OutputError: The run did not write the file, or it was changed since, or it is behind a link.
            ReadError: The file cannot be read.
        """
        self.refuse_links(name)
        path = self.folder / name
        for _ in range(3):  # a running process may replace files between the two reads
            files = self.files()
            data = read_file(path)
            if name in files and (not files[name] or checksum(data) in files[name]):
                return data
        raise self._foreign(path, name in files)

    def check(self, name: str) -> Path:
        """Return the path of a file after checking that it is as the run wrote it; raises as `read` does."""
        path = self.folder / name
        self.refuse_links(name)
        self._own(name, self.files())
        return path

    def json(self, name: str) -> Any:
        """Return the content of a JSON file that the run wrote; raises as `read` does."""
        data = self.read(name)
        try:
            return json.loads(data)
        except (ValueError, RecursionError) as error:
            raise OutputError(f"{self.folder / name} is not a JSON file: {error}") from error

    def evaluations(self) -> tuple[Evaluation, ...]:
        """Return the evaluations of the run's search so far; none before the search.

        Raises:
            OutputError: The log is behind a link.
            ReadError: The log cannot be read.
            RecordError: The log is damaged; the message names the line.
        """
        if not there(self.folder / EVALUATIONS):
            return ()
        self.refuse_links(EVALUATIONS)
        return tuple(EvaluationLog.read(self.folder / EVALUATIONS))

    def _own(self, name: str, files: Mapping[str, list[str]]) -> str:
        """Return the checksum of a file after checking that the run wrote it."""
        path = self.folder / name
        found = file_checksum(path)
        if name not in files or not (found in files[name] or (not files[name] and _has_grown(path))):
            raise self._foreign(path, name in files)
        return found

    def _in_the_way(self, name: str) -> OutputError:
        path = self.folder / name
        return OutputError(f"{path} exists, but the run did not write it; move it to another place first")

    def _foreign(self, path: Path, listed: bool) -> OutputError:
        if not listed:
            return OutputError(
                f"{path} was not written by the run (according to {MARK}); move it to another place first"
            )
        return OutputError(
            f"{path} is damaged, or was changed after the run wrote it: its checksum is not the one in {MARK}; {REPEAT}"
        )

    def refuse_links(self, name: str) -> None:
        """Raise `OutputError` if a file is behind a symbolic link in the folder."""
        place = self.folder
        for part in PurePosixPath(name).parts:
            place = place / part
            refuse_link(place)

    # Removing files of the run, and no others.

    def removable(self, within: Iterable[str] = ()) -> list[str]:
        """Return the names of the run's files: all, or those at or below the names `within`.

        Raises:
            OutputError: A file was changed after the run wrote it, or is behind a link.
        """
        files, tops = self.files(), tuple(within)
        found = (one for pattern in SCALARS for one in self.folder.glob(pattern))
        scalars = [one.relative_to(self.folder).as_posix() for one in found]
        names = [
            name
            for name in dict.fromkeys([*files, *scalars])
            if not tops or any(name == top or name.startswith(f"{top}/") for top in tops)
        ]
        for name in names:
            self.refuse_links(name)
        for name in names:
            if name in files and there(self.folder / name):
                self._own(name, files)
        return names

    def remove(self, names: Iterable[str]) -> None:
        """Remove existing files among those that `removable` returned, and folders that become empty.

        Raises:
            WriteError: A file cannot be removed.
        """
        removed = list(names)
        for name in removed:
            discard(self.folder / name)
        folders = {self.folder / one for name in removed for one in PurePosixPath(name).parents if one.name}
        for folder in sorted(folders, key=lambda one: len(one.parts), reverse=True):
            _remove_empty(folder)


def _has_grown(path: Path) -> bool:
    """Whether a log file that grew since the mark was written contains only valid evaluations."""
    try:
        EvaluationLog.read(path)
    except RecordError:
        return False
    return True


def _remove_empty(folder: Path) -> None:
    with writing(folder):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
