"""Parts of a parameter or buffer that are cut off and never read are no widths."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from bnas.passes import analyse, trace
from bnas.runtime import SuperNetwork


class Positions(nn.Module):
    """Adds the first rows of a table that is long enough for longer inputs."""

    def __init__(self, learned: bool) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 16), nn.Linear(16, 2)
        table = torch.rand(1, 48, 16)
        self.table = nn.Parameter(table) if learned else nn.Buffer(table)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x) + self.table[:, : x.shape[1]])


class Halves(Positions):
    """Reads the other rows too."""

    def forward(self, x: Tensor) -> Tensor:
        scores = x @ x.mT @ self.first(x)
        return self.last(scores) + (self.table[0, 5:] @ self.last.weight.mT).sum(0)


@pytest.mark.parametrize("learned", [True, False])
def test_rows_for_longer_inputs_are_no_width(learned: bool) -> None:
    net, inputs = Positions(learned).eval(), torch.randn(2, 5, 4)
    for dynamic, reason in (({}, "no operator reads this part of it"), (None, "its size follows the input")):
        supernet = SuperNetwork.from_model(net, inputs, dynamic=dynamic)
        assert set(supernet.space.widths) == {"first"}
        assert any(diagnostic.reason.startswith(reason) for diagnostic in supernet.diagnostics)


def test_rows_that_are_read_stay_elastic() -> None:
    types = analyse(trace(Halves(True).eval(), torch.randn(2, 5, 4)))
    assert any(symbol.n == 43 for symbol in types.free_symbols())
