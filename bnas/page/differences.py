"""The differences of two runs: in winners, conditions of measurements, settings and course."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from bnas.run.files.output import differing, in_lists
from bnas.run.quality import Quality

from .document import moment
from .notes import LatencyNote, Network, Results
from .recorded import Recorded

PLACES = ("log_dir",)
"""Settings that always differ between runs."""
WITHOUT_SUPER_NETWORK = (
    "stages", "search", "objectives", "targets", "budget", "fine_tune.epochs", "fine_tune.order", "recipe.rule",
    "recipe.subnets_per_step", "recipe.sampling", "recipe.distillation",
    "bootstrapNAS.search", "bootstrapNAS.training.schedule",
)  # fmt: skip
"""Settings that `bnas prune` does not use, although they are in its file."""
LONGEST = 200
"""Characters of a setting that are shown."""

# Comparing a network of run B with the network of the same name in run A.


def against(row: Network, before: Network, quality: Quality | None, alike: bool) -> Iterator[tuple[str, str]]:
    """How a network differs from that of run A, by column.

    Args:
        row: A network of run B.
        before: The one of the same name in run A.
        quality: What both runs measured; None if their metrics differ.
        alike: Both runs began with the same model: latencies are compared as shares of the original's latency, since
            the machine may have been busier during one of the runs.
    """
    if quality is not None:
        yield f"test {quality.name}", _against(row.test_accuracy, before.test_accuracy, quality)
    for column, name in (("MACs", "macs"), ("parameters", "parameters")):
        yield column, _factor(getattr(before, name), getattr(row, name), "fewer", "more")
    yield "latency fp32", _quicker(row.latency, before.latency, alike)
    for name, latency in row.latencies.items():
        if name in before.latencies:
            yield name, _quicker(latency, before.latencies[name], alike)
    int8, other = row.int8, before.int8
    if int8 is None or other is None:
        return
    if quality is not None and int8.test_accuracy is not None and other.test_accuracy is not None:
        yield f"int8 {quality.name}", _against(int8.test_accuracy, other.test_accuracy, quality)
    if int8.latency is not None and other.latency is not None:
        yield "latency int8", _quicker(int8.latency, other.latency, alike)


def _against(now: float, before: float, quality: Quality) -> str:
    same = quality.show(now) == quality.show(before)
    return "as A" if same else f"{quality.change(now - before)} against A"


def _quicker(latency: LatencyNote, before: LatencyNote, alike: bool) -> str:
    if alike and latency.ratio is not None and before.ratio is not None:
        return _factor(before.ratio, latency.ratio, "faster", "slower")
    return _factor(before.median_ms, latency.median_ms, "faster", "slower")


def _factor(before: float, now: float, less: str, more: str) -> str:
    if round(before / now, 2) == 1:
        return "as A"
    return f"{before / now:.2f}x {less} than A" if before > now else f"{now / before:.2f}x {more} than A"


# How latencies were measured.


def conditions(first: Results, second: Results) -> Iterator[str]:
    """Return the differences in the conditions under which latencies of the same name were measured."""
    if first.machine.get("cpu") != second.machine.get("cpu"):
        yield "other CPUs"
    one, other = first.rows[0], second.rows[0]
    yield from _measured(one.latency, other.latency)
    for name, latency in one.latencies.items():
        if name in other.latencies:
            yield from (f"{name}: {told}" for told in _measured(latency, other.latencies[name]))


def _measured(one: LatencyNote, other: LatencyNote) -> Iterator[str]:
    for name in ("provider", "clock", "threads", "batch"):
        if getattr(one, name) != getattr(other, name):
            yield f"{name} {getattr(one, name)} and {getattr(other, name)}"


# What was done, and by which settings.


def facts(run: Recorded) -> Iterator[tuple[str, str]]:
    """What was done in a run, by name."""
    process = run.processes[0] if run.processes else None
    yield "begun", "not recorded" if process is None else moment(process.began)
    yield "bnas", "not recorded" if process is None else process.versions.get("bnas", "not recorded")
    yield "CPU", "not recorded" if process is None else str(process.machine.get("cpu", "not recorded"))
    epochs, pruned = 0 if run.history is None else len(run.history.epochs), run.pruned
    yield "epochs of the super-network", "none: pruned" if pruned else str(epochs or "none")
    yield "epochs of fine-tuning", told_tunings(run, epochs if pruned else None)
    yield "sub-networks evaluated", f"{len(run.evaluations):,}"
    yield "on the Pareto front", str(len(run.front))


def told_tunings(run: Recorded, pruned: int | None) -> str:
    """How long winners, or the network of `bnas prune`, were fine-tuned."""
    found = {name: len(one.epochs) for name, one in run.tunings.items()} if pruned is None else {"": pruned}
    return ", ".join(f"{name} {count}".strip() for name, count in found.items()) or "none"


def settings(first: Recorded, second: Recorded) -> Iterator[tuple[str, str, str]]:
    """Every setting that differs and that a run uses, with its value in both runs."""
    for place, *values in in_lists(differing(first.configuration, second.configuration)):
        used = [not run.pruned or not _of_super_network(place) for run in (first, second)]
        if place not in PLACES and any(used):
            one, other = (_short(value) if told else "not used" for value, told in zip(values, used, strict=True))
            yield place, one, other


def _of_super_network(place: str) -> bool:
    """Whether a setting, or the section that it is in, is one of `WITHOUT_SUPER_NETWORK`."""
    return any(re.match(rf"{re.escape(one)}(\W|$)", place) for one in WITHOUT_SUPER_NETWORK)


def _short(value: Any) -> str:
    text = "not set" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
