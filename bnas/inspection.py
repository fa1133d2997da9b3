"""What is elastic in a model, and what is not and why."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from bnas.passes import BnasError
from bnas.passes.terms import symbols
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
        return {
            "model": self.model,
            "blocks": list(space.blocks),
            "width": {name: {"choices": list(c), "members": self._members(name)} for name, c in space.widths.items()},
            "kernel": {name: {"choices": list(c), "sizes": self._sizes(name)} for name, c in space.kernels.items()},
            "space_size": space.size,
            "macs": {"minimal": least["macs"], "maximal": most["macs"]},
            "parameters": {"minimal": least["parameters"], "maximal": most["parameters"]},
            "rigid_share": self.rigid_share(),
            "diagnostics": [{"place": d.place, "reason": d.reason} for d in self.supernet.diagnostics],
            "seconds": round(self.seconds, 3),
        }

    def _members(self, name: str) -> list[str]:
        """The tensors that have an axis with this width."""
        symbol, tensors = self.supernet.skeleton.choices.symbols[name], self.supernet.skeleton.types.tensors
        return [t for t, axes in tensors.items() if any(symbol is s for axis in axes for s in symbols(axis))]

    def _sizes(self, name: str) -> list[list[int]]:
        """The entries of each axis of a kernel, for each of its choices."""
        kernel = self.supernet.skeleton.choices.kernels.found[name]
        return [list(kernel.at(choice)) for choice in kernel.choices]

    def rigid_share(self) -> float:
        """The share of the parameters that forward uses and that stay with every symbol at 1."""
        skeleton = self.supernet.skeleton
        parameters = dict(self.supernet.model.named_parameters())
        used = {n: axes for n, axes in skeleton.types.tensors.items() if n in parameters}
        ones = dict.fromkeys(skeleton.types.free_symbols(), 1)
        from bnas.passes.selection import active

        kept = sum(int(torch.tensor([active(a, ones) for a in axes]).prod()) for axes in used.values())
        return kept / max(1, sum(parameters[n].numel() for n in used))

    def tables(self) -> list[Table | str]:
        """For the terminal."""
        from rich.table import Table

        data = self.to_json()
        blocks = Table("skippable block", title=f"{self.model}: {len(data['blocks'])} blocks")
        for name in data["blocks"]:
            blocks.add_row(name)
        widths = Table("width", "choices", "tensors", title=f"{len(data['width'])} elastic widths")
        for name, entry in data["width"].items():
            widths.add_row(name, " ".join(map(str, entry["choices"])), str(len(entry["members"])))
        kernels = Table("kernel", "choices", title=f"{len(data['kernel'])} elastic kernels")
        for name, entry in data["kernel"].items():
            kernels.add_row(name, " ".join("x".join(map(str, sizes)) for sizes in entry["sizes"]))
        reasons = Table("left as it is", "times", title="Diagnostics by reason")
        for reason, count in Counter(d["reason"] for d in data["diagnostics"]).most_common():
            reasons.add_row(reason, str(count))
        ends = [f"{key}: {data[key]['minimal']:,} to {data[key]['maximal']:,}" for key in ("macs", "parameters")]
        size = f"sub-networks: {data['space_size']:.3g}; rigid share {100 * data['rigid_share']:.2f} %"
        return [blocks, widths, kernels, reasons, "\n".join([*ends, size, f"CPU seconds: {data['seconds']}"])]


def inspect_model(name: str, model: nn.Module, shape: tuple[int, ...]) -> Inspection:
    """Find what is elastic in `model` for an input of `shape`."""
    start = time.process_time()
    supernet = SuperNetwork.from_model(model, torch.zeros(shape))
    return Inspection(name, supernet, time.process_time() - start)
