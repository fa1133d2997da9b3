"""Two commands at once on one folder: one works and the other says who is at work, or both work; nothing is lost."""

from __future__ import annotations

import random
import shutil
import signal
import socket
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from damage import COMMANDS as DAMAGED
from forked import Ended, Running
from small import half_files
from table import Found, Problem
from world import REPORT, WHOLE, Step, World

ELSEWHERE = "elsewhere"
COMMANDS = {
    **DAMAGED,
    "run --overwrite": (*WHOLE, "--overwrite"),
    "report --output": (*REPORT, "--output", ELSEWHERE),
}
READERS = ("report", "report --output", "export --onnx")
"""Commands that write nothing that another one reads."""
LONG = ("run --resume", "run --overwrite", "search --overwrite", "export")
"""Commands that hold the folder for so long that two of them, started at once, meet."""
OUTCOMES = ("both worked", "one refused", "wrong")
MOMENTS = ("at once", "while it works")
"""When the second one starts."""
AFTER = Step("run", (*WHOLE, "--resume"), "report", (*WHOLE, "--resume"), "report")


def pairs(world: World, part: tuple[int, int] = (1, 1), limit: int | None = None, seed: int = 0) -> Found:
    """What came of all pairs of commands."""
    problems: list[Problem] = []
    durations = _durations(world)
    tries = [(first, second, moment) for first in COMMANDS for second in COMMANDS for moment in MOMENTS]
    generator = random.Random(seed)
    chosen = tries if limit is None else generator.sample(tries, min(limit, len(tries)))
    rows = []
    for name in COMMANDS:
        tried = Pairs(world, name, durations[name], generator, problems)
        for first, second, moment in chosen[part[0] - 1 :: part[1]]:
            if first == name:
                tried.judge(second, moment)
        rows.append((name, sum(tried.told.values()), *(tried.told[one] for one in OUTCOMES)))
    rows.append(("(killed)", *_after_kills(world, durations, generator, problems, limit)))
    return Found(("first command", "pairs", *OUTCOMES), rows, problems)


def _durations(world: World) -> dict[str, float]:
    """How long each command takes by itself on a finished run."""
    found = {}
    for name, arguments in COMMANDS.items():
        world.put(world.after("report"))
        found[name] = world.call(arguments).seconds
    return found


@dataclass
class Pairs:
    """One command, with each other one beside it."""

    world: World
    name: str
    seconds: float
    """How long it takes by itself."""
    generator: random.Random
    problems: list[Problem]
    told: Counter[str] = field(default_factory=Counter)

    def judge(self, second: str, moment: str) -> None:
        """Start both on a finished run, and see how they end and what is left."""
        world = self.world
        world.put(world.after("report"))
        shutil.rmtree(world.place / ELSEWHERE, ignore_errors=True)
        first = world.start(COMMANDS[self.name])
        if moment == MOMENTS[1]:
            time.sleep(self.generator.uniform(0.1, 0.8) * self.seconds)
        other = world.start(COMMANDS[second])
        names, runs = (self.name, second), (first, other)
        ended = (first.wait(), other.wait())
        wrong = self._wrong(names, runs, ended)
        if moment == MOMENTS[0] and {*names} <= {*LONG} and not any(one.code for one in ended):
            wrong.append("both wrote at the same time")
        wrong += list(half_files(world.run)) + world.goes_on(AFTER)
        refused = any(one.code for one in ended)
        self.told["wrong" if wrong else "one refused" if refused else "both worked"] += 1
        self.problems += [Problem(f"{self.name}: and {second}", moment, one) for one in wrong]

    def _wrong(self, names: Sequence[str], runs: Sequence[Running], ended: Sequence[Ended]) -> list[str]:
        """What is wrong with how the two ended."""
        told = []
        if all(one.code for one in ended):
            told.append(f"neither worked: {ended[0].err.strip()[-200:]} | {ended[1].err.strip()[-200:]}")
        for place, one in enumerate(ended):
            told += _refusal(one, runs[1 - place].pid, reads=names[place] in READERS)
        return told


def _refusal(ended: Ended, holder: int, reads: bool) -> list[str]:
    """What is wrong with the refusal of a command, where it was refused."""
    if ended.code == 0:
        return []
    if ended.code != 1 or "Traceback" in ended.err:
        return [f"ends with {ended.code}: {ended.err.strip()[-200:]}"]
    named = f"is in use by process {holder} on {socket.gethostname()} since "
    if not reads and named not in ended.err:
        return [f"does not say who is at work: {ended.err.strip()[-200:]!r}"]
    return []


def _after_kills(
    world: World,
    durations: dict[str, float],
    generator: random.Random,
    problems: list[Problem],
    limit: int | None,
) -> tuple[int, ...]:
    """A process that held the folder was killed: the next one takes it over, and says so where it was held."""
    writers = [name for name in COMMANDS if name not in READERS]
    told = Counter[str]()
    for name in writers if limit is None else generator.sample(writers, 1):
        world.put(world.after("report"))
        running = world.start(COMMANDS[name])
        time.sleep(generator.uniform(0.1, 0.8) * durations[name])
        running.send(signal.SIGKILL)
        running.wait()
        ended = world.call(AFTER.again)
        wrong = [] if ended.code == 0 else [f"is not taken over: {ended.err.strip()[-200:]}"]
        wrong += [] if f"process {running.pid} on " in ended.err else ["the killed holder is not named"]
        wrong += world.expect(AFTER.leaves)
        told["wrong" if wrong else "both worked"] += 1
        problems += [Problem(f"{name}: killed", "SIGKILL", one) for one in wrong]
    return (sum(told.values()), *(told[one] for one in OUTCOMES))
