"""What forward keeps from call to call: in buffers, in parameters, in Python, and in generators of random numbers."""

from __future__ import annotations

import copy
import random
import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bnas
from bnas.passes.errors import CaptureError, StateError


class OwnNorm(nn.Module):
    """A batch norm written by hand: its statistics are assigned, not written."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 16), nn.Linear(16, 3)
        self.register_buffer("mean", torch.zeros(16))

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        if self.training:
            now = h.mean(0)
            self.mean = 0.9 * self.mean + 0.1 * now.detach()
            return self.last(F.relu(h - now))  # type: ignore[no-any-return]
        return self.last(F.relu(h - self.mean))  # type: ignore[no-any-return]


class OwnNormWithData(OwnNorm):
    """The same, with the statistics in ``.data``."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        if self.training:
            now = h.mean(0)
            self.mean.data = 0.9 * self.mean.data + 0.1 * now.data
            return self.last(F.relu(h - now))  # type: ignore[no-any-return]
        return self.last(F.relu(h - self.mean))  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", [OwnNorm, OwnNormWithData])
def test_a_buffer_that_forward_assigns_is_updated_by_programs(kind: type[nn.Module]) -> None:
    model, x = kind(), torch.randn(5, 6)
    supernet = bnas.SuperNetwork.from_model(copy.deepcopy(model), x).train()
    program = supernet.program(supernet.space.maximal())
    model.train()
    for batch in (x, x + 1):
        torch.testing.assert_close(program(batch), model(batch))
    assert model.mean.abs().max() > 0  # the twin: an update that is lost would leave zeros
    torch.testing.assert_close(supernet.model.mean, model.mean)


def test_a_sub_network_updates_the_entries_of_an_assigned_buffer_that_it_keeps() -> None:
    model, x = OwnNorm(), torch.randn(5, 6)
    supernet = bnas.SuperNetwork.from_model(model, x).train()
    supernet.program(bnas.Subnet({"first": 8}))(x)
    expected = 0.1 * model.first(x).mean(0)
    expected[8:] = 0
    torch.testing.assert_close(model.mean, expected)


class MaxNorm(nn.Module):
    """Rows of a weight are made no longer than a bound in every forward, as in EEGNet."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        self.first.weight.data = torch.renorm(self.first.weight.data, 2, 0, 0.1)
        return self.last(F.relu(self.first(x)))  # type: ignore[no-any-return]


def test_a_weight_that_forward_rescales_is_rescaled_by_programs_and_stays_in_the_users_model(tmp_path) -> None:  # type: ignore[no-untyped-def]
    model, x = MaxNorm(), torch.randn(5, 6)
    before, own = model.first.weight.detach().clone(), model.first.weight
    supernet = bnas.SuperNetwork.from_model(model, x)
    assert torch.equal(model.first.weight, before)
    assert model.first.weight is own
    expected = copy.deepcopy(model)(x)
    assert not torch.allclose(F.linear(F.relu(F.linear(x, before, model.first.bias)), model.last.weight), expected)
    torch.testing.assert_close(supernet.program(supernet.space.maximal())(x), expected)
    assert (model.first.weight.norm(dim=1) < 0.11).all()  # a program shares the weight
    bnas.export_onnx(supernet.extract(supernet.space.maximal()), tmp_path / "a.onnx", x)  # as it is after one call


class Replaces(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 16)

    def forward(self, x: Tensor) -> Tensor:
        self.layer.weight = nn.Parameter(self.layer.weight.detach() * 0.5)
        return self.layer(x)  # type: ignore[no-any-return]


def test_a_parameter_that_forward_replaces_is_an_error() -> None:
    with pytest.raises(CaptureError, match=r"replaces the parameter layer.weight: assign to layer.weight.data"):
        bnas.SuperNetwork.from_model(Replaces(), torch.randn(5, 6))


class Kept(nn.Module):
    """The last activation and a mask made of the weight are kept in buffers, which nobody reads before."""

    def __init__(self, counts: bool) -> None:
        super().__init__()
        self.first, self.last, self.counts = nn.Linear(6, 16), nn.Linear(16, 3), counts
        self.register_buffer("seen", torch.zeros(16))
        self.register_buffer("mask", torch.ones(16, 6))

    def forward(self, x: Tensor) -> Tensor:
        self.mask = (self.first.weight.abs() > 0.1).float()
        h = F.relu(F.linear(x, self.first.weight * self.mask, self.first.bias))
        self.seen = (self.seen if self.counts else 0) + h.mean(0).detach()
        return self.last(h)  # type: ignore[no-any-return]


def test_a_file_needs_no_buffer_that_is_only_written(tmp_path) -> None:  # type: ignore[no-untyped-def]
    x = torch.randn(5, 6)
    supernet = bnas.SuperNetwork.from_model(Kept(counts=False), x)
    small = supernet.extract(supernet.space.minimal())
    report = bnas.export_onnx(small, tmp_path / "a.onnx", x)
    assert report.fallback is None
    assert small.get_buffer("seen").abs().max() > 0  # in PyTorch it is kept
    counting = bnas.SuperNetwork.from_model(Kept(counts=True), x)
    with pytest.raises(StateError, match=r"writes into 'seen' in place.*self\.training"):
        bnas.export_onnx(counting.extract(counting.space.minimal()), tmp_path / "b.onnx", x)
    assert not (tmp_path / "b.onnx").exists()


class Prepared(nn.Module):
    """Parameters are made of the first batch, as in Glow's ActNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.ready = nn.Linear(6, 16), nn.Linear(16, 3), False
        self.shift = nn.Parameter(torch.zeros(16))

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        if not self.ready:
            self.shift.data.copy_(-h.mean(0))
            self.ready = True
        return self.last(F.relu(h + self.shift))  # type: ignore[no-any-return]


