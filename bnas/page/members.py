"""The sub-networks that a reader can look at: winners and front, and the layers of each beside the original's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from bnas.passes import Subnet
from bnas.passes.cost.architecture import Architecture, LayerSize
from bnas.search import Evaluation

from .notes import Network
from .recorded import Recorded
from .words import Quantity, quantity, told

# The sub-networks that a reader can look at: the named winners and the front.


@dataclass(frozen=True)
class Member:
    """A sub-network that can be selected."""

    key: str
    """One word, unique in a report."""
    label: str
    subnet: Subnet
    values: tuple[tuple[str, str], ...]
    """What the search measured, as text by name."""
    choice: str


@dataclass(frozen=True)
class Members:
    """The winners, then the front from its cheap end on; a winner on the front stands among the winners only."""

    maximal: Subnet | None
    """The original's choice; None where nothing was evaluated or measured."""
    quantities: Mapping[str, Quantity]
    """How each value of the search is shown."""
    asked: Mapping[str, Quantity]
    """Those that are objectives."""
    winners: Mapping[str, Member]
    """By name; those with several names by all of them."""
    front: tuple[Member, ...]
    """Those that are no winners."""

    @property
    def all(self) -> tuple[Member, ...]:
        """Each once."""
        return (*{member.key: member for member in self.winners.values()}.values(), *self.front)

    @classmethod
    def of(cls, run: Recorded) -> Members:
        """The members of `run`, as far as it came."""
        maximal = next(_maximal(run), None)
        measured = [one for one in run.evaluations if one.failure is None]
        names = measured[0].values if measured else ()
        places = run.settings.latencies if run.settings else {}
        shown = {name: quantity(name, (one.values[name] for one in measured), places.get(name)) for name in names}
        known = {one.subnet: one for one in measured}
        asked = {one.name for one in run.settings.objectives} if run.settings else set()
        named: dict[Subnet, list[Network]] = {}
        for row in run.results.rows[1:] if run.results else ():
            named.setdefault(Subnet.from_json(row.subnet.model_dump()), []).append(row)
        winners = {}
        for place, (subnet, rows) in enumerate(named.items()):
            label, whole = ", ".join(row.name for row in rows), maximal or subnet
            if subnet in known:
                winners[label] = _member(known[subnet], label, whole, shown)
            else:
                winners[label] = _measured(f"m{place}", label, subnet, whole, rows[-1], run.quality.name)
        taken = {member.key for member in winners.values()}
        others = [one for one in run.front if _key(one) not in taken]
        return cls(
            maximal,
            shown,
            {name: one for name, one in shown.items() if name in asked},
            winners,
            tuple(
                _member(one, f"on the front: {_first(one, shown, run.quality.name)}", maximal or one.subnet, shown)
                for one in others
            ),
        )


def _maximal(run: Recorded) -> Iterator[Subnet]:
    """The first evaluation is that of the maximal sub-network, the first row that of the original."""
    if run.evaluations:
        yield run.evaluations[0].subnet
    if run.results:
        yield Subnet.from_json(run.results.rows[0].subnet.model_dump())


def _key(evaluation: Evaluation) -> str:
    return f"e{evaluation.index}"


def _first(evaluation: Evaluation, shown: Mapping[str, Quantity], metric: str) -> str:
    """The metric and MACs, or the first two values that there are."""
    names = [name for name in (metric, "macs") if name in shown] or list(shown)[:2]
    return ", ".join(f"{shown[name].label} {shown[name].show(evaluation.values[name])}" for name in names)


def _member(evaluation: Evaluation, label: str, maximal: Subnet, shown: Mapping[str, Quantity]) -> Member:
    values = [(one.label, one.show(evaluation.values[name])) for name, one in shown.items()]
    return Member(
        _key(evaluation),
        f"{label} (evaluation {evaluation.index})",
        evaluation.subnet,
        (("evaluation", str(evaluation.index)), *values),
        told(evaluation.subnet, maximal),
    )


def _measured(key: str, label: str, subnet: Subnet, maximal: Subnet, row: Network, metric: str) -> Member:
    """One that no search evaluated, such as what pruning left: with what was measured in the end."""
    found = {metric: row.test_accuracy, "macs": row.macs, "parameters": row.parameters}
    shown = {name: quantity(name, [value]) for name, value in found.items()}
    values = tuple((one.label, one.show(found[name])) for name, one in shown.items())
    return Member(key, label, subnet, values, told(subnet, maximal))


# The layers of the original beside those of a sub-network, as rows of numbers.

Chosen = tuple[int, str] | None
"""Width and kernel of a layer in a sub-network; None where it is skipped."""


@dataclass(frozen=True)
class LayerRow:
    """A layer of the original."""

    name: str
    kind: str
    width: int
    kernel: str
    """Such as 3x3; empty where there is none."""
    block: str
    """The skippable block around it; empty where there is none."""
    opens: bool
    """Whether it is the first layer of this block."""
    even: bool
    """Of every other block, so that neighbours look different."""
    share: float
    """Of the widest layer's width, in percent."""


def layer_rows(architecture: Architecture) -> list[LayerRow]:
    """The layers in order."""
    sizes = architecture.of(Subnet())
    most = max((size.width for size in sizes if size is not None), default=1)
    rows: list[LayerRow] = []
    count = 0
    for layer, size in zip(architecture.layers, sizes, strict=True):
        assert size is not None  # nothing is skipped
        block = layer.blocks[-1] if layer.blocks else ""
        opens = bool(block) and (not rows or rows[-1].block != block)
        count += opens
        kind = layer.kind.replace("conv_transpose", "transposed conv")
        even, share = bool(block) and count % 2 == 0, 100 * size.width / most
        rows.append(LayerRow(layer.name, kind, size.width, _kernel(size), block, opens, even, share))
    return rows


def chosen(architecture: Architecture, subnet: Subnet) -> list[Chosen]:
    """Each layer in a sub-network."""
    return [None if size is None else (size.width, _kernel(size)) for size in architecture.of(subnet)]


def _kernel(size: LayerSize) -> str:
    return "x".join(map(str, size.kernel))


def table(architecture: Architecture, members: Members) -> list[Sequence[object]]:
    """The layers with their sizes in the original and in each named winner, the head first."""
    columns = [chosen(architecture, member.subnet) for member in members.winners.values()]
    head = ["layer", "kind", "block", "original width", "original kernel"]
    head += [f"{name} {what}" for name in members.winners for what in ("width", "kernel")]
    rows: list[Sequence[object]] = [head]
    for number, row in enumerate(layer_rows(architecture)):
        cells = [cell for column in columns for cell in (column[number] or ("skipped", ""))]
        rows.append([row.name, row.kind, row.block, row.width, row.kernel, *cells])
    return rows
