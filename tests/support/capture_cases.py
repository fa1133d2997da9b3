"""Models for the tests of the capture, and what must hold of every one of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bnas.passes.frontend.ir import as_call, as_program_call
from bnas.passes.frontend.structure import leaves_of, map_leaves
from bnas.runtime import SuperNetwork


class Between(nn.Module):
    """Two layers around ``step(net, x)`` on tensors (N, 8, H, W)."""

    def __init__(self, step: Callable[[Any, Tensor], Any], **parts: Any) -> None:
        super().__init__()
        self.first, self.inner, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 2, 1)
        self.step = step
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.step(self, self.first(x)))


def image(batch: int = 2, height: int = 4, width: int = 6) -> Tensor:
    """The same random image for the same size."""
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(batch))


OTHERS = (image(5), image(3, 7, 5))
"""Images of another batch, and of another size."""


def captured(net: nn.Module, inputs: Any, others: Any = (), **settings: Any) -> SuperNetwork:
    """The super-network of a model, after these checks.

    Program and extracted module of the maximal sub-network give what the model gives, bit for bit, at the example
    inputs and at `others`; and the model is what it was.
    """
    before = everything(net)
    supernet = SuperNetwork.from_model(net, inputs, **settings)
    same_as_before(net, before)
    training = net.training
    supernet.eval()
    maximal = supernet.space.maximal()
    modules = supernet.program(maximal), supernet.extract(maximal)
    for one in (inputs, *others):
        same_outputs(modules, net, one)
    supernet.train(training)
    return supernet


def same_outputs(modules: tuple[nn.Module, ...], net: nn.Module, inputs: Any) -> None:
    """Modules of a super-network give what the model gives, bit for bit."""
    (args, kwargs), (tensors, named) = fresh(as_call(inputs)), fresh(as_program_call(inputs))
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        expected = net(*args, **kwargs)
        for module in modules:
            torch.manual_seed(0)
            found = module(*fresh(tensors), **fresh(named))
            assert type(found) is type(expected)
            left, right = (
                [leaf for _, leaf in leaves_of(value) if not isinstance(leaf, str)] for value in (found, expected)
            )
            torch.testing.assert_close(left, right, rtol=0, atol=0)
            assert [path for path, _ in leaves_of(found)] == [path for path, _ in leaves_of(expected)]


def fresh(value: Any) -> Any:
    """Copies of all tensors inside: a forward may write into its inputs."""
    return map_leaves(value, lambda _, leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf)


def trains_alike(net: nn.Module, inputs: Any) -> SuperNetwork:
    """The maximal program in training mode: loss, gradients and buffers are those of the model in training mode."""
    supernet = SuperNetwork.from_model(net, inputs)
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    supernet.train()
    runs = []
    for module in (supernet.program(supernet.space.maximal()), net):
        net.load_state_dict(state)
        net.zero_grad()
        torch.manual_seed(0)
        args, kwargs = fresh(as_program_call(inputs) if module is not net else as_call(inputs))
        outputs = module(*args, **kwargs)
        loss = sum((leaf * torch.linspace(-1, 2, leaf.numel()).view(leaf.shape)).sum() for leaf in _tensors(outputs))
        loss.backward()
        gradients = {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
        runs.append((loss.detach(), gradients, {name: buffer.clone() for name, buffer in net.named_buffers()}))
    net.load_state_dict(state)
    torch.testing.assert_close(runs[0], runs[1], rtol=0, atol=0)
    return supernet


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for _, leaf in leaves_of(value) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


PLAIN = (str, bytes, int, float, complex, type(None), type, torch.dtype, torch.device)


def everything(net: nn.Module) -> Any:
    """All that a model holds, recursively, with the values of its tensors; and the state of random numbers."""
    seen: dict[int, Any] = {}
    held = {name: _held(vars(module), seen) for name, module in net.named_modules(remove_duplicate=False)}
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    flags = {name: (module.training, type(module)) for name, module in net.named_modules()}
    return held, state, flags, torch.get_rng_state(), torch.is_grad_enabled(), nn.Module.__call__, seen


def _held(value: Any, seen: dict[int, Any]) -> Any:
    """A comparable description of a value: containers and objects by content, tensors by identity and value."""
    if id(value) in seen and not isinstance(value, PLAIN):
        return "again", id(value)
    seen[id(value)] = value  # kept alive, so that an id stays its own
    if isinstance(value, Tensor):
        return "tensor", id(value), value.is_meta, tuple(value.shape), _numbers(value)
    if isinstance(value, dict):
        return type(value), [(key, _held(part, seen)) for key, part in value.items()]
    if isinstance(value, list | tuple | set | frozenset | deque):
        return type(value), [_held(part, seen) for part in value]
    if isinstance(value, PLAIN) or (callable(value) and not isinstance(value, nn.Module)):
        return value
    return type(value), id(value), _held(vars(value), seen) if hasattr(value, "__dict__") else None


def _numbers(tensor: Tensor) -> Any:
    return None if tensor.is_meta else tensor.detach().nan_to_num().tolist()


def same_as_before(net: nn.Module, before: Any) -> None:
    """The model holds what it held, by identity and value."""
    after = everything(net)
    torch.testing.assert_close(after[1], before[1], rtol=0, atol=0)
    assert after[2] == before[2]
    assert torch.equal(after[3], before[3])
    assert after[4:6] == before[4:6]
    assert after[0] == before[0]
