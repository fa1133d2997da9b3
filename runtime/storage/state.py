"""What bnas remembers of a user between runs, in a folder of the user's own: never what a result depends on alone."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import platformdirs

from .files import checksum, write_json

STATE = "BNAS_STATE"
"""The environment variable that names another state folder."""


def state_folder() -> Path:
    """Where bnas remembers: ``BNAS_STATE``, or the folder that the system has for this."""
    given = os.environ.get(STATE)
    return Path(given) if given else platformdirs.user_state_path("bnas")


def remember(kind: str, key: Any, value: Any) -> None:
    """Remember a value (JSON data); where nothing can be written, nothing is remembered.

    Each has a file of its own, so that processes do not meet, and a damaged file is one value.
    """
    try:
        state_folder().mkdir(mode=0o700, parents=True, exist_ok=True)
        write_json(_file(kind, key), {"key": key, "value": value})
    except (OSError, ValueError):
        return


def recall(kind: str, key: Any) -> Any:
    """The value that was remembered, or None."""
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
