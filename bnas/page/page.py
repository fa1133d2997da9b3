"""The page: all parts of a report in one HTML file, and beside it every plot as a picture and as a table."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bnas.run.ledger import REPORT, Ledger
from bnas.run.lock import sweep
from bnas.runtime.storage.files import guarded, reading, there, write_bytes

from .figures import item, script, sources
from .front import fronts, lines, measured_on, points
from .front import table as winners_table
from .members import Chosen, Members, chosen, layer_rows, table
from .pictures import picture, silhouette_picture
from .plot import Plot
from .progress import curves, progress
from .recorded import MISSING, Recorded, ReportError, read_run

try:
    from jinja2 import Environment, PackageLoader, StrictUndefined
except ImportError as error:
    raise ReportError("a report needs Jinja2: pip install 'bnas[report]'") from error


GENERATOR = '<meta name="generator" content="bnas">'
"""What tells a report of bnas from another page."""


@dataclass(frozen=True)
class Page:
    """The report of a run."""

    run: Recorded

    @cached_property
    def members(self) -> Members:
        """The sub-networks that can be selected."""
        return Members.of(self.run)

    @cached_property
    def plots(self) -> Mapping[str, Sequence[Plot]]:
        """The plots of each section."""
        return {
            "front": list(fronts(self.run, self.members)),
            "search": list(progress(self.run, self.members)),
            "training": list(curves(self.run)),
        }

    @cached_property
    def pictures(self) -> Mapping[str, bytes]:
        """A PNG file for each plot, by name."""
        found = {plot.name: picture(plot) for plots in self.plots.values() for plot in plots}
        if self.run.architecture is not None and self.run.architecture.layers:
            label, sizes = self._shown()
            found["architecture"] = silhouette_picture(layer_rows(self.run.architecture), sizes, label)
        return found

    def tables(self) -> Iterator[tuple[str, bytes]]:
        """A CSV file for each plot, for the architecture and for the winners, by name."""
        for plots in self.plots.values():
            for plot in plots:
                yield plot.name, _csv(plot.rows)
        if self.run.architecture is not None:
            yield "architecture", _csv(table(self.run.architecture, self.members))
        if self.run.results is not None:
            yield "winners", _csv(winners_table(self.run.results))

    def html(self) -> str:
        """The page itself."""
        environment = Environment(
            loader=PackageLoader("bnas.page", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
        )
        environment.policies["json.dumps_kwargs"] = {"allow_nan": False}  # not sorted: Bokeh defines before it refers
        scripts = [script(), _resource("page.js")]
        return environment.get_template("page.html.jinja").render(
            run=self.run,
            members=self.members,
            plots=self.plots,
            layers=[] if self.run.architecture is None else layer_rows(self.run.architecture),
            shown=self._shown(),
            lines=[] if self.run.results is None else lines(self.run.results),
            measured_on="" if self.run.results is None else measured_on(self.run.results),
            missing=[(name, MISSING[name]) for name in self.run.missing],
            configuration=json.dumps(self.run.configuration, indent=2, ensure_ascii=False),
            record=None if self.run.data is None else json.dumps(self.run.data, indent=2, ensure_ascii=False),
            pictures={name: base64.b64encode(data).decode() for name, data in self.pictures.items()},
            data=self._data(),
            style=_resource("page.css"),
            scripts=scripts,
            policy=_policy(scripts),
            version=version("bnas"),
            moment=lambda text: text[:16].replace("T", " ") + " UTC",
            title="Networks" if self.run.results is not None and self.run.results.bound else "Winners",
            targets=self.run.results is not None and any(row.target for row in self.run.results.rows),
            points="" if self.run.results is None else points(self.run.results.acc_delta),
        )

    def _shown(self) -> tuple[str, Sequence[Chosen]]:
        """The label and layers of the sub-network that is shown first; the original where there is none."""
        if self.run.architecture is None:
            return "", []
        if not self.members.all:
            return "original", [(row.width, row.kernel) for row in layer_rows(self.run.architecture)]
        first = self.members.all[0]
        return first.label, chosen(self.run.architecture, first.subnet)

    def _data(self) -> dict[str, Any]:
        """What the page's own script works on."""
        architecture = self.run.architecture
        return {
            "plots": [item(plot) for plots in self.plots.values() for plot in plots],
            "names": [plot.name for plots in self.plots.values() for plot in plots],
            "sources": [name for plot in self.plots["front"] for name in sources(plot)],
            "members": {
                member.key: {
                    "label": member.label,
                    "values": member.values,
                    "choice": member.choice,
                    "layers": [] if architecture is None else chosen(architecture, member.subnet),
                }
                for member in self.members.all
            },
        }


def write_page(run: Path, output: Path | None = None) -> Path:
    """Write the report of the run in the folder `run`; returns the path of the HTML file.

    By default it is ``report.html`` in the folder, with ``report/NAME.png`` and ``.csv`` beside it; else all of it goes
    to the folder `output`. Each file is written whole or not at all, and the run itself is not changed.

    Raises:
        ReportError: there is no run, or one of its files is damaged, or a file in the way is no part of a report.
        WriteError: the report cannot be written there.
    """
    page, place = Page(read_run(run)), run if output is None else output
    files = {f"report/{name}.png": data for name, data in page.pictures.items()}
    files |= {f"report/{name}.csv": data for name, data in page.tables()}
    files["report.html"] = page.html().encode()
    ledger = Ledger(place)
    if ledger.exists and place.resolve() != run.resolve():
        raise ReportError(f"{place} is the folder of another run, with a report of its own; give another folder")
    if not ledger.exists:
        _refuse_others(place, files)
    if ledger.exists:
        sweep(ledger, REPORT)
    with guarded(place, ledger) if ledger.exists else nullcontext():
        for name, data in files.items():
            write_bytes(place / name, data)
    return place / "report.html"


def _refuse_others(place: Path, files: Iterable[str]) -> None:
    """Raise where files of a user are at the places of a report; those of an earlier report may be replaced."""
    page = place / "report.html"
    with reading(page):
        ours = there(page) and GENERATOR.encode() in page.read_bytes()[:4096]
    found = [place / name for name in files if there(place / name)]
    if found and not ours:
        raise ReportError(f"{found[0]} is there, and is no part of a report of bnas; give another folder (--output)")


def _resource(name: str) -> str:
    return resources.files("bnas.page").joinpath(name).read_text(encoding="utf-8")


def _policy(scripts: Iterable[str]) -> str:
    """The page may load nothing and run these scripts only, whatever else came into it."""
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(one.encode()).digest()).decode()}'" for one in scripts)
    return f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'"


def _csv(rows: Sequence[Sequence[object]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()
