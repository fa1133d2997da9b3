"""The front of a search on rough values, measured again exactly."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bnas.passes import Subnet
    from bnas.search.evaluation import Evaluation
    from bnas.search.evaluation_log import EvaluationLog
    from bnas.search.outcome import Measures, Outcome
    from bnas.search.result import SearchResult


def confirmed(
    result: SearchResult,
    measures: Measures,
    log: EvaluationLog,
    evaluate: Callable[[Measures, Sequence[Subnet]], Iterator[tuple[int, Outcome]]],
) -> SearchResult:
    """Measure the front again, and what comes onto it in place of others, until all of it is measured exactly.

    The exact values replace the rough ones; values that the exact evaluation does not give stay. What it fails on is
    no longer on the front. Each exact evaluation is in `log` before it is used, and none is made twice.
    """
    exact: dict[int, Evaluation] = {}
    while waiting := [one for one in result.pareto() if one.index not in exact]:
        new = [one for one in waiting if log.get(one.subnet) is None]
        for place, outcome in evaluate(measures, [one.subnet for one in new]):
            subnet = new[place].subnet
            if outcome.failure is None:
                log.record(subnet, outcome.values, outcome.seconds)
            else:
                log.record_failure(subnet, outcome.failure, outcome.seconds)
        for one in waiting:
            found = log.get(one.subnet)
            assert found is not None
            values = {**one.values, **found.values} if found.failure is None else {}
            exact[one.index] = replace(one, values=values, failure=found.failure)
        result = replace(result, evaluations=tuple(exact.get(one.index, one) for one in result.evaluations))
    return result
