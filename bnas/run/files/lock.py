"""The lock of a run folder: one writer at a time. It ends with its process, and names the process that holds it."""

from __future__ import annotations

import datetime
import json
import os
import re
import shlex
import shutil
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import filelock

from bnas.passes.wording import shown
from bnas.runtime.storage.files import NO_PERMISSION, TEMPORARY, discard, guarded, read_file, write_json, writing

from .ledger import Ledger
from .mark import GUARD, OutputError

LOCK = ".bnas-run.lock"
"""File that the operating system locks for a process, and unlocks when the process ends, however it ends."""
HOLDER = ".bnas-holder.json"
"""File that names the holder of the lock, for messages in other processes."""
OWN = (LOCK, HOLDER, GUARD)
"""Files that may be in a folder that counts as empty."""


class StaleLockWarning(UserWarning):
    """A process ended without releasing the lock of a run folder: it was killed, or its machine stopped."""


@dataclass(frozen=True)
class Holder:
    """The process that writes to a folder."""

    pid: int
    host: str
    since: str
    command: str

    @classmethod
    def me(cls) -> Holder:
        """This process."""
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        return cls(os.getpid(), socket.gethostname(), now, shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])[:200])

    @classmethod
    def read(cls, folder: Path) -> Holder | None:
        """Return the holder noted in a folder; None if there is none, or the note is incomplete."""
        with suppress(OSError, ValueError, TypeError, RecursionError):
            return cls(**json.loads(read_file(folder / HOLDER)))
        return None

    def __str__(self) -> str:
        return shown(f"process {self.pid} on {self.host} since {self.since} ({self.command})")


def check_place(folder: Path) -> None:
    """Check, as far as possible, that a folder can be created or written to.

    Raises:
        OutputError: The path is a file, is not UTF-8, or the folder is not writable.
        WriteError: The operating system refuses the check.
    """
    if str(folder).encode(errors="replace").decode() != str(folder):
        raise OutputError(
            f"{shown(str(folder))} cannot be the folder of a run: its name has bytes that are not UTF-8, which ONNX "
            "and safetensors refuse; choose another folder"
        )
    with writing(folder):
        there = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    if not there.is_dir():
        raise OutputError(f"{there} is a file; choose a folder")
    effective = os.access in os.supports_effective_ids
    if not os.access(there, os.W_OK | os.X_OK, effective_ids=effective):
        raise OutputError(f"{folder} cannot be written to: {NO_PERMISSION}")


Made = TypeVar("Made")

_held: dict[Path, int] = {}
"""The folders that this process holds, with the thread that holds each."""


@contextmanager
def kept(folder: Path) -> Iterator[Ledger]:
    """Inside, hold the lock of a run folder and keep account of each written file.

    The folder is created if it does not exist, and removed again if nothing was written. The same thread can hold it
    repeatedly; inner calls have no effect.

    Raises:
        OutputError: Another process or thread holds the folder; the message names it.
        WriteError: The folder cannot be written to.
    """
    place, ledger = folder.resolve(), Ledger(folder)
    if _held.get(place) == threading.get_ident():
        yield ledger
        return
    check_place(folder)
    made = [one for one in (folder, *folder.parents) if not one.exists()]
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder, made):
        _held[place] = threading.get_ident()
        try:
            if ledger.exists:
                sweep(ledger)
                ledger.forget_missing()
            with guarded(folder, ledger):
                yield ledger
        finally:
            del _held[place]


def holding(step: Callable[[Any], Made]) -> Callable[[Any], Made]:
    """Decorator for a step of a run, which holds the lock of the run folder while it runs."""

    @wraps(step)
    def held(self: Any) -> Made:
        with kept(self.output.folder):
            return step(self)

    return held


@contextmanager
def _locked(folder: Path, made: list[Path]) -> Iterator[None]:
    """Hold the lock of a folder; remove the folders `made` for it if nothing was written."""
    lock = filelock.FileLock(folder / LOCK, blocking=False, is_singleton=False)
    with writing(folder / LOCK):
        _acquire(lock, folder)
    try:
        if (former := Holder.read(folder)) is not None:
            told = f"{folder}: took over from {former}, which ended without releasing the folder"
            warnings.warn(told, StaleLockWarning, stacklevel=5)
        write_json(folder / HOLDER, asdict(Holder.me()))
        yield
        discard(folder / HOLDER)
    except BaseException:
        with suppress(OSError):  # the error that is being raised is more important
            discard(folder / HOLDER)
        raise
    finally:
        _leave(folder)
        with suppress(OSError):  # the operating system also unlocks it when the process ends
            lock.release()
            for one in made:
                one.rmdir()


def _acquire(lock: filelock.BaseFileLock, folder: Path) -> None:
    """Take the lock, or raise an error with its holder. Waits briefly, since the holder may be starting or ending."""
    for _ in range(40):
        try:
            lock.acquire()
        except filelock.Timeout:
            found = Holder.read(folder)
            if found is not None and (found.host != socket.gethostname() or _runs(found.pid)):
                raise OutputError(f"{folder} is in use by {found}; wait until it ends, or stop it") from None
            time.sleep(0.05)
        else:
            return
    raise OutputError(f"{folder} is in use by another process; wait until it ends, or stop it")


_UNFINISHED = re.compile(rf"\.(?P<name>.*)\.(?P<pid>\d+){re.escape(TEMPORARY)}")


def sweep(ledger: Ledger, prefix: str = "") -> None:
    """Remove incomplete files of processes that ended while writing.

    Without a `prefix` of file names the caller must hold the lock, because processes on other machines may be writing.
    """
    names = {name for name in ledger.files() if name.startswith(prefix)}
    for folder in {(ledger.folder / name).parent for name in names}:
        for path in folder.glob(f".*{TEMPORARY}"):
            match = _UNFINISHED.fullmatch(path.name)
            if match is None or not _is_ours(path.with_name(match["name"]), ledger, names):
                continue
            if int(match["pid"]) != os.getpid() and _runs(int(match["pid"])):
                continue  # a report is being written
            with writing(path):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


def _is_ours(target: Path, ledger: Ledger, names: set[str]) -> bool:
    """Whether an incomplete file belongs to the run: it is listed, or is an ONNX file (``NAME.onnx.RANDOM``)."""
    name = target.relative_to(ledger.folder).as_posix()
    return name in (*names, HOLDER) or re.fullmatch(r"subnets/[^/]+\.onnx\.\w+", name) is not None


def _runs(pid: int) -> bool:
    """Whether a process with this id runs on this machine. On Windows, where the check could end it, always true."""
    if os.name == "nt":
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


def _leave(folder: Path) -> None:
    """Remove bnas's files from a folder that did not become a run folder."""
    with suppress(OSError):
        if not Ledger(folder).exists:
            for name in OWN:
                (folder / name).unlink(missing_ok=True)
