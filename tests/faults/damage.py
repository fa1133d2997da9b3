"""Every file of a finished run, damaged: each command refuses it by name, rebuilds it, or does not depend on it."""

from __future__ import annotations

import itertools
import pickle
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import small
from table import Found, Problem
from world import EXPORT, REPORT, SEARCH, TRAIN, TUNE, WHOLE, World, faults_of_message

ONNX = "new.onnx"
COMMANDS = {
    "run --resume": (*WHOLE, "--resume"),
    "train --resume": (*TRAIN, "--resume"),
    "search --resume": (*SEARCH, "--resume"),
    "search --overwrite": (*SEARCH, "--overwrite"),
    "tune --resume": (*TUNE, "--resume"),
    "export": EXPORT,
    "export --onnx": (*EXPORT, "--onnx", ONNX),
    "report": REPORT,
}
"""What is done with the damaged run."""
OUTCOMES = ("refused", "rebuilt or not needed", "used silently")


# The ways to damage a file: the file, the same one of another run, and what to draw from.

Damage = Callable[[Path, Path, random.Random], None]


def cut(file: Path, other: Path, generator: random.Random) -> None:
    """Its end is missing."""
    data = file.read_bytes()
    file.write_bytes(data[: generator.randrange(len(data))])


def flipped(file: Path, other: Path, generator: random.Random) -> None:
    """One bit of it is another."""
    data = bytearray(file.read_bytes())
    data[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
    file.write_bytes(data)


def empty(file: Path, other: Path, generator: random.Random) -> None:
    """It has no content."""
    file.write_bytes(b"")


def another(file: Path, other: Path, generator: random.Random) -> None:
    """It is that of another run."""
    shutil.copyfile(other, file)


class Harm:
    """What a pickle does where it is loaded."""

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return (_harm, ("a pickle was loaded",))


def _harm(text: str) -> object:
    raise SystemExit(f"Traceback: {text}")


def pickled(file: Path, other: Path, generator: random.Random) -> None:
    """It is a pickle, which does harm where it is loaded."""
    file.write_bytes(pickle.dumps(Harm()))


def folder(file: Path, other: Path, generator: random.Random) -> None:
    """A folder has its name."""
    file.unlink()
    file.mkdir()


WAYS: dict[str, Damage] = {
    "cut": cut,
    "flipped": flipped,
    "empty": empty,
    "of another run": another,
    "a pickle": pickled,
    "a folder": folder,
}


# What a command makes of it.


@dataclass
class Damages:
    """Tries damaged files on one command."""

    world: World
    name: str
    """Of the command."""
    problems: list[Problem]
    expected: dict[str, str] = field(default_factory=dict)
    """What the command leaves of a run that is whole."""
    told: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.world.put(self.world.after("report"))
        self.files = [str(one.relative_to(self.world.run)) for one in small.files(self.world.run)]
        self.call()
        self.expected = self._facts()

    def call(self) -> tuple[int, str]:
        """The exit code of the command, and what it says of errors."""
        (self.world.place / ONNX).unlink(missing_ok=True)
        ended = self.world.call(COMMANDS[self.name])
        return ended.code, ended.err

    def tries(self) -> Iterator[tuple[str, str]]:
        """The files and ways to try."""
        return itertools.product(self.files, WAYS)

    def judge(self, name: str, way: str, seed: str) -> None:
        """Damage a file, and see what the command makes of it."""
        run = self.world.put(self.world.after("report"))
        WAYS[way](run / name, self._twin(name), random.Random(seed))
        before = small.facts(run)
        code, err = self.call()
        wrong = self._refused(name, err, code) if code else self._used(name, before)
        self.told["refused" if code else "used silently" if wrong else "rebuilt or not needed"] += 1
        self.problems += [Problem(f"{self.name}: {name}", way, one) for one in wrong]

    def _refused(self, name: str, err: str, code: int) -> list[str]:
        """What is wrong with a refusal: it names the file, and the rest of the run stays."""
        return faults_of_message(code, err, name)

    def _used(self, name: str, before: dict[str, str]) -> list[str]:
        """What a command made of a damaged file that it did not refuse; the file itself may stay as it is."""
        found = self._facts()
        stayed = {name} if found.get(name) == before.get(name) else set[str]()
        told = [one for one in small.differences(self.expected, found) if one.split()[0] not in stayed]
        return [f"uses it silently: {one}" for one in told] + list(self._half(stayed))

    def _half(self, stayed: set[str]) -> Iterator[str]:
        for told in small.half_files(self.world.run):
            if told.split()[0] not in stayed:
                yield told

    def _like(self, place: Path) -> Path:
        """A file of the same kind, nearby: another run has other winners."""
        top = next(one for one in place.parents if one.is_dir())
        return next(one for one in sorted(top.rglob(f"*{place.suffix}")) if one.is_file())

    def _twin(self, name: str) -> Path:
        """The same file of another run: of that name, or of that folder and kind."""
        place = self.world.other.after("report") / name
        alike = place if place.is_file() else self._like(place)
        return alike

    def _facts(self) -> dict[str, str]:
        made = self.world.place / ONNX
        return small.facts(self.world.run) | ({ONNX: small.bytes_of(made)} if made.exists() else {})


def damage(world: World, part: tuple[int, int] = (1, 1), limit: int | None = None, seed: int = 0) -> Found:
    """What each command makes of damaged files."""
    problems: list[Problem] = []
    rows: list[Sequence[object]] = []
    for name in COMMANDS:
        tried = Damages(world, name, problems)
        pairs = list(tried.tries())
        chosen = pairs if limit is None else random.Random(f"{seed} {name}").sample(pairs, min(limit, len(pairs)))
        for file, way in chosen[part[0] - 1 :: part[1]]:
            tried.judge(file, way, f"{seed} {file} {way}")
        rows.append((name, sum(tried.told.values()), *(tried.told[one] for one in OUTCOMES)))
    return Found(("command", "damaged", *OUTCOMES), rows, problems)
