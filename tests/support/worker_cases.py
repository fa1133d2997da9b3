"""What workers of the tests import: evaluations that can be pickled, and one that kills its process."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path

from bnas.passes import SearchSpace, Subnet

SPACE = SearchSpace({f"w{i}": tuple(range(1, 10)) for i in range(5)}, ("b",), {"w0": (frozenset({"b"}),)})


def values(subnet: Subnet) -> Mapping[str, float]:
    """Two objectives that contradict each other."""
    genes = SPACE.encode(subnet)
    time.sleep(0.002 * (genes[1] % 3))  # so that results do not come in the order in which they were asked for
    return {"accuracy": float(sum(genes)) ** 0.5, "macs": float(sum(g * (i + 1) for i, g in enumerate(genes)))}


class Evaluator:
    """Made once in each process; leaves a file that says so."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        (self.folder / f"made-{os.getpid()}").write_text("once", encoding="utf-8")

    def evaluate(self, subnet: Subnet) -> Mapping[str, float]:
        """The values; the process dies at the first sub-network with a width of 3, and at each with 5 and 7."""
        die_once = self.folder / "died"
        if subnet.widths["w2"] == 3 and not die_once.exists():
            die_once.touch()
            os._exit(1)
        if subnet.widths["w2"] == 5 and subnet.widths["w3"] > 6:
            os._exit(1)
        return values(subnet)
