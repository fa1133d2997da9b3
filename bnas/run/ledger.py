"""What a run wrote in its folder, so that no other file is replaced, removed or believed."""

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
from bnas.search.errors import RecordError
from bnas.search.log import EvaluationLog

from .mark import GROWING, MARK, Mark, OutputError, refuse_link

SCALARS = ("training/tensorboard/events.out.tfevents.*", "search/tensorboard/events.out.tfevents.*")
"""Files that TensorBoard writes, below the folder of a run."""
FOUND = (
    "search.json", "winners.json", "pareto.json", "evaluations.csv", "evaluations.jsonl", "latency.json", "latencies",
    "search", "plan/search.json",
)  # fmt: skip
"""What a search leaves in the folder of a run."""
TUNED = ("tuning.json", "tuning", "plan/tune.json")
"""What a fine-tuning of the winners leaves."""
DELIVERED = ("report.json", "report.html", "report", "subnets")
"""What is exported after it."""
REPORT = "report"
"""How the names begin of files that a process writes without holding the folder."""


@dataclass(frozen=True)
class Ledger:
    """The files that a run wrote in `folder`, by their SHA-256.

    The mark lists a file before the file is written. So it has up to two checksums for each: of the new content, and of
    the content before, which is still there after a crash between the two.
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

    def begin(self) -> None:
        """Mark the folder as that of a run; a mark that is there stays.

        Raises:
            OutputError: There is a mark, and it is damaged or of another version.
            WriteError: It cannot be written.
        """
        with self.mark.changing():
            pass

    def files(self) -> dict[str, list[str]]:
        """The files that the run wrote, relative to the folder, each with its possible checksums.

        Raises:
            OutputError: The mark is damaged, or of another version of bnas.
        """
        return self.mark.files()

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
        with self.mark.changing() as files:
            before = self._before(name, files)
            growing = digest is None or name in GROWING
            files[name] = [] if growing else list(dict.fromkeys([str(digest), *before]))

    def _before(self, name: str, files: Mapping[str, list[str]]) -> list[str]:
        """The checksum of the file that is there, if there is one, which the run wrote."""
        path = self.folder / name
        if not there(path):
            return []
        if name not in files:
            raise self._in_the_way(name)
        return [self._own(name, files)] if files[name] else []

    def owns(self, path: Path) -> bool:
        """Whether the run wrote `path`, as it is now; a file of TensorBoard it has by its place."""
        name, files = self._name(path), self.files()
        if any(fnmatchcase(name, pattern) for pattern in SCALARS):
            return True
        with suppress(OutputError):
            return name in files and (not there(path) or bool(self._own(name, files)))
        return False

    def refuse_foreign(self, names: Iterable[str]) -> None:
        """Raise `OutputError` where a file of the user has one of these names, which the run is going to need."""
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
        """Forget the files that are not there: a process ended between removing a file and noting that.

        Those of the report stay: another process may be about to write them.
        """
        with self.mark.changing() as files:
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
            data = read_file(path)
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
            f"{path} is damaged, or was changed after the run wrote it: its checksum is not the one in {MARK}; "
            "restore it from a backup, or move it away and repeat the step that writes it"
        )

    def refuse_links(self, name: str) -> None:
        """Raise `OutputError` where a file lies behind a symbolic link in the folder."""
        place = self.folder
        for part in PurePosixPath(name).parts:
            place = place / part
            refuse_link(place)

    # Removing what the run wrote, and nothing else.

    def removable(self, within: Iterable[str] = ()) -> list[str]:
        """The names of the files of the run: all, or those at or below the names `within`.

        Raises:
            OutputError: One of them was changed after the run wrote it, or lies behind a link.
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


def _has_grown(path: Path) -> bool:
    """Whether a log holds nothing but evaluations."""
    try:
        EvaluationLog.read(path)
    except RecordError:
        return False
    return True


def _remove_empty(folder: Path) -> None:
    with writing(folder):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
