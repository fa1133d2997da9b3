"""Where the sub-networks of a search come from, and what is known of them without an evaluation."""

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
"""The name of a latency where there is only one."""
Latency: TypeAlias = "Callable[[Subnet], float] | Mapping[str, Callable[[Subnet], float]] | None"
"""What predicts latencies: that called "latency", or each by its name."""


def by_name(latency: Latency) -> dict[str, Callable[[Subnet], float]]:
    """What predicts latencies, by the names of the values."""
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
        """The source that a super-network or a search space is, or a part of its space.

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
        """Another one for every other super-network; of a space alone that of its choices."""
        if self.supernet is not None:
            return str(self.supernet.fingerprint())
        return fingerprint({}, self.space)

    @property
    def cost_names(self) -> tuple[str, ...]:
        """The names of the values that `costs` gives."""
        costs = () if self.supernet is None else tuple(self.supernet.cost_model.expressions)
        return (*costs, *self.latencies)

    def costs(self, subnets: Sequence[Subnet]) -> list[dict[str, float]]:
        """What is known of each sub-network, by name; costs only with a super-network."""
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
        """Raise SearchError for a name that no evaluation will give, as far as the evaluator tells its `names`."""
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
        """Raise SearchError where the evaluation says that it is of another super-network."""
        other = getattr(evaluate, "supernet", None)
        if self.supernet is None or other is None or other is self.supernet or not hasattr(other, "fingerprint"):
            return
        if (found := str(other.fingerprint())) != self.fingerprint:
            raise SearchError(
                f"the evaluator belongs to another super-network (fingerprint {found}, not {self.fingerprint}): "
                "give the same super-network to both"
            )
