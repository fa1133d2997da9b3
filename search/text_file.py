"""Text files that are either as they were or complete, whenever the machine stops."""

from __future__ import annotations

import os
from pathlib import Path


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Replace a file by ``text`` in one step; a failure leaves the old file and nothing beside it."""
    target = Path(path)
    # In the same folder: a rename is only one step within a file system. No tempfile: it would drop the usual mode.
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
