"""Text for the terminal: the plan, the passes, and short error messages instead of tracebacks."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from rich.table import Table

from bnas.passes import PIPELINE
from bnas.passes.errors import BnasError
from bnas.runtime.storage.files import why

if TYPE_CHECKING:
    from bnas.run.plan.budget import Plan
    from bnas.runtime import SuperNetwork


# Tables and lists.


def plan_table(plan: Plan) -> Table:
    """Return the plan as a table: the remaining phases with their durations, and the needed disk space."""
    shown = Table(title="the plan", title_justify="left")
    for column in ("phase", "what", "time"):
        shown.add_column(column, justify="right" if column == "time" else "left", overflow="fold")
    for row in plan.rows():
        shown.add_row(*row)
    return shown


def passes_of(supernet: SuperNetwork) -> Iterator[str]:
    """Return the passes in order with the parts that each left unchanged, then the result."""
    for name in PIPELINE.names:
        refusals = supernet.analysis.refusals.get(name, ())
        yield f"pass {name}: {f'{len(refusals)} left unchanged' if refusals else 'nothing left unchanged'}"
        yield from (f"    {one.place}: {one.reason}" for one in refusals)
    space = supernet.space
    yield f"{len(space.blocks)} blocks, {len(space.widths)} widths, {len(space.kernels)} kernels"


# Short messages for mistakes of the user and for missing parts of the machine, instead of a traceback.


def told(error: Exception) -> str | None:
    """Return the message for `error`; None for a bug of bnas or of the user's code, which needs its traceback."""
    if isinstance(error, BnasError):
        return _plain(str(error) + "".join(f"\n  {note}" for note in getattr(error, "__notes__", ())))
    if isinstance(error, torch.OutOfMemoryError):
        first = str(error).split(". ")[0]
        return f"{first}: lower batch_size or batch_size_val, or use accumulate instead of large batches"
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if isinstance(error, OSError) and (full or error.filename is not None):
        place = "" if error.filename is None else f"{error.filename}: "
        return f"{place}{why(error) if full else error.strerror} (-v shows where)"
    return None


def _plain(text: str) -> str:
    """Remove terminal control characters from a text: names in a file of somebody else may contain them."""
    return "".join(one if one.isprintable() or one == "\n" else repr(one)[1:-1] for one in text)
