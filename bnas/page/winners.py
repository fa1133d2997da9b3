"""The table of the original and the named winners: all of it measured, with what it was measured on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bnas.page.files import LatencyNote, Network, Results
from bnas.page.quantity import quantity


@dataclass(frozen=True)
class Cell:
    """A number and what is told below it."""

    column: str
    text: str
    note: str = ""
    warning: str = ""


@dataclass(frozen=True)
class Line:
    """A network."""

    name: str
    cells: tuple[Cell, ...]


def lines(results: Results) -> list[Line]:
    """A line for each network, the original first."""
    return [Line(row.name, tuple(_cells(row, results.rows[0]))) for row in results.rows]


def _cells(row: Network, first: Network) -> Iterator[Cell]:
    own = row is first
    points = 100 * (row.test_accuracy - first.test_accuracy)
    yield Cell("test accuracy", f"{100 * row.test_accuracy:.2f} %", "" if own else f"{points:+.2f} points")
    for name in ("macs", "parameters"):
        value, before = getattr(row, name), getattr(first, name)
        shown = quantity(name, [value])
        label = shown.label
        yield Cell(label, shown.show(value), "" if own else f"{before / value:.2f}x fewer")
    yield _latency("latency fp32", row.latency, None if own else first.latency)
    yield from _int8(row, first)


def _latency(column: str, latency: LatencyNote, first: LatencyNote | None) -> Cell:
    low, high = latency.quartiles_ms
    against = "" if first is None else f"{first.median_ms / latency.median_ms:.2f}x as fast; "
    spread = f"{against}quartiles {low:.3f} to {high:.3f} ms"
    unstable = f"not stable: {latency.unstable}" if latency.unstable else ""
    return Cell(column, f"{latency.median_ms:.3f} ms", spread, unstable)


def _int8(row: Network, first: Network) -> Iterator[Cell]:
    int8 = row.int8
    if int8 is None or int8.latency is None or int8.test_accuracy is None:
        why = "" if int8 is None or not int8.failure else int8.failure
        yield Cell("int8 accuracy", "not measured", why)
        yield Cell("latency int8", "not measured")
        return
    points = 100 * (int8.test_accuracy - row.test_accuracy)
    yield Cell("int8 accuracy", f"{100 * int8.test_accuracy:.2f} %", f"{points:+.2f} points against fp32")
    yield _latency("latency int8", int8.latency, first.latency)


def points(delta: float) -> str:
    """A difference of accuracies in words."""
    number = f"{100 * delta:g}"
    return f"{number} point" + ("" if number == "1" else "s")


def measured_on(results: Results) -> str:
    """What the numbers of the table were measured on, in words."""
    latency, machine = results.rows[0].latency, results.machine
    samples = "the test data" if results.test_samples is None else f"{results.test_samples:,} test samples"
    cpu = machine.get("cpu", "a machine that is not recorded")
    threads = "1 thread" if latency.threads == 1 else f"{latency.threads} threads"
    return (
        f"Accuracy: on {samples}, which neither training nor search saw. MACs and parameters: counted, for one sample. "
        f"Latency: median CPU time of {latency.runs} interleaved runs on ONNX Runtime {machine.get('onnxruntime', '')} "
        f"({latency.provider}), batch {latency.batch}, {threads}, on {cpu}. "
        "Factors are against the original in fp32."
    )


def table(results: Results) -> list[Sequence[object]]:
    """The numbers for a file, the head first."""
    head = ["network", "test_accuracy", "macs", "parameters"]
    times = ["median_ms", "first_quartile_ms", "third_quartile_ms", "spread", "stable"]
    head += [f"fp32_{name}" for name in times] + ["int8_test_accuracy"] + [f"int8_{name}" for name in times]
    rows: list[Sequence[object]] = [head]
    for row in results.rows:
        int8 = row.int8
        quick = None if int8 is None else int8.latency
        accuracy = "" if int8 is None or int8.test_accuracy is None else int8.test_accuracy
        counted = [row.name, row.test_accuracy, int(row.macs), int(row.parameters)]
        rows.append([*counted, *_times(row.latency), accuracy, *(_times(quick) if quick else [""] * len(times))])
    return rows


def _times(latency: LatencyNote) -> list[object]:
    return [latency.median_ms, *latency.quartiles_ms, latency.spread, int(latency.unstable is None)]
