"""A place that needs a tensor: which shared tensor fills it, and what is kept of each axis."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import NoneType
from typing import Any

import torch
from torch import Tensor, nn

from .selection import Kept
from .shrinking import Shrink


@dataclass(frozen=True, eq=False)
class Slot:
    """The part of a shared tensor that a sub-network keeps."""

    owner: nn.Module
    """The shared module that holds the tensor."""
    name: str
    """Its name there."""
    kept: tuple[Kept, ...]
    """For each axis: everything (None), the first k, or an index vector; empty keeps the whole tensor."""
    shrink: Shrink | None = None
    """Computes the smaller kernel of a convolution from what is kept."""

    @property
    def shared(self) -> Tensor:
        """The shared tensor as it is *now*: it may be replaced after a program was made."""
        tensor = self.owner._parameters.get(self.name)
        found = self.owner._buffers[self.name] if tensor is None else tensor
        assert found is not None
        return found

    @property
    def is_parameter(self) -> bool:
        """A parameter, not a buffer."""
        return self.name in self.owner._parameters

    @cached_property
    def whole(self) -> bool:
        """Everything is kept."""
        return self.shrink is None and {*map(type, self.kept)} <= {NoneType}

    @cached_property
    def prefix(self) -> bool:
        """Every axis keeps its first entries, and nothing is computed: a view does."""
        return self.shrink is None and {*map(type, self.kept)} <= {NoneType, int}

    @cached_property
    def _indices(self) -> dict[tuple[int, torch.device], Tensor]:
        return {}

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Sizes of what is kept."""
        full = tuple(self.shared.shape)
        sizes = [n if k is None else k if isinstance(k, int) else len(k) for n, k in zip(full, self.kept, strict=False)]
        return (*sizes, *full[len(sizes) :]) if self.shrink is None else (*sizes[:2], *self.shrink.sizes)

    def take(self, tensor: Tensor) -> Tensor:
        """What is kept of `tensor`, differentiable; a view of it where `prefix` holds."""
        for axis, k in enumerate(self.kept):
            if isinstance(k, int):
                tensor = tensor.narrow(axis, 0, k)
            elif k is not None:
                tensor = tensor.index_select(axis, self._index(axis, tensor.device))
        return tensor if self.shrink is None else self.shrink(tensor)

    def _index(self, axis: int, device: torch.device) -> Tensor:
        """The index vector of an axis on a device, where it stays: to move it there takes longer than to use it."""
        if (axis, device) not in self._indices:
            with torch.inference_mode(False):  # a tensor that is made in inference mode cannot be used in training
                self._indices[axis, device] = torch.from_numpy(self.kept[axis]).to(device)
        return self._indices[axis, device]

    def put(self, tensor: Tensor, values: Tensor) -> None:
        """Write `values` to the kept entries of `tensor`, in place; not where they are computed."""
        assert self.shrink is None
        places = torch.arange(tensor.numel(), device=tensor.device).reshape(tensor.shape)
        tensor.put_(self.take(places), values)


class Copies:
    """Binds tensors of their own: contiguous copies; what was tied stays tied."""

    def __init__(self) -> None:
        self._made: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, shell: nn.Module, slots: Mapping[str, Slot]) -> nn.Module:
        """Fill `shell` with copies of what its slots keep."""
        for name, slot in slots.items():
            tensor = self._copy(slot)
            table: Any = shell._parameters if isinstance(tensor, nn.Parameter) else shell._buffers
            table[name] = tensor
        return shell

    def _copy(self, slot: Slot) -> Tensor:
        shared = slot.shared
        if id(shared) not in self._made:
            data = slot.take(shared.detach()).detach().clone(memory_format=torch.contiguous_format)
            parameter = isinstance(shared, nn.Parameter)
            made = nn.Parameter(data, shared.requires_grad) if parameter else data
            self._made[id(shared)] = shared, made  # both: an id is used again when its tensor is gone
        return self._made[id(shared)][1]
