"""Table of what training costs: ``python tests/benchmarks/training.py [ROW ...] [--models NAME ...]``.

Process CPU time of one thread, batch 64, images of 32 x 32. Ratios are of steps that take turns in one process: the
median with the quartiles. The layout of images is the one that is faster for the plain model, by a short measurement,
unless ``--layout`` names one.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

from timing import Spread  # isort: skip  # first: it sets the number of threads
from timing import ratio  # isort: skip  # first: it sets the number of threads
from timing import seconds  # isort: skip  # first: it sets the number of threads

import numpy as np
import torch
from allocation import peak
from steps import NAMES, Workbench, batch, make_model, make_supernet
from switching import SEEN, UNSEEN, Structures

from bnas.passes import Subnet
from bnas.runtime.nested import LAYOUTS
from bnas.runtime.train.layout import faster_layout

MAXIMAL, HALF, MINIMAL, SANDWICH, MEMORY = 1.03, 1.06, 1.10, 2.8, 1.10
"""Goals, as ratios."""


@dataclass(frozen=True)
class Row:
    """One measurement of one model."""

    what: str
    model: str
    layout: str
    found: Spread
    unit: str = ""
    goal: float | None = None
    """Of the median."""

    def shown(self) -> str:
        """A row of the table, in Markdown."""
        factor, digits = (1e3, 1) if self.unit else (1.0, 3)
        met = self.goal is None or factor * self.found.median <= self.goal
        goal = "-" if self.goal is None else f"<= {self.goal:g}{self.unit}"
        cells = self.what, self.model, self.layout, self.found.shown(digits, factor) + self.unit, goal
        return f"| {' | '.join(cells)} | {'-' if self.goal is None else 'yes' if met else 'no'} |"


HEAD = "| what | model | layout | median (quartiles) | goal | met |\n|---|---|---|---|---|---|"


def maximal(name: str, layout: str) -> Iterator[Row]:
    """The maximal program against the plain model: ``zero_grad``, forward, backward and SGD of both."""
    bench = Workbench.of(name, layout)
    program = bench.supernet.program(bench.supernet.space.maximal())
    found = ratio(bench.training(program, bench.supernet), bench.training(bench.plain, bench.plain))
    yield Row("maximal program / plain model, with SGD", name, layout, found, goal=MAXIMAL)


def half(name: str, layout: str) -> Iterator[Row]:
    """All widths at 50 %: forward and backward, against the standalone model of that size."""
    bench = Workbench.of(name, layout)
    yield _smaller("half-width", name, bench, bench.half, HALF)


def minimal(name: str, layout: str) -> Iterator[Row]:
    """The smallest sub-network: forward and backward, against the standalone model of that size."""
    bench = Workbench.of(name, layout)
    yield _smaller("minimal", name, bench, bench.supernet.space.minimal(), MINIMAL)


def _smaller(what: str, name: str, bench: Workbench, subnet: Subnet, goal: float) -> Row:
    program, alone = bench.supernet.program(subnet), bench.standalone(subnet)
    found = ratio(bench.accumulation(program), bench.accumulation(alone))
    return Row(f"{what} program / standalone model", name, bench.layout, found, goal=goal)


def whole(name: str, layout: str) -> Iterator[Row]:
    """As `half`, with ``zero_grad`` and SGD, which updates all that is shared.

    It has no goal: gradients and momentum of what a sub-network leaves out are a cost of sharing weights.
    """
    bench = Workbench.of(name, layout)
    program, alone = bench.supernet.program(bench.half), bench.standalone(bench.half)
    found = ratio(bench.training(program, bench.supernet), bench.training(alone, alone))
    yield Row("half-width program / standalone model, with SGD of all that is shared", name, layout, found)


def switching(name: str, layout: str) -> Iterator[Row]:
    """Choosing a random sub-network and making a program; of one whose structure is unseen, or seen."""
    supernet, generator = Workbench.of(name, layout).supernet, np.random.default_rng(1)
    structures = Structures.of(supernet)
    for what, subnets, goal in (("unseen", structures.unseen, UNSEEN), ("seen", structures.seen, SEEN)):
        took = seconds(lambda s: (supernet.space.sample(generator), supernet.program(s)), subnets)
        goal_of_model = goal if name == "resnet50" else None
        yield Row(f"choose and switch, structure {what}", name, layout, Spread(took), " ms", goal_of_model)


def sandwich(name: str, layout: str) -> Iterator[Row]:
    """Maximal, minimal and two random sub-networks with in-place distillation, against the maximal alone."""
    bench = Workbench.of(name, layout)
    found = ratio(bench.sandwich(bench.choice(2)), bench.sandwich(bench.choice(0)))
    yield Row("sandwich step of 4 / maximal step", name, layout, found, goal=SANDWICH if name == "resnet20" else None)


def memory(name: str, layout: str) -> Iterator[Row]:
    """Peak of all tensors from the making of the model to the end of the second step; the same at every run."""
    bench = Workbench.of(name, layout)

    def plain() -> object:
        model = make_model(name).to(memory_format=LAYOUTS[layout])
        return _two_steps(bench.training(model, model))

    def shared(random: int) -> object:
        mine = replace(bench, supernet=make_supernet(name, layout))
        return _two_steps(mine.sandwich(mine.choice(random)))

    reference = peak(plain)
    for what, random in (("maximal", 0), ("sandwich of 4", 2)):
        share = peak(partial(shared, random)) / reference
        yield Row(f"memory of training, {what} / plain model", name, layout, Spread([share]), goal=MEMORY)


def _two_steps(step: Callable[[], object]) -> object:
    step()
    step()  # the first one makes the momentum
    return step


ROWS = {row.__name__: row for row in (maximal, half, minimal, switching, sandwich, memory, whole)}
DEFAULT = {"switching": ("resnet50",), "sandwich": ("resnet20",), "whole": ("resnet20", "resnet50")}
"""Models of rows that are not for all of them."""


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(ROWS)}; by default all")
    parser.add_argument("--models", nargs="+", choices=NAMES, help="by default those that the goals are for")
    parser.add_argument("--layout", choices=LAYOUTS, help="by default the faster one of the plain model")
    arguments = parser.parse_args()
    if unknown := sorted(set(arguments.rows) - set(ROWS)):
        parser.error(f"{unknown[0]!r} is not a row; there are {', '.join(ROWS)}")
    torch.set_num_threads(1)
    images, _ = batch()
    layouts: dict[str, str] = {}
    print(HEAD)
    for row in arguments.rows or ROWS:
        for name in arguments.models or DEFAULT.get(row, NAMES):
            if name not in layouts:
                layouts[name] = arguments.layout or faster_layout(make_model(name), images)
            for line in ROWS[row](name, layouts[name]):
                print(line.shown(), flush=True)


if __name__ == "__main__":
    main()
