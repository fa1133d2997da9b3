"""The sub-networks that a search hands back, by name, and their file in the folder of a run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bnas.runtime.storage.files import write_json
from bnas.search import Constraint, Evaluation, SearchError, SearchResult
from bnas.search.beginning import NEAR

from .mark import OutputError
from .output import read_json
from .stopwatch import Stopwatch

FORMAT = 1
"""Of ``winners.json``."""

# The names of winners, and the targets that a user gives.

ORIGINAL = "original"
"""The name of the user's own network, which stands beside the winners."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")


def check_name(name: object, place: str) -> str:
    """`name`, which becomes part of the names of files.

    Raises:
        OutputError: It has other characters than letters, digits, ``-`` and ``_``, or is too long.
    """
    if isinstance(name, str) and _NAME.fullmatch(name):
        return name
    raise OutputError(f"{place}: {name!r} cannot be a file name: allowed are letters, digits, '-' and '_', at most 100")


def checked_targets(given: Mapping[str, Constraint | str], metric: str = "accuracy") -> dict[str, Constraint]:
    """The bounds of targets, by the names of the winners, which are chosen by `metric`.

    Raises:
        SearchError: A name is no name for a file, or stands for the original, or differs from another one in its case
            only; or a bound is no upper bound of a cost.
    """
    bounds = {name: Constraint.of(one) for name, one in given.items()}
    seen: dict[str, str] = {}
    for name, bound in bounds.items():
        if fault := _fault(name, bound, seen, metric):
            raise SearchError(f"target {name!r}: {fault}")
        seen[name.casefold()] = name
    return bounds


def _fault(name: str, bound: Constraint, seen: Mapping[str, str], metric: str) -> str:
    if not _NAME.fullmatch(name):
        return "a winner's name becomes part of file names: allowed are letters, digits, '-' and '_', at most 100"
    if name.casefold() == ORIGINAL:
        return "this name is reserved for your own network; choose another one"
    if name.casefold() in seen:
        return f"a file system may confuse this name with {seen[name.casefold()]!r}; choose another one"
    if bound.name == metric:
        return f"winners are chosen by {metric}, so a target must bound a cost, such as 'macs <= 50 %'"
    if bound.sense != "<=":
        return f"'{bound}' is not an upper bound; a target must bound a cost from above, such as 'macs <= 50 %'"
    return ""


# The choice of the winners among all evaluations.


@dataclass(frozen=True)
class Target:
    """A bound that a winner was chosen by."""

    bound: Constraint
    """The bound as given: in percent of the original, or absolute."""
    missed: bool
    """Whether no evaluated sub-network meets the bound; the winner is then the nearest one."""

    def __str__(self) -> str:
        """The bound, and whether it is missed."""
        return f"{self.bound}{' (missed)' if self.missed else ''}"

    def to_json(self) -> dict[str, Any]:
        """Plain data for a JSON file; `from_json` reads it."""
        return {"bound": str(self.bound), "missed": self.missed}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Target:
        """Return the target that `to_json` wrote."""
        return cls(Constraint.parse(data["bound"]), bool(data["missed"]))


def ranked(result: SearchResult, bound: Constraint, *, tuned: bool = False, by: str = "accuracy") -> list[Evaluation]:
    """The feasible evaluations within an absolute bound, most accurate first; then the others, nearest first.

    With `tuned` those that are near the bound come before those that are far below it; of these the nearest is first.
    Fine-tuning gives a sub-network the more, the larger it is; and before it the accuracy of small ones is near to
    chance: on ResNet-20 at a fifth of the MACs, one of 22 % with an eighth of them became 55 %, others 75 %.
    """
    sign = _sign(result, by)

    def key(one: Evaluation) -> tuple[float, ...]:
        cost, missed = one.values[bound.name], bound.violation(one.values)
        far = tuned and not missed and cost < NEAR * bound.bound
        return missed, far, -cost if far else sign * one.values[by], cost, one.index

    return sorted(result.feasible, key=key)


def _sign(result: SearchResult, by: str) -> float:
    """The factor that turns the value `by` into a cost."""
    return next((one.sign for one in result.objectives if one.name == by), -1.0)


FEW = 4
"""So many candidates for a bound of latency are measured together."""
ROUNDS = 4
"""So often further candidates are measured where none of the former keeps the bound."""


