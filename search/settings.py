"""The settings of a search."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

from pydantic import Field, PlainSerializer, PlainValidator, ValidationInfo, field_validator

from bnas.passes.settings import LARGEST, NUMBER, NotInFile, Seed, settings

from .algorithms.settings import NSGA2, POPULATION, Choice
from .errors import SearchError
from .executors import ExecutorSettings
from .objectives import Constraint
from .workers import Workers

if TYPE_CHECKING:
    from bnas.passes import SearchSpace, Subnet
else:
    SearchSpace = Subnet = Any  # pydantic reads the annotations, and need not load them


def _bound(given: Any) -> Constraint:
    if not isinstance(given, str | Constraint):
        raise ValueError("must be text such as 'parameters <= 60 %'")
    try:
        return Constraint.of(given)
    except SearchError as error:
        raise ValueError(str(error).partition(": ")[2]) from None


if TYPE_CHECKING:
    Bound: TypeAlias = Constraint | str
else:
    Bound = Annotated[Constraint, PlainValidator(_bound, json_schema_input_type=str), PlainSerializer(str)]


@settings(SearchError, kw_only=True)
class SearchSettings:
    """Settings of a search, for `bnas.Searcher`.

    Raises:
        SearchError: names every setting that is out of its bounds.
    """

    algorithm: Choice = NSGA2()
    """The search algorithm: `NSGA2`, `RNSGA2` or `RandomSearch`, or one of them by name."""
    num_evals: Annotated[int, Field(ge=4, le=LARGEST), NUMBER] = 150
    """Number of sub-networks to evaluate, including those in the log; fewer if the space has fewer."""
    seed: Seed = 0
    """Seed of all random choices."""
    constraints: tuple[Bound, ...] = ()
    """Bounds that come before all objectives, such as "parameters <= 60 %"; see `bnas.search.Constraint`."""
    racing: Annotated[float, Field(gt=0, lt=1), NUMBER] | None = None
    """Stop measuring candidates that seem dominated after a part of the validation samples. The value is the allowed
    probability of an error, such as 0.001. The metric must be a mean of values from 0 to 1, such as accuracy."""
    executor: ExecutorSettings | None = None
    """Evaluate in other processes, or on other machines; by default in this process. The object that evaluates must be
    picklable, such as a `bnas.search.Remote`."""
    space: NotInFile[SearchSpace | None] = None
    """The part of the search space to search, such as the one that the last stage trained; by default all."""
    latency: NotInFile[Callable[[Subnet], float] | Mapping[str, Callable[[Subnet], float]] | None] = None
    """Function that returns the value "latency" of a sub-network, such as a `bnas.LatencyModel`; or several of them by
    the name of the value. If there is a log, save the models: evaluations in a log keep their latency."""
    begin_with: NotInFile[tuple[Subnet, ...]] = ()
    """Sub-networks to evaluate in the first generation, such as those of `bnas.search.pruned_sizes`."""
    confirm: NotInFile[Any] = None
    """Exact evaluation that measures the front again, if the searcher has an approximate one. Its log is next to the
    other one, with the suffix ".confirmed"."""
    workers: NotInFile[Workers | None] = None
    """Like `executor`, but with an executor of your own."""

    @field_validator("num_evals")
    @classmethod
    def _one_generation(cls, count: int, known: ValidationInfo) -> int:
        check_population(getattr(known.data.get("algorithm"), "population", None), count)
        return count

    @field_validator("workers")
    @classmethod
    def _are_workers(cls, workers: Any, known: ValidationInfo) -> Any:
        if workers is not None and known.data.get("executor") is not None:
            raise ValueError("contradicts executor; give only one of the two")
        if workers is not None and not isinstance(workers, Workers):
            raise ValueError("must be bnas.search.Workers, such as Workers(executor, chunk=5)")
        return workers

    @property
    def population(self) -> int:
        """Number of candidates in a generation."""
        return self.algorithm.population or min(POPULATION, self.num_evals)


def check_population(population: int | None, count: int) -> None:
    """Raise ValueError where there are fewer evaluations than a generation has candidates."""
    if population is not None and population > count:
        raise ValueError(f"smaller than the population of {population}; lower the population or raise num_evals")
