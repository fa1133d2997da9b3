"""What a notebook shows of a search: the front as a picture and as a table. All text from users is escaped."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from html import escape
from itertools import islice

from bnas.passes import Subnet
from bnas.passes.wording import counted
from bnas.search import Evaluation, SearchResult

from .front import View, ordered, searched
from .plot import Plot
from .recorded import ReportError
from .words import Quantity, quantity, told

ROWS, PICTURES, NAMED = 20, 3, 3
"""So many rows, pictures, and names of one kind in a cell at most."""
CELL = "padding: .25em .8em; white-space: nowrap; text-align: "


def result_html(result: SearchResult) -> str:
    """Return the result as a piece of HTML, which needs no other file and runs no script."""
    head, *lines = repr(result).splitlines()
    told = "".join(f"<br>{escape(line.strip())}" for line in lines)
    parts = [f"<p><b>{escape(head)}</b>{told}</p>"]
    if front := result.pareto():
        shown = _quantities(result)
        parts += [*_pictures(result, front, shown), _table(front, shown, result.evaluations[0].subnet)]
    return f'<div class="bnas-result">{"".join(parts)}</div>'


def _quantities(result: SearchResult) -> dict[str, Quantity]:
    """How each value is written: the objectives first."""
    done = [one for one in result.evaluations if one.failure is None]
    names = dict.fromkeys([*(one.name for one in ordered(result.objectives)), *done[0].values])
    everywhere = [name for name in names if all(name in one.values for one in done)]
    return {name: quantity(name, (one.values[name] for one in done)) for name in everywhere}


def _pictures(result: SearchResult, front: Sequence[Evaluation], shown: dict[str, Quantity]) -> Iterator[str]:
    """The first objective over each other one, or what to install where pictures cannot be drawn."""
    upwards, *others = ordered(result.objectives)
    across = [one.name for one in others] or [name for name in ("macs",) if name in shown]
    try:
        from .pictures import picture
    except ReportError as error:
        yield f"<p>{escape(str(error))}</p>"
        return
    for name in across[:PICTURES]:
        x, y = shown[name], shown[upwards.name]
        title = f"Pareto front: {y.label} over {x.label}"
        view = View(x, y, lambda one: f"evaluation {one.index}")
        plot = Plot(f"front-{name}", title, "", x.axis, y.axis, tuple(searched(result, front, view)))
        data = base64.b64encode(picture(plot)).decode()
        yield f'<img alt="{escape(title)}" width="640" src="data:image/png;base64,{data}">'


def _table(front: Sequence[Evaluation], shown: dict[str, Quantity], maximal: Subnet) -> str:
    """A row for each sub-network of the front, of a long one for the first."""
    names = ["evaluation", *(one.label for one in shown.values()), "against the first evaluation"]
    head = "".join(
        f'<th style="{CELL}{side}">{escape(name)}</th>' for name, side in zip(names, _sides(names), strict=True)
    )
    rows = "".join(_row(one, shown, maximal) for one in islice(front, ROWS))
    more = f"<p>and {len(front) - ROWS} more</p>" if len(front) > ROWS else ""
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>{more}"


def _row(one: Evaluation, shown: dict[str, Quantity], maximal: Subnet) -> str:
    """The values of a sub-network and what is smaller in it; hovering over that names some."""
    values = [str(one.index), *(each.show(one.values[name]) for name, each in shown.items())]
    texts = [*values, ", ".join(_smaller(one.subnet, maximal)) or "everything is kept"]
    cells = [f'<td style="{CELL}{side}">{escape(text)}</td>' for text, side in zip(texts, _sides(texts), strict=True)]
    return f'<tr title="{escape(told(one.subnet, maximal, NAMED))}">{"".join(cells)}</tr>'


def _sides(cells: Sequence[str]) -> list[str]:
    """Numbers stand to the right, the last column to the left."""
    return ["right"] * (len(cells) - 1) + ["left"]


def _smaller(subnet: Subnet, maximal: Subnet) -> Iterator[str]:
    """How many blocks are skipped, and how many widths and kernels are smaller."""
    if subnet.skipped:
        yield f"{counted(len(subnet.skipped), 'block')} skipped"
    for kind, chosen, full in (("width", subnet.widths, maximal.widths), ("kernel", subnet.kernels, maximal.kernels)):
        smaller = sum(size < full.get(name, size) for name, size in chosen.items())
        if smaller:
            yield f"{smaller} of {counted(len(full), kind)} smaller"
