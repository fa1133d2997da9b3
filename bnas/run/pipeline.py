"""`run_job`: train, search, fine-tune, export and measure. Each step leaves files that a resumed run reuses."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, cast

from bnas.passes.frontend.copies import deep_copy
from bnas.runtime import SuperNetwork
from bnas.runtime.storage.checkpoint import SUPERNET, TRAINING
from bnas.runtime.storage.files import there

from . import team
from .assistant import Assistant
from .files.lock import kept
from .files.names import EVALUATIONS, TUNING
from .files.output import Free, Output, open_output
from .job import Job, Watch
from .latencies import LATENCY, file_of
from .plan.budget import Plan
from .plan.outlook import Outlook
from .plan.planner import Planner
from .results.results import Report
from .steps import Steps

if TYPE_CHECKING:
    import os


# Settings that an existing run folder has already fixed.


@dataclass(frozen=True)
class Places:
    """Groups of settings by their effect, as places in a configuration or in the settings of a `bnas.Job`."""

    free: tuple[str, ...]
    """Settings that may change at any time."""
    search: tuple[str, ...]
    """Settings that do not affect the training, except for the seed."""
    measured: tuple[str, ...]
    """Settings that affect the values of evaluations, but not a finished training."""
    latency: tuple[str, ...]
    """Settings that affect latency models."""
    seeds: tuple[str, ...]
    """Settings of the search that also affect the training."""
    tuning: tuple[str, ...]
    """Settings of the fine-tuning of the winners."""


OF_CONFIGURATION = Places(
    free=("log_dir", "tensorboard", "mlflow", "wandb", "export", "search.executor", "bootstrapNAS.search.executor"),
    search=(
        "bootstrapNAS.search", "search", "objectives", "targets", "budget", "acc_delta", "reference", "latency",
        "latencies", "device",
    ),
    measured=(
        "bootstrapNAS.search.batchnorm_adaptation", "num_bn_adaptation_samples", "metric", "device", "data",
        "batch_size_val",
    ),
    latency=("latency", "latencies"),
    seeds=("bootstrapNAS.search.seed", "search.seed", "budget"),
    tuning=("fine_tune",),
)  # fmt: skip
OF_JOB = Places(
    free=("job.tensorboard", "job.callbacks", "job.int8", "job.search.executor", "job.search.workers"),
    search=(
        "job.search", "job.objectives", "job.targets", "job.budget", "job.acc_delta", "job.reference", "job.latency",
        "job.latencies",
    ),
    measured=("job.num_bn_adaptation_samples", "job.quality"),
    latency=("job.latency", "job.latencies"),
    seeds=("job.search.seed", "job.budget"),
    tuning=("job.fine_tune",),
)  # fmt: skip
EXPORT = (*OF_CONFIGURATION.free, "latency", "latencies", "device", "data", "batch_size_val")
"""Settings that may differ between an export and the search before it."""


def free_in(folder: Path, *, anew: bool = False, places: Places = OF_CONFIGURATION) -> Free:
    """Return a function that says which settings may differ from those in the run folder, without invalidating files.

    With `anew`, an existing search will be replaced, so its files need not stay valid.
    """
    trained = SUPERNET.exists(folder / "supernet")
    begun = trained or TRAINING.exists(folder / "training" / "last")
    tuned = not anew and there(folder / TUNING)
    searched, fitted = (not anew and there(folder / name) for name in (EVALUATIONS, file_of(LATENCY)))

    def free(place: str) -> bool:
        if within(place, places.free) or not begun:
            return True
        if within(place, places.tuning):
            return not tuned
        if (searched and within(place, places.measured)) or (fitted and within(place, places.latency)):
            return False
        allowed = (*places.search, *places.measured) if trained else places.search
        return within(place, allowed) and (trained or place not in places.seeds)

    return free


def within(place: str, places: tuple[str, ...]) -> bool:
    """Whether a setting is one of `places`, or inside one."""
    return any(place == one or place.startswith(f"{one}.") for one in places)


NOT_SETTINGS = ("model", "data", "example_inputs")
"""Fields of a job that are not plain data; only the class of the model is recorded."""


def run_job(
    job: Job,
    folder: str | os.PathLike[str],
    watch: Watch | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
) -> Report:
    """Run all steps of `job`: train, search, fine-tune the winners if the job asks for it, export and measure.

    The search covers the part of the space that the last stage trained. The settings of the job are written to
    ``config.json``; `bnas report FOLDER` writes a page about the run. If several processes call this function
    together, all of them work, the first one writes, and all return its report; see docs/distributed.md.

    Args:
        job: The job.
        folder: Folder for all files; it must be new or empty, unless `resume` or `overwrite` is set.
        watch: Callbacks for the progress of the run.
        resume: Continue the run in the folder: training continues from its last epoch, and all evaluations are reused.
            Model and data must be the same as before.
        overwrite: Replace the run in the folder.

    Raises:
        OutputError: The folder holds a run or other files, or a setting differs that the run has already used.
        BnasError: Any other error, with its place and the remedy; all files that exist are complete.
    """
    folder, settings = Path(folder), {"job": described(job)}
    with team.gathered() as store:
        if team.assists():
            return cast("Report", team.assist(lambda: Assistant(Steps(job, Output(folder, resumed=True))), store))
        with team.leading(store) as lead, kept(folder):
            free = free_in(folder, places=OF_JOB)
            output = open_output(folder, settings, resume=resume, overwrite=overwrite, free=free)
            lead.result = report = Steps(job, output, watch).all()
        return report


def described(job: Job) -> dict[str, Any]:
    """Return the settings of a job as plain data, with the class of its model."""
    settings = {one.name: _plain(getattr(job, one.name)) for one in fields(job) if one.name not in NOT_SETTINGS}
    return {"model": _name(type(job.model)), **settings}


def _plain(value: Any) -> Any:
    """Return a value as JSON data; functions, classes and other objects become their names."""
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


def plan_run(job: Job) -> Plan:
    """Return what `bnas.run_job` would do in each phase of a job, and how long that takes on this machine.

    This takes some seconds and changes nothing.

    Raises:
        BudgetError: The budget of the job is too small; the message has the smallest possible budget.
        BnasError: As `bnas.SuperNetwork.from_model` and `bnas.Trainer.fit`.
    """
    began = time.perf_counter()
    supernet = SuperNetwork.from_model(deep_copy(job.model), job.example_inputs, job.elasticity, dynamic=job.dynamic)
    with TemporaryDirectory() as folder:
        output = Output(Path(folder))
        if job.budget is None:
            return Outlook(job, output, Watch()).plan(supernet)
        return Planner(job, output, Watch(), began).first(supernet)
