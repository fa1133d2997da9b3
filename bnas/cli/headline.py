"""The summary of `bnas inspect`: how small the model can get, what cannot shrink, which blocks can be skipped."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from bnas.passes.rigidity import ONE_LEFT
from bnas.passes.wording import amount, counted, listed, shown

LITTLE = 0.01
"""A reason that affects a smaller share of the parameters is not mentioned."""
LARGE = 0.5
"""A smallest sub-network that keeps more than this share of the MACs is called large."""
HARMLESS = (
    ONE_LEFT,
    "the input of the model fixes it",
    "the output of the model fixes it",
    "a kernel keeps its spatial size when channels are removed",
)
"""Reasons that hold for every model, so no remedy is given."""
REMEDIES = (
    (r"opaque", "it branches on values of tensors; move the branch out, or register a rule for it: docs/passes.md"),
    (r"has no rule", "register a rule for this operator (about ten lines): docs/passes.md"),
    (
        r"along it|sorted|searched|neighbour|by index|to other places|one by one|in their order",
        "the operator needs all entries of the axis; put a linear layer or a convolution before and after it",
    ),
    (r"pin", "if you listed it in `pin`, remove it from there"),
    (r"scopes", "if you set `ignored_scopes` or `target_scopes`, change them"),
)
"""Remedies, by a pattern in the reason."""
KEPT = r"pinned by a setting|ignored_scopes|target_scopes"
"""Reasons of parts that the user wants to keep."""
OTHERWISE = 'see "What stays rigid" in docs/your_model.md'


def headline(data: Mapping[str, Any]) -> str:
    """Return three short paragraphs that summarise the data of `bnas inspect --json`."""
    parts = (_how_small(data), _what_stays(data), _blocks(data))
    return "\n".join(line for number, part in enumerate(parts, 1) for line in _numbered(number, part))


def _numbered(number: int, lines: Iterator[str]) -> Iterator[str]:
    first, *rest = lines
    yield f"{number}. {first}"
    yield from (f"   {line}" for line in rest)


def _how_small(data: Mapping[str, Any]) -> Iterator[str]:
    macs, parameters = data["macs"], data["parameters"]
    share = macs["minimal"] / max(1, macs["maximal"])
    yield (
        f"How small: down to {share:.0%} of the MACs ({amount(macs['minimal'])} of {amount(macs['maximal'])}) and "
        f"{parameters['minimal'] / max(1, parameters['maximal']):.0%} of the parameters "
        f"({amount(parameters['minimal'])} of {amount(parameters['maximal'])}); "
        f"{counted(data['space_size'], 'sub-network')} in all."
    )
    if data["space_size"] == 1:
        yield "Nothing can shrink: the reasons are below."
    elif share > LARGE:
        yield "To get smaller: allow smaller widths, such as elasticity.width_multipliers=[1,0.5,0.25], or min_width."
    else:
        yield "The smallest sub-network is rarely accurate: a search finds the best one of each size."


def _what_stays(data: Mapping[str, Any]) -> Iterator[str]:
    rigid = data["rigid_share"]
    reasons = {why: share for why, share in rigid["reasons"].items() if why not in HARMLESS and share >= LITTLE}
    by_settings = list(_by_settings(data))
    nothing = "" if reasons or by_settings else ", for reasons that hold in every model: nothing to do"
    total = f"{rigid['total']:.1%}" if rigid["total"] >= 0.001 or not rigid["total"] else "less than 0.1%"
    yield f"What cannot shrink: {total} of the parameters{nothing}."
    for why, share in reasons.items():
        yield f"{share:.1%}: {shown(why, 120)}. To do: {remedy(why)}."
    yield from by_settings


def _by_settings(data: Mapping[str, Any]) -> Iterator[str]:
    """Yield the parts that only the settings keep from changing; the first share does not count them."""
    small = [one["place"] for one in data["diagnostics"] if "the settings give no size" in one["reason"]]
    if small:
        names = listed(small, len(small), 3)
        yield f"{counted(len(small), 'width')} too small to shrink: {names}. To do: lower min_width and divisor."
    kept = [one["place"] for one in data["diagnostics"] if re.search(KEPT, one["reason"])]
    if kept:
        smallest = data["parameters"]["minimal"] / max(1, data["parameters"]["maximal"])
        yield (
            f"Besides, pin, ignored_scopes or target_scopes keep {listed(kept, len(kept), 3)} as they are: "
            f"{smallest:.1%} of the parameters are in every sub-network."
        )


def remedy(why: str) -> str:
    """Return the remedy for a reason why something is rigid."""
    return next((told for pattern, told in REMEDIES if re.search(pattern, why)), OTHERWISE)


def _blocks(data: Mapping[str, Any]) -> Iterator[str]:
    blocks = data["blocks"]
    if not blocks:
        yield "Blocks: none can be skipped. A block needs an input and an output of the same shape: docs/depth.md."
        return
    yield f"Blocks: {counted(len(blocks), 'block')} can be skipped: {listed(blocks, len(blocks))}."
