"""A picture of a search: the evaluations in their order, and the front."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bnas.search.errors import SearchError
from bnas.search.objective import nearest

if TYPE_CHECKING:
    import os

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from bnas.search.result import SearchResult


def plot(
    result: SearchResult, path: str | os.PathLike[str] | None = None, x: str | None = None, y: str | None = None
) -> Figure:
    """Draw all evaluations over two values, coloured by when they were made, and the front over them.

    Args:
        result: What a search found.
        path: Where to write the picture; its suffix says the format. None writes nothing.
        x: Name of the value to the right; by default the second objective, or the index where there is one only.
        y: Name of the value upwards; by default the first objective.

    Raises:
        SearchError: matplotlib is not installed, or no evaluation has such a value.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise SearchError("a plot needs matplotlib: pip install 'bnas[plot]'") from error
    names = [objective.name for objective in result.objectives]
    across, upwards = x or (names[1] if len(names) > 1 else "index"), y or names[0]
    known = ["index", *(result.closest().values if result.closest() else names)]  # type: ignore[union-attr]
    for name in (across, upwards):
        if name not in known:
            raise SearchError(f"no value {name!r} to draw; {nearest(name, known)}")
    figure = Figure(figsize=(7, 5), layout="constrained")
    _draw(figure.add_subplot(), result, across, upwards)
    if path is not None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
    return figure


def _draw(axes: Axes, result: SearchResult, across: str, upwards: str) -> None:
    done = [e for e in result.evaluations if e.failure is None]
    values = [{**e.values, "index": float(e.index)} for e in done]
    colours = [e.index for e in done]
    cloud = axes.scatter([v[across] for v in values], [v[upwards] for v in values], c=colours, s=12, cmap="viridis")
    front = sorted(({**e.values, "index": float(e.index)} for e in result.pareto()), key=lambda v: v[across])
    axes.plot([v[across] for v in front], [v[upwards] for v in front], "r.-", label="Pareto front")
    axes.set(xlabel=across, ylabel=upwards, title=f"{len(result.evaluations)} evaluations, {len(front)} on the front")
    axes.legend()
    if axes.figure is not None:
        axes.figure.colorbar(cloud, ax=axes, label="evaluation")