class Remembers(nn.Module):
    """The state of a recurrent layer goes on from batch to batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.last = nn.GRU(6, 16), nn.Linear(16, 3)
        self.state: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        out, self.state = self.layer(x.unsqueeze(0), self.state)
        return self.last(out[0])  # type: ignore[no-any-return]


@pytest.mark.parametrize(("kind", "name"), [(Prepared, "ready"), (Remembers, "state")])
def test_a_second_call_that_is_another_is_an_error(kind: type[nn.Module], name: str) -> None:
    model = kind()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(CaptureError, match=rf"something else in its second call.*{name}.*call the model once"):
        bnas.SuperNetwork.from_model(model, torch.randn(5, 6))
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_a_model_that_prepared_itself_is_captured() -> None:
    model, x = Prepared(), torch.randn(5, 6)
    model(x)
    supernet = bnas.SuperNetwork.from_model(model, x)
    torch.testing.assert_close(supernet.program(supernet.space.maximal())(x + 1), model(x + 1))


class Cools(nn.Module):
    """A temperature falls with each call in training mode; calls are counted in both modes."""

    def __init__(self, falls: float) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 16), nn.Linear(16, 3)
        self.temperature, self.falls, self.calls = 3.0, falls, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        out = self.last(F.relu(self.first(x))) / self.temperature
        if self.training:
            self.temperature = self.temperature - self.falls
        return out  # type: ignore[no-any-return]


@pytest.mark.parametrize("falls", [1.0, 0.0])
def test_a_number_that_changes_with_each_training_step_is_told(falls: float) -> None:
    supernet = bnas.SuperNetwork.from_model(Cools(falls), torch.randn(5, 6))
    told = [one.reason for one in supernet.diagnostics if "second call in training mode" in one.reason]
    assert [("temperature" in one, "registered buffer" in one) for one in told] == [(True, True)] * (falls > 0)


class Locked(nn.Module):
    """Drops the same entries in every call if `keeps`, and else others; the mask stays to be looked at."""

    def __init__(self, keeps: bool) -> None:
        super().__init__()
        self.first, self.last, self.drop = nn.Linear(6, 16), nn.Linear(16, 3), nn.Dropout(0.5)
        self.keeps, self.mask = keeps, None

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.first(x))
        if self.training:
            if self.mask is None or not self.keeps:
                self.mask = self.drop(torch.ones(16))
            out = out * self.mask
        return self.last(out)  # type: ignore[no-any-return]


@pytest.mark.parametrize("keeps", [True, False])
def test_a_dropout_mask_that_is_kept_from_step_to_step_is_told(keeps: bool) -> None:
    """Without dropout every mask is full of ones: nothing would differ."""
    supernet = bnas.SuperNetwork.from_model(Locked(keeps), torch.randn(5, 6))
    told = [one.reason for one in supernet.diagnostics if "second call in training mode" in one.reason]
    assert ["mask" in one for one in told] == [True] * keeps


def _of_python() -> float:
    return random.random()


def _of_numpy() -> float:
    return float(np.random.rand())  # as forwards do


class Noise(nn.Module):
    def __init__(self, draw: Callable[[], float], always: bool) -> None:
        super().__init__()
        self.draw, self.always = draw, always

    def forward(self, x: Tensor) -> Tensor:
        return x * (1 + self.draw()) if self.always or self.training else x


class Noisy(nn.Module):
    def __init__(self, draw: Callable[[], float], always: bool, inside: bool) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 16), nn.Linear(16, 3)
        self.noise = Noise(draw, always)
        self.inside = inside

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.first(x))
        noise = self.noise if self.inside else self.noise.forward
        self.noise.training = self.training
        return self.last(noise(h))  # type: ignore[no-any-return]


@pytest.mark.parametrize("draw", [_of_python, _of_numpy])
def test_random_numbers_of_python_are_no_constants(draw: Callable[[], float]) -> None:
    x = torch.randn(5, 6)
    states = random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[union-attr]
    with pytest.raises(CaptureError, match=r"draws numbers from Python's random or from numpy.random.*torch.rand"):
        bnas.SuperNetwork.from_model(Noisy(draw, always=True, inside=False), x)
    told = bnas.SuperNetwork.from_model(Noisy(draw, always=False, inside=False), x).diagnostics
    assert any("uses the graph of evaluation mode" in one.reason and "torch.rand" in one.reason for one in told)
    inside = bnas.SuperNetwork.from_model(Noisy(draw, always=True, inside=True), x)
    assert states == (random.getstate(), np.random.get_state()[1].tolist())  # type: ignore[union-attr]
    program = inside.program(inside.space.maximal())
    assert not torch.equal(program(x), program(x))  # the module stays as it is, and draws each time


class BesideAThread(nn.Module):
    """Another thread draws a number during every third call, as a thread of the process might."""

    calls = 0

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        BesideAThread.calls += 1
        if BesideAThread.calls % 3 == 0:
            other = threading.Thread(target=random.random)
            other.start()
            other.join()
        return self.last(F.relu(self.first(x)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("before", [0, 1, 2])
def test_numbers_that_another_thread_draws_are_not_those_of_forward(before: int) -> None:
    BesideAThread.calls = before
    for model in (BesideAThread(), nn.Sequential(BesideAThread(), nn.ReLU())):
        supernet = bnas.SuperNetwork.from_model(model, torch.randn(5, 6))
        assert not [one for one in supernet.diagnostics if "draws numbers" in one.reason]
        assert len(supernet.space.widths) == 1


# Hooks on gradients.


class Reverses(nn.Module):
    """The reversed gradient of domain adaptation, by a hook."""

    def __init__(self, asks: bool) -> None:
        super().__init__()
        self.asks = asks

    def forward(self, x: Tensor) -> Tensor:
        if not self.asks or x.requires_grad:
            x.register_hook(lambda gradient: -gradient)
        return x * 1.0


class Domains(nn.Module):
    """Has a reversal behind its first layer, whose parameters may be frozen."""

    def __init__(self, reverses: nn.Module, frozen: bool = False) -> None:
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 3)
        self.reverses = reverses
        self.first.requires_grad_(not frozen)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.inner(self.reverses(self.first(x).relu())).relu())  # type: ignore[no-any-return]


def test_a_hook_on_a_gradient_in_a_submodule_is_kept() -> None:
    """Asked without gradients, a tensor requires none: then a hook is passed over, and the gradient not reversed."""
    torch.manual_seed(0)
    model, x = Domains(Reverses(asks=True)), torch.randn(5, 6)
    supernet = bnas.SuperNetwork.from_model(copy.deepcopy(model), x).train()
    assert "reverses" in {one.place for one in supernet.diagnostics}
    assert supernet.space.widths, "what is not behind the hook is still elastic"
    supernet.program(supernet.space.maximal())(x).sum().backward()
    model(x).sum().backward()
    for own, other in zip(supernet.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad)


def test_a_hook_where_nothing_is_trained_is_never_set() -> None:
    supernet = bnas.SuperNetwork.from_model(Domains(Reverses(asks=True), frozen=True), torch.randn(5, 6))
    assert "reverses" not in {one.place for one in supernet.diagnostics}


class Hooked(nn.Module):
    def __init__(self, asks: bool) -> None:
        super().__init__()
        self.first, self.last, self.asks = nn.Linear(6, 16), nn.Linear(16, 3), asks

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if not self.asks or x.requires_grad:
            x.register_hook(lambda gradient: -gradient)
        return self.last(x)  # type: ignore[no-any-return]


def test_a_hook_in_the_models_own_forward_is_told_of() -> None:
    supernet = bnas.SuperNetwork.from_model(Hooked(asks=True), torch.randn(5, 6))
    (told,) = [one.reason for one in supernet.diagnostics if "register_hook" in one.reason]
    assert told.startswith("training mode uses the graph of evaluation mode")
    with pytest.raises(CaptureError, match=r"register_hook.*torch\.autograd\.Function"):
        bnas.SuperNetwork.from_model(Hooked(asks=False), torch.randn(5, 6))
    with pytest.raises(CaptureError, match=r"module 'reverses'.*in a submodule of its own, if x\.requires_grad"):
        bnas.SuperNetwork.from_model(Domains(Reverses(asks=False)), torch.randn(5, 6))
