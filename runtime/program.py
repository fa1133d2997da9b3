"""Programs: runnable sub-networks that use the shared parameters without copying them.

A program is a plain GraphModule whose parameters are views of the shared ones, for data and gradients. It costs as much
as the small model, and autograd accumulates directly into the shared ``.grad``. If the kept entries are not a prefix,
or must be computed (a smaller kernel), a `Gathered` layer selects or computes them differentiably at each call.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from bnas.passes.assembly.frames import Assembled
from bnas.passes.assembly.rewriting import Holder
from bnas.passes.assembly.slot import Slot
from bnas.passes.frontend.ir import IR
from bnas.passes.ops.rnn import settle, share

from .errors import ProgramError

# The gradient of a view has the strides of the whole gradient. That is intended; PyTorch would warn of it.
warnings.filterwarnings("ignore", message="grad and param do not obey the gradient layout contract")
# PyTorch would copy the weights of a recurrent layer into its own memory; programs need them to be views.
warnings.filterwarnings("ignore", message="RNN module weights are not part of single contiguous chunk of memory")


@dataclass(eq=False)
class View:
    """The part of a shared tensor that a sub-network keeps, as a leaf tensor of autograd over the same memory.

    Programs that keep the same part share one `View`. Two things can happen at any time, and both are handled before
    they matter: the shared tensor is replaced (``.to(device)``, ``load_state_dict(assign=True)``, ``.double()``), or
    ``optimizer.zero_grad()`` sets its gradient to None.
    """

    slot: Slot
    whole: bool
    """Whether the whole tensor is kept; then the shared tensor itself is used."""
    source: Tensor | None = None
    """The shared tensor for which the view was made."""
    tensor: Tensor = None  # type: ignore[assignment]
    """The tensor that programs hold."""

    @classmethod
    def of(cls, slot: Slot) -> View:
        """Make the view of the entries that `slot` keeps, which must be a prefix."""
        view = cls(slot, slot.whole)
        view.now()
        return view

    @property
    def replaced(self) -> bool:
        """Whether the shared tensor was replaced, moved to other memory, frozen or freed."""
        shared, tensor = self.slot.shared, self.tensor
        if shared is not self.source:
            return True
        return tensor.data_ptr() != shared.data_ptr() or tensor.requires_grad != shared.requires_grad

    def now(self) -> Tensor:
        """Return the tensor for programs, as a view of the current shared tensor."""
        if not self.replaced:
            return self.tensor
        self.source = self.tensor = shared = self.slot.shared
        if not self.whole:
            with torch.inference_mode(False):  # the view outlives this inference mode
                self.tensor = self._leaf(shared)
        return self.tensor

    def _leaf(self, shared: Tensor) -> Tensor:
        """Return the kept part as a leaf. A parameter's gradient is accumulated into the shared parameter only."""
        if not self.slot.is_parameter:
            return self.slot.take(shared)
        leaf = nn.Parameter(self.slot.take(shared.data), shared.requires_grad)
        if shared.requires_grad:
            leaf.register_hook(lambda _: self._bind_gradient(shared, leaf))  # type: ignore[no-untyped-call]
            leaf.register_post_accumulate_grad_hook(_drop_gradient)  # type: ignore[no-untyped-call]
        return leaf

    def _bind_gradient(self, shared: Tensor, leaf: nn.Parameter) -> None:
        """Make ``leaf.grad`` a view of the current shared gradient. Called just before autograd accumulates."""
        if shared.grad is None:
            shared.grad = torch.zeros_like(shared)
        leaf.grad = self.slot.take(shared.grad)


def _drop_gradient(leaf: Tensor) -> None:
    """Drop ``leaf.grad`` after autograd accumulated, so that it does not keep memory alive after ``zero_grad()``."""
    leaf.grad = None


@dataclass(slots=True)
class Binding:
    """Keeps one tensor of a program up to date with the *current* shared tensor."""

    layer: nn.Module
    """The program's layer."""
    view: View
    bound: Tensor | None = None
    """The tensor that the layer has now."""

    def refresh(self) -> None:
        """Give the layer the current tensor, if it has an outdated one."""
        tensor = self.view.now()
        if tensor is not self.bound:
            self.give(tensor)

    def give(self, tensor: Tensor) -> None:
        """Set the layer's tensor."""
        slot = self.view.slot
        table: Any = self.layer._parameters if slot.is_parameter else self.layer._buffers
        self.bound = table[slot.name] = tensor


class KnownViews:
    """Cache of the views of a super-network. It is emptied when it is full, or when shared memory was replaced."""

    def __init__(self, limit: int = 8192) -> None:
        self.limit = limit
        self._known: dict[Slot, View] = {}

    def __deepcopy__(self, memo: Any) -> KnownViews:
        """Return an empty cache: views of the copied tensors are made when they are needed."""
        return KnownViews(self.limit)

    def __reduce__(self) -> Any:
        """Pickle an empty cache."""
        return KnownViews, (self.limit,)

    def of(self, slot: Slot) -> View:
        """Return the up-to-date view of the entries that `slot` keeps, which must be a prefix."""
        if slot.whole:
            return View.of(slot)  # no view is needed, and slots of constants are never equal
        view = self._known.get(slot)
        if view is None or view.replaced:
            if view is not None or len(self._known) >= self.limit:
                self._known.clear()  # unused views would keep the old memory alive
            self._known[slot] = view = View.of(slot)
        return view


