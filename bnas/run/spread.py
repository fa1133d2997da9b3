"""Who evaluates in the search of a run: this process, all processes of a team, or an executor."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from bnas.passes import BnasError, Subnet
from bnas.runtime import Evaluator
from bnas.runtime.train import parallel
from bnas.search import Measures, Outcome, Remote, SearchError, SearchSettings, WorkerError, Workers
from bnas.search.evaluation import in_this_process

from . import team
from .quantised import InInt8

Elsewhere = Callable[[str], Remote]
"""Says what makes the evaluator of a run in another process, or what measures in int8: an attribute of `Steps`."""
Evaluations = tuple[Any, Workers | None, InInt8 | None]
"""What evaluates, who does it, and what measures in int8."""


def spread(
    settings: SearchSettings, evaluator: Evaluator, in_int8: InInt8 | None, elsewhere: Elsewhere | None
) -> Evaluations:
    """What evaluates the sub-networks of a search, and who does it; nobody stands for this process.

    Raises:
        SearchError: an executor is asked for, and other processes cannot make the evaluator.
    """
    if settings.executor is not None:
        if elsewhere is None:
            told = "use SearchSettings(workers=...), and an evaluation made by bnas.search.Remote"
            raise SearchError(
                f"search.executor works only for a run from a configuration file, not for a bnas.Job: {told}"
            )
        far = None if in_int8 is None else replace(in_int8, elsewhere=elsewhere("in_int8"))
        return elsewhere("evaluator"), settings.executor.workers(), far
    if team.leads() and settings.workers is None:
        return evaluator, TeamWorkers(evaluator), in_int8
    return evaluator, settings.workers, in_int8


class TeamWorkers(Workers):
    """The processes of a team, each of which evaluates its share of a generation."""

    def __init__(self, evaluator: Evaluator) -> None:
        self.evaluator = evaluator

    def close(self) -> None:
        """The processes stay with the run."""

    def __call__(self, measures: Measures, subnets: Sequence[Subnet]) -> Iterator[tuple[int, Outcome]]:
        """Yield each place and its outcome.

        Raises:
            WorkerError: a process other than this one could not evaluate.
        """
        if measures.evaluate is not self.evaluator or not subnets:
            yield from in_this_process(measures, subnets)
            return
        own = tuple(replace(one, measure=None) if isinstance(one.measure, InInt8) else one for one in measures.own)
        with team.joint("evaluate", own=own, bars=measures.bars, subnets=list(subnets)):
            found = share_evaluated(measures, subnets)
        for rank, outcomes in enumerate(found):
            if isinstance(outcomes, Exception):
                raise outcomes if rank == 0 else WorkerError(f"process {rank}: {outcomes}") from outcomes
        for rank, outcomes in enumerate(found):
            yield from zip(range(rank, len(subnets), len(found)), outcomes, strict=True)


def share_evaluated(measures: Measures, subnets: Sequence[Subnet]) -> list[Any]:
    """The outcomes of every process for its share of `subnets`, or the error that ended it; all processes call this."""
    own: Any
    try:
        own = measures(subnets[parallel.rank() :: parallel.world()])
    except BnasError as error:
        own = error
    except Exception as error:  # others may not be picklable
        own = SearchError(f"{type(error).__name__}: {error}")
    return parallel.from_all(own)
