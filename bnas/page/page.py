"""The page: all parts of a report in one HTML file, and beside it every plot as a picture and as a table."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from bnas.run.files.ledger import Ledger
from bnas.run.files.lock import sweep
from bnas.run.files.names import REPORT
from bnas.runtime.storage.files import guarded, write_bytes

from .document import as_csv, drawn, refuse_others, rendered
from .explorer import Explorer, command, measured_again, note, renewal
from .front import fronts, lines, measured_on
from .front import table as winners_table
from .members import Chosen, LayerRow, Members, chosen, layer_rows, table
from .pictures import silhouette_picture
from .plot import Plot
from .progress import curves, progress, tunings
from .recorded import MISSING, Recorded, ReportError, read_run
from .times import UNTIMED, Times, by_member, described, measured_times, timed


@dataclass(frozen=True)
class Page:
    """The report of a run."""

    run: Recorded

    @cached_property
    def members(self) -> Members:
        """The sub-networks that can be selected."""
        return Members.of(self.run)

    @cached_property
    def explorer(self) -> Explorer | None:
        """The sliders that select one of them."""
        return Explorer.of(self.run, self.members)

    @cached_property
    def layers(self) -> list[LayerRow]:
        """The layers of the original."""
        return [] if self.run.architecture is None else layer_rows(self.run.architecture)

    @cached_property
    def times(self) -> dict[str, Times]:
        """Where the time of each network goes that was measured, by its name."""
        return measured_times(self.run.results, self.layers)

    @cached_property
    def plots(self) -> Mapping[str, Sequence[Plot]]:
        """The plots of each section."""
        return {
            "front": list(fronts(self.run, self.members)),
            "search": list(progress(self.run, self.members)),
            "training": list(curves(self.run)),
            "tuning": list(tunings(self.run)),
        }

    @cached_property
    def _drawn(self) -> tuple[dict[str, Any], dict[str, bytes]]:
        return drawn(plot for plots in self.plots.values() for plot in plots)

    @cached_property
    def pictures(self) -> Mapping[str, bytes]:
        """A PNG file for each plot, by name."""
        found = dict(self._drawn[1])
        if self.layers:
            label, sizes = self._shown()
            found["architecture"] = silhouette_picture(self.layers, sizes, label, (self._original, self._first))
        return found

    def tables(self) -> Iterator[tuple[str, bytes]]:
        """A CSV file for each plot, for the architecture and for the winners, by name."""
        for plots in self.plots.values():
            for plot in plots:
                yield plot.name, as_csv(plot.rows)
        if self.run.architecture is not None:
            yield "architecture", as_csv(timed(table(self.run.architecture, self.members), self.times))
        if self.run.results is not None:
            yield "winners", as_csv(winners_table(self.run.results))

    def html(self) -> str:
        """The page itself."""
        return rendered(
            "page.html.jinja",
            self.pictures,
            run=self.run,
            members=self.members,
            explorer=self.explorer,
            measured_again=measured_again(self.run),
            renewal=renewal(self.run),
            first_command="" if not self.members.all else command(self.run, self.members, self.members.all[0]),
            plots=self.plots,
            layers=self.layers,
            shown=self._shown(),
            times=(self._original, self._first),
            told_times=[_data_of(one) for one in (self._original, self._first)],
            slowest=self._slowest,
            where_time_goes=described(self.run.results, self.layers),
            lines=[] if self.run.results is None else lines(self.run.results),
            measured_on="" if self.run.results is None else measured_on(self.run.results),
            missing=[(name, MISSING[name]) for name in self.run.missing],
            configuration=json.dumps(self.run.configuration, indent=2, ensure_ascii=False),
            record=None if self.run.data is None else json.dumps(self.run.data, indent=2, ensure_ascii=False),
            data=self._data(),
            title="Networks" if self.run.results is not None and self.run.results.bound else "Winners",
            targets=self.run.results is not None and any(row.target for row in self.run.results.rows),
            quality=self.run.quality,
        )

    @property
    def _slowest(self) -> float:
        """The time of the slowest layer of all networks: how long a bar may be."""
        return max((one.slowest for one in self.times.values()), default=0.0) or 1.0

    @property
    def _original(self) -> Times | None:
        return None if self.run.results is None else self.times.get(self.run.results.rows[0].name)

    @property
    def _first(self) -> Times | None:
        """Those of the sub-network that is shown first."""
        first = next(iter(self.members.all), None)
        return self._original if first is None else by_member(self.members, self.times).get(first.key)

    def _shown(self) -> tuple[str, Sequence[Chosen]]:
        """The label and layers of the sub-network that is shown first; the original where there is none."""
        if self.run.architecture is None:
            return "", []
        if not self.members.all:
            return "original", [(row.width, row.kernel) for row in self.layers]
        first = self.members.all[0]
        return first.label, chosen(self.run.architecture, first.subnet)

    def _data(self) -> dict[str, Any]:
        """What the page's own script works on."""
        architecture, times = self.run.architecture, by_member(self.members, self.times)
        return {
            **self._drawn[0],
            "slowest": self._slowest,
            "explorer": None if self.explorer is None else self.explorer.to_json(),
            "members": {
                member.key: {
                    "label": member.label,
                    "values": member.values,
                    "choice": member.choice,
                    "command": command(self.run, self.members, member),
                    "note": note(self.run, self.members, member),
                    "layers": [] if architecture is None else chosen(architecture, member.subnet),
                    "times": _data_of(times.get(member.key)),
                }
                for member in self.members.all
            },
        }


def _data_of(times: Times | None) -> dict[str, Any]:
    """The times of a network as the page shows them."""
    if times is None:
        return {"layers": [], "other": UNTIMED, "operators": "", "total": UNTIMED}
    rows = [None if ms is None else round(ms, 6) for ms in times.layers]
    return {"layers": rows, "other": times.told(), "operators": times.operators(), "total": f"{times.total:.3f} ms"}


def write_page(run: Path, output: Path | None = None) -> Path:
    """Write the report of the run in the folder `run`; return the path of the HTML file.

    The report is ``report.html`` in the run folder, with ``report/NAME.png`` and ``.csv`` of each plot; with `output`,
    all of it goes to that folder. Files are written atomically, and the run itself is never modified.

    Raises:
        ReportError: the folder has no run or a damaged file, or a file that bnas did not write is in the way.
        WriteError: the report cannot be written there.
    """
    page, place = Page(read_run(run)), run if output is None else output
    files = {f"report/{name}.png": data for name, data in page.pictures.items()}
    files |= {f"report/{name}.csv": data for name, data in page.tables()}
    files["report.html"] = page.html().encode(errors="replace")
    ledger = Ledger(place)
    if ledger.exists and place.resolve() != run.resolve():
        raise ReportError(f"{place} is the folder of another run with its own report; choose another folder")
    if not ledger.exists:
        refuse_others(place, files, "report.html")
    if ledger.exists:
        sweep(ledger, REPORT)
    with guarded(place, ledger) if ledger.exists else nullcontext():
        for name, data in files.items():
            write_bytes(place / name, data)
    return place / "report.html"
