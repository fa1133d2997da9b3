"""Transposes and reshapes in a row become one or none, and compute what they did."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lowering_checks import assert_lowered, op_types
from torch import Tensor

from bnas.passes.onnx import site

SHAPE = (4, 6, 5)
VIEWS = ("Transpose", "Reshape", "Flatten")


def views(net: Callable[[Tensor], Tensor]) -> list[str]:
    return [kind for kind in op_types(assert_lowered(net, SHAPE)) if kind in VIEWS]


@pytest.mark.parametrize(
    ("net", "left"),
    [
        pytest.param(lambda x: x.transpose(1, 2).transpose(1, 2) + 1, [], id="there-and-back"),
        pytest.param(lambda x: x.permute(0, 1, 2, 3) + 1, [], id="no-change"),
        pytest.param(lambda x: x.permute(0, 3, 1, 2).permute(0, 2, 1, 3) + 1, ["Transpose"], id="two-are-one"),
        pytest.param(lambda x: x.reshape(-1, 24, 5).reshape(-1, 8, 15) + 1, ["Reshape"], id="two-reshapes"),
        pytest.param(lambda x: x.flatten(2).unsqueeze(1).flatten(1) + 1, ["Reshape"], id="views-of-views"),
        pytest.param(lambda x: x.reshape(-1, 4, 6, 5) + 1, [], id="same-shape"),
        pytest.param(
            lambda x: x.transpose(1, 2).reshape(-1, 24, 5) + 1, ["Transpose", "Reshape"], id="both-are-needed"
        ),
        pytest.param(lambda x: x.relu().flatten(1), ["Flatten"], id="rows"),
        pytest.param(lambda x: x.flatten(1).flatten(1), ["Flatten"], id="rows-are-rows"),
    ],
)
def test_no_more_than_needed_are_left(net: Callable[[Tensor], Tensor], left: list[str]) -> None:
    assert views(net) == left


@given(data=st.data())
def test_any_row_of_views_computes_the_same(data: st.DataObject) -> None:
    steps = data.draw(
        st.lists(st.permutations([1, 2, 3]) | st.sampled_from([(2, 12, 5), (24, 5, 1), (5, 4, 6)]), max_size=5)
    )

    def net(x: Tensor) -> Tensor:
        for step in steps:
            x = x.permute(0, *step) if isinstance(step, list) else x.reshape(-1, *step)
        return x * 2

    assert_lowered(net, SHAPE)


def test_a_wrong_simplification_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site, "through_transposes", lambda producer, source, perm: (source, sorted(perm)))
    with pytest.raises(AssertionError):
        assert_lowered(lambda x: x.transpose(1, 2) * 2, (5, 5))
    monkeypatch.setattr(site, "through_reshapes", lambda producer, source: producer(source).input[0])
    with pytest.raises(AssertionError):
        assert_lowered(lambda x: torch.relu(x * 2).reshape(-1, 24, 5), SHAPE)
