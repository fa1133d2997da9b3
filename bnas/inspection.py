"""What is elastic in a model, and what is not and why."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from rich.markup import escape
from torch import nn

from bnas.passes import BnasError
from bnas.passes.errors import add_note
from bnas.passes.rigidity import rigid_share
from bnas.runtime import SuperNetwork

if TYPE_CHECKING:
    from rich.table import Table


class ShapeError(BnasError, ValueError):
    """The shape of an input is not one."""


def parse_shape(text: str) -> tuple[int, ...]:
    """``"1,3,224,224"`` as numbers.

    Raises:
        ShapeError: it is something else.
    """
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise ShapeError(f"input {text!r} is not a shape; write positive numbers with commas, such as 1,3,224,224")
    return tuple(int(part) for part in parts)


@dataclass(frozen=True)
class Inspection:
    """What was found in a model."""

    model: str
    supernet: SuperNetwork
    seconds: float
    """CPU seconds to trace, analyse and build the space."""

    def to_json(self) -> dict[str, Any]:
        """Plain data: model, blocks, width, kernel, space_size, macs, parameters, rigid_share, diagnostics, seconds."""
        space, costs = self.supernet.space, self.supernet.costs
        least, most = costs(space.minimal()), costs(space.maximal())
        rigid, found = rigid_share(self.supernet.analysis.types), self.supernet.analysis.choices.widths
        return {
            "model": self.model,
            "blocks": list(space.blocks),
            "width": {
                name: {"choices": list(c), "members": list(found[name].members)} for name, c in space.widths.items()
            },
            "kernel": {name: {"choices": list(c), "sizes": self._sizes(name)} for name, c in space.kernels.items()},
            "space_size": space.size,
            "macs": {"minimal": least["macs"], "maximal": most["macs"]},
            "parameters": {"minimal": least["parameters"], "maximal": most["parameters"]},
            "rigid_share": {"total": sum(rigid.values()), "reasons": rigid},
            "diagnostics": [{"place": d.place, "reason": d.reason} for d in self.supernet.diagnostics],
            "seconds": round(self.seconds, 3),
        }

    def _sizes(self, name: str) -> list[list[int]]:
        """The entries of each axis of a kernel, for each of its choices."""
        kernel = self.supernet.analysis.choices.kernels.found[name]
        return [list(kernel.at(choice)) for choice in kernel.choices]

    def tables(self) -> list[Table | str]:
        """For the terminal, readable from 80 columns on; empty tables are left out."""
        data, rigid = self.to_json(), rigid_share(self.supernet.analysis.types)
        blocks, widths, kernels = data["blocks"], data["width"], data["kernel"]
        refused = _by_reason(data["diagnostics"])
        parts = [
            _table(f"{self.model}: {len(blocks)} skippable blocks", ("blocks",), [(" ".join(blocks),)] * bool(blocks)),
            _table(
                f"{len(widths)} elastic widths",
                ("width", "choices", "layers"),
                [(name, _sizes(one), shorten(one["members"])) for name, one in widths.items()],
            ),
            _table(
                f"{len(kernels)} elastic kernels",
                ("kernel", "choices"),
                [
                    (name, " ".join("x".join(map(str, sizes)) for sizes in one["sizes"]))
                    for name, one in kernels.items()
                ],
            ),
            _table(
                f"{sum(rigid.values()):.2%} of the parameters are rigid",
                ("reason", "share"),
                [(reason, f"{share:.2%}") for reason, share in rigid.items()],
            ),
            _table(
                "Left as it is",
                ("reason", "times", "where"),
                [(reason, str(len(places)), _some(places)) for reason, places in refused],
            ),
        ]
        return [*(table for table in parts if table.row_count), self._summary(data)]

    def _summary(self, data: Mapping[str, Any]) -> str:
        ends = [f"{key}: {data[key]['minimal']:,} to {data[key]['maximal']:,}" for key in ("macs", "parameters")]
        digits = str(data["space_size"])
        size = f"{data['space_size']:,}" if len(digits) < 10 else f"{digits[0]}.{digits[1]}e{len(digits) - 1}"
        return "\n".join([f"sub-networks: {size}", *ends, f"seconds: {data['seconds']}"])


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left", min_width=len(title))
    for column in columns:
        table.add_column(column, overflow="fold", justify="right" if column in ("times", "share") else "left")
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def _sizes(entry: dict[str, Any]) -> str:
    return " ".join(map(str, entry["choices"]))


def _by_reason(diagnostics: list[dict[str, str]]) -> list[tuple[str, list[str]]]:
    """Places by reason, the most frequent reason first."""
    places: dict[str, list[str]] = {}
    for one in diagnostics:
        places.setdefault(one["reason"], []).append(one["place"])
    return sorted(places.items(), key=lambda entry: -len(entry[1]))


def _some(places: list[str], most: int = 3) -> str:
    different = list(dict.fromkeys(places))
    return " ".join(different[:most]) + (" ..." if len(different) > most else "")


def shorten(tensors: list[str]) -> str:
    """The layers of some tensors, those of one parent together: ``layer1.0.{conv1,bn1}``."""
    layers: dict[str, list[str]] = {}
    for path in dict.fromkeys(name.rpartition(".")[0] or name for name in tensors):
        parent, _, leaf = path.rpartition(".")
        layers.setdefault(parent, []).append(leaf)
    told = (names[0] if len(names) == 1 else f"{{{','.join(names)}}}" for names in layers.values())
    return " ".join(f"{parent}.{names}" if parent else names for parent, names in zip(layers, told, strict=True))


def inspect_model(name: str, model: nn.Module, shape: tuple[int, ...]) -> Inspection:
    """Find what is elastic in `model` for an input of `shape`."""
    start = time.process_time()
    try:
        supernet = SuperNetwork.from_model(model, torch.zeros(shape))
    except BnasError as error:
        add_note(error, f"for an input of {','.join(map(str, shape))}: --input gives another shape")
        raise
    return Inspection(name, supernet, time.process_time() - start)
