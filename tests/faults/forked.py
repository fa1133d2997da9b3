"""The command line in processes of its own, forked from one that has imported everything: a try takes a second."""

from __future__ import annotations

import importlib
import io
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

HANGS = 120.0
"""Seconds after which a command is said to hang, and is killed."""
Setup = Callable[[], None]
"""What a process does before the command, such as to make a disk fail."""


@dataclass(frozen=True)
class Ended:
    """What a command left: its exit code as a shell has it, and what it wrote."""

    code: int
    out: str
    err: str
    seconds: float


@dataclass(frozen=True)
class Running:
    """A command at work."""

    pid: int
    texts: Path
    """Where its output goes: this name, with ``.out`` and ``.err``."""
    begun: float

    def send(self, number: signal.Signals) -> None:
        """Send a signal; a process that has ended gets none."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def wait(self, most: float = HANGS) -> Ended:
        """Wait for its end; a process that hangs is killed, which the error output then says."""
        while not (found := os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG)):
            if time.monotonic() - self.begun > most:
                self.send(signal.SIGKILL)
                most = float("inf")
                with self.texts.with_suffix(".err").open("a") as file:
                    file.write(f"\nHANGS: killed after {time.monotonic() - self.begun:.0f} s\n")
            time.sleep(0.002)
        code = found.si_status if found.si_code == os.CLD_EXITED else 128 + found.si_status
        out, err = map(_taken, (self.texts.with_suffix(end) for end in (".out", ".err")))
        return Ended(code, out, err, time.monotonic() - self.begun)


def _taken(file: Path) -> str:
    """The content of a file, which then is gone; nothing, where a process was killed before it made one."""
    text = file.read_text(errors="replace") if file.exists() else ""
    file.unlink(missing_ok=True)
    return text


def start(arguments: Sequence[str], place: Path, before: Setup | None = None, name: str = "text") -> Running:
    """Start ``bnas`` with these arguments in the folder `place`, in a process that first does `before`."""
    texts = place / f"{name}-{time.monotonic_ns()}"
    begun = time.monotonic()
    pid = os.fork()
    if pid == 0:
        redirect(texts)
        os._exit(_command(arguments, place, before))
    return Running(pid, texts, begun)


def call(arguments: Sequence[str], place: Path, before: Setup | None = None, most: float = HANGS) -> Ended:
    """Run ``bnas`` to its end, as `start`; for `most` seconds."""
    return start(arguments, place, before).wait(most)


def redirect(texts: Path) -> None:
    """The output of this process goes to two files from now on."""
    for number, end in ((1, ".out"), (2, ".err")):
        file = os.open(texts.with_suffix(end), os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
        os.dup2(file, number)
        os.close(file)
    sys.stdout, sys.stderr = (io.TextIOWrapper(io.FileIO(n, "w", closefd=False), write_through=True) for n in (1, 2))


def _command(arguments: Sequence[str], place: Path, before: Setup | None) -> int:
    from bnas.cli.app import main

    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.chdir(place)
    sys.argv = ["bnas", *arguments]
    try:
        if before is not None:
            before()
        main()
    except SystemExit as left:
        return left.code if isinstance(left.code, int) else int(left.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def warm(place: Path, commands: Sequence[Sequence[str]]) -> None:
    """Import what these commands import, without their work: a process does it and says what it imported."""
    told = place / "modules.txt"
    pid = os.fork()
    if pid == 0:
        redirect(place / "warming")
        for arguments in commands:
            _command(arguments, place, None)
        told.write_text("\n".join(sys.modules))
        os._exit(0)
    os.waitpid(pid, 0)
    for name in told.read_text().splitlines():
        with suppress(Exception):  # a module that the run made, such as that of its model
            importlib.import_module(name)
