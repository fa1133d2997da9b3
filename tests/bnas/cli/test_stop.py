"""Ctrl-C that a library turned into another error: the command says how to continue, without a traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
import typer

from bnas.cli import app, options


@pytest.fixture(autouse=True)
def usual() -> Iterator[None]:
    """Python's handler of Ctrl-C: a test that a script started in the background inherits an ignored one."""
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, former)


def swallowed() -> None:
    """Import something, as NumPy does from C code, while the user presses Ctrl-C."""
    try:
        os.kill(os.getpid(), signal.SIGINT)
    except KeyboardInterrupt:
        raise RecursionError("maximum recursion depth exceeded") from None


def test_inside_a_command_it_says_how_to_continue(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["bnas", "run", "config.json"])
    with pytest.raises(typer.Exit) as stopped, options.interruptible(), options.stoppable():
        swallowed()
    assert stopped.value.exit_code == 130
    assert capsys.readouterr().err == "bnas: stopped; to continue: bnas run config.json --resume\n"


def test_before_a_command_begins_it_ends_in_silence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(app, "app", swallowed)
    with pytest.raises(SystemExit) as stopped:
        app.main()
    assert stopped.value.code == 130
    assert capsys.readouterr() == ("", "")


def test_an_error_without_ctrl_c_remains_that_error() -> None:
    with pytest.raises(RecursionError), options.interruptible(), options.stoppable():
        raise RecursionError


def test_an_ignored_ctrl_c_stays_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with options.interruptible():
        os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_after_a_command_it_ends_python_without_a_traceback() -> None:
    code = """
import atexit, os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
atexit.register(os.kill, os.getpid(), signal.SIGINT)  # while Python shuts down
from bnas.cli.app import main
sys.argv = ["bnas", "--help"]
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")
    assert "Usage" in done.stdout
