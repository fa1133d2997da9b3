"""Values that bnas remembers between runs, in a state folder of the user. Results never depend on them alone."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import platformdirs

from .files import checksum, write_json

STATE = "BNAS_STATE"
"""Environment variable for another state folder."""


def state_folder() -> Path:
    """Return the state folder: ``BNAS_STATE``, or the usual folder of the operating system."""
    given = os.environ.get(STATE)
    return Path(given) if given else platformdirs.user_state_path("bnas")


def remember(kind: str, key: Any, value: Any) -> None:
    """Remember a value (JSON data); if the file cannot be written, the value is not remembered.

    Each value has its own file, so processes do not conflict, and a damaged file affects one value only.
    """
    try:
        state_folder().mkdir(mode=0o700, parents=True, exist_ok=True)
        write_json(_file(kind, key), {"key": key, "value": value})
    except (OSError, ValueError):
        return


def recall(kind: str, key: Any) -> Any:
    """Return the remembered value, or None."""
    try:
        note = json.loads(_file(kind, key).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    known = isinstance(note, dict) and note.get("key") == json.loads(_text(key))
    return note.get("value") if known else None


def _file(kind: str, key: Any) -> Path:
    return state_folder() / kind / f"{checksum(_text(key).encode(errors='surrogatepass'))}.json"


def _text(key: Any) -> str:
    return json.dumps(key, sort_keys=True)
