"""Shapes that lowering works out itself are those that PyTorch gives, and what is not plain is left to PyTorch."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, reject
from hypothesis import strategies as st
from lowering_checks import assert_lowered
from torch import Tensor, nn
from torch.fx import GraphModule

from bnas.passes import OPERATORS
from bnas.passes.errors import LoweringError
from bnas.passes.onnx import steps
from bnas.passes.onnx.lower import lower
from bnas.passes.onnx.values import BATCH
from bnas.passes.ops import shapes


def quick(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Tensor | None:
    """What is worked out for a call, whose tensors are given on the meta device."""
    return None if OPERATORS.writes(function) else shapes.quick(OPERATORS.of(function), args, kwargs)


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def assert_same(function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """PyTorch gives the same, and the same strides: views depend on them."""
    expected, found = function(*args, **kwargs), quick(function, *args, **kwargs)
    assert found is not None
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    strides = zip(expected.shape, found.stride(), expected.stride(), strict=True)
    assert all(one == other for size, one, other in strides if size > 1)  # where there is one entry, any will do


sizes = st.integers(1, 12)


@given(data=st.data(), axes=st.integers(1, 3), groups=st.integers(1, 3))
def test_convolutions(data: st.DataObject, axes: int, groups: int) -> None:
    image, kernel = (data.draw(st.lists(sizes, min_size=axes, max_size=axes)) for _ in range(2))
    setting = st.integers(1, 3) | st.lists(st.integers(1, 3), min_size=axes, max_size=axes).map(tuple)
    x, weight = meta(BATCH, 2 * groups, *image), meta(4 * groups, 2, *kernel)
    args = (x, weight, None, data.draw(setting), data.draw(setting), data.draw(setting), groups)
    function = (F.conv1d, F.conv2d, F.conv3d)[axes - 1]
    try:
        function(*args)
    except RuntimeError:  # the kernel is larger than the padded image
        assert quick(function, *args) is None
        reject()
    assert_same(function, *args)


@given(shape=st.lists(sizes, min_size=1, max_size=3), inner=sizes, outer=sizes)
def test_linear_norm_and_sums(shape: list[int], inner: int, outer: int) -> None:
    x = meta(BATCH, *shape, inner)
    assert_same(F.linear, x, meta(outer, inner), meta(outer))
    assert_same(F.layer_norm, x.transpose(0, 1), (inner,), eps=1e-5)
    for function in (torch.add, operator.add, torch.sub, operator.mul):
        assert_same(function, x, meta(*x.shape))


@given(heads=sizes, queries=sizes, keys=sizes, width=sizes, value=sizes)
def test_attention(heads: int, queries: int, keys: int, width: int, value: int) -> None:
    query = meta(7, queries, heads, width).transpose(1, 2)
    assert_same(F.scaled_dot_product_attention, query, meta(7, heads, keys, width), meta(7, heads, keys, value))


@pytest.mark.parametrize(
    ("function", "args"),
    [
        pytest.param(F.conv2d, (meta(2, 3, 8, 8), meta(4, 2, 3, 3)), id="other-channels"),
        pytest.param(F.conv2d, (meta(2, 3, 8, 8), meta(4, 3, 3, 3), None, 1, "same"), id="padding-in-words"),
        pytest.param(F.conv2d, (meta(3, 8, 8), meta(4, 3, 3, 3)), id="no-batch"),
        pytest.param(F.conv2d, (meta(2, 8, 8, 3).permute(0, 3, 1, 2), meta(4, 3, 3, 3)), id="channels-last"),
        pytest.param(F.linear, (meta(2, 3), meta(4, 5)), id="other-features"),
        pytest.param(torch.add, (meta(2, 3), meta(3)), id="broadcast"),
        pytest.param(torch.add, (meta(2, 3), 1.5), id="a-number"),
        pytest.param(torch.add, (meta(2, 3), meta(2, 3, dtype=torch.float64)), id="another-dtype"),
        pytest.param(torch.add, (meta(2, dtype=torch.int64), meta(2, dtype=torch.int64)), id="whole-numbers"),
        pytest.param(operator.iadd, (meta(2, 3), meta(2, 3)), id="in-place"),
        pytest.param(F.layer_norm, (meta(2, 3), (4,)), id="another-norm"),
        pytest.param(F.scaled_dot_product_attention, (meta(2, 3, 4), meta(2, 3, 5), meta(2, 3, 4)), id="other-width"),
        pytest.param(torch.exp, (meta(2, 3),), id="no-rule"),
    ],
)
def test_what_is_not_plain_is_left_to_pytorch(function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    assert quick(function, *args) is None


def test_the_rules_are_used(change: Callable[..., Any]) -> None:
    """A rule that says something else is noticed: a wrong shape goes into the file, and the views after it fail."""

    def net(x: Tensor) -> Tensor:
        return (x + x.sigmoid()).view(-1, 6, 72)

    assert_lowered(net, (6, 9, 8))
    change(torch.add, shape=lambda args, kwargs: torch.empty((*args[0].shape[:-1], 7), device="meta"))
    with pytest.raises(LoweringError, match="reshape fails"):
        assert_lowered(net, (6, 9, 8))


def test_nothing_is_run_for_the_layers_of_common_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def invoke(self: Any, args: Any, kwargs: Any) -> Any:
        ran.append(str(self._node.target))
        return original(self, args, kwargs)

    original = steps.Execution._invoke
    monkeypatch.setattr(steps.Execution, "_invoke", invoke)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(), nn.Flatten(2))
    norms = nn.Sequential(nn.Linear(36, 8), nn.LayerNorm(8), nn.GELU())
    graph: GraphModule = torch.fx.symbolic_trace(nn.Sequential(net, norms)).eval()
    lower(graph, [torch.zeros(2, 3, 8, 8)])
    assert ran == ["0.4"] * 2  # at both sets of sizes
