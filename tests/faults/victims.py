"""One command, tried with every fault at every file operation: there it forks a process for each, which fails there.

The command itself goes on undisturbed. A process that fails works in a copy of the folder as it is at that moment, at
the same path: the folder of the command is aside until the process has ended.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from disk import CHANGES, KINDS, WRITES, Disk, Operation
from forked import HANGS, Running, redirect
from small import RUN

E = errno
fork = ctypes.PyDLL(None).fork
"""Without what libraries do in a forked process: one that fails goes on as the very process that it was forked from."""
ERRORS = {
    "open to read": (E.EIO, E.ESTALE, E.EACCES, E.ENOENT),
    "read": (E.EIO, E.ESTALE),
    "open to write": (E.ENOSPC, E.EDQUOT, E.EIO, E.ESTALE, E.EACCES, E.EROFS),
    "write": (E.ENOSPC, E.EDQUOT, E.EIO, E.ESTALE),
    "close": (E.ENOSPC, E.EDQUOT, E.EIO),
    "fsync": (E.ENOSPC, E.EDQUOT, E.EIO),
    "rename": (E.EXDEV, E.EBUSY, E.EACCES, E.EROFS, E.ENOSPC, E.EIO, E.ESTALE),
    "make folder": (E.ENOSPC, E.EDQUOT, E.EACCES, E.EROFS, E.EIO),
    "remove": (E.EBUSY, E.EACCES, E.EROFS, E.EIO, E.ESTALE),
    "remove folder": (E.EBUSY, E.EACCES, E.EIO, E.ENOTEMPTY),
    "stat": (E.EIO, E.EACCES, E.ESTALE),
    "list": (E.EIO, E.EACCES, E.ESTALE),
    "truncate": (E.ENOSPC, E.EIO, E.EROFS),
    "link": (E.ENOSPC, E.EPERM, E.EIO),
    "lock": (E.ENOLCK, E.EIO),
}
"""What each kind of operation may end with."""
LASTING = {E.ENOSPC: WRITES, E.EDQUOT: WRITES, E.EROFS: CHANGES, E.EIO: KINDS, E.ESTALE: KINDS}
"""What stays once it happened, and the kinds of operations that it is of."""


@dataclass(frozen=True)
class Fault:
    """What goes wrong at an operation."""

    number: int
    """The error of the system."""
    how: str = "once"
    """"once"; "lasting": every later operation fails too; "short": half of the bytes are written, and then no more."""

    def __str__(self) -> str:
        return f"{errno.errorcode[self.number]} {self.how}"

    def raised(self, operation: Operation) -> OSError:
        """The error as the system raises it."""
        return OSError(self.number, os.strerror(self.number), operation.path)


def faults_at(kind: str) -> Iterator[Fault]:
    """All that can go wrong at an operation of this kind."""
    for number in ERRORS[kind]:
        yield Fault(number)
    for number, kinds in LASTING.items():
        if kind in kinds:
            yield Fault(number, "lasting")
    if kind == "write":
        yield Fault(errno.ENOSPC, "short")


@dataclass
class Failing:
    """A disk that has begun to fail."""

    fault: Fault
    seen: int = 0

    def __call__(self, operation: Operation) -> int | None:
        """Fail once, or from now on."""
        self.seen += 1
        if self.fault.how == "short":
            if operation.kind == "write" and self.seen == 1 and operation.size > 1:
                return operation.size // 2
            if operation.kind in WRITES:
                raise self.fault.raised(operation)
            return None
        lasts = self.fault.how == "lasting" and operation.kind in LASTING[self.fault.number]
        if self.seen == 1 or lasts:
            raise self.fault.raised(operation)
        return None


@dataclass(frozen=True)
class Tried:
    """What came of one fault."""

    place: int
    """Number of the operation in its command."""
    kind: str
    path: str
    fault: str
    code: int
    err: str
    state: str
    """Digest of the folder afterwards; a copy of it is kept under this name."""


Chosen = Callable[[int, Operation, Fault], bool]
"""Whether a fault is tried at an operation, whose number comes first."""


@dataclass
class Trying:
    """Sees the operations of a command, and tries all faults at each."""

    place: Path
    """The folder that holds the folder of the run."""
    kept: Path
    """Where the folders go that faults left, and ``tried.jsonl``."""
    chosen: Chosen
    disk: Disk = field(init=False)
    count: int = 0

    def __post_init__(self) -> None:
        self.run, self.aside = self.place / RUN, self.place / f"{RUN}-aside"
        self.disk = Disk(str(self.run), self)
        self.victim: Failing | None = None
        self.known: set[str] = set()

    def __call__(self, operation: Operation) -> int | None:
        """Fork a process for each fault; in such a process, fail."""
        if self.victim is not None:
            return self.victim(operation)
        self.count += 1
        for fault in faults_at(operation.kind):
            if self.chosen(self.count, operation, fault) and self._try(operation, fault):
                assert self.victim is not None
                return self.victim(operation)
        return None

    def _try(self, operation: Operation, fault: Fault) -> bool:
        """Whether this is the process that fails."""
        there = self.run.exists()
        if there:
            self.run.rename(self.aside)
            shutil.copytree(self.aside, self.run, symlinks=True)
        begun, own, texts = time.monotonic(), os.getpid(), self.place / "victim"
        pid = fork()
        if pid == 0:
            os.getpid = lambda: own  # what it began under this number, it goes on with
            redirect(texts)
            _leave_temporary_folders()
            self._reopen()
            self.victim = Failing(fault)
            return True
        ended = Running(pid, texts, begun).wait(HANGS)
        state = self._keep()
        told = Tried(self.count, operation.kind, self._name(operation), str(fault), ended.code, ended.err, state)
        with (self.kept / "tried.jsonl").open("a") as file:
            file.write(json.dumps(asdict(told)) + "\n")
        if there:
            self.aside.rename(self.run)
        return False

    def _name(self, operation: Operation) -> str:
        return os.path.relpath(operation.path, self.place)

    def _keep(self) -> str:
        """Move the folder to those that are kept, unless there is an equal one."""
        state = digest(self.run)
        if self.run.exists():
            if state in self.known:
                shutil.rmtree(self.run)
            else:
                self.run.rename(self.kept / state)
        self.known.add(state)
        return state

    def _reopen(self) -> None:
        """Open files of the folder are those of the copy from now on."""
        for name in os.listdir("/proc/self/fd"):
            try:
                path = os.readlink(f"/proc/self/fd/{name}")
                flags = fcntl.fcntl(int(name), fcntl.F_GETFL)
            except OSError:  # that of the listing itself
                continue
            if path.startswith(f"{self.aside}{os.sep}") and os.path.exists(path):
                _exchange(int(name), f"{self.run}{path.removeprefix(str(self.aside))}", flags)


def _leave_temporary_folders() -> None:
    """Those that are there belong to the undisturbed command: what ONNX Runtime quantises with is one."""
    usual, folder = tempfile.TemporaryDirectory._rmtree, tempfile.gettempdir()
    others = {os.path.join(folder, name) for name in os.listdir(folder)}

    def remove(_: type, name: str, *arguments: Any, **named: Any) -> None:
        if name not in others:
            usual(name, *arguments, **named)

    tempfile.TemporaryDirectory._rmtree = classmethod(remove)  # type: ignore[assignment]


def _exchange(number: int, path: str, flags: int) -> None:
    new = os.open(path, flags & ~(os.O_CREAT | os.O_EXCL | os.O_TRUNC))
    if not flags & os.O_DIRECTORY:
        os.lseek(new, os.lseek(number, 0, os.SEEK_CUR), os.SEEK_SET)
    os.dup2(new, number)
    os.close(new)


def digest(folder: Path) -> str:
    """The names and bytes of all that is in a folder."""
    found = hashlib.sha256()
    for one in sorted(folder.rglob("*")):
        found.update(f"{one.relative_to(folder)}\0{one.is_dir()}\0".encode())
        found.update(one.read_bytes() if one.is_file() else b"")
    return found.hexdigest()[:16]


def read_tried(kept: Path) -> Sequence[Tried]:
    """What was tried, in order."""
    file = kept / "tried.jsonl"
    return [Tried(**json.loads(line)) for line in file.read_text().splitlines()] if file.exists() else []
