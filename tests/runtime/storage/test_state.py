"""What is remembered is found again; what is damaged, foreign or cannot be written is forgotten."""

from __future__ import annotations

from pathlib import Path

import pytest

from bnas.runtime.storage.state import recall, remember, state_folder


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BNAS_STATE", str(tmp_path / "state"))
    return tmp_path / "state"


def test_values_come_back(state: Path) -> None:
    assert recall("layout", {"a": 1}) is None
    remember("layout", {"a": 1}, "channels_last")
    remember("layout", {"a": 2}, [1])
    remember("named", {"a": 1}, "else")
    assert recall("layout", {"a": 1}) == "channels_last"
    assert recall("layout", {"a": 2}) == [1]
    remember("layout", {"a": 1}, "contiguous")
    assert recall("layout", {"a": 1}) == "contiguous"
    assert state_folder() == state


@pytest.mark.parametrize("wrong", ["", "{", "[]", "[" * 5000, '{"key": "other", "value": 1}', "null"])
def test_a_damaged_note_is_forgotten(wrong: str, state: Path) -> None:
    remember("layout", "key", 1)
    (note,) = (state / "layout").iterdir()
    note.write_text(wrong)
    assert recall("layout", "key") is None
    remember("layout", "key", 2)
    assert recall("layout", "key") == 2


def test_a_folder_that_cannot_be_written_remembers_nothing(state: Path) -> None:
    state.write_text("a file")
    remember("layout", "key", 1)
    assert recall("layout", "key") is None
