"""Options of several commands, and how a command reacts when it is stopped."""

from __future__ import annotations

import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from bnas.run.job import Watch

SIGNALS = 128
"""Exit code of a command that a signal stopped: this plus the number of the signal, as in shells."""

Changes = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key, such as optimizer.base_lr=0.1.")
]
Inputs = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        metavar="[NAME=]SHAPE[:TYPE[LOW..HIGH]]",
        help="Shape of an input, such as 2,3,32,32 or 2,16:int64[0..999]; repeatable.",
    ),
]
Budget = Annotated[
    str | None, typer.Option("--budget", metavar="TIME", help="Plan the run to take this time, such as 30m or 1h30m.")
]
Config = Annotated[Path, typer.Argument(help="Configuration file: .json, .json5, .yaml or .yml.")]
LogDir = Annotated[
    Path | None, typer.Option("--output", "-o", help="Folder for all results. Default: log_dir of the file.")
]
Run = Annotated[Path, typer.Argument(help="Folder of a run.")]
Source = Annotated[
    Path | None, typer.Option("--from", help="Where the configuration's files are now, if they were moved.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the run in the folder.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the run in the folder.")]
Trust = Annotated[
    bool, typer.Option("--trust", help="Import the code that a run folder names, though you never named it.")
]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="List the passes and what each left unchanged.")]


@contextmanager
def watched(verbose: bool, *, resumes: bool = True) -> Iterator[tuple[Console, Watch]]:
    """Yield a terminal, and a `Watch` that shows progress there; reacts to signals like `stoppable`.

    `resumes` says whether the command has the option ``--resume``; if not, the user repeats the same command.
    """
    from .progress import Terminal, watching

    console = Terminal()
    with stoppable(resumes), watching(console, verbose) as watch:
        yield console, watch


def say(console: Console, text: str) -> None:
    """Print a line literally: long paths are not wrapped, and brackets are not markup."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


class Terminated(KeyboardInterrupt):
    """The process was asked to end (SIGTERM)."""

    code = SIGNALS + signal.SIGTERM


class Unheard(KeyboardInterrupt):
    """The program that read the standard output has ended, such as `head`."""

    code = 1
    why = ", because its standard output was closed"


@contextmanager
def stoppable(resumes: bool = True) -> Iterator[None]:
    """Inside, Ctrl-C, SIGTERM and a closed output end the command: it cleans up and prints how to continue."""
    main = threading.current_thread() is threading.main_thread()  # only the main thread may set handlers
    former = signal.signal(signal.SIGTERM, _terminate) if main else None
    try:
        with interruptible():
            yield
    except KeyboardInterrupt as error:
        told = again(sys.argv[1:], resumes, begun=not getattr(error, UNCHANGED, False))
        typer.secho(f"bnas: stopped{getattr(error, 'why', '')}; to continue: {told}", fg="yellow", err=True)
        raise typer.Exit(getattr(error, "code", SIGNALS + signal.SIGINT)) from None
    finally:
        if main:
            signal.signal(signal.SIGTERM, former)


def _terminate(*_: object) -> None:
    raise Terminated


class Stop:
    """Handler of Ctrl-C that raises `KeyboardInterrupt`, as Python's own does, and remembers that it was called."""

    called = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handle the signal."""
        self.called = True
        signal.default_int_handler(number, frame)


@contextmanager
def interruptible() -> Iterator[None]:
    """Inside, an error after a Ctrl-C counts as `KeyboardInterrupt`, so that no traceback hides how to continue.

    A library can turn a Ctrl-C into another error: an import of NumPy that C code began ends in a RecursionError.
    """
    former, stop = signal.getsignal(signal.SIGINT), Stop()
    usual = former is signal.default_int_handler or isinstance(former, Stop)
    if not usual or threading.current_thread() is not threading.main_thread():
        yield  # Ctrl-C is ignored, or not for us
        return
    signal.signal(signal.SIGINT, stop)
    try:
        yield
    except Exception as error:
        if stop.called:
            raise KeyboardInterrupt from error
        raise
    finally:
        signal.signal(signal.SIGINT, former)


def no_traceback() -> None:
    """Let Ctrl-C end Python at once while it shuts down, which takes a second or two after torch was imported."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


UNCHANGED = "unchanged"
"""Attribute of a `KeyboardInterrupt` that came before any change."""


@contextmanager
def unchanged() -> Iterator[None]:
    """Mark a part of a command that can be repeated: it changes nothing that the same command would not redo."""
    try:
        yield
    except KeyboardInterrupt as error:
        setattr(error, UNCHANGED, True)
        raise


def again(arguments: list[str], resumes: bool = True, *, begun: bool = True) -> str:
    """Return the command line that continues an interrupted command; the same command if it had not begun."""
    if not resumes or ("--overwrite" in arguments and not begun):
        return shlex.join(["bnas", *arguments])
    kept = [one for one in arguments if one not in ("--resume", "--overwrite")]
    return shlex.join(["bnas", *kept, "--resume"])
