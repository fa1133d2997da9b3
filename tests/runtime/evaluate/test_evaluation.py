"""Recalibration, folding and accuracy on extracted sub-networks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.fx import symbolic_trace

from bnas.data.digits import DigitNet
from bnas.runtime import EvaluationError, Evaluator, SuperNetwork, accuracy, first_samples, fold, recalibrate
from bnas.runtime.evaluate.evaluation import spread_samples

Data = list[tuple[Tensor, Tensor]]


@pytest.fixture
def supernet() -> SuperNetwork:
    return SuperNetwork.from_model(DigitNet().eval(), torch.zeros(2, 1, 8, 8))


@pytest.fixture
def data() -> Data:
    return [(torch.randn(40, 1, 8, 8), torch.randint(10, (40,))) for _ in range(3)]


def test_recalibration_gives_the_mean_of_the_batches(data: Data) -> None:
    net = nn.Sequential(nn.BatchNorm2d(1), nn.Dropout(0.5))
    net[0].momentum = 0.3
    recalibrate(net, data)
    torch.testing.assert_close(net[0].running_mean, torch.stack([x.mean() for x, _ in data]).mean()[None])
    torch.testing.assert_close(net[0].running_var, torch.stack([x.var() for x, _ in data]).mean()[None])
    assert net[0].momentum == 0.3
    assert all(module.training for module in net.modules())


def test_recalibration_without_data_is_an_error() -> None:
    with pytest.raises(EvaluationError, match="data are empty"):
        recalibrate(nn.BatchNorm2d(1), [])


def test_evaluation_never_touches_what_is_shared(supernet: SuperNetwork, data: Data) -> None:
    before = {name: tensor.clone() for name, tensor in supernet.state_dict().items()}
    evaluator = Evaluator(supernet, data, data)
    small = evaluator.evaluate(supernet.space.minimal())
    assert small["macs"] < evaluator.evaluate(supernet.space.maximal())["macs"]
    assert all(torch.equal(before[name], tensor) for name, tensor in supernet.state_dict().items())


def test_folded_computes_the_same_with_fewer_layers(supernet: SuperNetwork, data: Data) -> None:
    subnet = supernet.space.sample(np.random.default_rng(0))
    plain, folded = (Evaluator(supernet, data, data).prepare(subnet) for _ in range(2))
    fold(folded)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    with torch.no_grad():
        expected = plain(data[0][0])
        torch.testing.assert_close(folded(data[0][0]), expected, rtol=1e-4, atol=1e-4)
        next(m for m in folded.modules() if isinstance(m, nn.Conv2d)).weight.mul_(1.1)
        assert not torch.allclose(folded(data[0][0]), expected, rtol=1e-4, atol=1e-4)


class Twice(nn.Module):
    """One convolution called twice before one normalisation: folding it would scale both calls."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1)
        self.norm.running_var.fill_(4.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(self.conv(x)))


def test_layer_that_is_called_twice_is_not_folded() -> None:
    module = symbolic_trace(Twice().eval())
    x = torch.randn(2, 1, 4, 4)
    expected = module(x)
    assert torch.equal(fold(module)(x), expected)
    assert isinstance(module.norm, nn.BatchNorm2d)


def test_accuracy_counts_and_refuses_nan() -> None:
    scores, labels = torch.eye(4), torch.tensor([0, 1, 2, 0])
    assert accuracy(nn.Identity(), [(scores, labels)]) == 0.75
    with pytest.raises(EvaluationError, match="NaN or inf"):
        accuracy(nn.Identity(), [(scores * float("nan"), labels)])
    with pytest.raises(EvaluationError, match="the data are empty"):
        accuracy(nn.Identity(), [])


def test_accuracy_of_what_is_no_classification_asks_for_a_metric() -> None:
    """A map of scores would give the right pixels for each image: more than 1."""
    images, labels = torch.rand(2, 4, 3, 3), torch.zeros(2, 3, 3, dtype=torch.int64)
    for module, told in (
        (nn.Identity(), r"\(2, 4, 3, 3\) float32"),
        (symbolic_trace(lambda x: {"out": x}), r"{out: \(2, 4, 3, 3\) float32}"),
    ):
        shape = r"\(batch, classes\) with at least 2 classes"
        with pytest.raises(EvaluationError, match=rf"{shape}; the model returns {told}: give your own metric"):
            accuracy(module, [(images, labels)])


def test_first_samples_stops_at_the_count(data: Data) -> None:
    assert [len(x) for x, _ in first_samples(data, 70)] == [40, 30]


@given(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=12), count=st.integers(1, 400))
def test_spread_samples_come_from_everywhere(sizes: list[int], count: int) -> None:
    """Distances between neighbours differ by one at most; inputs stay with their targets, in whatever form."""
    numbers = torch.arange(sum(sizes)).split(sizes)
    batches = [{"x": one, "more": (one, one.double()[:, None]), "labels": one} for one in numbers]
    found = spread_samples(batches, count)
    kept = torch.cat([one["labels"] for one in found])
    assert len(kept) == min(count, sum(sizes))
    assert kept[0] == 0
    gaps = torch.cat([kept.diff(), sum(sizes) - kept[-1:]])
    assert gaps.max() - gaps.min() <= 1
    for one in found:
        assert torch.equal(one["x"], one["labels"])
        assert torch.equal(one["more"][1][:, 0].long(), one["labels"])


def test_spread_samples_of_an_ordered_set_have_all_classes(data: Data) -> None:
    images, labels = (torch.cat(one) for one in zip(*data, strict=True))
    order = labels.argsort()
    ordered = list(zip(images[order].split(40), labels[order].split(40), strict=True))
    classes = {label.item() for _, some in spread_samples(ordered, 3 * len(labels.unique())) for label in some}
    assert classes == set(labels.unique().tolist())
    assert {label.item() for _, some in first_samples(ordered, 20) for label in some} != classes, "the twin"
