"""Configurations broken in every way, tried: each works, or ends with an error of bnas that a user understands.

A case is a file and texts for ``--set``. It takes the way of a user's configuration up to the heavy work: the file is
read and checked, the settings of the API are made of it, it is written and read again as a run does, and the job is
made with a tiny model and tiny data. As a script it prints what came of many cases:

    python tests/faults/configurations.py --examples 10000
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import random
import re
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
from broken import CODE, ENTRIES, IMPORTED, Case, cases

from bnas.config.file import load_config, parse_configuration
from bnas.config.settings import job_settings
from bnas.passes.errors import BnasError
from bnas.run.files.output import Output, check_output
from bnas.run.job import Job, Watch
from bnas.run.runner import job_of
from bnas.run.search import SearchPlan
from bnas.runtime import SuperNetwork, Trainer

LIMIT = 10.0
"""Seconds after which a case counts as a hang."""


# What came of a case.


class Hang(BaseException):
    """A case took too long; no `Exception`, which may be caught on the way."""


@dataclass(frozen=True)
class Outcome:
    """What came of a case."""

    kind: str
    """accepted, refused, or a fault of bnas: "stack trace", "hang", "unclear message"."""
    text: str = ""
    """The message; of a stack trace the error and the line of bnas that it comes from."""
    seconds: float = 0.0

    @property
    def good(self) -> bool:
        return self.kind in ("accepted", "refused")


Step = Callable[[Case, Path], Any]


def way(case: Case, folder: Path) -> Job | None:
    """The way of a configuration up to the heavy work; the job, where it is a small one."""
    path = folder / case.name
    configuration = load_config(path, case.changes)
    job_settings(configuration, folder)
    kept = json.loads(json.dumps(configuration.model_dump(mode="json"), allow_nan=False))
    again = parse_configuration(kept, "config.json", folder).model_dump(mode="json")
    assert again == kept, "a run reads another configuration than it wrote"
    if configuration.log_dir is not None:
        check_output(folder / configuration.log_dir, kept)
    sizes = sum(math.prod(one.sample_size) for one in configuration.input_info)
    names = (configuration.model, configuration.data or configuration.dataset or "")
    workers = configuration.data_options.get("workers")
    if sizes <= ENTRIES and all(IMPORTED.fullmatch(name) for name in names) and workers in (0, None, "", -1):
        return job_of(configuration, folder)
    return None


def built(case: Case, folder: Path) -> None:
    """One step more: the super-network, the training and the search are made, and not begun."""
    job = way(case, folder)
    if job is None:
        return
    supernet = SuperNetwork.from_model(job.model, job.example_inputs, job.elasticity, dynamic=job.dynamic)
    plan = SearchPlan(job, Output(folder / "run"), Watch(), supernet)
    plan.check()
    Trainer(supernet, job.stages, job.recipe, **job.training)


def command_line(case: Case, folder: Path) -> None:
    """The same by ``bnas train``, for what is refused: exit status 1 or 2, and the message."""
    from bnas.cli import app

    arguments = [part for change in case.changes for part in ("--set", change)]
    told, before = io.StringIO(), sys.argv
    sys.argv = ["bnas", "train", str(folder / case.name), "-o", str(folder / "run"), *arguments]
    try:
        with contextlib.redirect_stderr(told), contextlib.redirect_stdout(io.StringIO()):
            app.main()
        status: Any = 0
    except SystemExit as ended:
        status = ended.code
    finally:
        sys.argv = before
    assert status in (1, 2), f"exit status {status}"
    fault = unclear(told.getvalue().replace("bnas: ", "", 1).rstrip("\n"))
    assert not fault, f"on the terminal: {fault}"


def tried(case: Case, folder: Path, step: Step = way) -> Outcome:
    """What comes of a case in `folder`, which has the code that it names."""
    path = folder / case.name
    path.write_bytes(case.content)
    begun = time.perf_counter()
    try:
        with warnings.catch_warnings(), at_most(LIMIT):
            warnings.simplefilter("ignore")
            step(case, folder)
        found = Outcome("accepted")
    except BnasError as error:
        found = _refused(error)
    except Hang:
        found = Outcome("hang", f"more than {LIMIT:g} s")
    except Exception as error:
        found = Outcome("stack trace", blamed(error))
    finally:
        path.unlink(missing_ok=True)
    return Outcome(found.kind, found.text, time.perf_counter() - begun)


@contextlib.contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raise `Hang` after so many seconds."""

    def stop(*_: Any) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds, 5.0)  # again: a callback of weakref swallows what is raised in it
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _refused(error: BnasError) -> Outcome:
    text = str(error) + "".join(f"\n  {note}" for note in getattr(error, "__notes__", ()))
    fault = unclear(text)
    return Outcome("unclear message", f"{fault}: {text[:300]!r}") if fault else Outcome("refused", text)


INTERNALS = re.compile(
    r"<class |<function |<lambda|object at 0x|Traceback|pydantic|site-packages|recursion depth|set_int_max|codec can't"
    r"|Error\(|\bNoneType\b|Errno|_missing|errors\.py"
)
LONGEST, LINES = 920, 120
"""Characters of a line, in which the place may have 300 and the fault 600; and lines."""


