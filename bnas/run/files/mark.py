"""The mark of a run folder: a file with the list of the files that the run wrote, and their checksums."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any

import filelock

from bnas.passes.errors import BnasError
from bnas.runtime.storage.files import TEMPORARY, read_file, reading, there, write_bytes, writing

from .names import GROWING, MARK

FORMAT = 2
GUARD = ".bnas-mark.lock"
"""Lock for reading and rewriting the mark, since a report may be written while a search is running."""
PATIENCE = 60.0
"""Seconds to wait for another process that is changing the mark."""


REPEAT = "restore it from a backup, or move it away and repeat the step that writes it"
"""The remedy for a damaged file of a run, other than the mark."""


class OutputError(BnasError):
    """The output folder cannot be used."""


def unknown_format(path: Path, version: int) -> OutputError:
    """Return the error for a file of another format than `version`."""
    return OutputError(
        f"{path} has an unknown format; this version of bnas reads format {version}: "
        "use the version that made this run, or choose another folder"
    )


def damaged(path: Path, error: Exception) -> OutputError:
    """Return the error for a file whose content cannot be read because of `error`."""
    return OutputError(f"{path} is damaged: {type(error).__name__}: {error}; {REPEAT}")


def refuse_link(path: Path) -> None:
    """Raise `OutputError` if `path`, in a run folder, is a symbolic link, whose file may be elsewhere or shared."""
    with reading(path):
        link = path.is_symlink()
    if link:
        raise OutputError(
            f"{path} is a symbolic link; bnas does not follow links in the folder of a run: "
            "put the file or folder itself there, or choose another folder"
        )


@dataclass(frozen=True)
class Mark:
    """The file ``run.json`` of a folder."""

    folder: Path

    @property
    def path(self) -> Path:
        """Path of the mark."""
        return self.folder / MARK

    def files(self) -> dict[str, list[str]]:
        """The files that the run wrote, relative to the folder, each with its possible checksums.

        Raises:
            OutputError: The mark is damaged, or of another version of bnas.
        """
        if not there(self.path):
            return {}
        refuse_link(self.path)
        try:
            data = json.loads(read_file(self.path))
        except (ValueError, RecursionError) as error:
            raise self._damaged(str(error)) from error
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise unknown_format(self.path, FORMAT)
        return self._checked(data.get("files"))

    def _checked(self, files: Any) -> dict[str, list[str]]:
        if not isinstance(files, dict):
            raise self._damaged("'files' is missing")
        for name, digests in files.items():
            inside = PurePosixPath(name).parts
            if not inside or ".." in inside or os.path.isabs(name) or not name.isprintable():
                raise self._damaged(f"{name!a} is not the name of a file in this folder")
            good = isinstance(digests, list) and all(isinstance(one, str) for one in digests)
            if not good or not (digests or name in GROWING):
                raise self._damaged(f"{name!r} has no checksums")
        return files

    def _damaged(self, told: str) -> OutputError:
        return OutputError(
            f"{self.path} is damaged: {told}. Without it bnas cannot know which files the run wrote: "
            "restore it from a backup, or choose another folder"
        )

    def _sweep(self) -> None:
        """Remove incomplete marks of processes that ended while writing; the caller holds the guard."""
        for name in os.listdir(self.folder):
            if name.startswith(f".{MARK}.") and name.endswith(TEMPORARY):
                (self.folder / name).unlink(missing_ok=True)

    @contextmanager
    def changing(self) -> Iterator[dict[str, list[str]]]:
        """Yield the files of the mark; the mark is rewritten if they were changed inside."""
        with writing(self.path), _guard(self.folder / GUARD):
            self._sweep()
            files = self.files()
            before = json.dumps(files)
            yield files
            if json.dumps(files) != before or not there(self.path):
                mark = {"format": FORMAT, "bnas": version("bnas"), "files": files}
                write_bytes(self.path, (json.dumps(mark, indent=1) + "\n").encode())


@contextmanager
def _guard(path: Path) -> Iterator[None]:
    try:
        with filelock.FileLock(path, timeout=PATIENCE, is_singleton=False):
            yield
    except filelock.Timeout as error:
        raise OutputError(
            f"{path} has been locked by another process for {PATIENCE:g} s; wait for that process, or stop it"
        ) from error
