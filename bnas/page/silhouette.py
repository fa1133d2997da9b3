"""The layers of the original beside those of a sub-network, as rows of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bnas.page.members import Members
from bnas.passes import Subnet
from bnas.passes.architecture import Architecture, LayerSize

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
