"""Plots as PNG files, and for paper: drawn by matplotlib from the same numbers."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from .members import Chosen, LayerRow
from .plot import BLUE, GREY, Plot, Series
from .recorded import ReportError
from .times import Times

try:
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator
    from PIL import Image  # matplotlib needs it too
except ImportError as error:
    raise ReportError("the pictures of a report need matplotlib: pip install 'bnas[report]'") from error

DPI, COLOURS = 150, 64
MARKERS = {
    "circle": "o",
    "triangle": "^",
    "inverted_triangle": "v",
    "square": "s",
    "diamond": "D",
    "plus": "P",
    "x": "X",
}
SIZES = {"cloud": 2.0, "hollow": 3.0, "dots": 5.0, "step": 5.0, "line": 4.0, "mark": 10.0}
COLUMNS = 3
"""Of a legend."""
ROW = 0.17
"""Inches of a layer."""
LONGEST = 100
"""Inches of a picture from which on it is coarser: some hundred layers."""
QUIET = "#5b6166"


@contextmanager
def _plain_text() -> Iterator[None]:
    """Names are text, not formulas; what a font has no sign for is a box."""
    with matplotlib.rc_context({"text.usetex": False, "text.parse_math": False}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def picture(plot: Plot) -> bytes:
    """The plot as a PNG file."""
    with _plain_text():
        drawn = Figure(figsize=(7.4, 4.6), dpi=DPI)
        lines = -(-(len(plot.series) + len(plot.rules)) // COLUMNS)
        axes = drawn.add_axes((0.11, 0.12, 0.86, 0.84 - 0.05 * lines))
        for one in plot.series:
            _draw(axes, one)
        for rule in plot.rules:
            line = axes.axhline if rule.axis == "y" else axes.axvline
            line(rule.at, color=QUIET, linestyle="--", linewidth=0.9)
        axes.set(xlabel=plot.x, ylabel=plot.y)
        if all(isinstance(value, int) for one in plot.series for value in one.x):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(color="#e3e6e8")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        _legend(drawn, plot)
        return _png(drawn)


def _png(drawn: Figure) -> bytes:
    """With so few colours that the file is a third as large."""
    canvas: Any = FigureCanvasAgg(drawn)
    file = io.BytesIO()
    canvas.draw()
    size = canvas.get_width_height()
    image = Image.frombuffer("RGBA", size, canvas.buffer_rgba(), "raw", "RGBA", 0, 1).convert("RGB")
    quantised = image.quantize(COLOURS, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    palette = quantised.getpalette() or []
    corner = 3 * int(quantised.getpixel((0, 0)))  # type: ignore[arg-type]
    palette[corner : corner + 3] = [255, 255, 255]  # the paper, which became a light grey
    quantised.putpalette(palette)
    quantised.save(file, format="png", dpi=(DPI, DPI))
    return file.getvalue()


def _legend(drawn: Figure, plot: Plot) -> None:
    dashed = [Line2D([], [], color=QUIET, linestyle="--", linewidth=0.9) for _ in plot.rules]
    names = [*(one.label for one in plot.series), *(one.label for one in plot.rules)]
    labels = [f"\u200b{name}" if name.startswith("_") else name for name in names]  # else matplotlib leaves it out
    handles = [*map(_handle, plot.series), *dashed]
    place: Any = {"loc": "upper left", "bbox_to_anchor": (0.1, 0.99), "ncols": COLUMNS}
    drawn.legend(handles, labels, frameon=False, fontsize=9, **place)


def _handle(series: Series) -> Line2D:
    line: Any = {"step": "-", "line": _dash(series)}.get(series.look, "none")
    marker = "" if series.look == "step" and not series.texts else MARKERS[series.marker]
    hollow = series.look == "hollow"
    return Line2D(
        [],
        [],
        color=series.colour,
        linestyle=line,
        marker=marker,
        markersize=6,
        markerfacecolor="none" if hollow else None,
    )


def _dash(series: Series) -> str:
    return {"solid": "-", "dashed": "--", "dotted": ":", "dashdot": "-."}[series.dash]


def _draw(axes: Any, series: Series) -> None:
    hollow, marker = series.look == "hollow", MARKERS[series.marker]
    style = {
        "color": series.colour,
        "marker": "" if series.look == "step" and not series.texts else marker,
        "markersize": SIZES[series.look],
        "alpha": 0.45 if series.look == "cloud" else 1.0,
        "markerfacecolor": "none" if hollow else series.colour,
        "markeredgecolor": "white" if series.look == "mark" else series.colour,
        "linestyle": {"step": "-", "line": _dash(series)}.get(series.look, "none"),
        "drawstyle": "steps-post" if series.look == "step" else "default",
    }
    axes.plot(series.x, series.y, **style)


def silhouette_picture(
    rows: Sequence[LayerRow],
    chosen: Sequence[Chosen],
    label: str,
    times: tuple[Times | None, Times | None] = (None, None),
) -> bytes:
    """The original to the left and a sub-network to the right, a bar for each layer, as a PNG file.

    Layers have their times where these were measured.
    """
    with _plain_text():
        height = ROW * len(rows) + 0.5
        drawn = Figure(figsize=(7.4, height), dpi=min(DPI, DPI * LONGEST / height))
        # Without ticks, which take longer than all the rest.
        axes = drawn.add_axes((0, 0.05 / height, 1, 1 - 0.4 / height))
        axes.set(xlim=(0, 1), ylim=(0.6 - len(rows), 0.6))
        axes.set_axis_off()
        for number, row in enumerate(rows):
            axes.text(0.005, -number, row.name, va="center", fontsize=6.5)
        whole = [(row.width, row.kernel) for row in rows]
        _bars(axes, 0.34, "original", whole, _widest(rows), GREY, times[0])
        _bars(axes, 0.68, label, chosen, _widest(rows), BLUE, times[1])
        return _png(drawn)


def _widest(rows: Sequence[LayerRow]) -> int:
    return max(row.width for row in rows)


def _bars(
    axes: Any, left: float, title: str, sizes: Sequence[Chosen], widest: int, colour: str, times: Times | None
) -> None:
    """A column of bars; the longest takes a sixth of the picture."""
    unit = 0.16 / widest
    axes.text(left, 1, title, fontsize=8, fontweight="bold", va="center", clip_on=False)
    lengths = [0 if size is None else unit * size[0] for size in sizes]
    axes.barh([-number for number in range(len(sizes))], lengths, left=left, height=0.75, color=colour)
    for number, (size, length) in enumerate(zip(sizes, lengths, strict=True)):
        text = "skipped" if size is None else f"{size[0]} {size[1]}".rstrip()
        text += "" if times is None or times.layers[number] is None else f", {times.layers[number]:.3f} ms"
        axes.text(left + length + 0.008, -number, text, va="center", fontsize=6.5, color=QUIET if size is None else "k")
