"""Colours that colour-blind people can tell apart (Okabe and Ito 2008), with marks and dashes that differ too."""

from __future__ import annotations

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
