"""The latencies of a job: one for each machine or runtime that networks should run on."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from bnas.passes.cost.costs import NAMES
from bnas.runtime import LatencySettings
from bnas.search import Objective, SearchError
from bnas.search.source import LATENCY

if TYPE_CHECKING:
    from .job import Job
    from .quality import Quality

__all__ = ["INT8_ACCURACY", "LATENCY", "check_clocks", "check_quality", "file_of", "of_objectives", "quickened"]

INT8_ACCURACY = "int8_accuracy"
"""The accuracy of the int8 file, which a search may have as an objective."""
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,39}")


def of_objectives(latency: LatencySettings, objectives: Iterable[Objective] | None) -> dict[str, LatencySettings]:
    """Return the latency settings of objectives with a target: those of "latency", with that target."""
    return {one.name: replace(latency, target=one.target) for one in objectives or () if one.target is not None}


def check_clocks(
    latency: LatencySettings, latencies: Mapping[str, LatencySettings], objectives: Iterable[Objective] | None
) -> None:
    """Raise SearchError if a latency has a reserved name, or is described twice."""
    if latency.int8 is not None:
        told = 'for int8 define another latency, such as latencies={"quick": {"int8": True}}'
        raise SearchError(f"latency: the value 'latency' is always measured in float; {told}")
    for name in latencies:
        _check_name(name, "latencies")
    for one in objectives or ():
        if one.target is None:
            continue
        _check_name(one.name, "objectives", allowed=(LATENCY,))
        given = latency.target if one.name == LATENCY else latencies.get(one.name)
        if given is not None or one.measure is not None:
            told = "give it in only one of the two places"
            raise SearchError(f"objective {one.name!r}: its target is given twice; {told}")


def check_quality(
    quality: Quality, latencies: Mapping[str, LatencySettings], objectives: Iterable[Objective] | None
) -> None:
    """Raise SearchError if a metric has the name of another value, or winners cannot be chosen by it."""
    name = quality.name
    if name in {LATENCY, INT8_ACCURACY, *NAMES, *latencies}:
        raise SearchError(f"metric: {name!r} is already the name of another value; choose another name")
    if objectives is None:
        return
    found = {one.name: one.direction for one in objectives}
    if not quality.percent and INT8_ACCURACY in found:
        told = f"is an accuracy, but the metric of this run is {name!r}"
        raise SearchError(f"objective {INT8_ACCURACY!r}: {told}; leave out the objective or the metric")
    if name not in found and INT8_ACCURACY not in found:
        raise SearchError(f"objectives {list(found)}: {name!r} must be one of them, since winners are chosen by {name}")
    if found.get(name, quality.direction) != quality.direction:
        told = f"'{found[name]}', but the metric says '{quality.direction}'; they must be the same"
        raise SearchError(f"objective {name!r}: its direction is {told}")


def _check_name(name: str, place: str, allowed: Iterable[str] = ()) -> None:
    taken = {LATENCY, INT8_ACCURACY, "accuracy", *NAMES}.difference(allowed)
    if name in taken:
        raise SearchError(f"{place}: {name!r} is already the name of another value; choose another name")
    if not _NAME.fullmatch(name):
        told = "letters, digits, '-' and '_', beginning with a letter, at most 40"
        raise SearchError(f"{place}: {name!r} becomes part of a file name; allowed are {told}")


def file_of(name: str) -> str:
    """Return the file name, in the run folder, of the latency model for a value."""
    return "latency.json" if name == LATENCY else f"latencies/{name}.json"


def quickened(job: Job, way: Mapping[str, int]) -> Job:
    """Return the job with at most these runs, turns and sub-networks in its latency settings."""

    def quick(given: LatencySettings) -> LatencySettings:
        return replace(given, **{key: min(most, getattr(given, key)) for key, most in way.items()})

    further = {name: quick(one) for name, one in job.latencies.items()}
    return replace(job, latency=quick(job.latency), latencies=further)
