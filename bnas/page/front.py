"""The front of a run: its plots, the first objective over each other one, and the table of the named winners."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from typing import Any

from bnas.run.quality import Quality
from bnas.runtime.latency.machine import place_of
from bnas.runtime.latency.speed import times_as_fast
from bnas.search import Evaluation, Objective, SearchResult

from .members import Members
from .notes import LatencyNote, Network, Results
from .plot import BLACK, BLUE, GREY, WINNERS, Look, Plot, Rule, Series
from .recorded import Recorded
from .words import Quantity, quantity, told

# The table of the original and the named winners: all of it measured, with what it was measured on.


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
    target: str = ""
    """What it was chosen by, where there are targets."""
    missed: bool = False
    """Whether it does not keep that."""


def lines(results: Results) -> list[Line]:
    """A line for each network, the original first."""
    return [_line(row, results) for row in results.rows]


def _line(row: Network, results: Results) -> Line:
    cells, target = tuple(_cells(row, results.rows[0], results.quality)), row.target
    return Line(row.name, cells) if target is None else Line(row.name, cells, target.bound, target.missed)


def _cells(row: Network, first: Network, quality: Quality) -> Iterator[Cell]:
    own = row is first
    before = row.test_accuracy_before
    tuned = "" if before is None else f"; {quality.show(before)} before fine-tuning"
    change = quality.change(row.test_accuracy - first.test_accuracy)
    yield Cell(f"test {quality.name}", quality.show(row.test_accuracy), "" if own else f"{change}{tuned}")
    for name in ("macs", "parameters"):
        value, whole = getattr(row, name), getattr(first, name)
        shown = quantity(name, [value])
        label = shown.label
        yield Cell(label, shown.show(value), "" if own else f"{whole / value:.2f}x fewer")
    yield _latency("latency fp32", row.latency, None if own else first.latency)
    yield from _int8(row, first, quality)
    for name, whole in first.latencies.items():
        if (found := row.latencies.get(name)) is None:
            yield Cell(name, "not measured")
        else:
            yield _latency(name, found, None if own else whole)


def _latency(column: str, latency: LatencyNote, first: LatencyNote | None) -> Cell:
    low, high = latency.quartiles_ms
    against = "" if first is None else f"{times_as_fast(latency, first):.2f}x as fast; "
    spread = f"{against}quartiles {low:.3f} to {high:.3f} ms"
    unstable = f"not stable: {latency.unstable}" if latency.unstable else ""
    return Cell(column, f"{latency.median_ms:.3f} ms", spread, unstable)


def _int8(row: Network, first: Network, quality: Quality) -> Iterator[Cell]:
    int8, column = row.int8, f"int8 {quality.name}"
    if int8 is None or int8.test_accuracy is None:
        why = "" if int8 is None or not int8.failure else int8.failure
        yield Cell(column, "not measured", why)
        yield Cell("latency int8", "not measured")
        return
    change = quality.change(int8.test_accuracy - row.test_accuracy)
    yield Cell(column, quality.show(int8.test_accuracy), f"{change} against fp32")
    if int8.latency is None:
        yield Cell("latency int8", "not measured", "this target cannot run int8 ONNX files")
    else:
        yield _latency("latency int8", int8.latency, first.latency)


def measured_on(results: Results) -> str:
    """What the numbers of the table were measured on, in words."""
    latency, machine = results.rows[0].latency, results.machine
    samples = "the test data" if results.test_samples is None else f"{results.test_samples:,} test samples"
    cpu = machine.get("cpu", "an unrecorded machine")
    runs = "1 run" if latency.runs == 1 else f"{latency.runs} interleaved runs"
    threads = "1 thread" if latency.threads == 1 else f"{latency.threads} threads"
    return (
        f"{_titled(results.quality)}: on {samples} that neither training nor search used. "
        "MACs and parameters: counted for one sample. "
        f"Latency: median {'CPU time' if latency.clock == 'cpu' else 'wall-clock time'} of {runs} on "
        f"{_place(latency, machine)}, batch {latency.batch}, {threads}, "
        f"on {cpu}. "
        "Factors compare with the original in fp32."
        + "".join(f" {name}: on {_place(one, machine)}." for name, one in results.rows[0].latencies.items())
    )


def _titled(quality: Quality) -> str:
    """The name of the metric as the first word of a sentence."""
    return quality.name.capitalize() if quality.percent else quality.name


def _place(latency: LatencyNote, machine: Mapping[str, Any]) -> str:
    return place_of({"provider": latency.provider, **machine, **latency.machine})


def table(results: Results) -> list[Sequence[object]]:
    """The numbers for a file, the head first."""
    head = ["network", "test_accuracy", "test_accuracy_before", "macs", "parameters"]
    times = ["median_ms", "first_quartile_ms", "third_quartile_ms", "spread", "stable"]
    head += [f"fp32_{name}" for name in times] + ["int8_test_accuracy"] + [f"int8_{name}" for name in times]
    others = results.rows[0].latencies
    head += [f"{title}_{name}" for title in others for name in times]
    rows: list[Sequence[object]] = [head]
    for row in results.rows:
        int8 = row.int8
        quick = None if int8 is None else int8.latency
        accuracy = "" if int8 is None or int8.test_accuracy is None else int8.test_accuracy
        before = "" if row.test_accuracy_before is None else row.test_accuracy_before
        counted = [row.name, row.test_accuracy, before, int(row.macs), int(row.parameters)]
        further = [row.latencies.get(title) for title in others]
        found = [entry for one in (quick, *further) for entry in (_times(one) if one else [""] * len(times))]
        rows.append([*counted, *_times(row.latency), accuracy, *found])
    return rows


def _times(latency: LatencyNote) -> list[object]:
    return [latency.median_ms, *latency.quartiles_ms, latency.spread, int(latency.unstable is None)]


# The plots of the Pareto front: the first objective over each other one.

NAMED = 3
"""So many names of each kind are told where a point is hovered over."""


def fronts(run: Recorded, members: Members) -> Iterator[Plot]:
    """A plot for each pair of the first objective and another one; for a single objective over its MACs."""
    if run.search is None or run.settings is None or members.maximal is None:
        return
    upwards, *others = ordered(run.search.objectives, run.quality.name)
    across = [one.name for one in others] or [name for name in ("macs",) if name in members.quantities]
    for name in across:
        yield _plot(run, run.search, members, members.quantities[name], members.quantities[upwards.name])


def ordered(objectives: Sequence[Objective], metric: str = "accuracy") -> list[Objective]:
    """With what winners are chosen by first, else what is to be large."""
    return sorted(objectives, key=lambda one: (one.name != metric, one.direction != "max"))


@dataclass(frozen=True)
class View:
    """Two values of evaluations, as a plot shows them."""

    x: Quantity
    y: Quantity
    tell: Callable[[Evaluation], str] | None = None
    """What hovering over a point tells; where there is nothing to tell, there is nothing to select either."""

    def series(self, label: str, some: Sequence[Evaluation], look: Look, colour: str, marker: str = "circle") -> Series:
        """These evaluations as points."""
        across = [self.x.factor * one.values[self.x.name] for one in some]
        upwards = [self.y.factor * one.values[self.y.name] for one in some]
        texts = [] if self.tell is None else [self.tell(one) for one in some]
        keys = [f"e{one.index}" for one in some] if texts and look not in ("cloud", "hollow") else ()
        return Series(label, across, upwards, look, colour, marker, texts=texts, keys=keys)


def searched(search: SearchResult, front: Sequence[Evaluation], view: View) -> list[Series]:
    """All that was evaluated, what violates a constraint, and the front."""
    kept = {one.index for one in search.feasible}
    outside = [one for one in search.evaluations if one.failure is None and one.index not in kept]
    broken = [view.series("violates a constraint", outside, "hollow", GREY)] if outside else []
    look: Look = "step" if len(search.objectives) == 2 else "dots"
    best = view.series("Pareto front", front, look, BLUE)
    return [view.series("evaluated", search.feasible, "cloud", GREY), *broken, best]


def _plot(run: Recorded, search: SearchResult, members: Members, x: Quantity, y: Quantity) -> Plot:
    view = View(x, y, partial(_hover, members=members))
    drawn = searched(search, run.front, view)
    by_key = {f"e{one.index}": one for one in search.evaluations}
    for (name, member), (colour, marker) in zip(members.winners.items(), cycle(WINNERS), strict=False):
        drawn.append(view.series(name, [by_key[member.key]], "mark", colour, marker))
    drawn += _original(run, x, y)
    return Plot(
        f"front-{x.name}",
        f"Pareto front: {y.label} over {x.label}",
        _caption(run, search, x, y),
        x.axis,
        y.axis,
        tuple(drawn),
        tuple(_rules(run, y)),
        _rows(run, search, members),
    )


def _original(run: Recorded, x: Quantity, y: Quantity) -> Iterator[Series]:
    """What the winners are held against, where it can be drawn."""
    settings = run.settings
    if settings is not None and y.name == run.quality.name and x.name in settings.maximal:
        at, up = x.factor * settings.maximal[x.name], y.factor * settings.reference
        told = settings.reference_of or "reference"
        text = f"{told}\n{y.show(settings.reference)}, {x.show(settings.maximal[x.name])}"
        yield Series(told, [at], [up], "mark", BLACK, "square", texts=[text])


def _rules(run: Recorded, y: Quantity) -> Iterator[Rule]:
    if run.settings is not None and y.name == run.quality.name and not run.settings.targets:
        delta, sign = run.settings.acc_delta, run.quality.objective.sign
        told = f"reference {'plus' if sign > 0 else 'minus'} {run.quality.amount(delta)}"
        yield Rule(y.factor * (run.settings.reference + sign * delta), "y", told)


def _caption(run: Recorded, search: SearchResult, x: Quantity, y: Quantity) -> str:
    assert run.settings is not None
    samples = "" if run.settings.samples is None else f"{run.settings.samples:,} "
    name = run.quality.name
    measured = (
        [f"{_titled(run.quality)} is measured on {samples}validation samples"] if name in (x.name, y.name) else []
    )
    measured += [f"{one.label}: {one.meaning}" for one in (x, y) if one.meaning and one.name != name]
    bounds = f" Constraints: {'; '.join(map(str, search.constraints))}." if search.constraints else ""
    last, done = run.settings.evaluations, len(search.evaluations)
    earlier = (
        f" ({last:,} of them were asked for by the last search, the others by earlier ones)" if last < done else ""
    )
    return (
        f"{done:,} sub-networks were evaluated{earlier}, {len(run.front)} are on the front"
        f"{f', {len(search.failed)} failed' if search.failed else ''}. {'. '.join(measured)}.{bounds}"
    )


def _hover(evaluation: Evaluation, members: Members) -> str:
    assert members.maximal is not None
    values = [f"{one.label} {one.show(evaluation.values[name])}" for name, one in members.asked.items()]
    return f"evaluation {evaluation.index}\n{', '.join(values)}\n{told(evaluation.subnet, members.maximal, NAMED)}"


def _rows(run: Recorded, search: SearchResult, members: Members) -> list[Sequence[object]]:
    """All evaluations with their values, and which are on the front."""
    names, front = list(members.quantities), {one.index for one in run.front}
    kept = {one.index for one in search.feasible}
    rows: list[Sequence[object]] = [["evaluation", *names, "feasible", "front"]]
    for one in search.evaluations:
        if one.failure is None:
            rows.append([one.index, *(one.values[n] for n in names), int(one.index in kept), int(one.index in front)])
    return rows
