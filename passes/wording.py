"""Text for counts, amounts and lists of names, in representations and tables."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from itertools import islice

EXACT = 1_000_000_000
"""Exact counts below this are written with all digits."""
SCALES = ((1e9, "G"), (1e6, "M"), (1e3, "k"))
FEW, LONG = 6, 12
"""Number of listed names, after which the rest is only counted; in braces only if there are more than `LONG`."""
ENDS = 6
"""Number of parts that are written at the beginning and at the end of a very long dotted name."""
_LONG_NAME = re.compile(r"\w+(?:\.\w+){40,}")


def count(number: int) -> str:
    """Return a count of any size: ``3,888`` or ``5.2e+21``."""
    return f"{number:,}" if number < EXACT else f"{Decimal(number):.1e}"


def amount(value: float) -> str:
    """Return a measured number in at most four digits: ``0.9313``, ``512``, ``12.3 k``, ``3.41 G``."""
    for scale, letter in SCALES if 10_000 <= abs(value) < 1e13 else ():
        if abs(value) >= scale:
            return f"{value / scale:.3g} {letter}"
    return f"{value:.4g}"


def counted(number: int, noun: str) -> str:
    """Return a count with its noun: ``1 width``, ``3 widths``."""
    return f"{count(number)} {noun}{'' if number == 1 else 's'}"


def listed(names: Iterable[str], number: int, most: int = FEW) -> str:
    """Return the first names, and how many more of the `number` there are: ``a, b and 3 more``."""
    shown = list(islice(names, most))
    return ", ".join(shown) + (f" and {count(number - len(shown))} more" if number > len(shown) else "")


def braced(entries: Sequence[str]) -> str:
    """Return the entries in braces; the first few, and how many more, where there are many."""
    shown = list(entries) if len(entries) <= LONG else [*entries[:FEW], f"... {len(entries) - FEW} more"]
    return f"{{{', '.join(shown)}}}"


def shortened(text: str) -> str:
    """Return a text whose very long dotted names are cut in their middle: ``2.0.0 [... 296 more ...] 0.0.weight``."""

    def cut(found: re.Match[str]) -> str:
        names = found[0].split(".")
        more = len(names) - 2 * ENDS
        return f"{'.'.join(names[:ENDS])} [... {more} more ...] {'.'.join(names[-ENDS:])}"

    return _LONG_NAME.sub(cut, text)


def ranges(sizes: Mapping[str, Sequence[int]]) -> str:
    """Return from which size to which each goes: ``conv1 (16 to 64), conv2 (32)``."""
    spans = (f"{name} ({' to '.join(map(str, dict.fromkeys((all_[0], all_[-1]))))})" for name, all_ in sizes.items())
    return shortened(listed(spans, len(sizes)))


def indented(head: str, lines: Iterable[str]) -> str:
    """Return a head line with the others below it, two blanks to the right."""

    def all_lines() -> Iterator[str]:
        yield head
        yield from (f"  {line}" for line in lines)

    return "\n".join(all_lines())


def shown(text: object, most: int = 500) -> str:
    """Return a text in one line: characters that do not print are escaped, the middle of a long one is left out."""
    line = str(text)
    if not line.isprintable():
        line = "".join(one if one.isprintable() else repr(one)[1:-1] for one in line)
    return line if len(line) <= most else f"{line[: most // 2]}...{line[3 - most // 2 :]}"
