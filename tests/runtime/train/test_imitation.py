"""How sub-networks learn from a teacher's outputs under a loss of the user."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from training_cases import plain

from bnas.runtime import Distillation, SuperNetwork
from bnas.runtime.train.imitation import as_targets, class_axes, imitation, is_distance
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


def of_tokens(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs.flatten(0, 1), targets.flatten(), ignore_index=-100)


def ctc(outputs: Tensor, targets: dict[str, Tensor]) -> Tensor:
    lengths = torch.full((outputs.shape[1],), len(outputs))
    return F.ctc_loss(outputs, targets["text"], lengths, targets["lengths"])


def triplets(outputs: Tensor, targets: Tensor) -> Tensor:
    apart = torch.cdist(outputs.flatten(1), outputs.flatten(1))
    same = targets[:, None] == targets[None]
    return (F.relu((apart * same).amax(1) - (apart + 1e3 * same).amin(1) + 1)).mean()


def of_a_detector(outputs: dict[str, Tensor], targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs["classes"], targets) + outputs["boxes"].abs().mean()


def of_two_heads(outputs: dict[str, Tensor], targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs["first"], targets) + F.cross_entropy(outputs["second"].mT, targets[:, None])


TAGS = torch.tensor([[0, 1, 2, 1, 0], [2, 2, 1, -100, -100]])
CLASSES = torch.tensor([0, 1, 1, 2])
SEEDED = torch.Generator().manual_seed(7)


def some(*shape: int) -> Tensor:
    return torch.randn(shape, generator=SEEDED)


SCORES = {"first": some(4, 3), "second": some(4, 1, 3), "features": some(4, 9)}


@pytest.mark.parametrize(
    ("criterion", "outputs", "targets", "expected"),
    [
        pytest.param(F.cross_entropy, some(4, 3), CLASSES, {"output": 1}, id="classes"),
        pytest.param(F.cross_entropy, 1e4 * torch.eye(3)[CLASSES], CLASSES, {"output": 1}, id="sure"),
        pytest.param(F.cross_entropy, some(2, 3, 5), TAGS, {"output": 1}, id="pixels"),
        pytest.param(of_tokens, some(2, 5, 3), TAGS, {"output": 2}, id="tokens"),
        pytest.param(of_tokens, some(2, 5, 3).log_softmax(2), TAGS, {"output": 2}, id="log-tokens"),
        pytest.param(
            ctc,
            some(9, 4, 6).log_softmax(2),
            {"text": torch.tensor([1, 2, 3, 1, 5]), "lengths": torch.tensor([2, 1, 1, 1])},
            {"output": 2},
            id="ctc",
        ),
        pytest.param(of_two_heads, SCORES, CLASSES, {"output['first']": 1, "output['second']": 2}, id="heads"),
        pytest.param(triplets, some(4, 8), CLASSES, None, id="embeddings"),
        pytest.param(triplets, torch.zeros(4, 8), torch.zeros(4), None, id="no-slope"),
        pytest.param(of_a_detector, {"classes": some(4, 3), "boxes": some(4, 4)}, CLASSES, None, id="boxes"),
        pytest.param(
            lambda outputs, targets: outputs.abs().mean(), torch.tensor([[1.0, -2, 3, -4]]), None, None, id="by-chance"
        ),
        pytest.param(lambda *_: 1 / 0, some(4, 3), CLASSES, None, id="an-error"),
    ],
)
def test_class_scores_are_found_by_the_slope_of_the_loss(
    criterion: Callable[[Any, Any], Any], outputs: Any, targets: Any, expected: dict[str, int] | None
) -> None:
    assert class_axes(criterion, outputs, targets) == expected
    found = imitation(criterion, outputs, targets)
    assert (found.as_targets, found.class_axes) == (None, expected)


def test_binary_cross_entropies_learn_probabilities_of_the_teacher() -> None:
    """Of several labels of a sample, each has a probability of its own: a softmax would let them compete."""
    outputs, targets = torch.randn(8, 3), torch.rand(8, 3).round()
    found = imitation(F.binary_cross_entropy_with_logits, outputs, targets)
    assert found.as_targets is torch.sigmoid
    assert imitation(F.binary_cross_entropy_with_logits, outputs, 2 * targets).as_targets is None


class Tagger(nn.Module):
    """Three class scores for each of five tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(6, 32), nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.inner(x)))


@pytest.mark.parametrize("criterion", [of_tokens, triplets])
def test_the_smaller_ones_learn_from_classes_of_the_teacher_or_from_targets(criterion: Any) -> None:
    net, x = SuperNetwork.from_model(Tagger().eval(), torch.zeros(2, 5, 6)).train(), 10 * torch.randn(2, 5, 6)
    y = TAGS if criterion is of_tokens else CLASSES[:2]
    largest, smallest = net.space.maximal(), net.space.minimal()
    with torch.no_grad():
        taught, learned = net.program(largest)(x), net.program(smallest)(x)
    learner = Learner(net, plain(distillation=Distillation(scale=3.0)), criterion)
    losses = learner.accumulate([largest, smallest], [(x, y)], Moment())
    soft = 3 * F.cross_entropy(learned.mT, taught.mT.softmax(1))
    over_tokens = 3 * F.cross_entropy(learned, taught.softmax(1))
    expected = soft if criterion is of_tokens else criterion(learned, y)
    assert losses == pytest.approx([float(criterion(taught, y)), float(expected)], rel=1e-4)
    assert float(over_tokens) != pytest.approx(float(expected), rel=1e-2)
