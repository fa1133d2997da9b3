"""What a person reads who made a mistake, or whose machine lacks something: a few lines instead of a traceback."""

from __future__ import annotations

import errno

import torch

from bnas.passes.errors import BnasError
from bnas.runtime.files import why


def told(error: Exception) -> str | None:
    """What to tell of `error`; None where it is a fault of bnas or of code that a user brought, to be seen whole."""
    if isinstance(error, BnasError):
        return str(error) + "".join(f"\n  {note}" for note in getattr(error, "__notes__", ()))
    if isinstance(error, torch.OutOfMemoryError):
        first = str(error).split(". ")[0]
        return f"{first}: a smaller batch_size, batch_size_val or accumulate instead of large batches needs less"
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if isinstance(error, OSError) and (full or error.filename is not None):
        place = "" if error.filename is None else f"{error.filename}: "
        return f"{place}{why(error) if full else error.strerror} (-v shows where)"
    return None
