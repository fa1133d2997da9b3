"""Atomic files: write to a temporary name, flush to disk, rename."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from bnas.passes import BnasError

# Errors of the file system, with the name of the file and a remedy.

NO_SPACE = "the disk is full: free some space, then repeat the command (that of a run with --resume)"
NO_PERMISSION = "no permission to write there: choose another folder, or change its permissions"
REMEDIES = {
    errno.ENOSPC: NO_SPACE,
    errno.EDQUOT: NO_SPACE,
    errno.EACCES: NO_PERMISSION,
    errno.EPERM: NO_PERMISSION,
    errno.EROFS: NO_PERMISSION,
    errno.ENOENT: "its folder does not exist: create it first",
    errno.ENOTDIR: "a part of its path is a file: choose another folder",
    errno.EEXIST: "a part of its path is a file: choose another folder",
}


class WriteError(BnasError, OSError):
    """A file cannot be written; the message has its name and the remedy. The previous file is still complete."""


class ReadError(BnasError, OSError):
    """A file cannot be read; the message has its name and the reason of the operating system."""


@contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Inside, an OSError becomes a `WriteError` for `path`."""
    with _failing(lambda error: WriteError(f"{os.fspath(path)} cannot be written: {why(error)}")):
        yield


@contextmanager
def reading(path: str | os.PathLike[str]) -> Iterator[None]:
    """Inside, an OSError becomes a `ReadError` for `path`."""
    with _failing(lambda error: ReadError(f"{os.fspath(path)} cannot be read: {_said(error)}")):
        yield


@contextmanager
def _failing(told: Callable[[OSError], BnasError]) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if isinstance(error, BnasError):
            raise
        raise told(error) from error


def why(error: OSError) -> str:
    """Return the reason of the operating system and a remedy."""
    told = _said(error)
    remedy = REMEDIES.get(error.errno or 0)
    return f"{told}; {remedy}" if remedy else told


def _said(error: OSError) -> str:
    return error.strerror or str(error) or type(error).__name__


def there(path: Path) -> bool:
    """Whether `path` exists, also as a broken link.

    Raises:
        ReadError: The operating system cannot tell. (`Path.exists` would return False, as for a missing file.)
    """
    with reading(path):
        try:
            path.lstat()
        except (FileNotFoundError, NotADirectoryError):
            return False
    return True


# A folder may have a keeper, which is asked before a file in the folder is written.


class Keeper(Protocol):
    """Keeps account of the files in a folder."""

    def claim(self, path: Path, digest: str | None) -> None:
        """Note that bnas is about to write `path`.

        Args:
            path: The file, below the keeper's folder.
            digest: SHA-256 of what is written, in hexadecimal; None for a file that grows line by line.

        Raises:
            BnasError: The file must not be written.
        """

    def owns(self, path: Path) -> bool:
        """Whether bnas wrote `path`, as it is now, so that it may be removed."""

    def forget(self, path: Path) -> None:
        """Note that bnas has removed `path`."""


_KEEPERS: dict[Path, Keeper] = {}


@contextmanager
def guarded(folder: Path, keeper: Keeper) -> Iterator[None]:
    """Inside, all functions of this module ask `keeper` before they write a file below `folder`."""
    place = Path(os.path.abspath(folder))
    outer = _KEEPERS.get(place)
    _KEEPERS[place] = keeper
    try:
        yield
    finally:
        del _KEEPERS[place]
        if outer is not None:
            _KEEPERS[place] = outer


def _keeper(path: Path) -> Keeper | None:
    if not _KEEPERS:
        return None
    parents = Path(os.path.abspath(path)).parents
    return next((_KEEPERS[one] for one in parents if one in _KEEPERS), None)


def claim_growing(path: Path) -> None:
    """Ask the keeper of the folder, if there is one, for a file that grows line by line.

    Raises:
        BnasError: The keeper does not allow it.
    """
    if (keeper := _keeper(path)) is not None:
        keeper.claim(path, None)


# Writing, and removing.

TEMPORARY = ".bnas-tmp"
"""Suffix of incomplete files and folders; the process id comes before it."""


def temporary_suffix() -> str:
    """Return the suffix of incomplete files of this process."""
    return f".{os.getpid()}{TEMPORARY}"


def write_bytes(path: Path, data: bytes) -> None:
    """Write `path` atomically; its folder is made if needed.

    Raises:
        WriteError: The file cannot be written; the previous file is unchanged.
    """
    temporary = path.with_name(f".{path.name}{temporary_suffix()}")
    with writing(path):
        if (keeper := _keeper(path)) is not None:
            keeper.claim(path, checksum(data))
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def publish(source: Path, target: Path) -> None:
    """Move the complete file `source` to `target`, in the same file system, in one step.

    Raises:
        WriteError: The file cannot be moved; the previous file at `target` is unchanged.
    """
    with writing(target):
        with source.open("rb+") as file:
            os.fsync(file.fileno())
        if (keeper := _keeper(target)) is not None:
            keeper.claim(target, file_checksum(source))
        source.replace(target)


def discard(path: Path) -> None:
    """Remove a file that bnas wrote, if it is there; a file that the keeper of its folder does not know stays.

    Raises:
        WriteError: it cannot be removed.
    """
    keeper = _keeper(path)
    with writing(path):
        if keeper is not None and not keeper.owns(path):
            return
        path.unlink(missing_ok=True)
        if keeper is not None:
            keeper.forget(path)


def append_line(path: Path, data: bytes) -> None:
    """Append a line to `path` and wait until it is on disk.

    Raises:
        WriteError: it cannot be written; a part of the line may stand at the end.
    """
    with writing(path), path.open("ab") as file:
        file.write(data + b"\n")
        file.flush()
        os.fsync(file.fileno())


def write_json(path: Path, data: Any) -> None:
    """Write `data` as indented JSON, atomically; NaN and inf are refused."""
    write_bytes(path, (json.dumps(data, indent=2, allow_nan=False) + "\n").encode())


# Reading.


def read_file(path: Path) -> bytes:
    """Return the content of a plain file. A pipe is refused, since reading it could wait forever.

    Raises:
        ReadError: it cannot be read, or is no plain file.
    """
    with reading(path):
        _refuse_pipe(path)
        return path.read_bytes()


def _refuse_pipe(path: Path) -> None:
    if not stat.S_ISREG(path.stat().st_mode):
        raise ReadError(
            f"{path} cannot be read: it is not a regular file; remove it, or restore the file from a backup"
        )


def is_written_by(path: Path, known: Callable[[Any], bool]) -> bool:
    """Whether there is no file at `path`, or a JSON file whose content is `known`.

    Raises:
        ReadError: it cannot be read, or is no plain file.
    """
    try:
        return not there(path) or known(json.loads(read_file(path)))
    except (ValueError, TypeError, KeyError, RecursionError):
        return False


# Checksums.


def checksum(data: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def file_checksum(path: Path) -> str:
    """SHA-256 of a plain file's content, in hexadecimal.

    Raises:
        ReadError: it cannot be read, or is no plain file.
    """
    digest = hashlib.sha256()
    with reading(path):
        _refuse_pipe(path)
        with path.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    return digest.hexdigest()
