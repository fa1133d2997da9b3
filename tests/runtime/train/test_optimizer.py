"""The optimizer of a recipe: PyTorch's fused kernel, whatever the layout of weights, gradients and momenta."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from bnas.runtime import Recipe
from bnas.runtime.train.optimizer import optimizer_of

LAYOUTS = torch.contiguous_format, torch.channels_last


def gradients(layout: torch.memory_format) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        yield torch.randn(6, 4, 3, 3, generator=generator).to(memory_format=layout)


def weight(layout: torch.memory_format = torch.contiguous_format) -> nn.Parameter:
    start = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(1))
    return nn.Parameter(start.to(memory_format=layout))


def stepped(kind: str, one: nn.Parameter, layout: torch.memory_format, *, change: bool = False) -> Tensor:
    """The weight after three steps; with `change` its layout is another one after the first."""
    optimizer = optimizer_of(Recipe(optimizer=kind, learning_rate=0.1), [one], {"one": one})
    assert all(group["fused"] for group in optimizer.param_groups)
    for gradient in gradients(layout):
        one.grad = gradient
        optimizer.step()
        if change:
            one.data = one.data.to(memory_format=torch.channels_last)
    return one.detach()


def plainly(kind: str) -> Tensor:
    one = weight()
    decay = {"lr": 0.1, "weight_decay": 1e-4}
    made = {
        "sgd": lambda: torch.optim.SGD([one], momentum=0.9, nesterov=True, foreach=False, **decay),
        "adam": lambda: torch.optim.Adam([one], foreach=False, **decay),
        "adamw": lambda: torch.optim.AdamW([one], foreach=False, **decay),
    }
    optimizer: torch.optim.Optimizer = made[kind]()
    for gradient in gradients(torch.contiguous_format):
        one.grad = gradient
        optimizer.step()
    return one.detach()


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("own", LAYOUTS)
@pytest.mark.parametrize("given", LAYOUTS)
def test_layouts_of_weights_and_gradients_may_differ(
    kind: str, own: torch.memory_format, given: torch.memory_format
) -> None:
    torch.testing.assert_close(stepped(kind, weight(own), given), plainly(kind))


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw"])
def test_momenta_follow_a_layout_that_changes(kind: str) -> None:
    torch.testing.assert_close(stepped(kind, weight(), torch.contiguous_format, change=True), plainly(kind))


def test_the_kernel_alone_would_be_wrong() -> None:
    one = weight(torch.channels_last)
    optimizer = torch.optim.SGD([one], lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4, fused=True)
    for gradient in gradients(torch.contiguous_format):
        one.grad = gradient
        optimizer.step()
    assert not torch.allclose(one.detach(), plainly("sgd"))


def test_other_optimizers_and_other_numbers_have_no_such_kernel() -> None:
    one = nn.Parameter(torch.zeros(2))
    (group,) = optimizer_of(Recipe(optimizer="rmsprop"), [one], {"one": one}).param_groups
    assert not group.get("fused")
    other = nn.Parameter(torch.zeros(2, dtype=torch.complex64))
    (group,) = optimizer_of(Recipe(), [other], {"other": other}).param_groups
    assert not group["fused"]
