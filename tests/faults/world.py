"""The undisturbed run that all others are compared with: its folder after each step, and what it found."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import forked
import small
from forked import HANGS, Ended, Running
from small import RUN

OTHER = 1
"""Seed of another run."""


@dataclass(frozen=True)
class Step:
    """One command on the folder of a run."""

    name: str
    arguments: tuple[str, ...]
    needs: str | None
    """The step whose folder it begins with; None: it makes the folder."""
    again: tuple[str, ...]
    """The command that goes on after this one was disturbed."""
    leaves: str
    """The step whose folder it leaves."""


CONFIG = f"{small.SOURCES}/config.json"
TRAIN, SEARCH, TUNE = ("train", CONFIG, "-o", RUN), ("search", RUN), ("tune", RUN)
EXPORT, REPORT, WHOLE = ("export", RUN), ("report", RUN), ("run", CONFIG, "-o", RUN)
STEPS = (
    Step("train", TRAIN, None, (*TRAIN, "--resume"), "train"),
    Step("search", SEARCH, "train", (*SEARCH, "--resume"), "search"),
    Step("tune", TUNE, "search", (*TUNE, "--resume"), "tune"),
    Step("export", EXPORT, "tune", EXPORT, "export"),
    Step("report", REPORT, "export", REPORT, "report"),
    Step("train --overwrite", (*TRAIN, "--overwrite"), "report", (*TRAIN, "--overwrite"), "train"),
    Step("search --overwrite", (*SEARCH, "--overwrite"), "report", (*SEARCH, "--overwrite"), "search"),
    Step("tune --overwrite", (*TUNE, "--overwrite"), "report", (*TUNE, "--overwrite"), "tune"),
    Step("run --resume", (*WHOLE, "--resume"), "train", (*WHOLE, "--resume"), "report"),
)
FIRST = 5
"""So many steps make a whole run, one after another; the others begin with what those left."""


@dataclass
class World:
    """A folder with the sources, the undisturbed run after each step, and room to try things."""

    place: Path
    seed: int = 0
    spoilt: forked.Setup | None = None
    """A fault of bnas itself, put there by a test that shows that the harness finds it."""
    found: dict[str, dict[str, str]] = field(default_factory=dict)
    """What the folder holds after each step, by its name."""

    @classmethod
    def made(cls, place: Path, seed: int = 0) -> World:
        """Write the sources and run the five steps, one after another."""
        world = cls(place, seed)
        small.write_sources(place, seed)
        for step in STEPS[:FIRST]:
            ended = world.call(step.arguments)
            if ended.code:
                raise RuntimeError(f"`bnas {' '.join(step.arguments)}`, undisturbed: {ended.err}")
            shutil.copytree(world.run, world.after(step.name))
            world.found[step.name] = small.facts(world.run)
        return world

    @property
    def run(self) -> Path:
        """The folder of the run that commands work on."""
        return self.place / RUN

    @cached_property
    def other(self) -> World:
        """Another run, of another seed."""
        (self.place / "other").mkdir()
        return World.made(self.place / "other", OTHER)

    def after(self, step: str) -> Path:
        """The folder as it was after a step, to be copied."""
        return self.place / f"after-{step}"

    def put(self, source: Path | None) -> Path:
        """Let the run be a copy of this folder; without one there is none."""
        shutil.rmtree(self.run, ignore_errors=True)
        if source is not None and source.exists():
            shutil.copytree(source, self.run, symlinks=True)
        return self.run

    def put_before(self, step: Step) -> Path:
        """Let the run be as it is before a step."""
        return self.put(None if step.needs is None else self.after(step.needs))

    def start(self, arguments: Sequence[str], before: forked.Setup | None = None) -> Running:
        """Start ``bnas`` in this world."""
        return forked.start(arguments, self.place, self._both(before))

    def call(self, arguments: Sequence[str], before: forked.Setup | None = None, most: float = HANGS) -> Ended:
        """Run ``bnas`` in this world, for `most` seconds."""
        return forked.call(arguments, self.place, self._both(before), most)

    def _both(self, before: forked.Setup | None) -> forked.Setup:
        def both() -> None:
            for one in (self.spoilt, before):
                if one is not None:
                    one()

        return both

    def differs(self, step: str) -> list[str]:
        """How the run differs from the undisturbed one after a step."""
        return small.differences(self.found[step], small.facts(self.run)) or small.unaccounted(self.run)

    def expect(self, step: str) -> list[str]:
        """How the run differs from the undisturbed one after a step, with what should not be there."""
        return self.differs(step) + (["temporary files are left behind"] if small.left_behind(self.run) else [])

    def goes_on(self, step: Step) -> list[str]:
        """What is wrong after the command that goes on with a step: nothing if the run is as if never disturbed."""
        ended = self.call(step.again)
        if ended.code:
            return [f"`bnas {' '.join(step.again)}` ends with {ended.code}: {ended.err.strip()[-300:]}"]
        return [f"after `bnas {' '.join(step.again)}`: {one}" for one in self.expect(step.leaves)]


def make(place: Path) -> World:
    """A world at `place`, from a process that has imported everything."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    place.mkdir(parents=True, exist_ok=True)
    warming = place / "warming"
    warming.mkdir()
    small.write_sources(warming)
    forked.warm(warming, [WHOLE, REPORT])
    return World.made(place)


# What a person reads of a command that failed.

TEMPORARY = re.compile(r"\.(?P<name>.+?)(\.[a-z0-9_]{8})?\.\d+\.bnas-tmp")


def names_of(path: str) -> list[str]:
    """The names that a message may call a file of a run by; a temporary file by that of the file it will be."""
    name, folder = os.path.basename(path), os.path.basename(os.path.dirname(path))
    known = [TEMPORARY.fullmatch(name), TEMPORARY.fullmatch(folder)]
    alike = ["run.json"] if name == ".bnas-mark.lock" else []
    return [name, *alike, *(one["name"] for one in known if one)]


def faults_of_message(ended_code: int, err: str, path: str | None) -> list[str]:
    """What is wrong with how a command told of its failure."""
    told = []
    if ended_code != 1:
        told.append(f"ends with {ended_code}")
    if "Traceback" in err:
        told.append(f"a stack trace: {err.strip().splitlines()[-1][:200]}")
    elif path is not None and not any(name in "".join(err.split()) for name in names_of(path)):
        told.append(f"the message does not name the file: {err.strip()[:200]!r}")
    return told
