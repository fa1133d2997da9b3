"""A file is replaced completely or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bnas.runtime.storage.files import WriteError, write_bytes


def test_replaces_the_file_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    for text in ("first, and longer\r\n", "second\n"):
        write_bytes(path, text.encode())
        assert path.read_bytes() == text.encode()
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_failure_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    path = tmp_path / "log.csv"
    write_bytes(path, b"old")
    monkeypatch.setattr(os, step, fail)
    with pytest.raises(WriteError, match=r"log\.csv cannot be written: disk full"):
        write_bytes(path, b"new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
