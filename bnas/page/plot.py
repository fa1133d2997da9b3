"""A plot as data: drawn for the screen, as a picture, and written as a table from the same numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

# Colours that colour-blind people can tell apart (Okabe and Ito 2008), with marks and dashes that differ too.

BLACK, ORANGE, SKY, GREEN, BLUE, VERMILLION, PURPLE, GREY = (
    "#000000",
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#0072B2",
    "#D55E00",
    "#CC79A7",
    "#8A8F94",
)

CURVES = (
    (BLUE, "circle", "solid"),
    (VERMILLION, "triangle", "solid"),
    (GREEN, "square", "dashed"),
    (PURPLE, "diamond", "dashed"),
    (ORANGE, "inverted_triangle", "dotted"),
    (SKY, "plus", "dotted"),
    (BLACK, "x", "dashdot"),
)
"""Colour, marker and dash of one curve after another."""

WINNERS = ((VERMILLION, "triangle"), (PURPLE, "inverted_triangle"), (GREEN, "diamond"), (ORANGE, "square"))
"""Colour and marker of one named sub-network after another."""


Look = Literal["cloud", "hollow", "dots", "step", "line", "mark"]
"""Small faint dots, hollow ones, dots, a line in steps, a line with dots, or one large mark."""


@dataclass(frozen=True)
class Series:
    """Points of one kind."""

    label: str
    """For the legend."""
    x: Sequence[float]
    y: Sequence[float]
    look: Look
    colour: str
    marker: str = "circle"
    dash: str = "solid"
    texts: Sequence[str] = ()
    """What hovering over each point tells; nothing where there are none."""
    keys: Sequence[str] = ()
    """The sub-network that clicking on each point selects; nothing where there are none."""


@dataclass(frozen=True)
class Rule:
    """A straight line across the plot."""

    at: float
    axis: Literal["x", "y"]
    """"y": horizontal."""
    label: str


@dataclass(frozen=True)
class Plot:
    """One plot."""

    name: str
    """Of its files."""
    title: str
    caption: str
    """What it shows and what the numbers were measured on."""
    x: str
    """Label of the axis."""
    y: str
    series: tuple[Series, ...]
    rules: tuple[Rule, ...] = ()
    rows: Sequence[Sequence[object]] = field(default=(), repr=False)
    """The numbers as a table, its head first."""
