"""The search algorithms that a user chooses from, each with its settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, Field, PlainValidator, ValidationInfo

from bnas.passes.settings import FILE, LARGEST, NUMBER, NotNegative, Number, settings
from bnas.search.errors import SearchError

from .contract import Select, crowded
from .nsga2 import Variation
from .rnsga2 import Preference
from .surrogate import GaussianProcess, Regressor

if TYPE_CHECKING:
    from bnas.search.objectives import Objective

POPULATION = 20
"""Default number of candidates of a generation; a search with fewer evaluations has one smaller generation."""

Population: TypeAlias = Annotated[int, Field(ge=4, le=LARGEST), NUMBER]
"""Smallest population: DEAP's tournaments take individuals in groups of four."""


def _regressor(value: Any, info: ValidationInfo) -> Any:
    if isinstance(value, bool):
        return value
    if info.context == FILE:
        raise ValueError("must be true or false")
    if not (hasattr(value, "fit") and hasattr(value, "predict")):
        raise ValueError("must be True, False or an object with the methods fit and predict")
    return value


Predictor: TypeAlias = Annotated[bool | Regressor, PlainValidator(_regressor, json_schema_input_type=bool)]


def _lists(value: Any) -> Any:
    """Arrays as lists."""
    return value.tolist() if hasattr(value, "tolist") else value


if TYPE_CHECKING:
    Points: TypeAlias = Sequence[Sequence[float]]
else:
    Points = Annotated[tuple[tuple[Number, ...], ...], BeforeValidator(_lists), Field(min_length=1)]


@settings(SearchError, kw_only=True)
class Breeding(Variation):
    """Settings that all evolutionary algorithms share."""

    # Described here, and not below: subclasses take the descriptions over.
    population: Population | None = Field(
        default=None,
        description="Number of candidates in a generation, at least 4. Default: 20, or all evaluations if fewer.",
    )
    predictor: Predictor = Field(
        default=False,
        description="Predict the values of sub-networks, and evaluate only promising ones: true is a Gaussian process "
        "(needs scikit-learn); in Python also any regressor with ``fit`` and ``predict``.",
    )

    def regressor(self) -> Regressor | None:
        """Return the regressor that predicts values, or None.

        Raises:
            SearchError: scikit-learn is not installed.
        """
        if isinstance(self.predictor, bool):
            return GaussianProcess() if self.predictor else None
        return self.predictor


@settings(SearchError, kw_only=True)
class NSGA2(Breeding):
    """Deb's NSGA-II (2002), with DEAP's operators.

    Raises:
        SearchError: names every setting that is out of its bounds.
    """

    name: Literal["NSGA2"] = Field(default="NSGA2", repr=False)
    """The algorithm."""

    def _selection(self, objectives: Sequence[Objective]) -> Select:
        """Return how survivors are chosen."""
        return crowded


@settings(SearchError, kw_only=True)
class RNSGA2(Breeding):
    """R-NSGA-II (Deb and Sundar, 2006): searches for a Pareto front near points that the user gives.

    Raises:
        SearchError: names every setting that is out of its bounds.
    """

    name: Literal["RNSGA2"] = Field(default="RNSGA2", repr=False)
    """The algorithm."""
    aspiration_points: Points
    """Points near which to search: each has one value for each objective, in the order of the objectives."""
    epsilon: NotNegative = 0.001
    """Smallest distance between solutions: of solutions nearer to each other, only one is kept."""
    weights: Annotated[tuple[NotNegative, ...], BeforeValidator(_lists)] | None = None
    """Weight of each objective in distances; by default all equal."""
    extreme_points_as_ref_points: bool = False
    """Also search near the best solution of each objective."""

    def _selection(self, objectives: Sequence[Objective]) -> Select:
        """Return how survivors are chosen.

        Raises:
            SearchError: points or weights do not have a number for each objective.
        """
        return Preference.of(objectives, self)


@settings(SearchError, kw_only=True)
class RandomSearch:
    """Uniformly random sub-networks: the baseline.

    Raises:
        SearchError: names every setting that is out of its bounds.
    """

    name: Literal["random"] = Field(default="random", repr=False)
    """The algorithm."""
    population: Population | None = None
    """Number of sub-networks evaluated together. Default: 20, or all evaluations if fewer."""

    def _selection(self, objectives: Sequence[Objective]) -> None:
        """Return None: there are no survivors."""

    def regressor(self) -> None:
        """Return None: nothing is predicted."""


def _by_name(value: Any) -> Any:
    """An algorithm by its name has the default settings."""
    if isinstance(value, str):
        return {"name": value}
    if isinstance(value, Mapping | NSGA2 | RNSGA2 | RandomSearch):
        return value
    raise ValueError(
        "must be bnas.NSGA2(...), bnas.RNSGA2(...) or bnas.RandomSearch(...), or a name: 'NSGA2', 'RNSGA2' or "
        "'random'. An algorithm of your own needs no Searcher, only four functions (docs/search.md, Other libraries)"
    )


Choice: TypeAlias = Annotated[
    Annotated[NSGA2 | RNSGA2 | RandomSearch, Field(discriminator="name")],
    BeforeValidator(
        _by_name, json_schema_input_type=Literal["NSGA2", "RNSGA2", "random"] | NSGA2 | RNSGA2 | RandomSearch
    ),
]
