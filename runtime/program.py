"""Programs: sub-networks at work on the shared parameters.

A program is a plain GraphModule whose parameters are views of the shared ones, in data and gradient. Forward and
backward are those of the small model, and autograd accumulates straight into the shared ``.grad``. Where the kept
entries are not a prefix, or are computed (a smaller kernel), a `Gathered` layer takes them differentiably.
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

# A view's gradient has the strides of the whole gradient: meant so, and said by PyTorch once in a process.
warnings.filterwarnings("ignore", message="grad and param do not obey the gradient layout contract")
# The weights of a recurrent layer stay where the shared ones are: a smaller layer could not share memory otherwise.
warnings.filterwarnings("ignore", message="RNN module weights are not part of single contiguous chunk of memory")


@dataclass(eq=False)
class View:
    """What a sub-network keeps of one shared tensor, as a leaf of its own over the same memory.

    Programs that keep the same have it in common. The shared tensor may be replaced (``.to(device)``,
    ``load_state_dict(assign=True)``, ``.double()``), and its gradient is set to None by ``optimizer.zero_grad()`` at
    any time: before forward, between forward and backward, or after the step. Both are noticed before they matter.
    """

    slot: Slot
    whole: bool
    """Nothing is dropped: it is the shared tensor itself."""
    source: Tensor | None = None
    """The shared tensor that it was made for."""
    tensor: Tensor = None  # type: ignore[assignment]
    """The tensor that programs hold."""

    @classmethod
    def of(cls, slot: Slot) -> View:
        """The view of what `slot` keeps, which must be a prefix."""
        view = cls(slot, slot.whole)
        view.now()
        return view

    @property
    def replaced(self) -> bool:
        """The shared tensor, or its memory, is another than before, or was frozen or freed."""
        shared, tensor = self.slot.shared, self.tensor
        if shared is not self.source:
            return True
        return tensor.data_ptr() != shared.data_ptr() or tensor.requires_grad != shared.requires_grad

    def now(self) -> Tensor:
        """The tensor for programs: it points at what is shared now."""
        if not self.replaced:
            return self.tensor
        self.source = self.tensor = shared = self.slot.shared
        if not self.whole:
            with torch.inference_mode(False):  # it outlives the mode in which it was asked for
                self.tensor = self._leaf(shared)
        return self.tensor

    def _leaf(self, shared: Tensor) -> Tensor:
        """The kept part; the gradient of a parameter lands in the shared one, and only there."""
        if not self.slot.is_parameter:
            return self.slot.take(shared)
        leaf = nn.Parameter(self.slot.take(shared.data), shared.requires_grad)
        if shared.requires_grad:
            leaf.register_hook(lambda _: self._bind_gradient(shared, leaf))  # type: ignore[no-untyped-call]
            leaf.register_post_accumulate_grad_hook(_drop_gradient)  # type: ignore[no-untyped-call]
        return leaf

    def _bind_gradient(self, shared: Tensor, leaf: nn.Parameter) -> None:
        """Runs just before autograd accumulates: make ``leaf.grad`` a view of the shared gradient of this moment."""
        if shared.grad is None:
            shared.grad = torch.zeros_like(shared)
        leaf.grad = self.slot.take(shared.grad)


def _drop_gradient(leaf: Tensor) -> None:
    """Runs after autograd accumulated: the view would keep the memory of the shared gradient after ``zero_grad()``."""
    leaf.grad = None


@dataclass(slots=True)
class Binding:
    """Keeps one tensor of a program pointing at what is shared *now*."""

    layer: nn.Module
    """The program's layer."""
    view: View
    bound: Tensor | None = None
    """The tensor that was given to the layer."""

    def refresh(self) -> None:
        """Give the layer the tensor of now, if it has another."""
        tensor = self.view.now()
        if tensor is not self.bound:
            self.give(tensor)

    def give(self, tensor: Tensor) -> None:
        """Set the layer's tensor."""
        slot = self.view.slot
        table: Any = self.layer._parameters if slot.is_parameter else self.layer._buffers
        self.bound = table[slot.name] = tensor