def unclear(text: str) -> str:
    """Why a message is none for a user; nothing where it is one."""
    if found := INTERNALS.search(text):
        return f"it tells of Python: {found[0]!r}"
    if found := re.search(r"[^\S \n]|[\x00-\x09\x0b-\x1f\x7f\ud800-\udfff]", text):
        return f"it has the character {found[0]!r}"
    lines = text.split("\n")
    if any(not line.startswith("  ") for line in lines[1:]):
        return "it is more than one paragraph"
    if len(lines) > LINES or max(map(len, lines)) > LONGEST:
        return f"it has {len(lines)} lines of up to {max(map(len, lines))} characters"
    return "" if text.strip() else "it is empty"


def blamed(error: BaseException) -> str:
    """The error, and the innermost line of bnas that it passed."""
    frames = [one for one in traceback.extract_tb(error.__traceback__) if not one.filename.startswith("<frozen")]
    ours = [one for one in frames if re.search(r"/(bnas|passes|runtime|search)/[\w/]+\.py$", one.filename)]
    last = (ours or frames)[-1]
    return f"{type(error).__name__} at {'/'.join(Path(last.filename).parts[-3:])}:{last.lineno}: {str(error)[:120]!r}"


# Many of them.


@dataclass
class Table:
    """What came of many cases."""

    counts: Counter[str] = field(default_factory=Counter)
    steps: Counter[str] = field(default_factory=Counter)
    kinds: dict[str, list[tuple[Case, Outcome]]] = field(default_factory=dict)
    slowest: tuple[float, Case] | None = None

    def add(self, case: Case, outcome: Outcome) -> None:
        self.counts[outcome.kind] += 1
        if self.slowest is None or outcome.seconds > self.slowest[0]:
            self.slowest = outcome.seconds, case
        if not outcome.good:
            kind = re.sub(r"'.*|\".*|: it has \d+ .*", "", outcome.text)
            self.kinds.setdefault(f"{outcome.kind}: {kind}", []).append((case, outcome))

    def more(self, case: Case, step: str, outcome: Outcome) -> None:
        """What came of another step for a case that was counted already."""
        self.steps[f"{step}, {outcome.kind}"] += 1
        if not outcome.good:
            self.add(case, outcome)

    def lines(self, seconds: float) -> Iterator[str]:
        total = sum(self.counts.values())
        yield f"configurations   {total:>8,}"
        for kind in ("accepted", "refused", "stack trace", "hang", "unclear message"):
            yield f"{kind:<17}{self.counts[kind]:>8,}"
        yield from (f"{name:<32}{number:>6,}" for name, number in sorted(self.steps.items()))
        yield f"seconds          {seconds:>8.1f}  ({1000 * seconds / max(1, total):.1f} ms each)"
        if self.slowest is not None:
            yield f"slowest          {self.slowest[0]:>8.2f} s: {_short(self.slowest[1])}"
        for kind, some in sorted(self.kinds.items(), key=lambda one: -len(one[1])):
            smallest = min((case for case, _ in some), key=_size)
            yield f"\n{len(some)} x {kind}\n    {some[0][1].text[:400]}\n    {_short(smallest)}"


def _size(case: Case) -> int:
    return len(case.content) + sum(map(len, case.changes))


def _short(case: Case) -> str:
    changes = " ".join(f"--set {one[:100]!r}" for one in case.changes)
    return f"{case.name!r} {changes or repr(case.content[:300])}"


def prepared(folder: Path) -> Path:
    """A folder with the code and the images that cases name."""
    (folder / "net.py").write_text(CODE)
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (40, 3, 8, 8), dtype=np.uint8)
    np.savez(folder / "images.npz", images=images, labels=np.arange(40) % 10)
    return folder


def many(examples: int, folder: Path, seed: int | None = None, each: Callable[[Case], None] | None = None) -> Table:
    """Try so many cases; without a seed the same ones each time."""
    table = Table()
    prepared(folder)

    @hypothesis.settings(
        max_examples=examples,
        database=None,
        deadline=None,
        derandomize=seed is None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(cases())
    def run(case: Case) -> None:
        outcome = tried(case, folder)
        table.add(case, outcome)
        further = {"refused": (command_line, 10), "accepted": (built, 3)}.get(outcome.kind)
        if further is not None and table.counts[outcome.kind] % further[1] == 0:
            table.more(case, further[0].__name__, tried(case, folder, further[0]))

    (run if seed is None else hypothesis.seed(seed)(run))()
    return table


def main() -> int:
    """Try as many as asked for and print the table; 1 where there was a fault of bnas."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--examples", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=None, help="other cases than those of the last time")
    asked = parser.parse_args()
    random.seed(0)
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        table = many(asked.examples, Path(folder), asked.seed)
    print("\n".join(table.lines(time.perf_counter() - begun)))
    return int(any(table.counts[kind] for kind in ("stack trace", "hang", "unclear message")))


if __name__ == "__main__":
    sys.exit(main())
