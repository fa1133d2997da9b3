"""What a person reads in the terminal: the plan, the passes, and mistakes in a few lines instead of a traceback."""

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
    from bnas.run.budget import Plan
    from bnas.runtime import SuperNetwork


# Tables and lists.


def plan_table(plan: Plan) -> Table:
    """What a run does from now on, how long each phase takes, and how much disk it needs."""
    shown = Table(title="the plan", title_justify="left")
    for column in ("phase", "what", "time"):
        shown.add_column(column, justify="right" if column == "time" else "left", overflow="fold")
    for row in plan.rows():
        shown.add_row(*row)
    return shown


def passes_of(supernet: SuperNetwork) -> Iterator[str]:
    """The passes in order, each with what it left alone; then what was found."""
    for name in PIPELINE.names:
        refusals = supernet.analysis.refusals.get(name, ())
        yield f"pass {name}: {f'{len(refusals)} left unchanged' if refusals else 'nothing left unchanged'}"
        yield from (f"    {one.place}: {one.reason}" for one in refusals)
    space = supernet.space
    yield f"{len(space.blocks)} blocks, {len(space.widths)} widths, {len(space.kernels)} kernels"


# What a person reads who made a mistake, or whose machine lacks something: a few lines instead of a traceback.


def told(error: Exception) -> str | None:
    """What to tell of `error`; None where it is a fault of bnas or of code that a user brought, to be seen whole."""
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
    """A text without characters that steer a terminal: a file of somebody else may have them in any name."""
    return "".join(one if one.isprintable() or one == "\n" else repr(one)[1:-1] for one in text)
