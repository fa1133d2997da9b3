"""In a regression, sub-networks learn a teacher's outputs by the loss of the training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from training_cases import plain

from bnas.runtime import Distillation, SuperNetwork
from bnas.runtime.train.distance import as_targets, is_distance
from bnas.runtime.train.learner import Learner, Moment


def root(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.mse_loss(outputs, targets).sqrt()


def of_a_column(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.smooth_l1_loss(outputs.squeeze(1), targets)


def scaled(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.mse_loss(outputs, (targets - 200) / 30)


@pytest.mark.parametrize(
    ("criterion", "shape", "expected"),
    [
        (F.mse_loss, (8,), True),
        (F.l1_loss, (8, 1), True),
        (F.smooth_l1_loss, (8, 3), True),
        (root, (8, 2), True),
        (F.mse_loss, (2, 3, 4, 4), True),
        (F.cross_entropy, (8, 3), False),  # targets may be probabilities
        (F.binary_cross_entropy_with_logits, (8,), False),
        (F.binary_cross_entropy_with_logits, (2, 1, 1200, 1200), False),  # masks: steps up and down cancel out
        (F.poisson_nll_loss, (8,), False),
        (scaled, (8,), False),
        (lambda outputs, targets: F.cross_entropy(outputs, targets.long()), (8, 3), False),  # raises an error
    ],
)
@pytest.mark.parametrize("level", [0.0, 200.0])
def test_distances_are_least_where_outputs_are_the_targets(
    criterion: Callable[[Any, Any], Any], shape: tuple[int, ...], expected: bool, level: float
) -> None:
    # Of another seed than the directions in which the loss is tried.
    outputs = 30 * torch.randn(shape, generator=torch.Generator().manual_seed(5)) + level
    assert is_distance(criterion, outputs, outputs) is expected
    assert is_distance(criterion, outputs / 30, outputs / 30) is expected


def test_outputs_take_the_form_of_the_targets() -> None:
    outputs = torch.randn(8, 1)
    form = as_targets(outputs, torch.zeros(8, dtype=torch.float64))
    assert form is not None
    torch.testing.assert_close(form, outputs[:, 0].double())
    assert is_distance(of_a_column, outputs, form.float())
    for targets in (torch.zeros(8, 2), torch.zeros(4), torch.zeros(8, dtype=torch.long), {"y": torch.zeros(8)}, None):
        assert as_targets(outputs, targets) is None
    assert as_targets((outputs,), torch.zeros(8)) is None


class Price(nn.Module):
    """Numbers near 200 from five others."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(5, 32), nn.Linear(32, 1)
        nn.init.constant_(self.head.bias, 200.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.inner(x))).squeeze(1)


def prices() -> SuperNetwork:
    return SuperNetwork.from_model(Price().eval(), torch.zeros(2, 5))


@pytest.mark.parametrize("type_", ["softmax", "mse"])
def test_the_smaller_ones_learn_by_the_loss_of_the_training_unless_told_otherwise(type_: str) -> None:
    net, x, y = prices().train(), torch.randn(16, 5), 180 + torch.randn(16)
    largest, smallest = net.space.maximal(), net.space.minimal()
    with torch.no_grad():
        taught, learned = net.program(largest)(x), net.program(smallest)(x)
    distances = {"softmax": F.l1_loss(learned, taught), "mse": F.mse_loss(learned, taught)}
    learner = Learner(net, plain(distillation=Distillation(type=type_, scale=3.0)), F.l1_loss)
    losses = learner.accumulate([largest, smallest], [(x, y)], Moment())
    assert losses == pytest.approx([float(F.l1_loss(taught, y)), 3 * float(distances[type_])], rel=1e-4)
    assert float(distances["mse"]) != pytest.approx(float(distances["softmax"]), rel=0.1)
