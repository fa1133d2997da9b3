"""What a model writes in place, through views as well, is seen by all that read the same memory afterwards."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lowering_checks import assert_dynamic
from torch import Tensor, fx
from torch.fx import GraphModule, Node, Proxy

IMAGES = {0: "batch", 2: "height", 3: "width"}
SIZES = [{"batch": 1, "height": 12, "width": 15}, {"batch": 3, "height": 7, "width": 10}]

Write = Callable[..., Any]


class Recorder(Proxy):
    """A proxy that records writes, as the tracer of models does."""

    def __setitem__(self, index: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, index, value), {})

    def _in_place(self, function: Callable[..., Any], other: Any) -> Any:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    def __iadd__(self, other: Any) -> Any:
        return self._in_place(operator.iadd, other)

    def __imul__(self, other: Any) -> Any:
        return self._in_place(operator.imul, other)

    def __ipow__(self, other: Any) -> Any:
        return self._in_place(operator.ipow, other)

    def __iand__(self, other: Any) -> Any:
        return self._in_place(operator.iand, other)


class RecordingTracer(fx.Tracer):
    def proxy(self, node: Node) -> Proxy:
        return Recorder(node, self)


def recorded(net: Callable[..., Any]) -> GraphModule:
    tracer = RecordingTracer()
    graph = tracer.trace(net)
    return GraphModule(tracer.root, graph).eval()


def view_then_base(x: Tensor) -> Any:
    y = x * 1
    v = y.view(y.size(0), 2, 3, y.size(2), y.size(3))
    v += 2
    return y, v * y.view(v.shape)


def base_then_view(x: Tensor) -> Any:
    y = x * 1
    v, t = y.flatten(2), y.transpose(1, 3)
    y *= 3
    y.add_(1)
    return v + 1, t.relu()


def column(x: Tensor) -> Any:
    y = x * 1
    y[:, 0] = 0
    y[:, -1] = 1.5
    y[..., 1:3] = x[..., :2]
    return y


def empty_runs(x: Tensor) -> Any:
    """As the masks of shifted windows are written; the inner run is empty for images of a height below 8."""
    y = x * 1
    y[:, :, -2:0] = 5
    y[:, 3:3] = 6
    y[:, :, 4:-4] = 7
    return y


def tail(x: Tensor) -> Any:
    y = x * 1
    z = y[..., 1:]
    z += x[..., :-1]
    y[..., 1:] = z
    return y


def masks(x: Tensor) -> Any:
    y, z, w = x * 1, x * 1, x * 1
    y[y > 0] = -1.0
    z[z > 0] = x[x > 0] * 2
    w[w[:, :, 0, 0] > 0] = 7.0
    return y, z, w


def pieces(x: Tensor) -> Any:
    out = torch.zeros((x.size(0), 4, x.size(2)))
    out[:, 0] = x[:, 0, :, 0]
    out[:, 1:3] = x[:, 1:3].mean(-1)
    out[:, 3, 1:] = 1
    return out


def fixed_zeros(x: Any, shape: tuple[int, ...]) -> Any:
    recorder = getattr(x, "tracer", None) if isinstance(x, Proxy) else None
    return torch.zeros(shape) if recorder is None else recorder.create_proxy("call_function", torch.zeros, (shape,), {})


def pieces_of_a_fixed_one(x: Tensor) -> Any:
    out = fixed_zeros(x, (4, 6))
    out[0] = x.mean((0, 2, 3))
    out[1:3, 2] = x.mean()
    view = out.view(-1)
    view[-1] = x.amax()
    return out, view


def nested_views(x: Tensor) -> Any:
    y = x * 1
    v = y.permute(0, 2, 3, 1)[:, 1:, ::2].select(-1, 2)
    v.mul_(5)
    a, b = y.chunk(2, 1)
    b.zero_()
    a.unsqueeze(1).squeeze(1).copy_(x[:, 3:])
    return y, v + 0, a + 1, b


def detached(x: Tensor) -> Any:
    y = x * 1
    y.detach().add_(1)
    y.data.mul_(2)
    return y


def indices(x: Tensor) -> Any:
    y = x * 1
    y[:, [0, 2]] = 3.0
    y[:, torch.tensor([1, 3]), torch.tensor([0, 1])] = x[:, :2, 2]
    y.index_add_(1, torch.tensor([0, 5]), x[:, :2])
    y.masked_fill_(x > 1, 0.0)
    y[:, 1, 2:4, 1:3] = x[:, 1, :2, :2]
    y[:, :, ::2] = -1
    return y


def powers(x: Tensor) -> Any:
    y = x.abs()
    y **= 2
    flags = x > 0
    flags &= x < 1
    return y, flags


def window(x: Tensor) -> Any:
    n = x.size(2) // 2
    y = x * 1
    y[:, :, n:] = x[:, :, : x.size(2) - n] * 2
    y[:, :, n - 1] = 0
    y[:] = y * 2
    y[0] = 1
    return y


def ones_that_are_written(x: Tensor) -> Any:
    mask = torch.ones((x.size(2), x.size(3)))
    mask[0] = 0
    mask[1:, 0].fill_(2.0)
    return x * mask


def transposed_write(x: Tensor) -> Any:
    y = x * 1
    t = y.transpose(-1, -2)
    t[:, :, 0] = 4
    u = y.permute(1, 0, 2, 3)[2]
    u += 1
    y.unbind(1)[4].exp_()
    y.unsqueeze(0).narrow(2, 1, 2).neg_()
    return y


WRITES = (
    view_then_base,
    base_then_view,
    column,
    empty_runs,
    tail,
    masks,
    pieces,
    pieces_of_a_fixed_one,
    nested_views,
    detached,
    indices,
    powers,
    window,
    ones_that_are_written,
    transposed_write,
)


@pytest.mark.parametrize("net", WRITES, ids=lambda net: net.__name__)
def test_writes_are_seen(net: Write) -> None:
    # The recorded graph stands for the model: the recording is checked against the model itself.
    module = recorded(net)
    x = torch.randn(2, 6, 5, 9)
    with torch.no_grad():
        torch.testing.assert_close(module(x.clone()), net(x.clone()))
    assert_dynamic(module, [IMAGES], x, sizes=SIZES)


def test_a_write_that_is_lost_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bnas.passes.onnx.writes.Writes.current", lambda self, value: value)
    with pytest.raises(AssertionError, match="not close"):
        assert_dynamic(recorded(base_then_view), [IMAGES], torch.randn(2, 6, 5, 9), sizes=SIZES)
