"""Every file operation of every step, failing with every error: nothing is lost, and no command hides it."""

from __future__ import annotations

import errno
import itertools
import os
import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import small
from disk import WRITES, Disk, Operation
from small import RUN
from table import Found, Problem
from victims import Chosen, Fault, Tried, Trying, read_tried
from world import FIRST, STEPS, WHOLE, Step, World, faults_of_message

SOME = 400
"""Faults of each command that does again what others did: there are ten thousand of each."""
FILLED = 20
"""Sizes of a disk that becomes full."""
HEAD = ("command", "operations", "faults", "failed", "survived", "states")


def inject(world: World, part: tuple[int, int] = (1, 1), limit: int | None = None, seed: int = 0) -> Found:
    """What came of all faults, or of a part of them."""
    problems: list[Problem] = []
    most = {step.name: limit if step in STEPS[:FIRST] else limit or SOME for step in STEPS}
    rows = [Injection(world, step, problems, part, most[step.name], seed).run() for step in STEPS]
    if part[0] == part[1]:
        rows.append(fill(world, FILLED if limit is None else 2, problems))
    return Found(HEAD, rows, problems)


@dataclass
class Injection:
    """The faults of one step, and what came of them."""

    world: World
    step: Step
    problems: list[Problem]
    part: tuple[int, int] = (1, 1)
    """Which part of how many."""
    limit: int | None = None
    """At most this many faults, chosen by `seed`."""
    seed: int = 0
    only: Chosen | None = None
    """Those that are tried; by default all."""
    goes_on: dict[str, list[str]] = field(default_factory=dict)
    """What is wrong after going on from a state of the folder."""

    @property
    def kept(self) -> Path:
        """Where the folders are that faults left."""
        return self.world.place / "kept"

    def run(self) -> Sequence[object]:
        """Try all faults; returns the row of the table."""
        tried = self._tried()
        for one in tried:
            self._judge(one)
        shutil.rmtree(self.kept)
        failed, places = sum(one.code != 0 for one in tried), {one.place for one in tried}
        return (self.step.name, len(places), len(tried), failed, len(tried) - failed, len(self.goes_on))

    def _tried(self) -> Sequence[Tried]:
        self.kept.mkdir()
        self.world.put_before(self.step)
        chosen = self._chosen()

        def before() -> None:
            Trying(self.world.place, self.kept, chosen).disk.install()

        ended = self.world.call(self.step.arguments, before, most=7200)
        if ended.code or (told := self.world.expect(self.step.leaves)):
            told = [ended.err[-500:]] if ended.code else told
            self.problems.append(Problem(self.step.name, "no fault", f"is disturbed by the harness itself: {told}"))
        return read_tried(self.kept)

    def _chosen(self) -> Chosen:
        """Those of this part; of them, `limit` at random."""
        number, of = self.part
        if self.only is not None:
            return self.only
        if self.limit is None:
            return lambda place, operation, fault: place % of == number - 1
        total = self._count()
        wanted = set(random.Random(self.seed).sample(range(total), min(self.limit, total))[number - 1 :: of])
        counter = itertools.count()
        return lambda place, operation, fault: next(counter) in wanted

    def _count(self) -> int:
        """How many faults there are to try."""
        told = self.kept / "count"

        def count(place: int, operation: Operation, fault: Fault) -> bool:
            with open(told, "a") as file:
                file.write(".")
            return False

        self.world.call(self.step.arguments, lambda: Trying(self.world.place, self.kept, count).disk.install())
        self.world.put_before(self.step)
        return len(told.read_text())

    def _judge(self, one: Tried) -> None:
        place = f"{self.step.name}: {one.kind} {one.path}"
        for what in self._wrong(one):
            self.problems.append(Problem(place, f"{one.fault} at {one.place}", what))

    def _wrong(self, one: Tried) -> list[str]:
        world, folder = self.world, self.kept / one.state
        path = one.path if one.fault.endswith("once") else RUN  # what lasts, several files may be told of
        told = [] if one.code == 0 else faults_of_message(one.code, one.err, path)
        told += small.half_files(folder)
        if one.code == 0:
            world.put(folder)
            told += [f"exit code 0, and {what}" for what in world.differs(self.step.leaves)]
        if one.state not in self.goes_on:
            world.put(folder)
            self.goes_on[one.state] = world.goes_on(self.step)
        return told + self.goes_on[one.state]


# A disk that becomes full after some bytes, whatever is being written then.


@dataclass
class Full:
    """A disk with space for `space` bytes."""

    space: float
    written: int = 0

    def __call__(self, operation: Operation) -> int | None:
        """Write what there is space for."""
        left = int(min(self.space - self.written, operation.size))
        if operation.kind in WRITES and left <= 0 and (operation.size or self.written >= self.space):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), operation.path)
        self.written += left if operation.kind == "write" else 0
        return left if operation.kind == "write" else None


def fill(world: World, sizes: int, problems: list[Problem]) -> Sequence[object]:
    """A whole run on disks of several sizes that become full, and then one with room; a row of the table."""
    step = Step("run", WHOLE, None, (*WHOLE, "--resume"), "report")
    total, failed = sum(one.stat().st_size for one in world.after("report").rglob("*")), 0
    for number in range(sizes):
        space = total * (number + 0.5) / sizes if number % 2 else min(total, 200 * 1.6**number)
        world.put(None)
        ended = world.call(step.arguments, Disk(str(world.run), Full(space)).install)
        failed += ended.code != 0
        told = faults_of_message(ended.code, ended.err, None) if ended.code else ["ends with 0"]
        told += [*small.half_files(world.run), *world.goes_on(step)]
        problems += [Problem("run: disk full", f"after {space:.0f} bytes", one) for one in told]
    return ("run, disk full", "", sizes, failed, sizes - failed, sizes)
