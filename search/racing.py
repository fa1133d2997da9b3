"""Which accuracy a candidate has to reach, by what is known of those that are as cheap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bnas.runtime.racing import Bar
from bnas.search.errors import SearchError

if TYPE_CHECKING:
    from bnas.passes import Subnet
    from bnas.search.evaluation import Evaluation
    from bnas.search.objective import Objective


@dataclass(frozen=True)
class Racing:
    """Drops a candidate, after a part of the validation samples, that is dominated with confidence.

    The bar of a candidate is the best accuracy among the feasible sub-networks of earlier generations that were
    measured to the end and are at least as good in all other objectives. Those are known before a candidate is
    evaluated; so a dropped one is dominated by the one that set its bar, unless its other samples were to contradict
    the first ones, which has the probability ``error`` at each of three looks.
    """

    metric: Objective
    known: tuple[Objective, ...]
    """Objectives that are known without an evaluation."""
    error: float

    @classmethod
    def of(cls, objectives: Sequence[Objective], known: Sequence[str], evaluate: Any, error: float) -> Racing:
        """Racing for these objectives.

        Raises:
            SearchError: says what it needs.
        """
        measured = [one for one in objectives if one.name not in known]
        if len(measured) != 1 or measured[0].direction != "max" or measured[0].measure is not None:
            found = ", ".join(f"{one.name} ({one.direction})" for one in measured) or "none"
            raise SearchError(
                "racing needs one objective that the evaluation measures, to be maximised, beside those that are known "
                f"without one ({', '.join(known) or 'none'}); there is {found}"
            )
        if not hasattr(evaluate, "evaluate_many"):
            raise SearchError("racing needs a bnas.Evaluator, or a Remote that makes one: it measures part after part")
        return cls(measured[0], tuple(one for one in objectives if one.name in known), error)

    def bars(
        self, subnets: Sequence[Subnet], costs: Sequence[Mapping[str, float]], feasible: Sequence[Evaluation]
    ) -> dict[Subnet, Bar]:
        """The bar of each of `subnets`, of known `costs`, that has one."""
        whole = [one.values for one in feasible if one.values.get("part", 1.0) == 1.0]
        rivals = np.array([self._costs(values) for values in whole]).reshape(len(whole), len(self.known))
        quality = np.array([values[self.metric.name] for values in whole])
        as_good = {
            subnet: (rivals <= self._costs(cost)).all(axis=1) for subnet, cost in zip(subnets, costs, strict=True)
        }
        return {one: Bar(float(quality[rows].max()), self.error) for one, rows in as_good.items() if rows.any()}

    def _costs(self, values: Mapping[str, float]) -> list[float]:
        """Less is better."""
        return [one.sign * values[one.name] for one in self.known]