def choose(
    result: SearchResult,
    bound: Constraint,
    maximal: Mapping[str, float],
    watch: Stopwatch | None,
    *,
    tuned: bool = False,
    by: str = "accuracy",
) -> tuple[Evaluation, bool]:
    """The most accurate evaluation within a bound, and whether none is within it: then it is the nearest one.

    With a stopwatch the bound is one of latency, and has to hold as measured; with `tuned` those come first that were
    measured to be near it.
    """
    ranking = ranked(result, bound.resolved(maximal), tuned=tuned, by=by)
    if watch is None:
        return ranking[0], bool(bound.resolved(maximal).violation(ranking[0].values))
    within: list[Evaluation] = []
    for start in range(0, FEW * ROUNDS, FEW):
        some = ranking[start : start + FEW]
        watch.measure([one.subnet for one in some])
        kept = [one for one in some if watch.within(bound, one.subnet)]
        near = [one for one in kept if not tuned or watch.uses(bound, one.subnet, NEAR)]
        if near:
            return near[0], False
        within += kept
    if within:
        return max(within, key=lambda one: watch.ratios[one.subnet]), False
    return min(ranking[: FEW * ROUNDS], key=lambda one: watch.ratios[one.subnet]), True


@dataclass(frozen=True)
class Winners:
    """What was found, and what it was held against."""

    found: Mapping[str, Evaluation]
    """By the names of the targets; without targets "best" and "smallest", which is "best" where no accuracy is within
    the bound."""
    reference: float
    """The accuracy that they are held against, on the validation data."""
    acc_delta: float
    """How much less they may have, where there are no targets."""
    evaluations: int
    missed: bool
    """Some winner does not keep what was asked for: its target, or without targets `acc_delta`."""
    targets: Mapping[str, Target] = field(default_factory=dict)
    measured: Mapping[str, Any] = field(default_factory=dict)
    """By name the latencies that were measured for the choice (`Stopwatch.to_json`): a resumed run chooses by the
    same."""

    @classmethod
    def of(cls, result: SearchResult, reference: float, delta: float, by: str = "accuracy") -> Winners:
        """The winners of a search without targets, chosen by the value `by`."""
        found = result.winners(delta, reference=reference, metric=by)
        sign = _sign(result, by)
        missed = "smallest" not in found or sign * found["best"].values[by] > sign * reference + delta
        named = {"best": found["best"], "smallest": found.get("smallest", found["best"])}
        return cls(named, reference, delta, len(result.evaluations), missed)

    @classmethod
    def within(
        cls,
        result: SearchResult,
        targets: Mapping[str, Constraint],
        maximal: Mapping[str, float],
        watches: Mapping[str, Stopwatch],
        reference: float,
        delta: float,
        *,
        tuned: bool = False,
        by: str = "accuracy",
    ) -> Winners:
        """The most accurate evaluation within the bound of each target.

        Args:
            result: Of the search.
            targets: By the names of the winners.
            maximal: The values of the maximal sub-network, which bounds in percent refer to.
            watches: They measure latencies, by the names of the values; what they have no name of is taken as it is.
            reference: See `reference`.
            delta: See `acc_delta`.
            tuned: They will be fine-tuned: of each target the most accurate one near the bound, if there is one.
            by: The value that is called accuracy here.
        """
        found, told = {}, {}
        for name, bound in targets.items():
            found[name], missed = choose(result, bound, maximal, watches.get(bound.name), tuned=tuned, by=by)
            told[name] = Target(bound, missed)
        missed = any(one.missed for one in told.values())
        measured = {name: watch.to_json() for name, watch in watches.items()}
        return cls(found, reference, delta, len(result.evaluations), missed, told, measured)

    def write(self, path: Path) -> None:
        """Write a JSON file, atomically."""
        found = {name: evaluation.to_json() for name, evaluation in self.found.items()}
        settings = {"reference": self.reference, "acc_delta": self.acc_delta, "evaluations": self.evaluations}
        targets = {name: one.to_json() for name, one in self.targets.items()}
        more = {"targets": targets, "measured": dict(self.measured)}
        write_json(path, {"format": FORMAT, "winners": found, **settings, "missed": self.missed, **more})

    @classmethod
    def read(cls, path: Path) -> Winners:
        """What `write` wrote.

        Raises:
            OutputError: the file is damaged, or of another format, or a winner has a name that no file can have.
        """
        data: Any = read_json(path)
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise OutputError(f"{path} has an unknown format; this version of bnas reads format {FORMAT}")
        try:
            found = {check_name(name, str(path)): Evaluation.from_json(one) for name, one in data["winners"].items()}
            targets = {name: Target.from_json(one) for name, one in data.get("targets", {}).items()}
            settings = (data["reference"], data["acc_delta"], data["evaluations"], data["missed"])
            return cls(found, *settings, targets, dict(data.get("measured") or {}))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise OutputError(f"{path} is damaged: {type(error).__name__}: {error}") from error
