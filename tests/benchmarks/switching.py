"""What it costs to make programs: sub-networks whose structure was seen, and others."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from bnas.passes import Subnet
from bnas.runtime import SuperNetwork

UNSEEN, SEEN = 10.0, 3.0
"""Goals in milliseconds, for ResNet-50."""


@dataclass(frozen=True)
class Structures:
    """Random sub-networks of different structures, and some of one that a program was made for."""

    unseen: list[Subnet]
    seen: list[Subnet]

    @classmethod
    def of(cls, supernet: SuperNetwork, count: int = 40, warm: int = 20) -> Structures:
        """Up to `count` of each, after programs for others and for those of the seen structure were made."""
        generator = np.random.default_rng(0)
        sampled = (supernet.space.sample(generator) for _ in range(2 * (count + warm)))
        subnets = list({s.skipped: s for s in sampled}.values())[: count + warm]
        unseen = subnets[warm:]
        seen = [with_structure(supernet, subnets[0], subnet) for subnet in unseen]
        for subnet in (*subnets[:warm], *seen):
            supernet.program(subnet)
        return cls(unseen, seen)


def with_structure(supernet: SuperNetwork, structure: Subnet, subnet: Subnet) -> Subnet:
    """`subnet` with the blocks of `structure`, and with its widths that stand in the graph."""
    in_graph = {name for name, s in supernet.skeleton.choices.symbols.items() if s in supernet.skeleton.in_graph}
    widths = {n: (structure if n in in_graph else subnet).widths[n] for n in subnet.widths}
    return replace(subnet, widths=widths, skipped=structure.skipped)