class Gathered(nn.Module):
    """A layer whose tensors are selected or computed at every call, because they cannot be views.

    That is so if the kept entries are not a prefix, if a smaller kernel is computed, and for recurrent layers (cuDNN
    accepts no weights with gaps between rows).

    Gradients flow through the selection to the shared parameters and to the matrices of kernels. BatchNorm statistics
    are written back after a call in training mode.
    """

    slots: Mapping[str, Slot]
    layer: nn.Module
    repeated: Mapping[str, Tensor] | None = None
    """Copies of the buffers before a call that will be recomputed; see `bnas.runtime.recomputation`."""

    def __init__(self, layer: nn.Module, slots: Mapping[str, Slot]) -> None:
        super().__init__()
        self.layer = layer
        self.training = layer.training
        self.__dict__["slots"] = dict(slots)  # bypasses registration, because the tensors belong to the super-network

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the layer on the gathered tensors."""
        tensors = {name: slot.take(slot.shared) for name, slot in self.slots.items()}
        if isinstance(self.layer, nn.RNNBase):
            tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
        tensors |= {name: before.clone() for name, before in (self.repeated or {}).items()}
        with _given(self.layer, tensors):
            out = self.layer(*args, **kwargs)
        if self.training and self.repeated is None:
            with torch.no_grad():
                for name, slot in self.slots.items():
                    if not slot.is_parameter and not slot.prefix:
                        slot.put(slot.shared, tensors[name])
        return out

    def buffers_now(self) -> dict[str, Tensor]:
        """Return copies of the kept parts of buffers, which a call may change."""
        buffers = {name: slot for name, slot in self.slots.items() if not slot.is_parameter}
        return {name: slot.take(slot.shared).detach().clone() for name, slot in buffers.items()}


@contextmanager
def _given(layer: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside, `layer` has `tensors`, as with ``functional_call``, whose checks take longer."""
    tables: tuple[Any, Any] = (layer._parameters, layer._buffers)
    before = [(table, name, table[name]) for table in tables for name in table if name in tensors]
    for table, name, _ in before:
        table[name] = tensors[name]
    settle(layer)
    try:
        yield
    finally:
        for table, name, tensor in before:
            table[name] = tensor
        settle(layer)  # otherwise the layer would keep the tensors of this call and their autograd graph alive


class Views:
    """Binds the tensors of a program to views of the shared tensors."""

    def __init__(self, known: KnownViews) -> None:
        self.bindings: list[Binding] = []
        self._known = known

    def __call__(self, shell: nn.Module, slots: Mapping[str, Slot]) -> nn.Module:
        """Fill `shell` with views, or wrap it into a `Gathered` layer if a tensor must be gathered."""
        share(shell)
        if not all(slot.whole or (slot.prefix and not isinstance(shell, nn.RNNBase)) for slot in slots.values()):
            for name, slot in slots.items():  # the layer shows their shapes between calls
                table: Any = shell._parameters if slot.is_parameter else shell._buffers
                table[name] = _placeholder(slot)
            if isinstance(shell, Holder):
                shell._parameters.clear()
                shell._buffers.clear()
                return GatheredTensor(next(iter(slots.values())))
            return Gathered(settle(shell), slots)
        for name, slot in slots.items():
            binding = Binding(shell, self._known.of(slot))
            binding.give(binding.view.tensor)
            self.bindings.append(binding)
            assert name == slot.name
        return shell


class GatheredTensor(nn.Module):
    """A parameter that the model's forward reads directly and whose kept entries are not a prefix."""

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


class Program(Assembled):
    """A runnable sub-network that trains the shared parameters; made by `SuperNetwork.program`.

    - Give the optimizer the parameters of the super-network, never those of a program, and read gradients there.
    - In training mode, BatchNorm updates the shared statistics of the kept channels.
    - A program cannot be copied, pickled or saved. Extract a module for that.
    - Do not edit its graph: other programs may share graph and code. Edit the graph of an extracted module instead.
    - ``create_graph`` is not supported.
    """

    _bindings: list[Binding]
    ir: IR
    """The captured model from whose graph this program was made."""
    in_training: Callable[[], Program] | None = None
    """Makes the program for training mode, if the model calls other operators in training mode."""
    trained: Program | None = None
    """The program for training mode, created when it is first needed."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program with the current shared parameters."""
        return super(Program, self.ready()).__call__(*args, **kwargs)

    def ready(self) -> Program:
        """Return the program for the current mode, with the current shared parameters."""
        if self.training and self.in_training is not None:
            if self.trained is None:
                self.__dict__["trained"] = self.in_training().train()
            assert self.trained is not None
            return self.trained.ready()
        for binding in self._bindings:
            binding.refresh()
        return self

    def __copy__(self) -> NoReturn:
        """Raise ProgramError, as `__deepcopy__` does."""
        raise ProgramError(
            "a program cannot be copied, pickled or saved: its parameters are views of the super-network's parameters. "
            "Use supernet.extract(subnet), a standalone copy that can"
        )

    def __deepcopy__(self, memo: Any) -> NoReturn:
        """Raise ProgramError: the parameters of a copy would no longer be views of the shared ones."""
        self.__copy__()

    def __reduce__(self) -> NoReturn:
        """Raise ProgramError, as `__deepcopy__` does."""
        self.__copy__()
