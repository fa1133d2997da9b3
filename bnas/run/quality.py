"""`Quality`: the metric of a run (accuracy, or the user's own), its name, and which direction is better."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from bnas.search import Objective, SearchError
from bnas.search.objectives import check_name

if TYPE_CHECKING:
    from torch import nn

    from bnas.runtime import Metric

ACCURACY = "accuracy"
SAME = 0.0005
"""Limits below which values count as equal: 0.05 points of accuracy, or this share of the original's value."""


@dataclass(frozen=True)
class Quality:
    """The metric that a run chooses winners by: top-1 accuracy, or one of your own.

    Raises:
        SearchError: the name has characters that no column of a file can have, or the direction is another one.
    """

    name: str = ACCURACY
    """The name of its values in tables, reports and objectives."""
    direction: Literal["min", "max"] = "max"
    """Whether large ("max") or small ("min") values are better."""
    metric: Callable[[nn.Module, Iterable[Any]], float] | None = field(default=None, compare=False)
    """``metric(module, batches)`` returns one number for all batches, which are pairs of inputs and targets. The module
    is in evaluation mode. By default top-1 accuracy."""

    def __post_init__(self) -> None:
        check_name(self.name)
        if self.direction not in ("min", "max"):
            raise SearchError(f"metric {self.name!r}: the direction {self.direction!r} is neither 'min' nor 'max'")

    @property
    def objective(self) -> Objective:
        """The objective of a search for the best networks."""
        return Objective(self.name, self.direction)

    @property
    def percent(self) -> bool:
        """Whether values are shown in percent and differences in points: those of accuracies are."""
        return self.name == ACCURACY

    @cached_property
    def function(self) -> Metric:
        """The metric as `bnas.Evaluator` and `bnas.Trainer` take it."""
        from bnas.runtime import accuracy

        return self.metric or accuracy

    @property
    def of_training(self) -> dict[str, Any]:
        """Arguments for `bnas.Trainer`, so that it validates with this metric."""
        return {"metric": self.function, "direction": self.direction}

    def measure(self, module: nn.Module, batches: Iterable[Any]) -> float:
        """Return the metric of a module, or of an ONNX file as a module, on batches of any form that a loader gives.

        Raises:
            EvaluationError: the metric fails, or returns something else than a finite number.
        """
        from bnas.runtime.evaluate.evaluation import EvaluationError, measured
        from bnas.runtime.evaluate.evaluator import ChannelsLast
        from bnas.runtime.nested import inputs_of

        if self.metric is None:
            return self.function(module, batches)
        source = getattr(batches, "source", "the data")
        found = measured(self.metric, module, ChannelsLast(batches, inputs_of(module), source))
        if not math.isfinite(found):
            told = "look for NaN or inf in its inputs and targets, and for a division by 0 in the metric"
            raise EvaluationError(
                f"the metric {self.name!r} is {found} on {source}, but must be a finite number: {told}"
            )
        return found

    def lost(self, value: float, reference: float) -> float:
        """Return by how much `value` is worse than `reference`; negative if it is better."""
        return Objective(self.name, self.direction).sign * (value - reference)

    def show(self, value: float) -> str:
        """Return a value as text."""
        return f"{100 * value:.2f} %" if self.percent else f"{value:.4g}"

    def amount(self, difference: float) -> str:
        """Return an allowed difference as text, with its unit."""
        if not self.percent:
            return f"{difference:.4g} {self.name}"
        number = f"{100 * difference:g}"
        return f"{number} point" + ("" if number == "1" else "s")

    def change(self, difference: float) -> str:
        """Return how much larger a value is than another one, as text with its sign and unit."""
        return f"{100 * difference:+.2f} points" if self.percent else f"{difference:+.4g}"

    def told(self, value: float, reference: float) -> str:
        """Return how a network compares with a reference, as the end of a sentence."""
        difference = value - reference
        if abs(difference) < SAME * (1 if self.percent else abs(reference)):
            return f"at the same {self.name}"
        if self.percent:
            return f"at {100 * abs(difference):.1f} points {'more' if difference > 0 else 'less'} {self.name}"
        better = "lower" if self.direction == "min" else "higher"
        return f"at {self.name} {self.show(value)} (original: {self.show(reference)}; {better} is better)"

    def to_json(self) -> dict[str, str]:
        """Return name and direction as plain data for a JSON file."""
        return {"name": self.name, "direction": self.direction}
