"""The results of a run: measurements of the original and the winners, as data and as a table."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from bnas.passes import Subnet
from bnas.run.latencies import LATENCY
from bnas.run.quality import Quality
from bnas.run.winners.winners import Target
from bnas.runtime import Latency, LayerTimes
from bnas.runtime.latency.machine import place_of
from bnas.runtime.latency.speed import times_as_fast

if TYPE_CHECKING:
    from rich.table import Table

    from bnas.search import Constraint


NOTE = 20
"""Width, in characters, of the notes below the name of a network in the table."""


@dataclass(frozen=True)
class Quantised:
    """Measured accuracy and latency of a network in int8 on ONNX Runtime."""

    accuracy: float | None = None
    """Accuracy (or the run's own metric) on the test data."""
    latency: Latency | None = None
    failure: str | None = None
    """Why it could not be measured."""

    def to_json(self) -> dict[str, Any]:
        """Plain data for a JSON file."""
        latency = None if self.latency is None else self.latency.to_json()
        return {"test_accuracy": self.accuracy, "latency": latency, "failure": self.failure}


@dataclass(frozen=True)
class Row:
    """Measurements of one network."""

    name: str
    accuracy: float
    """Accuracy (or the run's own metric, `Report.quality`) on the test data."""
    costs: Mapping[str, int]
    latency: Latency
    subnet: Subnet
    int8: Quantised | None = None
    """Int8 results, if the job asks for int8 files."""
    before: float | None = None
    """Accuracy before the fine-tuning, on the test data; None without fine-tuning."""
    target: Target | None = None
    """The target for which the network was chosen, if there are targets."""
    latencies: Mapping[str, Latency] = field(default_factory=dict)
    """The further latencies of the job, by name."""
    profile: LayerTimes | None = None
    """The time of each layer; None if the latency is not measured on ONNX Runtime."""

    def measured(self, name: str) -> Latency | None:
        """The latency of this name."""
        return self.latency if name == LATENCY else self.latencies.get(name)


@dataclass(frozen=True)
class Report:
    """Results of a run: the original in the first row, then the winners."""

    rows: tuple[Row, ...]
    reference: float
    """Validation accuracy of the original."""
    acc_delta: float
    evaluations: int
    missed: bool
    """Whether a winner misses its target; without targets, whether no sub-network was within `acc_delta` on the
    validation data."""
    machine: Mapping[str, Any]
    samples: int
    """Number of test samples."""
    quality: Quality = field(default_factory=Quality)
    """The metric of the run, which is called accuracy here."""
    whole_space: bool = False
    """Whether the search evaluated all sub-networks, so that more evaluations cannot find a better winner."""
    maximal: float | None = None
    """Validation accuracy of the maximal sub-network after the training; None if unknown."""

    def to_json(self) -> dict[str, Any]:
        """Plain data for a JSON file."""
        rows = [
            {
                "name": row.name,
                "test_accuracy": row.accuracy,
                "test_accuracy_before": row.before,
                **row.costs,
                "latency": row.latency.to_json(),
                "latencies": {name: one.to_json() for name, one in row.latencies.items()},
                "profile": None if row.profile is None else row.profile.to_json(),
                "int8": None if row.int8 is None else row.int8.to_json(),
                "target": None if row.target is None else row.target.to_json(),
                "subnet": row.subnet.to_json(),
            }
            for row in self.rows
        ]
        settings = {"reference": self.reference, "acc_delta": self.acc_delta, "evaluations": self.evaluations}
        measured = {"missed": self.missed, "machine": dict(self.machine), "test_samples": self.samples}
        return {"metric": self.quality.to_json(), "rows": rows, **settings, **measured}

    def table(self) -> Table:
        """A table for the terminal; the ratios are original / sub-network, so larger is better."""
        points = f"within {self.quality.amount(self.acc_delta)}" + ("" if not self.missed else " (none is)")
        title = f"Test {self.quality.name} and latency on {self.place}, {self.evaluations} evaluations"
        return self.titled(title, points)

    @property
    def place(self) -> str:
        """Where latencies were measured."""
        return place_of(self.rows[0].latency.machine)

    def titled(self, title: str, note: str) -> Table:
        """The table with another title; a winner without a target has the note below its name, if there is one."""
        from rich import box
        from rich.table import Table

        # Narrow, since it must fit 80 columns; where it does not, numbers are wrapped before names are.
        table = Table(title=title, show_lines=True, box=box.HORIZONTALS, pad_edge=False, padding=(0, 1, 0, 0))
        table.add_column("network", no_wrap=True)
        others = {name: place_of(one.machine) for name, one in self.rows[0].latencies.items()}
        table.caption = "\n".join(f"{name}: on {place}" for name, place in others.items()) or None
        int8 = ("int8",) if self._has_int8 else ()
        for column in (self.quality.name, "MACs", "params", "latency", *int8, *others):
            table.add_column(column, justify="right", overflow="fold")
        for row in self.rows:
            told = "" if row is self.rows[0] else str(row.target or note)
            table.add_row("\n".join((row.name, *wrap(told, NOTE))), *self._cells(row))
        return table

    def _cells(self, row: Row) -> tuple[str, ...]:
        first, latency, show = self.rows[0], row.latency, self.quality.show
        ratios = {name: first.costs[name] / row.costs[name] for name in ("macs", "parameters")}
        speed = times_as_fast(latency, first.latency)
        return (
            show(row.accuracy) + ("" if row.before is None else f"\nfrom {show(row.before)}"),
            f"{row.costs['macs'] / 1e6:.2f} M\n{ratios['macs']:.2f}x",
            f"{row.costs['parameters'] / 1e3:.0f} k\n{ratios['parameters']:.2f}x",
            f"{latency.median_ms:.3f} ms\n{speed:.2f}x{_noise(latency)}",
            *((self._int8(row.int8),) if self._has_int8 else ()),
            *(self._other(row, name) for name in first.latencies),
        )

    @property
    def _has_int8(self) -> bool:
        return any(row.int8 is not None for row in self.rows)

    def _other(self, row: Row, name: str) -> str:
        """Return a further latency as text, with the ratio to the original's."""
        own, first = row.latencies.get(name), self.rows[0].latencies[name]
        if own is None:
            return "-"
        return f"{own.median_ms:.3f} ms\n{times_as_fast(own, first):.2f}x{_noise(own)}"

    def _int8(self, int8: Quantised | None) -> str:
        if int8 is None or int8.accuracy is None:
            return "-" if int8 is None else "failed"
        if int8.latency is None:  # the target cannot run the int8 file
            return self.quality.show(int8.accuracy)
        speed = times_as_fast(int8.latency, self.rows[0].latency)
        return f"{self.quality.show(int8.accuracy)}\n{int8.latency.median_ms:.3f} ms\n{speed:.2f}x"


def _noise(latency: Latency) -> str:
    return "" if latency.stable else f"\nunstable\nby {100 * latency.spread:.0f} %"


def judged(rows: Sequence[Row], targets: Mapping[str, Target], clocks: Collection[str]) -> tuple[Row, ...]:
    """Return the rows with the targets of their winners; bounds on latencies in `clocks` are checked as measured."""
    first, found = rows[0], []
    for row in rows:
        target = targets.get(row.name)
        if target is not None and target.bound.name in clocks:
            own, whole = row.measured(target.bound.name), first.measured(target.bound.name)
            if own is not None and whole is not None:
                target = replace(target, missed=taken_of(own, whole, target.bound) > target.bound.bound)
        found.append(replace(row, target=target))
    return tuple(found)


def taken_of(own: Latency, first: Latency, bound: Constraint) -> float:
    """Return a latency in the unit of a bound: milliseconds, or for a relative bound the share of the original's."""
    return 1 / times_as_fast(own, first) if bound.relative else own.median_ms
