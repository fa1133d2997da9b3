"""The winners of a search, by name, and their file in the run folder."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

from bnas.passes import Subnet
from bnas.run.files.mark import OutputError, damaged, unknown_format
from bnas.run.files.names import EVALUATIONS, WINNERS
from bnas.run.files.output import Output, read_json
from bnas.runtime import SuperNetwork
from bnas.runtime.storage.files import there, write_json
from bnas.search import Constraint, Evaluation, SearchError, SearchResult
from bnas.search.beginning import NEAR

from .stopwatch import Stopwatch

FORMAT = 1
"""Format of ``winners.json``."""

# Names of winners, and the user's targets.

ORIGINAL = "original"
"""Name of the user's own network in results."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
_ALLOWED = "allowed are letters, digits, '-' and '_', at most 100, beginning with a letter or digit"


def check_name(name: object, place: str) -> str:
    """Check and return the name of a winner, which becomes part of file names.

    Raises:
        OutputError: The name has other characters, another beginning, or more than 100 characters.
    """
    if isinstance(name, str) and _NAME.fullmatch(name):
        return name
    raise OutputError(f"{place}: {name!r} cannot be a file name: {_ALLOWED}")


def checked_targets(given: Mapping[str, Constraint | str], metric: str = "accuracy") -> dict[str, Constraint]:
    """Return the bounds of the targets, by the names of the winners, which are chosen by `metric`.

    Raises:
        SearchError: A name is not a valid file name, is reserved for the original, or differs from another one only in
            upper and lower case; or a bound is not an upper bound of a cost.
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
        return f"a winner's name becomes part of file names: {_ALLOWED}"
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
    """The bound for which a winner was chosen."""

    bound: Constraint
    """The bound as the user gave it: in percent of the original, or absolute."""
    missed: bool
    """Whether no evaluated sub-network meets the bound; the winner is then the nearest one."""

    def __str__(self) -> str:
        """Return the bound as text, with a remark if it is missed."""
        return f"{self.bound}{' (missed)' if self.missed else ''}"

    def to_json(self) -> dict[str, Any]:
        """Plain data for a JSON file; `from_json` reads it."""
        return {"bound": str(self.bound), "missed": self.missed}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Target:
        """Return the target that `to_json` wrote."""
        return cls(Constraint.parse(data["bound"]), bool(data["missed"]))


def ranked(result: SearchResult, bound: Constraint, *, tuned: bool = False, by: str = "accuracy") -> list[Evaluation]:
    """Sort feasible evaluations: first those within an absolute bound, by accuracy; then the others, nearest first.

    With `tuned` (winners will be fine-tuned), sub-networks near the bound come before those far below it, and the
    latter are sorted by their distance to it. Reason: larger sub-networks gain more by fine-tuning, and before it the
    accuracy of small ones is near chance. Example: ResNet-20 with a bound of a fifth of the MACs. A sub-network with an
    eighth of the MACs went from 22 % to 55 %, larger ones reached 75 %.
    """
    sign = _sign(result, by)

    def key(one: Evaluation) -> tuple[float, ...]:
        cost, missed = one.values[bound.name], bound.violation(one.values)
        far = tuned and not missed and cost < NEAR * bound.bound
        return missed, far, -cost if far else sign * one.values[by], cost, one.index

    return sorted(result.feasible, key=key)


def _sign(result: SearchResult, by: str) -> float:
    """Return the factor that turns the value `by` into a cost (lower is better)."""
    return next((one.sign for one in result.objectives if one.name == by), -1.0)


FEW = 4
"""Number of candidates for a latency bound that are measured together."""
ROUNDS = 4
"""Largest number of such groups, measured until a candidate is within the bound."""


def choose(
    result: SearchResult,
    bound: Constraint,
    maximal: Mapping[str, float],
    watch: Stopwatch | None,
    *,
    tuned: bool = False,
    by: str = "accuracy",
) -> tuple[Evaluation, bool]:
    """Return the most accurate evaluation within a bound and False; if there is none, the nearest one and True.

    With a stopwatch, the bound is on latency and must hold for the measured latency. With `tuned`, candidates measured
    near the bound come first.
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
class Chosen:
    """A winner that was chosen again, in the weights that larger winners trained."""

    evaluation: Evaluation
    """Its values; the accuracy is the one in these weights, before its own fine-tuning."""
    missed: bool
    """Whether it misses its target."""

    def to_json(self) -> dict[str, Any]:
        """Plain data for a JSON file; `from_json` reads it."""
        return {**self.evaluation.to_json(), "missed": self.missed}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Chosen:
        """Return what `to_json` wrote."""
        return cls(Evaluation.from_json(data), bool(data["missed"]))


