"""A disk that may fail: sees every file operation of Python's below a folder before the system does."""

from __future__ import annotations

import builtins
import fcntl
import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

WRITES = ("open to write", "write", "close", "fsync", "make folder")
"""Kinds of operations that need space."""
CHANGES = (*WRITES, "rename", "remove", "remove folder", "truncate", "link")
"""Kinds of operations that a disk refuses which is read only."""
READS = ("open to read", "read", "stat", "list", "lock")
KINDS = (*CHANGES, *READS)


@dataclass(frozen=True)
class Operation:
    """One file operation, which is about to happen."""

    kind: str
    """One of `KINDS`."""
    path: str
    size: int = 0
    """Bytes to write."""


Watcher = Callable[[Operation], "int | None"]
"""Sees an operation. An OSError that it raises is what the operation ends with; of a write it may say how many bytes
are written, where these are not all."""

_links, _fstat = os.readlink, os.fstat


class Disk:
    """The files below `folder`, whose operations `watcher` sees while `installed`."""

    def __init__(self, folder: str, watcher: Watcher) -> None:
        self.folder, self.watcher = os.path.abspath(folder), watcher
        self.asleep = False
        """Nothing is seen for now."""

    def holds(self, path: Any, dir_fd: int | None = None) -> str | None:
        """The whole path, where it is in the folder or the folder itself."""
        if self.asleep:
            return None
        try:
            if isinstance(path, int):
                whole = _links(f"/proc/self/fd/{path}")
            else:
                start = os.getcwd() if dir_fd is None else _links(f"/proc/self/fd/{dir_fd}")
                whole = os.path.normpath(os.path.join(start, os.fsdecode(path)))
        except (OSError, TypeError):
            return None
        return whole if whole == self.folder or whole.startswith(self.folder + os.sep) else None

    def see(self, kind: str, path: Any, size: int = 0, dir_fd: int | None = None) -> int | None:
        """Ask the watcher, where the path is in the folder."""
        whole = self.holds(path, dir_fd)
        if whole is None:
            return None
        self.asleep = True  # what the watcher itself does with files
        try:
            return self.watcher(Operation(kind, whole, size))
        finally:
            self.asleep = False

    def install(self) -> None:
        """From now on, for the rest of this process."""
        for kind, names in FUNCTIONS.items():
            for name in names:
                _replace(os, name, self._seen(kind, getattr(os, name)))
        _replace(os, "rename", self._moved(os.rename))
        _replace(os, "replace", self._moved(os.replace))
        _replace(os, "open", self._opened(os.open))
        _replace(os, "write", self._written(os.write))
        for name in ("flock", "lockf"):
            _replace(fcntl, name, self._seen("lock", getattr(fcntl, name)))
        usual = io.open
        for module in (io, builtins):
            _replace(module, "open", self._file(usual))

    def _seen(self, kind: str, usual: Callable[..., Any]) -> Callable[..., Any]:
        def function(path: Any = ".", *args: Any, **named: Any) -> Any:
            self.see(kind, getattr(path, "fileno", lambda: path)(), dir_fd=named.get("dir_fd"))
            return usual(path, *args, **named)

        return function

    def _moved(self, usual: Callable[..., Any]) -> Callable[..., Any]:
        def function(source: Any, target: Any, **named: Any) -> Any:
            self.see("rename", target, dir_fd=named.get("dst_dir_fd"))
            return usual(source, target, **named)

        return function

    def _opened(self, usual: Callable[..., Any]) -> Callable[..., Any]:
        def function(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
            writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            self.see("open to write" if writes else "open to read", path, dir_fd=dir_fd)
            return int(usual(path, flags, mode, dir_fd=dir_fd))

        return function

    def _written(self, usual: Callable[..., Any]) -> Callable[..., Any]:
        def function(file: int, data: Any) -> int:
            some = self.see("write", file, len(data))
            return int(usual(file, data if some is None else memoryview(data)[:some]))

        return function

    def _file(self, usual: Callable[..., Any]) -> Callable[..., Any]:
        def function(
            file: Any,
            mode: str = "r",
            buffering: int = -1,
            encoding: str | None = None,
            errors: str | None = None,
            newline: str | None = None,
            closefd: bool = True,
            opener: Any = None,
        ) -> Any:
            if isinstance(file, int) or self.holds(file) is None:
                return usual(file, mode, buffering, encoding, errors, newline, closefd, opener)
            plain = mode.replace("t", "").replace("b", "")
            raw = Watched(self, file, plain, opener)
            if buffering == 0:
                return raw
            kind = io.BufferedRandom if "+" in plain else io.BufferedReader if plain == "r" else io.BufferedWriter
            buffered = kind(raw)
            if "b" in mode:
                return buffered
            text = io.TextIOWrapper(buffered, encoding, errors, newline)
            text.mode = mode  # type: ignore[misc]
            return text

        return function


FUNCTIONS = {
    "make folder": ("mkdir",),
    "remove": ("unlink", "remove"),
    "remove folder": ("rmdir",),
    "fsync": ("fsync", "fdatasync"),
    "truncate": ("truncate", "ftruncate"),
    "link": ("link", "symlink"),
    "stat": ("stat", "lstat", "fstat"),
    "list": ("scandir", "listdir"),
    "read": ("read",),
}
"""Functions of `os` whose first argument is the path or the number of a file."""


def _replace(module: Any, name: str, new: Callable[..., Any]) -> None:
    """Replace a function; what the system says it can do, the new one can."""
    old = getattr(module, name)
    for known in (os.supports_dir_fd, os.supports_fd, os.supports_follow_symlinks):
        if old in known:
            known.add(new)
    setattr(module, name, new)


class Watched(io.FileIO):
    """A file whose every call of the system is seen."""

    def __init__(self, disk: Disk, file: Any, mode: str, opener: Any) -> None:
        self.disk, self.wrote = disk, mode != "r"
        if opener is None:  # else it calls `os.open`, which is seen
            disk.see("open to write" if self.wrote else "open to read", file)
        super().__init__(file, mode, opener=opener)

    def readinto(self, buffer: Any) -> int | None:  # type: ignore[override]
        """Read, unless reading fails."""
        self.disk.see("read", self.fileno())
        return super().readinto(buffer)

    def readall(self) -> bytes:
        """Read all, unless reading fails."""
        self.disk.see("read", self.fileno())
        return super().readall()

    def read(self, size: int = -1) -> bytes:  # type: ignore[override]
        """Read some, unless reading fails."""
        self.disk.see("read", self.fileno())
        return super().read(size)

    def write(self, data: Any) -> int:
        """Write as many bytes as there is space for."""
        some = self.disk.see("write", self.fileno(), len(data))
        return super().write(data if some is None else memoryview(data)[:some])

    def truncate(self, size: int | None = None) -> int:
        """Cut, unless that fails."""
        self.disk.see("truncate", self.fileno())
        return super().truncate(size)

    def close(self) -> None:
        """Close; a file that was written may only say now that it has no space."""
        told = None if self.closed or not self.wrote else self.fileno()
        try:
            if told is not None:
                self.disk.see("close", told)
        finally:
            super().close()
