"""Files are whole or not there: written to a temporary name, flushed to disk, renamed."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bnas.passes import BnasError

NO_SPACE = "the disk is full: free some space"
NO_PERMISSION = "you may not write there: choose another folder, or change its permissions"
REMEDIES = {
    errno.ENOSPC: NO_SPACE,
    errno.EDQUOT: NO_SPACE,
    errno.EACCES: NO_PERMISSION,
    errno.EPERM: NO_PERMISSION,
    errno.EROFS: NO_PERMISSION,
    errno.ENOENT: "its folder is not there: make it first",
    errno.ENOTDIR: "a part of its path is a file: choose another folder",
    errno.EEXIST: "a part of its path is a file: choose another folder",
}


class WriteError(BnasError, OSError):
    """A file cannot be written; names it and what can be done. What was there before is still there, whole."""


@contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """While it lasts, a failure of the system is a `WriteError` for `path`."""
    try:
        yield
    except OSError as error:
        if isinstance(error, BnasError):
            raise
        raise WriteError(f"{os.fspath(path)} cannot be written: {why(error)}") from error


def why(error: OSError) -> str:
    """What the system says, and what can be done."""
    told = error.strerror or str(error) or type(error).__name__
    remedy = REMEDIES.get(error.errno or 0)
    return f"{told}; {remedy}" if remedy else told


def write_bytes(path: Path, data: bytes) -> None:
    """Write `path` atomically; its folder is made if needed.

    Raises:
        WriteError: it cannot be written; what was there is still there.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


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


def checksum(data: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(data).hexdigest()