Again: TypeAlias = Callable[[SuperNetwork, str, Subnet], Chosen | None]
"""Chooses the winner of a name again, after the larger one was trained in the weights of the super-network.

None: the winner stays.
"""


@dataclass(frozen=True)
class Winners:
    """The winners of a search, and the reference for their accuracy."""

    found: Mapping[str, Evaluation]
    """The winners by the names of the targets; without targets "best" and "smallest". (If no accuracy is within
    `acc_delta`, "smallest" is the same as "best".)"""
    reference: float
    """The reference accuracy, on the validation data."""
    acc_delta: float
    """The allowed loss of accuracy, if there are no targets."""
    evaluations: int
    missed: bool
    """Whether a winner misses its target or, without targets, `acc_delta`."""
    targets: Mapping[str, Target] = field(default_factory=dict)
    measured: Mapping[str, Any] = field(default_factory=dict)
    """Latencies that were measured for the choice, by name (`Stopwatch.to_json`), so that a resumed run uses the
    same ones."""
    whole_space: bool = False
    """Whether all sub-networks of the search space were evaluated."""
    maximal: float | None = None
    """The accuracy of the maximal sub-network after the training; None if its evaluation failed."""

    @classmethod
    def of(cls, result: SearchResult, reference: float, delta: float, by: str = "accuracy") -> Winners:
        """Choose the winners of a search without targets, by the value `by`."""
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
        """Choose the most accurate evaluation within the bound of each target.

        Args:
            result: The result of the search.
            targets: The bounds by the names of the winners.
            maximal: The values of the maximal sub-network, to which bounds in percent refer.
            watches: Stopwatches by the names of latencies. A bound on any other value uses the value of the search.
            reference: The reference accuracy.
            delta: The allowed loss of accuracy.
            tuned: Whether winners will be fine-tuned; then the most accurate one near the bound is chosen, if any.
            by: Name of the value that is called accuracy here.
        """
        chosen = {
            name: choose(result, bound, maximal, watches.get(bound.name), tuned=tuned, by=by)
            for name, bound in targets.items()
        }
        found = {name: chosen[name][0] for name in targets}
        told = {name: Target(bound, chosen[name][1]) for name, bound in targets.items()}
        missed = any(one.missed for one in told.values())
        measured = {name: watch.to_json() for name, watch in watches.items()}
        return cls(found, reference, delta, len(result.evaluations), missed, told, measured)

    def replaced(self, chosen: Mapping[str, Chosen]) -> Winners:
        """Return the winners with those that were chosen again."""
        found = {**self.found, **{name: one.evaluation for name, one in chosen.items()}}
        judged = {name: replace(self.targets[name], missed=one.missed) for name, one in chosen.items()}
        targets = {**self.targets, **judged}
        missed = any(one.missed for one in targets.values()) if targets else self.missed
        return replace(self, found=found, targets=targets, missed=missed)

    def write(self, path: Path) -> None:
        """Write a JSON file, atomically."""
        found = {name: evaluation.to_json() for name, evaluation in self.found.items()}
        settings = {"reference": self.reference, "acc_delta": self.acc_delta, "evaluations": self.evaluations}
        targets = {name: one.to_json() for name, one in self.targets.items()}
        searched = {"measured": dict(self.measured), "whole_space": self.whole_space, "maximal": self.maximal}
        more = {"targets": targets, **searched}
        write_json(path, {"format": FORMAT, "winners": found, **settings, "missed": self.missed, **more})

    @classmethod
    def read(cls, path: Path) -> Winners:
        """Read the file that `write` wrote.

        Raises:
            OutputError: The file is damaged, or of another format, or a winner has a name that no file can have.
        """
        data: Any = read_json(path)
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise unknown_format(path, FORMAT)
        try:
            found = {check_name(name, str(path)): Evaluation.from_json(one) for name, one in data["winners"].items()}
            targets = {name: Target.from_json(one) for name, one in data.get("targets", {}).items()}
            settings = (data["reference"], data["acc_delta"], data["evaluations"], data["missed"])
            more = (targets, dict(data.get("measured") or {}), bool(data.get("whole_space", False)))
            return cls(found, *settings, *more, data.get("maximal"))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise damaged(path, error) from error


def read_winners(output: Output) -> Winners:
    """Return the winners of the search in a run folder.

    Raises:
        OutputError: There is no finished search; the message has the command that makes it.
    """
    if not there(output.folder / WINNERS):
        begun = there(output.folder / EVALUATIONS)
        told = f"bnas search {output.folder}{' --resume' if begun else ''}"
        raise OutputError(f"{output.folder} holds no finished search; run it with `{told}`")
    return Winners.read(output.ledger.check(WINNERS))
