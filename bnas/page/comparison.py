"""Two runs on one page: their fronts in one picture, their winners side by side, and where their settings differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from bnas.passes import Subnet
from bnas.run.files.ledger import Ledger
from bnas.run.quality import Quality
from bnas.runtime.storage.files import write_bytes
from bnas.search import Evaluation, SearchResult

from .differences import against, conditions, facts, settings
from .document import as_csv, drawn, refuse_others, rendered
from .front import Cell, View, lines, measured_on, ordered
from .notes import Network
from .plot import BLUE, VERMILLION, Plot, Series
from .recorded import Recorded, ReportError, read_run
from .words import Quantity, quantity

FILE = "comparison.html"
LOOKS = ((BLUE, "circle", "triangle"), (VERMILLION, "square", "inverted_triangle"))
"""Colour of each run, and the markers of its front and of its winners."""


@dataclass(frozen=True)
class Side:
    """A network of one run, as a row of the table."""

    run: int
    """0 or 1."""
    cells: tuple[Cell, ...]
    """Empty where the run has no network of this name."""
    target: str = ""
    missed: bool = False
    versus: Mapping[str, str] = field(default_factory=dict)
    """In run B: how it differs from the network of the same name in run A, by column."""


@dataclass(frozen=True)
class Comparison:
    """Two runs, as far as they came."""

    runs: tuple[Recorded, Recorded]

    @cached_property
    def names(self) -> tuple[str, str]:
        """What each run is called: A and B, with its folder."""
        return f"A: {self.runs[0].name}", f"B: {self.runs[1].name}"

    # The fronts.

    @cached_property
    def plots(self) -> list[Plot]:
        """A plot for each other objective that both searches know; none where one of them has not begun."""
        first, second = self.runs
        if first.search is None or second.search is None:
            return []
        found = (first.search, second.search)
        shared = [name for name in _values(found[0]) if name in _values(found[1])]
        upwards, *_ = ordered(found[0].objectives, first.quality.name)
        asked = dict.fromkeys(one.name for search in found for one in search.objectives)
        across = [name for name in asked if name in shared and name != upwards.name]
        across = across or [name for name in ("macs",) if name in shared]
        return [self._plot(found, name, upwards.name) for name in across if upwards.name in shared]

    def _plot(self, found: Sequence[SearchResult], across: str, upwards: str) -> Plot:
        x, y = (quantity(name, [v for search in found for v in _values(search)[name]]) for name in (across, upwards))
        series = [one for run in (0, 1) for one in self._series(run, x, y)]
        counts = " and ".join(f"{len(search.evaluations):,}" for search in found)
        meant = f" {x.label}: {x.meaning}." if x.meaning else ""
        return Plot(
            f"front-{x.name}",
            f"Pareto fronts: {y.label} over {x.label}",
            f"{counts} sub-networks were evaluated. {y.label.capitalize()} is what each search measured.{meant}",
            x.axis,
            y.axis,
            tuple(series),
            rows=self._rows(x, y),
        )

    def _series(self, run: int, x: Quantity, y: Quantity) -> Iterator[Series]:
        recorded, (colour, marker, winner) = self.runs[run], LOOKS[run]
        front, by_subnet = recorded.front, {one.subnet: one for one in recorded.evaluations if one.failure is None}
        name = self.names[run]
        look: Any = "step" if recorded.search is not None and len(recorded.search.objectives) == 2 else "dots"
        texts = [f"{name}, evaluation {one.index}\n{_told(one, x, y)}" for one in front]
        yield _points(f"{name}: front", front, x, y, look, colour, marker, texts)
        named: dict[Subnet, list[str]] = {}
        for row in recorded.results.rows[1:] if recorded.results else ():
            named.setdefault(Subnet.from_json(row.subnet.model_dump()), []).append(row.name)
        best = [(by_subnet[subnet], ", ".join(names)) for subnet, names in named.items() if subnet in by_subnet]
        if best:
            texts = [f"{name}, {names}\n{_told(one, x, y)}" for one, names in best]
            yield _points(f"{name}: winners", [one for one, _ in best], x, y, "mark", colour, winner, texts)

    def _rows(self, x: Quantity, y: Quantity) -> list[Sequence[object]]:
        head: list[Sequence[object]] = [("run", "evaluation", x.name, y.name)]
        both = ((letter, one) for letter, run in zip("AB", self.runs, strict=True) for one in run.front)
        return [*head, *((letter, one.index, one.values[x.name], one.values[y.name]) for letter, one in both)]

    # The winners.

    @cached_property
    def columns(self) -> list[str]:
        """What is told of each network of either run."""
        originals = [lines(run.results)[0] for run in self.runs if run.results is not None]
        return list(dict.fromkeys(cell.column for line in originals for cell in line.cells))

    def measured_on(self) -> list[str]:
        """What the numbers were measured on: once where that is the same in both runs."""
        told = {name: measured_on(run.results) for name, run in zip(self.names, self.runs, strict=True) if run.results}
        same = len(set(told.values())) == 1
        return list(told.values())[:1] if same else [f"{name}. {text}" for name, text in told.items()]

    @cached_property
    def winners(self) -> dict[str, tuple[Side, Side]]:
        """The original and all winners by name, each with its numbers in both runs."""
        known = [{row.name: row for row in run.results.rows} if run.results else {} for run in self.runs]
        names = dict.fromkeys([*known[0], *known[1]])
        return {name: (self._side(0, name, None), self._side(1, name, known[0].get(name))) for name in names}

    @property
    def _quality(self) -> Quality | None:
        """The metric of both runs; None where they differ."""
        first, second = (run.quality for run in self.runs)
        return first if first == second else None

    @property
    def _models(self) -> list[str]:
        """The models of the runs, each once."""
        return list(dict.fromkeys(run.architecture.model for run in self.runs if run.architecture is not None))

    def _side(self, run: int, name: str, before: Network | None) -> Side:
        """A network of a run, and how it differs from the one of run A."""
        results = self.runs[run].results
        line = None if results is None else next((one for one in lines(results) if one.name == name), None)
        if results is None or line is None:
            return Side(run, ())
        row = next(one for one in results.rows if one.name == name)
        told = {} if before is None else dict(against(row, before, self._quality, len(self._models) < 2))
        known = {cell.column: cell for cell in line.cells}
        cells = tuple(known.get(column, Cell(column, "not measured")) for column in self.columns)
        return Side(run, cells, line.target, line.missed, told)

    # What differs.

    def settings(self) -> list[tuple[str, str, str]]:
        """Every setting that differs, with its value in both runs."""
        return list(settings(*self.runs))

    def facts(self) -> list[tuple[str, str, str]]:
        """What was done in each run, and on what."""
        columns = [dict(facts(run)) for run in self.runs]
        return [(name, *(column[name] for column in columns)) for name in columns[0]]  # type: ignore[misc]

    def warnings(self) -> Iterator[str]:
        """What makes numbers of the two runs hard to compare."""
        first, second = self.runs
        if len(self._models) > 1:
            yield f"The models differ: {' and '.join(self._models)}."
        if first.data != second.data:
            yield f"The data or the hold-out differ: the {first.quality.name} of each run is that of other samples."
        if first.results is not None and second.results is not None:
            if told := list(conditions(first.results, second.results)):
                yield f"Latencies were measured differently ({', '.join(told)}): compare factors, not milliseconds."
            speeds = [results.rows[0].latency.median_ms for results in (first.results, second.results)]
            if not told and max(speeds) > 1.1 * min(speeds):
                yield (
                    f"The original took {speeds[0]:.3f} and {speeds[1]:.3f} ms: the machine was not equally busy, or "
                    "the originals differ. Compare factors, not milliseconds."
                )
        for name, run in zip(self.names, self.runs, strict=True):
            if not run.finished:
                yield f"{name} is not finished: there are no winners yet."
            if run.outdated:
                yield f"{name} was searched again after its export: its winners here are those of the earlier search."

    def html(self) -> tuple[str, Mapping[str, bytes]]:
        """Return the page, and its pictures by name."""
        data, pictures = drawn(self.plots)
        page = rendered(
            "comparison.html.jinja",
            pictures,
            names=self.names,
            plots=self.plots,
            winners=self.winners,
            columns=self.columns,
            measured_on=self.measured_on(),
            settings=self.settings(),
            facts=self.facts(),
            warnings=list(self.warnings()),
            data={**data, "members": {}},
        )
        return page, pictures


def _values(search: SearchResult) -> dict[str, list[float]]:
    """The values of all evaluations, by name."""
    done = [one for one in search.evaluations if one.failure is None]
    return {name: [one.values[name] for one in done] for name in done[0].values}


def _told(one: Evaluation, x: Quantity, y: Quantity) -> str:
    return ", ".join(f"{value.label} {value.show(one.values[value.name])}" for value in (y, x))


def _points(
    label: str,
    some: Sequence[Evaluation],
    x: Quantity,
    y: Quantity,
    look: Any,
    colour: str,
    marker: str,
    texts: Sequence[str],
) -> Series:
    return replace(View(x, y).series(label, some, look, colour, marker), texts=texts)


def write_comparison(first: Path, second: Path, output: Path | None = None) -> Path:
    """Write a page that compares the runs in two folders; return its path.

    The page is ``comparison.html`` in the folder `output`, by default the current folder. Each plot is also written as
    ``comparison/NAME.png`` and ``.csv``. The run folders are never modified.

    Raises:
        ReportError: A folder has no run or a damaged file, both runs are the same, or a file that bnas did not write is
            in the way.
        WriteError: The page cannot be written there.
    """
    place = output or Path()
    if first.resolve() == second.resolve():
        raise ReportError(f"{first} and {second} are the same run; give two different runs")
    if Ledger(place).exists:
        raise ReportError(f"{place.resolve()} is the folder of a run; choose another folder (--output)")
    comparison = Comparison((read_run(first), read_run(second)))
    page, pictures = comparison.html()
    files = {f"comparison/{name}.png": data for name, data in pictures.items()}
    files |= {f"comparison/{plot.name}.csv": as_csv(plot.rows) for plot in comparison.plots}
    files[FILE] = page.encode(errors="replace")
    refuse_others(place, files, FILE)
    for name, data in files.items():
        write_bytes(place / name, data)
    return place / FILE
