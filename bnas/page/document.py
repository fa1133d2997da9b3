"""Self-contained HTML documents: template, style and scripts in one file, and a policy that allows nothing else."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bnas.runtime.storage.files import reading, there

from .figures import item, script, sources
from .pictures import picture
from .plot import Plot
from .recorded import ReportError

try:
    from jinja2 import Environment, PackageLoader, StrictUndefined
except ImportError as error:
    raise ReportError("a report needs Jinja2: pip install 'bnas[report]'") from error

GENERATOR = '<meta name="generator" content="bnas">'
"""Marker by which a report of bnas is recognised."""


def rendered(template: str, pictures: Mapping[str, bytes], **values: Any) -> str:
    """Return a page, with Bokeh's script and the one of bnas; `pictures` are PNG files by the names of their plots."""
    environment = Environment(
        loader=PackageLoader("bnas.page", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False}  # unsorted: Bokeh defines before it refers
    scripts = [script(), _resource("page.js")]
    return environment.get_template(template).render(
        pictures={name: base64.b64encode(data).decode() for name, data in pictures.items()},
        style=_resource("page.css"),
        scripts=scripts,
        policy=_policy(scripts),
        version=version("bnas"),
        moment=moment,
        **values,
    )


def moment(text: str) -> str:
    """Return a recorded time in readable form."""
    return text[:16].replace("T", " ") + " UTC"


def drawn(plots: Iterable[Plot]) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Return the data for the page's script, and a PNG file for each plot."""
    some = list(plots)
    data = {"plots": [item(plot) for plot in some], "names": [plot.name for plot in some]}
    data["sources"] = [name for plot in some for name in sources(plot)]
    return data, {plot.name: picture(plot) for plot in some}


def as_csv(rows: Sequence[Sequence[object]]) -> bytes:
    """Return rows as a CSV file."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def refuse_others(place: Path, files: Iterable[str], name: str) -> None:
    """Raise if files of a user have the names of a report's files; files of an earlier report may be replaced."""
    page = place / name
    with reading(page):
        ours = there(page) and GENERATOR.encode() in page.read_bytes()[:4096]
    found = [place / one for one in files if there(place / one)]
    if found and not ours:
        raise ReportError(f"{found[0]} exists, but bnas did not write it; choose another folder (--output)")


def _resource(name: str) -> str:
    return resources.files("bnas.page").joinpath(name).read_text(encoding="utf-8")


def _policy(scripts: Iterable[str]) -> str:
    """Return the content security policy: load nothing and run only these scripts."""
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(one.encode()).digest()).decode()}'" for one in scripts)
    return f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'"
