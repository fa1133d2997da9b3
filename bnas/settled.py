"""What of a configuration is settled by what the folder of a run holds already."""

from __future__ import annotations

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


def free_in(folder: Path, *, anew: bool = False) -> Free:
    """Which places may differ from the configuration that the folder has, so that what it holds is still of use.

    With `anew` the search that it holds is of no use anyhow.
    """
    trained = SUPERNET.exists(folder / "supernet")
    begun = trained or TRAINING.exists(folder / "training" / "last")
    searched, fitted = (not anew and (folder / name).is_file() for name in ("evaluations.jsonl", "latency.json"))

    def free(place: str) -> bool:
        if within(place, FREE) or not begun:
            return True
        if (searched and within(place, MEASURED)) or (fitted and within(place, ("latency",))):
            return False
        return within(place, (*SEARCH, *MEASURED) if trained else SEARCH) and (trained or place not in SEEDS)

    return free


def within(place: str, places: tuple[str, ...]) -> bool:
    """Whether a place in a configuration is one of `places`, or in one."""
    return any(place == one or place.startswith(f"{one}.") for one in places)
