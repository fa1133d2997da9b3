"""The table of a run in the terminal: whole names and numbers, also where there are only 80 columns."""

from __future__ import annotations

from dataclasses import replace

import pytest
from rich.console import Console

from bnas.passes import Subnet
from bnas.run.results.results import Quantised, Report, Row
from bnas.run.winners.winners import Target
from bnas.runtime import Latency
from bnas.search import Constraint


def latency(ms: float, unstable: str | None = None) -> Latency:
    return Latency(ms, (ms, ms), 0.04, ms, (ms, ms), 50, 1, 1, 1, None, unstable, machine={"target": "board"})


def row(name: str, share: float, before: float | None = None, target: str | None = None) -> Row:
    bound = None if target is None else Target(Constraint.parse(target), True)
    int8 = Quantised(0.9123, latency(share * 6.1))
    costs = {"macs": int(share * 40e6), "parameters": int(share * 800e3)}
    return Row(name, 0.9321, costs, latency(share * 12.345), Subnet(), int8, before, bound)


def shown(rows: tuple[Row, ...], columns: int) -> str:
    console = Console(width=columns)
    with console.capture() as found:
        console.print(Report(rows, 0.93, 0.01, 60, False, {}, 500).table())
    return found.get()


ROWS = (row("original", 1), row("half-of-the-time", 0.5, 0.6321, "latency <= 50 %"), row("third", 0.3, 0.51))


def test_names_and_numbers_are_whole_in_80_columns() -> None:
    text = shown(ROWS, 80)
    assert "…" not in text
    for told in ("original", "half-of-the-time", "12.345 ms", "40.00 M", "from 63.21 %", "6.100 ms"):
        assert told in text
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize("columns", [80, 70])
def test_with_more_latencies_numbers_are_wrapped_and_names_are_not(columns: int) -> None:
    rows = tuple(replace(one, latencies={"server": latency(3.0)}) for one in ROWS)
    text = shown(rows, columns)
    assert "…" not in text
    assert all(one.name in text for one in rows)
    assert max(map(len, text.splitlines())) <= columns


def test_without_int8_two_more_latencies_are_whole_in_80_columns() -> None:
    more = {"server": latency(3.0), "phone": latency(12.345, "its times did not settle in the warm-up")}
    text = shown(tuple(replace(one, int8=None, latencies=more) for one in ROWS), 80)
    assert "int8" not in text
    assert all(told in text for told in ("params", "3.000 ms", "12.345 ms", "unstable", "by 4 %"))


def test_a_latency_that_is_not_stable_is_marked_with_its_spread() -> None:
    noisy = replace(ROWS[2], latency=latency(3.7, "its times did not settle in the warm-up"))
    assert "unstable" not in shown(ROWS, 80)
    text = shown((*ROWS[:2], noisy), 80)
    assert text.count("unstable") == 1
    assert "by 4 %" in text
