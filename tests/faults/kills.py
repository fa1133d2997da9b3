"""Commands that are stopped at random moments, and gone on with: the same run, bit for bit."""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from forked import Ended
from small import half_files
from table import Found, Problem
from world import WHOLE, Step, World

MOMENTS = 50
CODES = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGKILL: 137}
"""Exit codes as a shell has them."""
FRESH = Step("run", WHOLE, None, (*WHOLE, "--resume"), "report")
RESUMED = Step("run --resume", (*WHOLE, "--resume"), "search", (*WHOLE, "--resume"), "report")
SEARCH = Step("search --resume", ("search", "run", "--resume"), "train", ("search", "run", "--resume"), "search")


@dataclass(frozen=True)
class Kind:
    """A way to stop a command."""

    name: str
    step: Step
    signals: tuple[signal.Signals, ...]
    """One for each time that the command is started."""
    moments: int


KINDS = (
    Kind("SIGKILL", FRESH, (signal.SIGKILL,), MOMENTS),
    Kind("SIGKILL of a resumed run", RESUMED, (signal.SIGKILL,), MOMENTS),
    Kind("SIGKILL of a search", SEARCH, (signal.SIGKILL,), MOMENTS),
    Kind("SIGKILL twice in a row", FRESH, (signal.SIGKILL,) * 2, MOMENTS),
    Kind("SIGTERM", FRESH, (signal.SIGTERM,), MOMENTS),
    Kind("SIGINT", FRESH, (signal.SIGINT,), MOMENTS),
    Kind("SIGTERM of a search", SEARCH, (signal.SIGTERM,), MOMENTS),
)


def kills(world: World, part: tuple[int, int] = (1, 1), limit: int | None = None, seed: int = 0) -> Found:
    """What came of all kinds of stops."""
    problems: list[Problem] = []
    rows = [Stops(world, kind, random.Random(f"{seed} {kind.name}"), problems).row(part, limit) for kind in KINDS]
    return Found(("stopped by", "moments", "bit-equal after going on", "exit codes"), rows, problems)


@dataclass
class Stops:
    """One kind of stops."""

    world: World
    kind: Kind
    generator: random.Random
    problems: list[Problem]
    codes: Counter[int] = field(default_factory=Counter)

    def row(self, part: tuple[int, int], limit: int | None) -> Sequence[object]:
        """Stop the command at each moment and go on; a row of the table."""
        whole = self._undisturbed()
        moments = sorted(self.generator.uniform(0, whole) for _ in range(limit or self.kind.moments))
        chosen = moments[part[0] - 1 :: part[1]]
        equal = sum(self.stop_at(moment, whole) for moment in chosen)
        told = ", ".join(f"{code}: {count}" for code, count in sorted(self.codes.items()))
        return (self.kind.name, len(chosen), equal, told)

    def stop_at(self, moment: float, whole: float = 0.0) -> bool:
        """Stop the command, which takes the time `whole`, at a moment; whether all is well after going on."""
        wrong = self._stopped(moment, whole)
        self.problems += [Problem(self.kind.name, f"after {moment:.3f} s", one) for one in wrong]
        return not wrong

    def _undisturbed(self) -> float:
        """How long the command takes."""
        self.world.put_before(self.kind.step)
        return self.world.call(self.kind.step.arguments).seconds

    def _stopped(self, moment: float, whole: float) -> list[str]:
        """What is wrong after stops and going on."""
        step, wrong = self.kind.step, list[str]()
        self.world.put_before(step)
        for number, name in enumerate(self.kind.signals):
            wait = self.generator.uniform(0, whole - moment) if number else moment
            ended = self._stop(step.again if number else step.arguments, name, wait)
            self.codes[ended.code] += 1
            wrong += self._told(ended, name) + list(half_files(self.world.run))
        return wrong + self.world.goes_on(step)

    def _stop(self, arguments: Sequence[str], name: signal.Signals, wait: float) -> Ended:
        running = self.world.start(arguments)
        time.sleep(max(0.0, running.begun + wait - time.monotonic()))
        running.send(name)
        return running.wait()

    def _told(self, ended: Ended, name: signal.Signals) -> list[str]:
        """What is wrong with the exit code and the message; one that has shown nothing has nothing to say."""
        if name == signal.SIGKILL or ended.code == 0:
            return []
        if ended.code != CODES[name]:
            return [f"ends with {ended.code} instead of {CODES[name]}: {ended.err.strip()[-200:]}"]
        if "Traceback" in ended.err or ("to continue" not in ended.err and ended.out):
            return [f"the message does not say how to go on: {ended.err.strip()[-200:]!r}"]
        return []
