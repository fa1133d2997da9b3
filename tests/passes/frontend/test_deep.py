"""Models that are nested deep: what Python can call can be captured, and what it cannot is said in few words."""

from __future__ import annotations

import copy
import pickle
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bnas.passes import CaptureError, Diagnostic
from bnas.passes.errors import BnasError
from bnas.passes.frontend.copies import FRAMES, deep_copy, deeper
from bnas.passes.wording import shortened
from bnas.runtime import SuperNetwork, export_onnx

EXAMPLE = torch.zeros(2, 4)


@contextmanager
def limit(calls: int) -> Iterator[None]:
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(calls)
    try:
        yield
    finally:
        sys.setrecursionlimit(before)


def nested(depth: int) -> nn.Sequential:
    """A hidden layer inside of so many containers, between two others."""
    torch.manual_seed(0)
    module: nn.Module = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
    for _ in range(depth):
        module = nn.Sequential(module)
    return nn.Sequential(nn.Linear(4, 8), module, nn.Linear(8, 2))


def supernet(depth: int) -> SuperNetwork:
    return SuperNetwork.from_model(nested(depth), EXAMPLE, {"min_width": 1, "divisor": 1})


@pytest.mark.parametrize(("depth", "calls"), [(100, 1000), (300, 2000), (1000, 6000)])
def test_what_python_can_call_can_be_captured(depth: int, calls: int, tmp_path: Path) -> None:
    """A Sequential takes four calls for each level; the names of its modules have a number for each."""
    with limit(calls):
        net = supernet(depth)
        x = torch.randn(3, 4)
        torch.testing.assert_close(net.program(net.space.maximal())(x), net.model(x))
        subnet = net.space.minimal()
        module = net.extract(subnet)
        torch.testing.assert_close(module(x), net.program(subnet)(x))
        torch.testing.assert_close(net.extract(subnet, form="module")(x), module(x))
        path = "1." + "0." * (depth + 1) + "weight"
        assert module.get_parameter(path).shape == (4, 4)
        assert deep_copy(net.model).get_parameter(path).shape == (8, 8)
        if depth <= 300:
            export_onnx(module, tmp_path / "deep.onnx", EXAMPLE)
    with limit(20 * calls):  # Python's own copies
        for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
            torch.testing.assert_close(twin(x), module(x))


def test_what_python_cannot_call_is_said_at_once() -> None:
    start = time.process_time()
    with pytest.raises(
        CaptureError, match=r"nested deeper than Python's recursion limit .* sys.setrecursionlimit"
    ) as e:
        supernet(900)
    assert len(str(e.value)) < 300
    assert time.process_time() - start < 20


class Endless(nn.Module):
    """Calls itself."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self(self.inner(x))


def test_a_model_without_end() -> None:
    with pytest.raises(CaptureError, match="or call one another without end"):
        SuperNetwork.from_model(Endless(), EXAMPLE)


def test_the_limit_is_put_back() -> None:
    before = sys.getrecursionlimit()
    with deeper(), deeper():
        assert sys.getrecursionlimit() == FRAMES * before
    assert sys.getrecursionlimit() == before
    with pytest.raises(KeyError), deeper():
        raise KeyError
    assert sys.getrecursionlimit() == before


def test_the_limit_is_put_back_by_the_last_thread() -> None:
    before, inside, leave = sys.getrecursionlimit(), threading.Event(), threading.Event()

    def other() -> None:
        with deeper():
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with deeper():
        thread.start()
        assert inside.wait(10)
    assert sys.getrecursionlimit() == FRAMES * before
    leave.set()
    thread.join()
    assert sys.getrecursionlimit() == before


def test_long_names_are_cut_in_their_middle() -> None:
    path, name = ".".join(["2"] + ["0"] * 300 + ["weight"]), "features.denseblock3.denselayer14.conv2.weight"
    cut = "2.0.0.0.0.0 [... 290 more ...] 0.0.0.0.0.weight"
    assert shortened(f"{path}: no; {name}") == f"{cut}: no; {name}"
    assert str(BnasError(f"module '{path}'")) == f"module '{cut}'"
    assert str(Diagnostic(path, "is pinned")) == f"{cut}: is pinned"
    assert shortened("0.1 and 3.25e-07 in 10.0.0.1, a/b.c/d.e") == "0.1 and 3.25e-07 in 10.0.0.1, a/b.c/d.e"
