"""Two processes do not write to one folder, and a lock does not outlive its process."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bnas.run.files.ledger import Ledger
from bnas.run.files.lock import HOLDER, Holder, StaleLockWarning, kept
from bnas.run.files.mark import OutputError
from bnas.runtime.storage.files import write_bytes

HOLD = """
import sys
from pathlib import Path
from bnas.run.files.lock import kept
from bnas.runtime.storage.files import write_bytes
with kept(Path(sys.argv[1])):
    write_bytes(Path(sys.argv[1]) / "theirs", b"1")
    print("held", flush=True)
    sys.stdin.readline()
"""


@contextmanager
def held(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds a folder until it is told to end."""
    told = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(told, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def test_the_holder_is_named_to_others(tmp_path: Path) -> None:
    with held(tmp_path) as process:
        message = rf"in use by process {process.pid} on {socket.gethostname()} since 20\d\d-.*\(-c .*wait until it ends"
        with pytest.raises(OutputError, match=message), kept(tmp_path):
            pass
        assert Ledger(tmp_path).read("theirs") == b"1"  # who reads needs no lock
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.wait() == 0
        with kept(tmp_path):
            write_bytes(tmp_path / "ours", b"2")
    assert set(Ledger(tmp_path).files()) == {"theirs", "ours"}


def holder_inside(folder: Path) -> Holder | None:
    with kept(folder):
        return Holder.read(folder)


def test_the_lock_of_a_killed_process_is_taken_over_with_a_note(tmp_path: Path) -> None:
    with held(tmp_path) as process:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        with pytest.warns(StaleLockWarning, match=f"took over from process {process.pid} on .*ended without"):
            holder = holder_inside(tmp_path)
        assert holder is not None
        assert holder.pid == os.getpid()
    assert Holder.read(tmp_path) is None
    with kept(tmp_path):
        pass


@pytest.mark.parametrize("note", ["", "{", "[]", '{"pid": 1}', "\0"])
def test_a_damaged_note_of_the_holder_matters_to_nobody(tmp_path: Path, note: str) -> None:
    (tmp_path / HOLDER).write_text(note)
    assert holder_inside(tmp_path) is not None


def test_one_thread_may_hold_it_twice_and_another_not_at_all(tmp_path: Path) -> None:
    caught: list[BaseException] = []

    def other() -> None:
        try:
            with kept(tmp_path):
                pass
        except OutputError as error:
            caught.append(error)

    with kept(tmp_path), kept(tmp_path):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert f"in use by process {os.getpid()}" in str(caught[0])


def test_an_error_gives_the_folder_back(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), kept(tmp_path / "a" / "b"):
        _ = 1 / 0
    assert not (tmp_path / "a").exists(), "nothing was written, so no folder stays"
    with kept(tmp_path / "a" / "b"):
        write_bytes(tmp_path / "a" / "b" / "c", b"")
    assert (tmp_path / "a" / "b" / "c").exists()
