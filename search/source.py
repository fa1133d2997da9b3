"""The searched space, and the values of its sub-networks that need no evaluation (costs and predicted latencies)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from bnas.passes import SearchSpace
from bnas.runtime.storage.archive import fingerprint

from .errors import SearchError
from .objectives import nearest

if TYPE_CHECKING:
    from bnas.passes import Subnet

    from .evaluation import Measures


LATENCY = "latency"
"""Name of the latency if there is only one."""
Latency: TypeAlias = "Callable[[Subnet], float] | Mapping[str, Callable[[Subnet], float]] | None"
"""A latency model for the value "latency", or several by the names of their values."""


def by_name(latency: Latency) -> dict[str, Callable[[Subnet], float]]:
    """Return the latency models by the names of their values."""
    if latency is None:
        return {}
    return dict(latency) if isinstance(latency, Mapping) else {LATENCY: latency}


@dataclass(frozen=True)
class Source:
    """A search space, and the super-network that it belongs to, if any."""

    space: SearchSpace
    supernet: Any = None
    """Has ``cost_model`` and ``fingerprint`` as `bnas.SuperNetwork` has."""
    latencies: Mapping[str, Callable[[Subnet], float]] = field(default_factory=dict)
    """Each predicts the value of its name, as a `bnas.LatencyModel` does; `many` predicts it of many."""

    @classmethod
    def of(cls, supernet: Any, space: SearchSpace | None = None, latency: Latency = None) -> Source:
        """Make a source from a super-network or a search space; `space` restricts it to a part.

        Raises:
            SearchError: it is neither.
        """
        if isinstance(supernet, SearchSpace):
            return cls(supernet if space is None else space, None, by_name(latency))
        if not isinstance(getattr(supernet, "space", None), SearchSpace):
            raise SearchError(f"{type(supernet).__name__} is neither a SuperNetwork nor a SearchSpace")
        return cls(supernet.space if space is None else space, supernet, by_name(latency))

    @property
    def fingerprint(self) -> str:
        """Identifies the super-network; without a super-network it identifies the space."""
        if self.supernet is not None:
            return str(self.supernet.fingerprint())
        return fingerprint({}, self.space)

    @property
    def cost_names(self) -> tuple[str, ...]:
        """The names of the values that `costs` gives."""
        costs = () if self.supernet is None else tuple(self.supernet.cost_model.expressions)
        return (*costs, *self.latencies)

    def costs(self, subnets: Sequence[Subnet]) -> list[dict[str, float]]:
        """Return the values of each sub-network that need no evaluation, by name. Costs need a super-network."""
        found = [dict[str, float]() for _ in subnets]
        if self.supernet is not None and subnets:
            columns: Mapping[str, Any] = self.supernet.cost_model.many(subnets)
            rows = zip(*(column.tolist() for column in columns.values()), strict=True)
            found = [dict(zip(columns, map(float, row), strict=True)) for row in rows]
        for name, predict in self.latencies.items():
            many = getattr(predict, "many", None)
            latencies = map(predict, subnets) if many is None else many(subnets)
            for costs, latency in zip(found, latencies, strict=True):
                costs[name] = float(latency)
        return found

    def check_names(self, measures: Measures, wanted: Iterable[str]) -> None:
        """Raise SearchError for a value that no evaluation will return, if the evaluator has an attribute `names`."""
        told = () if measures.evaluate is None else getattr(measures.evaluate, "names", None)
        if told is None:
            return
        known = list(dict.fromkeys((*told, *self.cost_names, *(one.name for one in measures.own))))
        for name in wanted:
            if name not in known:
                hint = "; to get it, pass a LatencyModel: SearchSettings(latency=model)" if name == LATENCY else ""
                near = nearest(name, known if name == LATENCY else dict.fromkeys([*known, LATENCY]))
                raise SearchError(
                    f"objectives, constraints or targets: {name!r} is not a value of an evaluation; {near}{hint}"
                )

    def check_evaluator(self, evaluate: Any) -> None:
        """Raise SearchError if the evaluator belongs to another super-network."""
        other = getattr(evaluate, "supernet", None)
        if self.supernet is None or other is None or other is self.supernet or not hasattr(other, "fingerprint"):
            return
        if (found := str(other.fingerprint())) != self.fingerprint:
            raise SearchError(
                f"the evaluator belongs to another super-network (fingerprint {found}, not {self.fingerprint}): "
                "give the same super-network to both"
            )
