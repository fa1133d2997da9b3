"""The trade-off explorer of a report: which sub-network to ship for a loss of quality and a cost, and how."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from bnas.run.quality import Quality
from bnas.run.results.commands import again_command, export_command, remedy, step_command
from bnas.search import Evaluation

from .members import Member, Members
from .recorded import Recorded
from .words import Quantity

STEPS = 200
"""Of the slider of a cost."""


@dataclass(frozen=True)
class Choice:
    """A sub-network that the sliders can select."""

    key: str
    drop: float
    """By how much it is worse than the reference, as it is shown: accuracies in points."""
    cost: float
    """As it is shown."""


@dataclass(frozen=True)
class Slider:
    """The range of a slider, and where it stands at first."""

    least: float
    most: float
    step: float
    first: float


@dataclass(frozen=True)
class Explorer:
    """Sliders for the loss of quality and for a cost: latency where the search knew it, else the first other one."""

    quality: Quality
    cost: Quantity
    choices: tuple[Choice, ...]
    allowed: float
    """What a winner may lose."""

    @classmethod
    def of(cls, run: Recorded, members: Members) -> Explorer | None:
        """The explorer of a run; None where there is nothing to choose from."""
        by_key = {f"e{one.index}": one for one in run.evaluations if one.failure is None}
        known = [(member, by_key[member.key]) for member in members.all if member.key in by_key]
        cost = _cost(members, run.quality)
        if run.settings is None or cost is None or run.quality.name not in members.quantities or len(known) < 2:
            return None
        reference = run.settings.reference
        return cls(
            run.quality,
            cost,
            tuple(_choice(member, found, cost, run.quality, reference) for member, found in known),
            _scale(run.quality) * run.settings.acc_delta,
        )

    @property
    def drops(self) -> Slider:
        """Quality to give up: at first what a winner may lose, or the least that finds something."""
        drops = [one.drop for one in self.choices]
        step = 0.1 if self.quality.percent else _step(min(0.0, *drops), max(0.0, *drops))
        least, most = math.floor(min(0.0, *drops) / step) * step, math.ceil(max(0.0, *drops) / step) * step
        first = math.ceil(max(min(drops), self.allowed) / step) * step
        return Slider(least, max(most, least + step), step, min(max(first, least), most))

    @property
    def costs(self) -> Slider:
        """The largest cost: at first any."""
        costs = [one.cost for one in self.choices]
        step = _step(min(costs), max(costs))
        least, most = math.floor(min(costs) / step) * step, math.ceil(max(costs) / step) * step
        return Slider(least, most, step, most)

    def to_json(self) -> dict[str, Any]:
        """What the page's own script works on."""
        return {
            "choices": [vars(one) for one in self.choices],
            "unit": self.cost.unit,
            "label": self.cost.label,
            **self._told(),
        }

    def _told(self) -> dict[str, str]:
        """What the loss is called: of accuracies in points."""
        name = self.quality.name
        if self.quality.percent:
            return {"name": name, "one": f"point of {name}", "many": f"points of {name}", "best": "Most accurate"}
        return {"name": name, "one": name, "many": name, "best": f"Best {name}"}


def _scale(quality: Quality) -> float:
    return 100.0 if quality.percent else 1.0


def _step(least: float, most: float) -> float:
    return float(f"{max((most - least) / STEPS, 1e-9):.1g}")


def _cost(members: Members, quality: Quality) -> Quantity | None:
    """Latency, or the first other objective, or MACs."""
    names = [
        name for name in ("latency", *members.asked, "macs") if name != quality.name and name in members.quantities
    ]
    return members.quantities[names[0]] if names else None


def _choice(member: Member, found: Evaluation, cost: Quantity, quality: Quality, reference: float) -> Choice:
    lost = quality.lost(found.values[quality.name], reference)
    return Choice(member.key, _scale(quality) * lost, cost.factor * found.values[cost.name])


def command(run: Recorded, members: Members, member: Member) -> str:
    """Return the command that exports a sub-network; empty where `bnas export` does not read the run.

    It needs the configuration file of a run that came to its end. A winner has a name, another sub-network the number
    of its evaluation.
    """
    if not _exportable(run) or not member.key.startswith("e"):
        return ""
    label = next((label for label, one in members.winners.items() if one.key == member.key), None)
    name = member.key[1:] if label is None else label.partition(",")[0]
    return export_command(run.folder, name)


def measured_again(run: Recorded) -> tuple[str, str]:
    """Return what to do where a latency of a run is not stable, and the command for it; else nothing."""
    rows = run.results.rows if run.results is not None else ()
    unstable = [row.latency for row in rows if row.latency.unstable]
    if not unstable or not _exportable(run):
        return "", ""
    what, runs = remedy(unstable[0].runs)
    return what, again_command(run.folder, runs)


def renewal(run: Recorded) -> list[str]:
    """Return the commands that export the winners of the last search; none if the results are of these winners."""
    if not run.outdated:
        return []
    tuning = [step_command("tune", run.folder, resume=True)] if run.tuned else []
    return [*tuning, step_command("export", run.folder)]


def _exportable(run: Recorded) -> bool:
    """Whether `bnas export` reads the run: it was made from a configuration file, and came to its end."""
    settings = run.configuration if isinstance(run.configuration, dict) else {}
    return run.finished and not {"job", "prune"} & settings.keys()


def note(run: Recorded, members: Members, member: Member) -> str:
    """Return what to know of the file before it is exported; empty where there is nothing."""
    if run.tuned and member.key not in {one.key for one in members.winners.values()}:
        return "Only winners were fine-tuned: this sub-network has the weights of the super-network."
    return ""
