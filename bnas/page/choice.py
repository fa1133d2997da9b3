"""A choice in words: which blocks are skipped, which widths and kernels are smaller."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bnas.passes import Subnet


def told(subnet: Subnet, maximal: Subnet, most: int | None = None) -> str:
    """`subnet` against the maximal one, a line for each kind; with at most `most` names in each line."""
    lines = list(_lines(subnet, maximal, most))
    return "\n".join(lines) or "everything is kept"


def _lines(subnet: Subnet, maximal: Subnet, most: int | None) -> Iterator[str]:
    if subnet.skipped:
        yield f"skipped blocks ({len(subnet.skipped)}): {_some(sorted(subnet.skipped)[:most], len(subnet.skipped))}"
    for kind, chosen, full in (
        ("widths", subnet.widths, maximal.widths),
        ("kernels", subnet.kernels, maximal.kernels),
    ):
        smaller = [name for name, size in chosen.items() if size < full.get(name, size)]
        if smaller:
            told = [f"{name} {chosen[name]} of {full[name]}" for name in smaller[:most]]
            yield f"smaller {kind} ({len(smaller)} of {len(full)}): {_some(told, len(smaller))}"


def _some(names: Sequence[str], count: int) -> str:
    return ", ".join(names) + (f" and {count - len(names)} more" if len(names) < count else "")
