"""The layers of a super-network as data: their widths in every sub-network, readable without torch or the model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from bnas.passes.errors import BnasError
from bnas.passes.space.subnet import Subnet

FORMAT = "bnas-architecture"
VERSION = 1


class ArchitectureError(BnasError, ValueError):
    """A description of layers cannot be read."""


Size = int | tuple[Any, ...]
"""A number of channels: a number, ``("width", name, full)``, or ``("product", ...)`` or ``("sum", ...)`` of sizes."""


@dataclass(frozen=True)
class LayerSize:
    """A layer in one sub-network."""

    width: int
    """Channels of its output."""
    kernel: tuple[int, ...] = ()
    """Entries of each axis of its kernel; empty where it has none."""


@dataclass(frozen=True)
class SizedLayer:
    """A layer with weights at one place in the network; a layer that is called twice appears twice."""

    name: str
    """Module path."""
    kind: str
    """Operator, such as conv2d or linear; a convolution by channel begins with "depthwise "."""
    width: Size
    kernel: tuple[int, ...] = ()
    """Kernel sizes in the original."""
    kernel_choice: str | None = None
    """The elastic kernel that it has, by name."""
    blocks: tuple[str, ...] = ()
    """The skippable blocks around it; if one of them is skipped, the layer is missing."""

    def of(self, subnet: Subnet) -> LayerSize | None:
        """Return the layer in `subnet`, or None if it is skipped."""
        if subnet.skipped.intersection(self.blocks):
            return None
        most = subnet.kernels.get(self.kernel_choice, math.inf) if self.kernel_choice else math.inf
        return LayerSize(size_of(self.width, subnet.widths), tuple(int(min(n, most)) for n in self.kernel))


@dataclass(frozen=True)
class Architecture:
    """The layers of a super-network in the order in which they compute."""

    model: str
    """Class of the model."""
    layers: tuple[SizedLayer, ...]
    blocks: tuple[str, ...] = ()
    """All blocks that may be skipped, in network order."""

    def of(self, subnet: Subnet) -> tuple[LayerSize | None, ...]:
        """Return each layer in `subnet`; None if it is skipped."""
        return tuple(layer.of(subnet) for layer in self.layers)

    def to_json(self) -> dict[str, Any]:
        """Plain data for a JSON file; `from_json` reads it back."""
        return {"format": FORMAT, "version": VERSION, **asdict(self)}

    @classmethod
    def from_json(cls, data: Any) -> Architecture:
        """The architecture that `to_json` wrote.

        Raises:
            ArchitectureError: it is of another format or version, or malformed.
        """
        if not isinstance(data, Mapping) or (data.get("format"), data.get("version")) != (FORMAT, VERSION):
            raise ArchitectureError(f"must be an object of format {FORMAT!r}, version {VERSION}")
        try:
            layers = tuple(_layer(one) for one in data["layers"])
            return cls(str(data["model"]), layers, tuple(map(str, data["blocks"])))
        except (KeyError, TypeError, ValueError) as error:
            raise ArchitectureError(f"malformed architecture: {type(error).__name__}: {error}") from error


def size_of(size: Size, widths: Mapping[str, int]) -> int:
    """Return the number of channels for the given widths; widths that are not named are full."""
    if isinstance(size, int):
        return size
    kind, *parts = size
    if kind == "width":
        name, full = parts
        return widths.get(name, full)
    sizes = [size_of(part, widths) for part in parts]
    return math.prod(sizes) if kind == "product" else sum(sizes)


def _layer(data: Mapping[str, Any]) -> SizedLayer:
    choice = data["kernel_choice"]
    return SizedLayer(
        str(data["name"]),
        str(data["kind"]),
        _size(data["width"]),
        tuple(map(int, data["kernel"])),
        None if choice is None else str(choice),
        tuple(map(str, data["blocks"])),
    )


def _size(data: Any) -> Size:
    if isinstance(data, int):
        return data
    kind, *parts = data
    if kind == "width" and len(parts) == 2:
        return kind, str(parts[0]), int(parts[1])
    if kind not in ("product", "sum"):
        raise ValueError(f"a size of {data!r}")
    return kind, *map(_size, parts)
