"""Disturb small runs in every way, and check that nothing is lost: ``python tests/faults/faults.py inject``."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # a process that forks has one thread


def main(arguments: list[str] | None = None) -> int:
    """Run harnesses; returns 0 if nothing failed."""
    from damage import damage
    from inject import inject
    from kills import kills
    from pairs import pairs
    from table import Found
    from world import make

    harnesses: dict[str, Callable[..., Found]] = {"inject": inject, "kills": kills, "damage": damage, "pairs": pairs}
    given = _parser(list(harnesses)).parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="bnas-faults-") as folder:
        world = make(Path(given.place or folder))
        told: dict[str, Any] = {"part": given.part, "limit": given.limit, "seed": given.seed}
        return max(harnesses[name](world, **told).show() for name in given.harness)


def _parser(names: list[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("harness", choices=names, nargs="+")
    parser.add_argument("--part", type=_part, default=(1, 1), metavar="N/M", help="the N-th of M parts")
    parser.add_argument("--limit", type=int, help="at most so many tries (of each command), chosen by the seed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--place", type=Path, help="an empty folder to work in, which stays; by default a temporary one"
    )
    return parser


def _part(text: str) -> tuple[int, int]:
    number, _, of = text.partition("/")
    return int(number), int(of)


if __name__ == "__main__":
    sys.exit(main())
