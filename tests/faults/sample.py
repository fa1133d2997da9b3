"""A few tries of each harness, and twins: bnas spoilt in one way each, which the harness must find.

``python sample.py RESULT`` writes the problems of each as JSON; `test_faults.py` reads them.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # a process that forks has one thread

from random import Random
from signal import SIGKILL, SIGTERM

from damage import Damages
from disk import Operation
from forked import Setup
from inject import Injection
from kills import FRESH, Kind, Stops
from pairs import LONG, MOMENTS, Pairs
from table import Problem
from victims import Fault
from world import STEPS, World, make

Attempt = Callable[[World, list[Problem]], object]


# A few tries of each harness.


def _few_faults(world: World, problems: list[Problem]) -> None:
    for step in STEPS[:4]:
        Injection(world, step, problems, limit=5).run()


def _few_kills(world: World, problems: list[Problem]) -> None:
    for name, moment in ((SIGKILL, 0.4), (SIGTERM, 0.8)):
        Stops(world, Kind(name.name, FRESH, (name,), 1), Random(0), problems).stop_at(moment)


def _few_damages(world: World, problems: list[Problem]) -> None:
    export = Damages(world, "export", problems)
    for name, way in (("winners.json", "of another run"), ("supernet/supernet.json", "flipped"), ("run.json", "cut")):
        export.judge(name, way, "")


def _few_pairs(world: World, problems: list[Problem]) -> None:
    Pairs(world, "export", 0.5, Random(0), problems).judge("export", MOMENTS[0])
    Pairs(world, "search --overwrite", 0.5, Random(0), problems).judge("report", MOMENTS[1])


SAMPLES: dict[str, Attempt] = {
    "inject": _few_faults,
    "kills": _few_kills,
    "damage": _few_damages,
    "pairs": _few_pairs,
}


# Bnas, spoilt: each of these runs in every process of a command before the command does.


def forgives() -> None:
    """A file that cannot be written is none that anybody hears of."""
    from bnas.runtime.storage import files

    usual = files.write_bytes

    def write(path: Path, data: bytes) -> None:
        try:
            usual(path, data)
        except OSError:
            return

    files.write_bytes = write


def writes_in_place() -> None:
    """A file is written where it will be, and not beside it."""
    from bnas.runtime.storage import files

    def write(path: Path, data: bytes) -> None:
        with files.writing(path):
            if (keeper := files._keeper(path)) is not None:
                keeper.claim(path, files.checksum(data))
            path.write_bytes(data)

    files.write_bytes = write


def begins_otherwise() -> None:
    """What is resumed has other random numbers."""
    from bnas.runtime.train import random_state

    usual = random_state.begin_at
    if "--resume" in sys.argv:
        random_state.begin_at = lambda seed: usual(seed + 1)


def believes() -> None:
    """Nobody looks whether a file is as the run wrote it."""
    from bnas.run.files.ledger import Ledger

    Ledger.read = lambda self, name: (self.folder / name).read_bytes()  # type: ignore[method-assign]
    Ledger.check = lambda self, name: self.folder / name  # type: ignore[method-assign]


def holds_nothing() -> None:
    """A lock that anybody gets."""
    import filelock

    filelock.FileLock.acquire = lambda *args, **named: None  # type: ignore[method-assign]


# What each of them is tried by.


def _fault(how: str, kind: str, name: str) -> Attempt:
    """The fault `how` at the operations of a search of this kind on the file `name`."""

    def chosen(place: int, operation: Operation, fault: Fault) -> bool:
        return (operation.kind, str(fault)) == (kind, how) and operation.path.endswith(name)

    return lambda world, problems: Injection(world, STEPS[1], problems, only=chosen).run()


def _early_kill(world: World, problems: list[Problem]) -> None:
    Stops(world, Kind("SIGKILL", FRESH, (SIGKILL,), 1), Random(0), problems).stop_at(0.1)


def _foreign_results(world: World, problems: list[Problem]) -> None:
    Damages(world, "report", problems).judge("report.json", "of another run", "")


def _two_exports(world: World, problems: list[Problem]) -> None:
    Pairs(world, LONG[-1], 0.0, Random(0), problems).judge(LONG[-1], MOMENTS[0])


TWINS: dict[str, tuple[Setup | None, Attempt]] = {
    "forgives": (forgives, _fault("ENOSPC once", "rename", "pareto.json")),
    "writes in place": (writes_in_place, _fault("ENOSPC short", "write", "pareto.json")),
    "begins otherwise": (begins_otherwise, _early_kill),
    "believes": (believes, _foreign_results),
    "holds nothing": (holds_nothing, _two_exports),
}


def main(result: Path) -> None:
    """Try the sample and the twins."""
    told: dict[str, Sequence[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory(prefix="bnas-faults-") as folder:
        world = make(Path(folder))
        tries = {name: (None, attempt) for name, attempt in SAMPLES.items()} | TWINS
        for name, (world.spoilt, attempt) in tries.items():
            problems: list[Problem] = []
            attempt(world, problems)
            told[name] = [asdict(one) for one in problems]
    result.write_text(json.dumps(told, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
