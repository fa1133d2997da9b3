"""Norms written by hand: the oracle's statistics are of the kept entries, however mean and variance are written."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from bnas.passes import Subnet, VerificationError
from bnas.passes.oracle import dependence
from bnas.passes.oracle.norms import not_zero
from bnas.runtime.supernetwork import SuperNetwork
from bnas.runtime.verification import verify

Mean = Callable[[Tensor], Tensor]
Variance = Callable[[Tensor, Mean], Tensor]

MEANS: dict[str, Mean] = {
    "both axes": lambda x: x.mean((1, 2), keepdim=True),
    "channels": lambda x: x.mean(1, keepdim=True),
    "channels, then tokens": lambda x: x.mean(1, keepdim=True).mean(2, keepdim=True),
    "tokens, then channels": lambda x: x.mean(2, keepdim=True).mean(1, keepdim=True),
    "of a mean without its axis": lambda x: x.mean(1).mean(1)[:, None, None],
    "of rows": lambda x: x.flatten(1).mean(1)[:, None, None],
    "transposed": lambda x: x.mT.mean(2, keepdim=True).mT,
    "sum by size": lambda x: x.sum((1, 2), keepdim=True) / (x.shape[1] * x.shape[2]),
    "sum by size, then channels": lambda x: (x.sum(2, keepdim=True) / x.shape[2]).mean(1, keepdim=True),
}

VARIANCES: dict[str, Variance] = {
    "mean of squares": lambda x, mean: mean((x - mean(x)) ** 2),
    "difference of means": lambda x, mean: mean(x * x) - mean(x) ** 2,
    "var": lambda x, mean: x.var((1, 2), unbiased=False, keepdim=True),
    "std": lambda x, mean: x.std(1, keepdim=True) ** 2,
}


class Norm(nn.Module):
    def __init__(self, channels: int, mean: str, variance: str, scaled: bool) -> None:
        super().__init__()
        self.mean, self.variance = MEANS[mean], VARIANCES[variance]
        self.gain = nn.Parameter(torch.ones(1, channels, 1)) if scaled else 1.0

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * (x - self.mean(x)) / (self.variance(x, self.mean).abs() + 1e-5).sqrt()


class Residual(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Conv1d(8, 6, 1), norm, nn.Conv1d(6, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.last(self.norm(self.first(x)).relu())


class Scores(nn.Module):
    """Two elastic axes, and a norm over both: the products of two branches."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.stem, self.norm, self.last = nn.Conv1d(3, 8, 1), norm, nn.Conv1d(6, 8, 1)
        self.rows, self.columns = nn.Conv1d(8, 6, 1), nn.Conv1d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        rows, columns = self.rows(x), self.columns(x)
        return self.last(self.norm((rows @ columns.mT).sigmoid()) @ columns)


def residuals(norm: Callable[[], nn.Module]) -> nn.Module:
    """Two blocks with a norm each: the second one reads what the first one leaves."""
    return nn.Sequential(nn.Conv1d(3, 8, 1), Residual(norm()), Residual(norm()), nn.Conv1d(8, 2, 1))


def verified(model: nn.Module, draw: Callable[[SuperNetwork], Subnet]) -> None:
    x = torch.randn(2, 3, 5)
    supernet = SuperNetwork.from_model(model.eval(), x, {"min_width": 1, "divisor": 2})
    verify(model, supernet, draw(supernet), x)
    return supernet


@given(st.sampled_from([*MEANS]), st.sampled_from([*VARIANCES]), st.booleans(), st.data())
def test_behind_skipped_blocks(mean: str, variance: str, scaled: bool, data: st.DataObject) -> None:
    def draw(supernet: SuperNetwork) -> Subnet:
        space = supernet.space
        assert space.blocks == ("1", "2")
        widths = {name: data.draw(st.sampled_from(sizes)) for name, sizes in space.widths.items()}
        return Subnet(widths, frozenset(name for name in space.blocks if data.draw(st.booleans())))

    verified(residuals(lambda: Norm(6, mean, variance, scaled)), draw)


@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("mean", MEANS)
def test_over_two_elastic_axes(mean: str, variance: str) -> None:
    verified(Scores(Norm(6, mean, variance, scaled=False)), lambda supernet: supernet.space.minimal())


def skip_first(supernet: SuperNetwork) -> Subnet:
    return Subnet(supernet.space.maximal().widths, frozenset({"1"}))


def test_a_block_that_is_skipped_drops_nothing_behind_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model = residuals(lambda: Norm(6, "channels", "mean of squares", scaled=True))
    skeleton = verified(model, skip_first).skeleton
    every = [dependence._with(skeleton, symbol) for symbol in not_zero(skeleton)]
    monkeypatch.setattr(dependence, "_groups", lambda skeleton, zeroed: [frozenset(zeroed), *every])
    with pytest.raises(VerificationError, match="differs from the original"):
        verified(model, skip_first)


def test_a_mean_of_means_depends_on_parameters_through_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Scores(Norm(6, "channels, then tokens", "mean of squares", scaled=False))
    verified(model, lambda supernet: supernet.space.minimal())
    monkeypatch.setattr(dependence._Noting, "behind", lambda self, input: input)
    with pytest.raises(VerificationError, match="differs from the original"):
        verified(model, lambda supernet: supernet.space.minimal())
