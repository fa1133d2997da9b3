"""Evolution on predicted values: only candidates that look promising are evaluated."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from bnas.search.errors import SearchError

from .contract import Individual, survivors
from .nsga2 import Evolution, children_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bnas.passes import Subnet

    from .candidates import Candidate, Genes

GENERATIONS = 20
"""Number of generations that are bred on predictions between two evaluated ones."""


class Regressor(Protocol):
    """Predicts a number from genes scaled to 0..1, as the regressors of scikit-learn do; it is copied before use."""

    def fit(self, x: Any, y: Any) -> Any:
        """Learn from a matrix with a row for each sub-network, and a number for each."""

    def predict(self, x: Any) -> Any:
        """Predict a number for each row."""


class GaussianProcess:
    """A Gaussian process of scikit-learn: a linear trend, a smooth deviation from it, and noise."""

    def __init__(self) -> None:
        """Set up a process.

        Raises:
            SearchError: scikit-learn is not installed.
        """
        try:
            from sklearn.gaussian_process import GaussianProcessRegressor
            from sklearn.gaussian_process.kernels import ConstantKernel, DotProduct, Matern, WhiteKernel
        except ImportError as error:
            raise SearchError("a predictor needs scikit-learn: pip install 'bnas[surrogate]'") from error
        smooth = ConstantKernel() * Matern(3.0, (0.1, 100.0), nu=2.5)
        kernel = ConstantKernel(0.1) * DotProduct() + smooth + WhiteKernel(0.01)
        self._process = GaussianProcessRegressor(kernel, normalize_y=True, random_state=0)

    def fit(self, x: Any, y: Any) -> Any:
        """Learn from a matrix with a row for each sub-network, and a number for each."""
        with warnings.catch_warnings():  # a length or a noise at its bound is an answer too
            warnings.simplefilter("ignore", UserWarning)
            return self._process.fit(x, y)

    def predict(self, x: Any) -> Any:
        """Predict a number for each row."""
        return self._process.predict(x)


@dataclass
class Surrogate:
    """Breeds generations on predicted values and proposes the most promising candidates for evaluation.

    Costs are exact; every other value is predicted from all evaluations so far. A quarter of each generation is bred
    without predictions, so that a wrong predictor gets evaluations that correct it.
    """

    evolution: Evolution
    regressor: Regressor
    names: Sequence[str]
    """Names of the values that objectives and constraints use."""
    costs: Callable[[Sequence[Subnet]], list[dict[str, float]]]
    """Exact values, by name."""
    scored: Callable[[Genes, Mapping[str, float]], Individual]
    """Makes an individual from values."""
    archive: list[Individual] = field(default_factory=list)
    """All evaluated individuals."""

    def ask(self, count: int) -> list[Candidate]:
        """Return up to ``count`` unclaimed candidates."""
        if not self.archive:
            return self.evolution.ask(count)
        count = min(count, max(4, self.evolution.population // 2))
        bred = self._promising(count - count // 4)
        return [*bred, *self.evolution.ask(count - len(bred))]

    def tell(self, scored: Sequence[Individual]) -> None:
        """Take what was evaluated."""
        self.archive += scored
        self.evolution.tell(scored)

    def _promising(self, count: int) -> list[Candidate]:
        """Claim the best candidates that were bred on predictions."""
        predict, candidates = self._predictor(), self.evolution.candidates
        population = predict([one.genes for one in self.archive])
        size = 2 * self.evolution.population
        population = survivors(population, size, self.evolution.select)
        bred: dict[Genes, Individual] = {}
        with self.evolution.stream.lent():
            for _ in range(GENERATIONS):
                children = islice(children_of(population, self.evolution.variation, candidates.last_genes), size)
                known = {one.genes for one in population}
                new = [g for g in dict.fromkeys(candidates.canonical(list(children))) if g not in known]
                found = predict(new)
                bred.update((one.genes, one) for one in found)
                population = survivors([*population, *found], size, self.evolution.select)
        known = {one.genes for one in self.archive}
        promising = survivors([one for one in population if one.genes not in known], count, self.evolution.select)
        claimed = [candidates.claim_canonical(one.genes) for one in promising]
        return [one for one in claimed if one is not None]

    def _predictor(self) -> Callable[[Sequence[Genes]], list[Individual]]:
        """Fit the regressors on the archive; return a function from genes to individuals."""
        space = self.evolution.candidates.encoding.space
        known = self.costs([space.maximal()])[0]
        wanted = [name for name in self.names if name not in known]
        models = {name: self._fitted([one.values[name] for one in self.archive]) for name in wanted}

        def predict(genes: Sequence[Genes]) -> list[Individual]:
            if not genes:
                return []
            rows = self._features(genes)
            columns = {name: np.asarray(model.predict(rows)).tolist() for name, model in models.items()}
            exact = self.costs([space.decode(one) for one in genes])
            return [
                self.scored(one, {**exact[i], **{name: column[i] for name, column in columns.items()}})
                for i, one in enumerate(genes)
            ]

        return predict

    def _fitted(self, values: Sequence[float]) -> Regressor:
        model = copy.deepcopy(self.regressor)
        model.fit(self._features([one.genes for one in self.archive]), np.array(values))
        return model

    def _features(self, genes: Sequence[Genes]) -> NDArray[np.float64]:
        last = np.maximum(self.evolution.candidates.encoding.last, 1)
        return np.array(genes, dtype=np.float64) / last
