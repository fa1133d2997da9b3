"""Where the time of a network goes: what was measured of each layer, to stand beside its width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bnas.runtime.latency.machine import place_of

from .members import LayerRow, Members
from .notes import Network, ProfileNote, Results

SLOWEST = 3
"""So many layers are named."""
UNTIMED = "no time, since only winners are measured"
BARS = "The thin bar below is its time."


@dataclass(frozen=True)
class Times:
    """Milliseconds of one network on the wall clock; the layers and the others add up to all."""

    layers: tuple[float | None, ...]
    """Of each row of the layers; None where there is no time of its own: the layer is skipped, or its operators have
    no name of the model, or it is called twice and the first row has both."""
    other: tuple[tuple[str, float], ...]
    """What stands in no row, by operator, the slowest first."""

    @property
    def rest(self) -> float:
        """The sum of what stands in no row."""
        return sum(ms for _, ms in self.other)

    @property
    def total(self) -> float:
        """The sum of all operators."""
        return self.rest + sum(ms for ms in self.layers if ms is not None)

    @property
    def slowest(self) -> float:
        """The time of the slowest row."""
        return max((ms for ms in self.layers if ms is not None), default=0.0)

    def told(self) -> str:
        """What stands in no row, in words."""
        share = f"{100 * self.rest / self.total:.0f} %" if self.total else "nothing"
        return f"{self.rest:.3f} ms ({share})"

    def operators(self, most: int = 4) -> str:
        """The slowest operators of what stands in no row."""
        named = [f"{name} {ms:.3f}" for name, ms in self.other[:most]]
        more = len(self.other) - len(named)
        return ", ".join(named) + (f", and {more} more" if more > 0 else "")


def times_of(profile: ProfileNote, rows: Sequence[LayerRow]) -> Times:
    """The times of one network in the rows of the layers."""
    left = dict(profile.layers)
    layers = tuple(left.pop(row.name, None) for row in rows)
    other = {**profile.other}
    for name, ms in left.items():  # a name of the model that is no row, such as a table of positions
        other[name] = other.get(name, 0.0) + ms
    return Times(layers, tuple(sorted(other.items(), key=lambda one: -one[1])))


def measured_times(results: Results | None, rows: Sequence[LayerRow]) -> dict[str, Times]:
    """The times of each network that has them, by its name."""
    networks = results.rows if results is not None else ()
    return {one.name: times_of(one.profile, rows) for one in networks if one.profile is not None}


def by_member(members: Members, found: Mapping[str, Times]) -> dict[str, Times]:
    """The times of the winners that have them, by the key of the member: no other sub-network is measured."""
    names = {member.key: label.partition(", ")[0] for label, member in members.winners.items()}
    return {key: found[name] for key, name in names.items() if name in found}


def described(results: Results | None, rows: Sequence[LayerRow]) -> tuple[str, str]:
    """What takes longest, or why there are no times; and how they were measured."""
    if results is None:
        return "", ""
    first = results.rows[0]
    if first.profile is not None:
        return f"{BARS} {_longest(first.profile, rows)}", _measured(first, first.profile)
    if first.latency.machine.get("target", "ONNX Runtime") != "ONNX Runtime":
        place = place_of(first.latency.machine)
        told = f"they are the profile of ONNX Runtime, and this run measured on {place}."
    else:
        told = "the version of bnas that exported this run did not measure them."
    return f"There are no times by layer: {told}", ""


def _measured(first: Network, profile: ProfileNote) -> str:
    latency = first.latency
    without = "" if latency.wall_median_ms is None else f", and {latency.wall_median_ms:.3f} ms without it"
    threads = "1 thread" if latency.threads == 1 else f"{latency.threads} threads"
    return (
        f"Times: medians of {profile.runs} runs with the profiler of ONNX Runtime, wall clock, batch "
        f"{latency.batch}, {threads}. The profiler reports whole microseconds. Operators that were fused with a layer "
        "count as part of it. Runs with the profiler are slower: the original took "
        f"{profile.run_ms:.3f} ms with it{without}."
    )


def _longest(profile: ProfileNote, rows: Sequence[LayerRow]) -> str:
    times = times_of(profile, rows)
    found = sorted(((ms, row.name) for row, ms in zip(rows, times.layers, strict=True) if ms), reverse=True)[:SLOWEST]
    named = ", ".join(f"{name} ({100 * ms / times.total:.0f} %)" for ms, name in found)
    return f"Most time of the original goes into {named}." if named else ""


def timed(table: Sequence[Sequence[object]], columns: Mapping[str, Times]) -> list[Sequence[object]]:
    """The table of the layers, the head first, with a column of milliseconds for each network."""
    head, *rows = table
    found: list[Sequence[object]] = [[*head, *(f"{name} ms" for name in columns)]]
    for number, row in enumerate(rows):
        cells = [one.layers[number] for one in columns.values()]
        found.append([*row, *("" if ms is None else round(ms, 6) for ms in cells)])
    return found
