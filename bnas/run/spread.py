"""Where a search evaluates: in this process, in all processes of a torchrun team, or on an executor."""

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
"""Returns the recipe by which another process recreates an attribute of `Steps` (evaluator or int8 measure)."""
Evaluations = tuple[Any, Workers | None, InInt8 | None]
"""The evaluator, the workers (None for this process), and the measure of int8 accuracy."""


def spread(
    settings: SearchSettings, evaluator: Evaluator, in_int8: InInt8 | None, elsewhere: Elsewhere | None
) -> Evaluations:
    """Return the evaluator and the workers of a search; without workers, this process evaluates.

    Raises:
        SearchError: An executor is requested, but other processes cannot recreate the evaluator.
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
        """Do nothing: the processes stay with the run."""

    def __call__(self, measures: Measures, subnets: Sequence[Subnet]) -> Iterator[tuple[int, Outcome]]:
        """Yield the position and outcome of each sub-network.

        Raises:
            WorkerError: Another process failed.
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
    """Evaluate this process's share of `subnets`; return the outcomes or the error of every process. All call this."""
    own: Any
    try:
        own = measures(subnets[parallel.rank() :: parallel.world()])
    except BnasError as error:
        own = error
    except Exception as error:  # other errors may not be picklable
        own = SearchError(f"{type(error).__name__}: {error}")
    return parallel.from_all(own)
