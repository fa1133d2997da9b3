"""Programs: sub-networks at work on the shared parameters.

A program is a plain GraphModule whose parameters are views of the shared ones, in data and gradient. Forward and
backward are those of the small model, and autograd accumulates straight into the shared ``.grad``. Where the kept
entries are not a prefix, or are computed (a smaller kernel), a `Gathered` layer takes them differentiably.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from bnas.passes.skeleton import Holder
from bnas.passes.slot import Slot

# A view's gradient has the strides of the whole gradient: meant so, and said by PyTorch once in a process.
warnings.filterwarnings("ignore", message="grad and param do not obey the gradient layout contract")


@dataclass(slots=True)
class Binding:
    """Keeps one tensor of a program pointing at what is shared *now*.

    The shared tensor may be replaced (``.to(device)``, ``load_state_dict(assign=True)``, ``.double()``), and its
    gradient is set to None by ``optimizer.zero_grad()`` at any time: before forward, between forward and backward,
    or after the step. Both are noticed before they matter.
    """

    layer: nn.Module
    """The program's layer."""
    slot: Slot
    whole: bool
    """Nothing of the tensor is dropped: the program holds the shared one itself."""
    source: Tensor | None = None
    """The shared tensor that the program points at."""
    state: tuple[int, bool] = (0, False)
    """Its memory, and whether it is trained."""

    def refresh(self) -> None:
        """Point at the shared tensor if it, or its memory, has been replaced, or it was frozen or freed."""
        slot, shared = self.slot, self.slot.shared
        if shared is self.source and (self.whole or self.state == (shared.data_ptr(), shared.requires_grad)):
            return
        self.source, self.state = shared, (shared.data_ptr(), shared.requires_grad)
        table: Any = self.layer._parameters if slot.is_parameter else self.layer._buffers
        if self.whole:
            table[slot.name] = shared
        else:
            table[slot.name] = self._parameter(shared) if slot.is_parameter else slot.take(shared)

    def _parameter(self, shared: Tensor) -> nn.Parameter:
        """A leaf of its own over the kept part; its gradient lands in the shared one."""
        view = nn.Parameter(self.slot.take(shared.data), shared.requires_grad)
        if shared.requires_grad:
            view.register_hook(lambda _: self._bind_gradient(shared, view))  # type: ignore[no-untyped-call]
        return view

    def _bind_gradient(self, shared: Tensor, view: nn.Parameter) -> None:
        """Runs just before autograd accumulates: make ``view.grad`` a view of the shared gradient of this moment."""
        if shared.grad is None:
            shared.grad = torch.zeros_like(shared)
        if view.grad is None or view.grad.data_ptr() != shared.grad.data_ptr():
            view.grad = self.slot.take(shared.grad)


class Gathered(nn.Module):
    """A layer some of whose tensors keep entries that are no prefix, or are computed: they are taken at every call.

    Gradients go to the shared parameters, and to the matrices of kernels, through that; statistics are written back
    after a call in training.
    """

    slots: Mapping[str, Slot]
    layer: nn.Module

    def __init__(self, layer: nn.Module, slots: Mapping[str, Slot]) -> None:
        super().__init__()
        self.layer = layer
        self.training = layer.training
        self.__dict__["slots"] = dict(slots)  # not registered: the tensors belong to the super-network

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The layer on the gathered tensors."""
        tensors = {name: slot.take(slot.shared) for name, slot in self.slots.items()}
        out = torch.func.functional_call(self.layer, tensors, args, kwargs)
        if self.training:
            with torch.no_grad():
                for name, slot in self.slots.items():
                    if not slot.is_parameter and not slot.prefix:
                        slot.put(slot.shared, tensors[name])
        return out


class Views:
    """Binds the tensors of a program to views of the shared ones."""

    def __init__(self) -> None:
        self.bindings: list[Binding] = []

    def __call__(self, shell: nn.Module, slots: Mapping[str, Slot]) -> nn.Module:
        """Fill `shell`, or wrap it where a tensor must be gathered."""
        if not all(slot.prefix for slot in slots.values()):
            for name, slot in slots.items():  # functional_call asks that the names exist
                table: Any = shell._parameters if slot.is_parameter else shell._buffers
                table[name] = _placeholder(slot)
            if isinstance(shell, Holder):
                shell._parameters.clear()
                shell._buffers.clear()
                return GatheredTensor(next(iter(slots.values())))
            return Gathered(shell, slots)
        for name, slot in slots.items():
            binding = Binding(shell, slot, slot.whole)
            binding.refresh()
            self.bindings.append(binding)
            assert name == slot.name
        return shell


class GatheredTensor(nn.Module):
    """A parameter that forward reads by itself and of which entries are kept that are no prefix."""

    slot: Slot

    def __init__(self, slot: Slot) -> None:
        super().__init__()
        self.__dict__["slot"] = slot

    def forward(self) -> Tensor:
        """The kept entries."""
        return self.slot.take(self.slot.shared)


def _placeholder(slot: Slot) -> Tensor:
    empty = torch.empty(slot.shape, dtype=slot.shared.dtype, device="meta")
    return nn.Parameter(empty, requires_grad=False) if slot.is_parameter else empty


class Program(GraphModule):
    """A sub-network that trains the shared parameters; made by `SuperNetwork.program`.

    Give the optimizer the parameters of the super-network, never those of a program. ``create_graph`` is not
    supported. In training mode BatchNorm updates the shared statistics of the kept channels.
    """

    bindings: list[Binding]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run it, on the shared parameters as they are now."""
        for binding in self.bindings:
            binding.refresh()
        return super().__call__(*args, **kwargs)
