"""What the settings keep as it is: pins, ignored scopes, and all that is outside the target scopes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .axes import AxisTypes
from .blocks import Block
from .elasticity import Elasticity
from .ir import IR
from .kernels import Kernel
from .patterns import Scopes, find_scopes


@dataclass(frozen=True)
class Vetoes:
    """Why something may not change, or None where nothing in the settings speaks against it."""

    pinned: Scopes
    ignored: Scopes
    targets: Scopes | None

    def on_width(self, members: Sequence[str], makers: Sequence[str]) -> str | None:
        """Of a width that stands in the tensors `members`, of which `makers` make its channels."""
        if any(self.pinned.covers_tensor(name) for name in members):
            return "a setting pins it"
        if any(self.ignored.covers_tensor(name) for name in makers):
            return "it is made in ignored_scopes"
        if self.targets is not None and not all(self.targets.covers_tensor(name) for name in makers):
            return "it is not made in target_scopes alone"
        return None

    def on_block(self, types: AxisTypes, block: Block) -> str | None:
        """Of a block: skipping it would take away what is inside it."""
        named = types.users.items() if self.pinned.paths else ()
        pinned = {node for name, users in named if self.pinned.covers_tensor(name) for node in users}
        if any(node in pinned or self.pinned.covers_node(node) for node in block.nodes):
            return "a setting pins what is inside it"
        if any(self.ignored.covers_node(node) for node in block.nodes):
            return "it holds a part of ignored_scopes"
        if self.targets is not None and not all(self.targets.covers_node(node) for node in block.nodes):
            return "it is not inside target_scopes"
        return None

    def on_kernel(self, kernel: Kernel) -> str | None:
        """Of a kernel, by any name of its weight."""
        return self.on_width([kernel.weight], [kernel.weight])


def find_vetoes(ir: IR, elasticity: Elasticity) -> Vetoes:
    """The vetoes in the settings.

    Raises:
        ElasticityError: a pattern matches nothing; names the nearest paths.
    """
    pinned = find_scopes(ir, "pin", elasticity.pin, parameters=True)
    ignored = find_scopes(ir, "ignored_scopes", elasticity.ignored_scopes)
    targets = find_scopes(ir, "target_scopes", elasticity.target_scopes) if elasticity.target_scopes else None
    return Vetoes(pinned, ignored, targets)
