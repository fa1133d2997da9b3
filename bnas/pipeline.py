"""The main job: bootstrap, train, search, export, measure; every step leaves whole files that a resumed run reuses."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnas.job import Job, Splits, Watch
from bnas.output import open_output
from bnas.report import Report
from bnas.settled import OF_JOB, free_in
from bnas.steps import Steps

if TYPE_CHECKING:
    import os

__all__ = ["Job", "Splits", "Watch", "run_job"]

NOT_SETTINGS = ("model", "data", "example_inputs")
"""Fields of a job that are no plain data: of these only the class of the model is noted."""


def run_job(
    job: Job,
    folder: str | os.PathLike[str],
    watch: Watch | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
) -> Report:
    """Run all steps of `job` one after another: train, search, export and measure.

    What is searched is what the last stage trained. The settings of the job are written to ``config.json``;
    `bnas report FOLDER` makes a page of the run.

    Args:
        job: What to do.
        folder: Where all files go; a new or an empty folder, unless `resume` or `overwrite` is set.
        watch: Functions that are called as the run goes on.
        resume: Go on with the run in the folder: training continues from its last epoch, and every evaluation is
            reused. Model and data need to be those of before.
        overwrite: Replace the run in the folder.

    Raises:
        OutputError: The folder holds a run, or other files; or a setting that the run has used already is another.
        BnasError: What is wrong, with the place and the remedy; files that were written are whole.
    """
    folder, settings = Path(folder), {"job": described(job)}
    free = free_in(folder, places=OF_JOB)
    output = open_output(folder, settings, resume=resume, overwrite=overwrite, free=free)
    return Steps(job, output, watch).all()


def described(job: Job) -> dict[str, Any]:
    """The settings of a job as plain data, and the class of its model."""
    settings = {one.name: _plain(getattr(job, one.name)) for one in fields(job) if one.name not in NOT_SETTINGS}
    return {"model": _name(type(job.model)), **settings}


def _plain(value: Any) -> Any:
    """A value as JSON holds it; of functions, classes and other objects the name."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    if is_dataclass(value) and not isinstance(value, type):
        return {one.name: _plain(getattr(value, one.name)) for one in fields(value)}
    return str(value) if isinstance(value, Path) else _name(value)


def _name(value: Any) -> str:
    """The name of a class or function, or of the class of an object."""
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}.{named.__qualname__}"
