"""Plots for the screen: hovering tells, clicking selects. Drawn by Bokeh, whose script stands in the page."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from .plot import Plot, Series
from .recorded import ReportError

try:
    import bokeh
    from bokeh import models
    from bokeh.embed import json_item
    from bokeh.models.annotations import Span
except ImportError as error:
    raise ReportError("a report needs Bokeh: pip install 'bnas[report]'") from error

HEIGHT = 400
"""Pixels; the width is that of the page."""
TOOLTIP = '<div style="white-space: pre-line; max-width: 20rem; overflow-wrap: anywhere">@text</div>'
"""Bokeh writes a text into it as text, whatever it holds."""
MANY, CLOSE = 40, 6
"""More points than that are drawn smaller: those that lie close together can still be pointed at."""
SIZES = {"cloud": 5, "hollow": 6, "dots": 9, "step": 9, "line": 7, "mark": 16}
XY: dict[str, Any] = {"x": "x", "y": "y"}
QUIET, FAINT = "#5b6166", "#e3e6e8"
AXIS: dict[str, Any] = {
    "axis_label_text_font_style": "normal",
    "axis_label_text_font_size": "13px",
    "major_label_text_font_size": "13px",
}
SCROLLING = ":host { touch-action: pan-y pinch-zoom; } .bk-events { touch-action: pan-y pinch-zoom !important; }"
"""A finger that moves up or down scrolls the page."""


@cache
def script() -> str:
    """Bokeh's own script, as it is installed."""
    path = Path(bokeh.__file__).with_name("server") / "static" / "js" / "bokeh.min.js"
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ReportError(f"the installed Bokeh is incomplete: {error}; pip install --force-reinstall bokeh") from error


def item(plot: Plot) -> Any:
    """What Bokeh's script makes the plot of, as plain data; sources with keys are named ``PLOT:NUMBER``."""
    # Of models, not by bokeh.plotting, which takes a third longer to import and to draw.
    drawn = models.Plot(
        x_range=models.DataRange1d(),
        y_range=models.DataRange1d(),
        height=HEIGHT,
        sizing_mode="stretch_width",
        toolbar=models.Toolbar(logo=None),
        toolbar_location="above",
        outline_line_color=None,
        stylesheets=[models.InlineStyleSheet(css=SCROLLING)],
    )
    across = models.LinearAxis(axis_label=models.PlainText(text=plot.x), **AXIS)
    upwards = models.LinearAxis(axis_label=models.PlainText(text=plot.y), **AXIS)
    drawn.add_layout(across, "below")
    drawn.add_layout(upwards, "left")
    drawn.add_layout(models.Grid(axis=across, dimension=0, grid_line_color=FAINT))
    drawn.add_layout(models.Grid(axis=upwards, dimension=1, grid_line_color=FAINT))
    for rule in plot.rules:
        along: Literal["width", "height"] = "width" if rule.axis == "y" else "height"
        drawn.add_layout(Span(location=rule.at, dimension=along, line_dash="dashed", line_color=QUIET))
    drawn.add_tools(models.PanTool(), models.BoxZoomTool(), models.WheelZoomTool(), models.ResetTool())
    drawn.toolbar.update(active_drag=None, active_scroll=None)
    pairs = [(one, _draw(drawn, one, f"{plot.name}:{number}")) for number, one in enumerate(plot.series)]
    _interactive(drawn, pairs)
    return json_item(drawn)


def sources(plot: Plot) -> list[str]:
    """The names of the sources whose points select a sub-network."""
    return [f"{plot.name}:{number}" for number, one in enumerate(plot.series) if one.keys]


def _draw(drawn: models.Plot, series: Series, name: str) -> Any:
    """The points of a series; returns what can be hovered over."""
    columns: dict[str, Any] = {"x": np.array(series.x, dtype=float), "y": np.array(series.y, dtype=float)}
    columns |= {name: list(some) for name, some in (("text", series.texts), ("key", series.keys)) if some}
    source = models.ColumnDataSource(columns, name=name)
    line = models.ColumnDataSource({one: columns[one] for one in XY.values()})  # a selected point would cut the line
    if series.look == "step":
        _add(drawn, line, models.Step(mode="after", line_color=series.colour, line_width=2, **XY))
        if not series.texts:
            return None
    if series.look == "line":
        _add(drawn, line, models.Line(line_color=series.colour, line_width=2, line_dash=series.dash, **XY))
    hollow, mark = series.look == "hollow", series.look == "mark"
    outlined = hollow or series.marker in ("x", "plus")
    points = models.Scatter(
        size=SIZES[series.look] if len(series.x) <= MANY or series.look == "cloud" else CLOSE,
        marker=series.marker,
        fill_color=None if hollow else series.colour,
        fill_alpha=0.4 if series.look == "cloud" else 1.0,
        line_color="white" if mark else series.colour if outlined else None,
        line_width=1.5,
        **XY,
    )
    return _add(drawn, source, points, selectable=bool(series.keys))


def _add(drawn: models.Plot, source: Any, glyph: Any, selectable: bool = False) -> Any:
    """What is not selected looks as before; what is has a ring."""
    ring = glyph.clone(line_color="black", line_width=3) if selectable else None
    return drawn.add_glyph(source, glyph, selection_glyph=ring, nonselection_glyph=None, muted_glyph=None)


def _interactive(drawn: models.Plot, pairs: Sequence[tuple[Series, Any]]) -> None:
    told = [renderer for series, renderer in pairs if series.texts]
    chosen = [renderer for series, renderer in pairs if series.keys]
    if told:  # what is drawn last is told first
        drawn.add_tools(models.HoverTool(renderers=told[::-1], tooltips=TOOLTIP, limit=1, show_arrow=False))
    if chosen:
        drawn.add_tools(models.TapTool(renderers=chosen))
