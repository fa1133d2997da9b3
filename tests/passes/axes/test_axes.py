"""The analysis on real architectures and on random programs of its three operations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from bnas.passes import analyse, find_blocks, trace
from bnas.passes.axes.selection import arrange, index
from bnas.passes.axes.terms import Cat, K, Perm, Prod, Sym, Term, normalise, symbols
from bnas.passes.axes.unifier import Unifier


@pytest.mark.parametrize(
    ("name", "free", "blocks"),
    [("resnet50", 37, 12), ("mobilenet_v2", 25, 10), ("squeezenet1_1", 25, 0), ("regnet_y_400mf", 69, 12)],
)
def test_free_symbols_and_blocks_of_real_models(name: str, free: int, blocks: int) -> None:
    model = torchvision.models.get_model(name).eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    types = analyse(trace(model, torch.zeros(2, 3, 224, 224)))
    assert len(types.free_symbols()) == free
    assert len(find_blocks(types).found) == blocks
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


class TorchSpelling(nn.Module):
    """torch.batch_norm takes its tensors in another order than F.batch_norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.last = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n = self.norm
        mean, var = n.running_mean, n.running_var
        x = torch.batch_norm(self.conv(x), n.weight, n.bias, mean, var, False, 0.1, 1e-5, False)
        return self.last(x)


def test_torch_batch_norm_follows_its_channels() -> None:
    types = analyse(trace(TorchSpelling().eval(), torch.zeros(2, 3, 4, 4)))
    (symbol,) = types.free_symbols()
    for name in ("weight", "bias", "running_mean", "running_var"):
        assert list(symbols(types.tensors[f"norm.{name}"][0])) == [symbol]


def terms(size: int) -> st.SearchStrategy[Term]:
    """Random terms over fresh symbols, all of `size` entries."""
    leaf = st.builds(lambda rigid: K(size) if rigid else Sym(size), st.booleans())
    if size < 2:
        return leaf
    halves = st.integers(1, size - 1).flatmap(lambda k: st.tuples(terms(k), terms(size - k)).map(Cat))
    divisors = [d for d in range(2, size) if size % d == 0]
    rows = [st.tuples(terms(size // d), terms(d)).map(Prod) for d in divisors]
    return st.one_of(leaf, halves, *rows)


def shuffled(size: int) -> st.SearchStrategy[Term]:
    """Random terms, some of them with their entries in another order."""
    shuffles = st.sampled_from([d for d in range(2, size) if size % d == 0]).map(lambda d: _shuffle(size, d))
    orders = st.one_of(shuffles, st.permutations(range(size)).map(tuple))
    moved = st.tuples(terms(size), orders).map(lambda pair: normalise(Perm(*pair)))
    return st.one_of(terms(size), moved)


def _shuffle(size: int, groups: int) -> tuple[int, ...]:
    return tuple(np.arange(size).reshape(groups, -1).T.reshape(-1).tolist())


@given(data=st.data(), size=st.sampled_from([6, 8, 12]))
def test_every_equation_holds_under_random_assignments(data: st.DataObject, size: int) -> None:
    pool: list[Term] = [data.draw(shuffled(size)) for _ in range(4)]
    unifier, equations = Unifier(), list[tuple[Term, Term]]()
    for _ in range(data.draw(st.integers(1, 6))):
        left, right = data.draw(st.sampled_from(pool)), data.draw(st.sampled_from(pool))
        match data.draw(st.sampled_from(["unify", "cut", "factor"])):
            case "unify":
                unifier.unify(left, right)
            case "cut":
                right = Cat(unifier.cut(left, data.draw(st.integers(1, size - 1))))
            case _:
                right = Prod(unifier.factor(left, data.draw(st.sampled_from([2, size // 2]))))
        equations.append((left, right))
    free = list(dict.fromkeys(s for pair in equations for term in pair for s in symbols(term)))
    chosen = {s: data.draw(st.integers(1, s.n)) for s in free}
    orders = {s: np.array(data.draw(st.permutations(range(s.n)))) for s in free}
    for left, right in equations:
        np.testing.assert_array_equal(index(left, chosen), index(right, chosen))
        np.testing.assert_array_equal(arrange(left, orders.__getitem__), arrange(right, orders.__getitem__))


def test_a_shuffle_is_cut_where_its_parts_are() -> None:
    first, second = Sym(4), Sym(4)
    unifier = Unifier()
    left, right = unifier.cut(Perm(Cat((first, second)), _shuffle(8, 2)), 4)
    assert not unifier.pins
    assert [s.n for s in symbols(left)] == [s.n for s in symbols(right)] == [2, 2]
    one = next(symbols(left))
    np.testing.assert_array_equal(index(left, {one: 1}), [0, 1, 3])
    unifier.cut(Perm(Sym(4), (3, 2, 1, 0)), 2)
    assert unifier.pins


def test_index_tells_different_terms_apart() -> None:
    first, second = Sym(2), Sym(2)
    left, right = index(Cat((first, second)), {first: 1}), index(Cat((first, second)), {second: 1})
    assert not np.array_equal(left, right)