class KnownViews:
    """The views of a super-network; forgotten all at once when they are too many, or when memory was replaced."""

    def __init__(self, limit: int = 8192) -> None:
        self.limit = limit
        self._known: dict[Slot, View] = {}

    def __deepcopy__(self, memo: Any) -> KnownViews:
        """None at all: views of other tensors are made where they are asked for."""
        return KnownViews(self.limit)

    def __reduce__(self) -> Any:
        """As in a deep copy."""
        return KnownViews, (self.limit,)

    def of(self, slot: Slot) -> View:
        """The view of what `slot` keeps, which must be a prefix; its tensor is that of now."""
        if slot.whole:
            return View.of(slot)  # nothing to make; and the slot of a constant is another one for each program
        view = self._known.get(slot)
        if view is None or view.replaced:
            if view is not None or len(self._known) >= self.limit:
                self._known.clear()  # views that no program has would keep memory that was replaced
            self._known[slot] = view = View.of(slot)
        return view


class Gathered(nn.Module):
    """A layer some of whose tensors keep entries that are no prefix, or are computed: they are taken at every call.

    So are all of a recurrent layer: cuDNN takes no weights with gaps between their rows.

    Gradients go to the shared parameters, and to the matrices of kernels, through that; statistics are written back
    after a call in training.
    """

    slots: Mapping[str, Slot]
    layer: nn.Module
    repeated: Mapping[str, Tensor] | None = None
    """The buffers before a call that is made again: see `bnas.runtime.recomputation`."""

    def __init__(self, layer: nn.Module, slots: Mapping[str, Slot]) -> None:
        super().__init__()
        self.layer = layer
        self.training = layer.training
        self.__dict__["slots"] = dict(slots)  # not registered: the tensors belong to the super-network

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The layer on the gathered tensors."""
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
        """Copies of what it keeps of buffers, which a call may change."""
        buffers = {name: slot for name, slot in self.slots.items() if not slot.is_parameter}
        return {name: slot.take(slot.shared).detach().clone() for name, slot in buffers.items()}


@contextmanager
def _given(layer: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """While it lasts, `layer` has `tensors` (``functional_call`` does so too, with checks that take longer)."""
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
        settle(layer)  # else it would hold on to the tensors of this call, with what autograd knows of them


class Views:
    """Binds the tensors of a program to views of the shared ones."""

    def __init__(self, known: KnownViews) -> None:
        self.bindings: list[Binding] = []
        self._known = known

    def __call__(self, shell: nn.Module, slots: Mapping[str, Slot]) -> nn.Module:
        """Fill `shell`, or wrap it where a tensor must be gathered."""
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


class Program(Assembled):
    """A sub-network that trains the shared parameters; made by `SuperNetwork.program`.

    Give the optimizer the parameters of the super-network, never those of a program, and read gradients there. Its
    layers are its own; graph and code may be those of other programs: edit the graph of an extracted module instead.
    ``create_graph`` is not supported. A program cannot be copied, pickled or saved: extract a module for that. In
    training mode BatchNorm updates the shared statistics of the kept channels.
    """

    _bindings: list[Binding]
    ir: IR
    """The captured model, whose graph this one's was made of."""
    in_training: Callable[[], Program] | None = None
    """Makes the program that runs in training mode, where the model calls something else in it."""
    trained: Program | None = None
    """That program, once it was needed."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run it, on the shared parameters as they are now."""
        return super(Program, self.ready()).__call__(*args, **kwargs)

    def ready(self) -> Program:
        """The program that runs in this mode, which has the shared parameters as they are now."""
        if self.training and self.in_training is not None:
            if self.trained is None:
                self.__dict__["trained"] = self.in_training().train()
            assert self.trained is not None
            return self.trained.ready()
        for binding in self._bindings:
            binding.refresh()
        return self

    def __copy__(self) -> NoReturn:
        """Refused, as `__deepcopy__`."""
        raise ProgramError(
            "a program cannot be copied, pickled or saved: its parameters are views of the super-network's parameters. "
            "Use supernet.extract(subnet), a standalone copy that can"
        )

    def __deepcopy__(self, memo: Any) -> NoReturn:
        """Refused: its parameters would be views no more, and the copy would train by itself."""
        self.__copy__()

    def __reduce__(self) -> NoReturn:
        """Refused, as `__deepcopy__`."""
        self.__copy__()
