"""What of a configuration is settled by what the folder of a run holds already."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bnas.output import Free
from bnas.runtime.checkpoint import SUPERNET
from bnas.runtime.training_checkpoint import TRAINING

FREE = ("log_dir", "tensorboard", "export")
"""Places that may change at any time."""
SEARCH = ("bootstrapNAS.search", "search", "objectives", "acc_delta", "reference", "latency", "device")
"""Places that say nothing to the training, but for the seed."""
MEASURED = (
    "bootstrapNAS.search.batchnorm_adaptation", "num_bn_adaptation_samples", "device", "data", "batch_size_val"
)  # fmt: skip
"""Places that decide what an evaluation gives, among those that may change once the training is done."""
SEEDS = ("bootstrapNAS.search.seed", "search.seed")
"""Places that also fix the training."""
EXPORT = (*FREE, "latency", "device", "data", "batch_size_val")
"""Places that an export may have in another way than the search before it."""
FOUND = ("search.json", "winners.json", "pareto.json", "evaluations.csv", "evaluations.jsonl", "latency.json", "search")
"""What a search leaves in the folder of a run."""
EXPORTED = ("report.json", "report.html", "report", "subnets")
"""What is exported after it."""


@dataclass(frozen=True)
class Places:
    """What the places in a description of a run say: a configuration, or the settings of a `bnas.Job`."""

    free: tuple[str, ...]
    """They may change at any time."""
    search: tuple[str, ...]
    """They say nothing to the training, but for the seed."""
    measured: tuple[str, ...]
    """They decide what an evaluation gives, among those that may change once the training is done."""
    latency: tuple[str, ...]
    """They decide what a latency model says."""
    seeds: tuple[str, ...]
    """They also fix the training."""


OF_CONFIGURATION = Places(FREE, SEARCH, MEASURED, ("latency",), SEEDS)
OF_JOB = Places(
    ("job.tensorboard", "job.int8"),
    ("job.search", "job.objectives", "job.acc_delta", "job.reference", "job.latency"),
    ("job.num_bn_adaptation_samples",),
    ("job.latency",),
    ("job.search.seed",),
)


def free_in(folder: Path, *, anew: bool = False, places: Places = OF_CONFIGURATION) -> Free:
    """Which places may differ from the configuration that the folder has, so that what it holds is still of use.

    With `anew` the search that it holds is of no use anyhow.
    """
    trained = SUPERNET.exists(folder / "supernet")
    begun = trained or TRAINING.exists(folder / "training" / "last")
    searched, fitted = (not anew and (folder / name).is_file() for name in ("evaluations.jsonl", "latency.json"))

    def free(place: str) -> bool:
        if within(place, places.free) or not begun:
            return True
        if (searched and within(place, places.measured)) or (fitted and within(place, places.latency)):
            return False
        allowed = (*places.search, *places.measured) if trained else places.search
        return within(place, allowed) and (trained or place not in places.seeds)

    return free


def within(place: str, places: tuple[str, ...]) -> bool:
    """Whether a place in a configuration is one of `places`, or in one."""
    return any(place == one or place.startswith(f"{one}.") for one in places)
