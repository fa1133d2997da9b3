"""The main job: bootstrap, train, search, export, measure; every step leaves whole files that a resumed run reuses."""

from __future__ import annotations

from bnas.job import Job, Splits, Watch
from bnas.output import Output
from bnas.report import Report
from bnas.steps import Steps

__all__ = ["Job", "Splits", "Watch", "run_job"]


def run_job(job: Job, output: Output, watch: Watch | None = None) -> Report:
    """Run all steps of `job` one after another; see `bnas.steps.Steps` for what each leaves in `output`.

    A resumed run goes on with the training where it was left, and reuses every evaluation. What is searched is what
    the last stage trained.

    Raises:
        BnasError: what is wrong, with the place and the remedy; files that were written are whole.
    """
    return Steps(job, output, watch).all()
