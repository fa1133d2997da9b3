"""Several threads of one process capture and verify at the same time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

import bnas
from bnas.passes.oracle.oracle import InDouble


class Calling(nn.Module):
    """Two layers; `between` is called in each forward."""

    def __init__(self, between: Callable[[], object]) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 16), nn.Linear(16, 3)
        self.between = [between]

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        self.between[0]()
        return self.last(x)  # type: ignore[no-any-return]


def test_captures_in_two_threads_leave_pytorch_as_it_was() -> None:
    before, example = nn.Module.__call__, torch.randn(5, 6)
    inside, second = threading.Event(), threading.Event()

    def wait() -> None:
        inside.set()
        second.wait(0.2)  # as long as the other thread may need to begin

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(bnas.SuperNetwork.from_model, Calling(wait), example)
        assert inside.wait(10)
        other = pool.submit(bnas.SuperNetwork.from_model, Calling(second.set), example)
        widths = [one.result().space.widths for one in (first, other)]
    assert widths == [{"first": (8, 16)}] * 2
    assert nn.Module.__call__ is before


def test_double_precision_is_that_of_one_thread() -> None:
    with InDouble():
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(lambda: nn.Linear(2, 2).weight.dtype).result() is torch.float32
        made = [torch.zeros(2), torch.rand(2), torch.arange(3) / 2, torch.ones(2, dtype=torch.float32)]
        assert {one.dtype for one in made} == {torch.float64}
        assert torch.arange(3).dtype is torch.int64


def test_threads_verify_at_the_same_time() -> None:
    example = torch.randn(5, 6)

    def verified(_: int) -> float:
        model = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3)).eval()
        supernet = bnas.SuperNetwork.from_model(model, example)
        return bnas.verify(model, supernet, supernet.space.minimal(), example)

    with ThreadPoolExecutor(4) as pool:
        assert max(pool.map(verified, range(8))) < 1e-12
    assert torch.get_default_dtype() is torch.float32
    assert torch.backends.mha.get_fastpath_enabled()
