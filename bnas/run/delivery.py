"""Networks as a run hands them over: as plain modules and ONNX files, checked, timed together and tested."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from torch.fx import GraphModule

from bnas.passes import BnasError, Subnet
from bnas.passes.frontend.fidelity import resize
from bnas.passes.frontend.ir import as_call, as_program_call
from bnas.passes.frontend.structure import map_leaves
from bnas.runtime import (
    Int8,
    Latency,
    SuperNetwork,
    accuracy,
    evaluate_onnx,
    export_onnx,
    fold,
    measure_latency,
    origin,
)
from bnas.runtime.evaluate.evaluation import Batch
from bnas.runtime.nested import tensors_in
from bnas.runtime.storage.archive import tensor_bytes
from bnas.runtime.storage.files import ReadError, WriteError, discard, write_bytes, write_json

from .job import Job
from .mark import OutputError
from .output import Output

if TYPE_CHECKING:
    from rich.table import Table


# What becomes of a network in int8: its accuracy and latency, or why there are none.


@dataclass(frozen=True)
class Quantised:
    """A network in int8 on ONNX Runtime; both numbers are measured."""

    accuracy: float | None = None
    """On the test data."""
    latency: Latency | None = None
    failure: str | None = None
    """Why there are no numbers."""

    def to_json(self) -> dict[str, Any]:
        """Plain data for a JSON file."""
        latency = None if self.latency is None else self.latency.to_json()
        return {"test_accuracy": self.accuracy, "latency": latency, "failure": self.failure}


def write_int8(
    module: GraphModule,
    path: Path,
    example: Any,
    settings: Int8,
    metadata: Mapping[str, str],
) -> str | None:
    """Export `module` to an int8 file at `path`; returns why there is none where that cannot be done.

    Raises:
        WriteError: the file cannot be written.
        OutputError: a file is there that the run did not write, or not so.
    """
    try:
        export_onnx(module, path, example, settings, metadata=metadata)
    except (WriteError, ReadError, OutputError):
        raise
    except BnasError as error:
        return str(error)
    return None


# What a run found, as data and as a table.


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
    """None where nobody asked for it."""


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
    samples: int
    """Of the test data."""

    def to_json(self) -> dict[str, Any]:
        """Plain data for a JSON file."""
        rows = [
            {
                "name": row.name,
                "test_accuracy": row.accuracy,
                **row.costs,
                "latency": row.latency.to_json(),
                "int8": None if row.int8 is None else row.int8.to_json(),
                "subnet": row.subnet.to_json(),
            }
            for row in self.rows
        ]
        settings = {"reference": self.reference, "acc_delta": self.acc_delta, "evaluations": self.evaluations}
        measured = {"missed": self.missed, "machine": dict(self.machine), "test_samples": self.samples}
        return {"rows": rows, **settings, **measured}

    def table(self) -> Table:
        """A table for the terminal; the ratios are original / sub-network, so larger is better."""
        points = f"within {100 * self.acc_delta:g} point" + ("" if not self.missed else " (none is)")
        return self.titled(f"Test accuracy and ONNX Runtime latency, {self.evaluations} evaluations", points)

    def titled(self, title: str, note: str) -> Table:
        """The table with another title, and a note below the name of each network but the first."""
        from rich.table import Table

        table = Table(title=title, show_lines=True)
        table.add_column("network")
        for column in ("accuracy", "MACs", "parameters", "latency", "spread", "int8"):
            table.add_column(column, justify="right", no_wrap=True)
        for row in self.rows:
            label = row.name if row is self.rows[0] or not note else f"{row.name}\n{note}"
            table.add_row(label, *self._cells(row))
        return table

    def _cells(self, row: Row) -> tuple[str, ...]:
        first, latency = self.rows[0], row.latency
        ratios = {name: first.costs[name] / row.costs[name] for name in ("macs", "parameters")}
        speed = first.latency.median_ms / latency.median_ms
        return (
            f"{100 * row.accuracy:.2f} %",
            f"{row.costs['macs'] / 1e6:.2f} M\n{ratios['macs']:.2f}x",
            f"{row.costs['parameters'] / 1e3:.0f} k\n{ratios['parameters']:.2f}x",
            f"{latency.median_ms:.3f} ms\n{speed:.2f}x",
            f"{100 * latency.spread:.0f} %{'' if latency.stable else chr(10) + 'unstable'}",
            self._int8(row.int8),
        )

    def _int8(self, int8: Quantised | None) -> str:
        if int8 is None or int8.latency is None:
            return "-" if int8 is None else "failed"
        speed = self.rows[0].latency.median_ms / int8.latency.median_ms
        return f"{100 * int8.accuracy:.2f} %\n{int8.latency.median_ms:.3f} ms\n{speed:.2f}x"  # type: ignore[operator]


INT8 = ".int8"


def one_sample(supernet: SuperNetwork, sizes: Mapping[str, int] | None = None, copies: int = 1) -> Any:
    """The example inputs of a super-network, one sample of them, `copies` times: a tuple, or a dict by name.

    Where `sizes` gives dynamic axes another size, the values are random ones within the range of the example.
    """
    inputs = as_call(supernet.example_inputs)
    if sizes:
        inputs = resize(inputs, {supernet.ir.sizes.axis(title): size for title, size in sizes.items()})
    batched = {path for axis in supernet.ir.sizes.axes if axis.name == "batch" for path, _ in axis.places}

    def repeated(path: object, one: Any) -> Any:
        return one[:1].repeat(copies, *[1] * (one.ndim - 1)) if path in batched else one

    args, named = map_leaves(inputs, repeated)
    args, named = as_program_call(named or args)
    return named or args


@dataclass(frozen=True)
class Delivery:
    """Writes networks of one super-network to ``subnets/`` and measures them."""

    job: Job
    output: Output
    supernet: SuperNetwork
    calibration: list[Batch]
    """Training samples that the ranges of int8 activations are found on."""

    def rows(self, networks: Mapping[str, tuple[Subnet, GraphModule]]) -> tuple[Row, ...]:
        """Files and measurements of each network; the first one is the reference of all latencies.

        One module under two names is measured once. The modules are folded, and not to be used after.
        """
        failures = {name: self._write(name, subnet, module) for name, (subnet, module) in networks.items()}
        names: dict[GraphModule, str] = {}
        for name, (_, module) in networks.items():
            names.setdefault(module, name)
        rows = self._measured({name: networks[name] for name in names.values()}, failures)
        return tuple(replace(rows[names[module]], name=name) for name, (_, module) in networks.items())

    def _measured(
        self, networks: Mapping[str, tuple[Subnet, GraphModule]], failures: Mapping[str, str | None]
    ) -> dict[str, Row]:
        """The rows of different networks, whose files are written."""
        file = onnx.load(str(self.output.path(f"subnets/{next(iter(networks))}.onnx")), load_external_data=False)
        inputs = [one.name for one in file.graph.input]
        latencies, test = self._latencies({name: failures[name] for name in networks}, inputs), list(self.job.data.test)
        return {
            name: Row(
                name,
                accuracy(fold(module), test),
                self.supernet.costs(subnet),
                latencies[name],
                subnet,
                self._quantised(name, failures[name], latencies, test),
            )
            for name, (subnet, module) in networks.items()
        }

    def _write(self, name: str, subnet: Subnet, module: GraphModule) -> str | None:
        """The files of one network; why there is no int8 one, where it was asked for and cannot be made."""
        path, example = self.output.path, one_sample(self.supernet)
        write_json(path(f"subnets/{name}.json"), {**subnet.to_json(), "costs": self.supernet.costs(subnet)})
        write_bytes(path(f"subnets/{name}.safetensors"), tensor_bytes(module.state_dict()))
        metadata = origin(self.supernet, subnet)
        export_onnx(module, path(f"subnets/{name}.onnx"), example, metadata=metadata)
        quantised = path(f"subnets/{name}{INT8}.onnx")
        discard(quantised)  # of an earlier export
        if self.job.int8 is None:
            return None
        return write_int8(module, quantised, example, self._int8(self.job.int8), metadata)

    def _latencies(self, failures: Mapping[str, str | None], inputs: list[str]) -> dict[str, Latency]:
        names = list(failures)
        if self.job.int8 is not None:
            names += [f"{name}{INT8}" for name, failure in failures.items() if failure is None]
        files = {name: self.output.path(f"subnets/{name}.onnx") for name in names}
        feeds = self._feeds(inputs, self.job.latency.batch, self.job.latency.sizes or {})
        return measure_latency(files, feeds, self.job.latency, reference=names[0])

    def _int8(self, settings: Int8) -> Int8:
        """The settings with the run's data, where they have none of their own."""
        return settings if settings.calibration is not None else replace(settings, calibration=self.calibration)

    def _feeds(self, inputs: list[str], batch: int, sizes: Mapping[str, int]) -> dict[str, np.ndarray[Any, Any]]:
        """The example, `batch` times, or random values within its range where axes have other sizes."""
        repeated = one_sample(self.supernet, sizes, batch)
        return dict(zip(inputs, (one.cpu().numpy() for one in tensors_in(repeated)), strict=True))

    def _quantised(
        self, name: str, failure: str | None, latencies: Mapping[str, Latency], test: list[Batch]
    ) -> Quantised | None:
        if self.job.int8 is None or failure is not None:
            return None if failure is None else Quantised(failure=failure)
        file = self.output.path(f"subnets/{name}{INT8}.onnx")
        return Quantised(evaluate_onnx(file, test), latencies[f"{name}{INT8}"])
