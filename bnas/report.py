"""What a run found, as data and as a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bnas.passes import Subnet
from bnas.runtime import Latency

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Quantised:
    """The int8 file of a network, measured."""

    accuracy: float
    """On the test data, on ONNX Runtime."""
    latency: Latency
    """In turns with the other files."""

    def to_json(self) -> dict[str, Any]:
        """Plain data for a JSON file."""
        return {"test_accuracy": self.accuracy, "latency": self.latency.to_json()}


@dataclass(frozen=True)
class Row:
    """One network, all of it measured."""

    name: str
    accuracy: float
    """On the test data."""
    costs: Mapping[str, int]
    latency: Latency
    subnet: Subnet
    int8: Quantised | None = None
    """Where the run has int8 files."""


@dataclass(frozen=True)
class Report:
    """The original in the first row and the sub-networks that a run hands back."""

    rows: tuple[Row, ...]
    reference: float
    """Validation accuracy of the original."""
    acc_delta: float
    evaluations: int
    missed: bool
    """No sub-network was within `acc_delta` on the validation data."""
    machine: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Plain data for a JSON file."""
        rows = [
            {
                "name": row.name,
                "test_accuracy": row.accuracy,
                **row.costs,
                "latency": row.latency.to_json(),
                "subnet": row.subnet.to_json(),
                "int8": None if row.int8 is None else row.int8.to_json(),
            }
            for row in self.rows
        ]
        settings = {"reference": self.reference, "acc_delta": self.acc_delta, "evaluations": self.evaluations}
        return {"rows": rows, **settings, "missed": self.missed, "machine": dict(self.machine)}

    def table(self) -> Table:
        """A table for the terminal; the ratios are original / sub-network, so larger is better."""
        from rich.table import Table

        points = f"within {100 * self.acc_delta:g} point" + ("" if not self.missed else " (none is)")
        table = Table(title=f"Test accuracy and ONNX Runtime latency, {self.evaluations} evaluations", show_lines=True)
        table.add_column("network")
        for column in ("accuracy", "MACs", "parameters", "latency", "spread"):
            table.add_column(column, justify="right", no_wrap=True)
        for row in self.rows:
            label = row.name if row is self.rows[0] else f"{row.name}\n{points}"
            table.add_row(label, *self._cells(row))
            if row.int8 is not None:
                measured = (f"{100 * row.int8.accuracy:.2f} %", "", "", *self._time(row.int8.latency))
                table.add_row(f"{row.name} in int8", *measured)
        return table

    def _cells(self, row: Row) -> tuple[str, ...]:
        first = self.rows[0]
        ratios = {name: first.costs[name] / row.costs[name] for name in ("macs", "parameters")}
        return (
            f"{100 * row.accuracy:.2f} %",
            f"{row.costs['macs'] / 1e6:.2f} M\n{ratios['macs']:.2f}x",
            f"{row.costs['parameters'] / 1e3:.0f} k\n{ratios['parameters']:.2f}x",
            *self._time(row.latency),
        )

    def _time(self, latency: Latency) -> tuple[str, str]:
        speed = self.rows[0].latency.median_ms / latency.median_ms
        unstable = "" if latency.stable else "\nunstable"
        return f"{latency.median_ms:.3f} ms\n{speed:.2f}x", f"{100 * latency.spread:.0f} %{unstable}"
