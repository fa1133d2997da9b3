"""Entries picked by a mask and put back by the same one are a choice; picked entries alone are refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from capture_cases import OTHERS, Between, captured, image
from torch import Tensor, nn

from bnas.passes import CaptureError
from bnas.runtime import SuperNetwork


def least_distances(net: nn.Module, y: Tensor) -> Tensor:
    """As PointNet++ samples points: a table that is the same for all inputs becomes one that depends on them."""
    least = torch.ones(y.shape[0], *y.shape[2:]) * 10
    for channel in range(3):
        distance = (y[:, channel] - 0.1).abs()
        nearer = distance < least
        least[nearer] = distance[nearer]
    return y + least.unsqueeze(1)


def of_the_first_axes(net: nn.Module, y: Tensor) -> Tensor:
    z, other = y.permute(0, 2, 3, 1).contiguous(), y.permute(0, 2, 3, 1) * 3
    mask = z.sum(-1) > 0
    z[mask] = other[mask]
    return z.permute(0, 3, 1, 2)


def in_a_view(net: nn.Module, y: Tensor) -> Tensor:
    z = y * 1
    first, mask = z[:, :2], y[:, 2:4] > 0
    first[mask] = y[:, 4:6][mask]
    return z


PUT = [least_distances, of_the_first_axes, in_a_view]


@pytest.mark.parametrize("step", PUT, ids=lambda step: step.__name__)
def test_what_a_mask_picks_and_puts_back_is_a_choice(step: Callable[[nn.Module, Tensor], Tensor]) -> None:
    supernet = captured(Between(step).eval(), image(), OTHERS)
    names = [getattr(node.target, "__name__", "") for node in supernet.ir.graph.nodes]
    assert "where" in names
    found = []
    for module in (supernet.model.train(), supernet.train().program(supernet.space.maximal())):
        supernet.zero_grad()
        module(image()).square().sum().backward()
        found.append([one.grad.clone() for one in supernet.model.parameters() if one.grad is not None])
    assert found[0]
    torch.testing.assert_close(found[1], found[0])


def other_mask(net: nn.Module, y: Tensor) -> Tensor:
    z = y * 1
    z[y > 0] = y.abs()[y > 0]
    return z


def changed(net: nn.Module, y: Tensor) -> Tensor:
    z, mask = y * 1, y > 0
    z[mask] = y[mask] * 2
    return z


def returned(net: nn.Module, y: Tensor) -> Tensor:
    return y + y[y > 0].mean()


@pytest.mark.parametrize("step", [other_mask, changed, returned], ids=lambda step: step.__name__)
def test_picked_entries_alone_are_refused(step: Callable[[nn.Module, Tensor], Tensor]) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Conv2d(3, 8, 1)

        def forward(self, x: Tensor) -> Tensor:
            return step(self, self.inner(x))

    with pytest.raises(CaptureError, match=r"test_masks\.py.*tensor values into a submodule"):
        SuperNetwork.from_model(Net().eval(), image())
