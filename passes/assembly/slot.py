"""Slots: which shared tensor fills a place in a module, and which entries of each axis are kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import NoneType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnas.passes.axes.selection import Kept
from bnas.passes.space.kernels import Kernel, per_axis

# From a large kernel to a small one, as in Once-for-All: centre crops, each followed by a trainable matrix.
#
# Cai et al. 2020, section 3: one matrix for each convolution and step, shared by its channels. The matrices start as
# identities, so that a small kernel is at first the centre of the large one.


@dataclass(frozen=True)
class Shrink:
    """Computes a smaller kernel from the full one; differentiable with respect to the kernel and the matrices."""

    matrices: nn.Module
    """Module with the matrices of this convolution."""
    steps: tuple[tuple[str, tuple[int, ...]], ...]
    """For each step, the name of its matrix and the resulting sizes of the axes."""

    def __call__(self, weight: Tensor) -> Tensor:
        """Return the kernel of shape (out, in, small sizes) for `weight` of shape (out, in, full sizes).

        The matrix acts on the row-major entries of the centre: ``new[q] = sum_p matrix[q, p] * centre[p]``.
        """
        for matrix, (_, sizes) in zip(self.parameters(), self.steps, strict=True):
            entries = centre(weight, sizes).flatten(2)  # the model may have been converted without the matrices
            weight = F.linear(entries, matrix.to(entries)).reshape(*weight.shape[:2], *sizes)
        return weight

    def parameters(self) -> list[nn.Parameter]:
        """The matrices as they are now, in the order of their use."""
        return [self.matrices.get_parameter(name) for name, _ in self.steps]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Entries of each axis of the small kernel."""
        return self.steps[-1][1]


def centre(weight: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """Return a view of the central `sizes` entries of all axes after the first two."""
    for axis, size in enumerate(sizes, start=2):
        weight = weight.narrow(axis, (weight.shape[axis] - size) // 2, size)
    return weight


class Matrices(nn.Module):
    """The matrices of elastic kernels. ``PATH.7to5`` is for the step from 7 to 5 of the convolution at PATH."""

    def __init__(self, kernels: Iterable[tuple[Kernel, Tensor]]) -> None:
        """Create identity matrices with the device and number type of each kernel's full weight."""
        super().__init__()
        for kernel, weight in kernels:
            holder = self._make(kernel.name)
            for name, sizes in _steps(kernel, kernel.choices[0]):
                entries = torch.Size(sizes).numel()
                holder.register_parameter(name, nn.Parameter(torch.eye(entries, dtype=weight.dtype).to(weight.device)))

    def _make(self, path: str) -> nn.Module:
        place: nn.Module = self
        for part in path.split("."):
            if part not in place._modules:
                place.add_module(part, nn.Module())
            place = place.get_submodule(part)
        return place

    def shrink(self, kernel: Kernel, choice: int) -> Shrink | None:
        """Return the computation of the kernel of size `choice`; None at full size."""
        steps = _steps(kernel, choice)
        return Shrink(self.get_submodule(kernel.name), steps) if steps else None


def _steps(kernel: Kernel, choice: int) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple((f"{k}to{k - 2}", kernel.at(k - 2)) for k in range(kernel.choices[-1], choice, -2))


def fit_kernel(conv: Any, full: tuple[int, ...], sizes: tuple[int, ...]) -> None:
    """Set kernel size and padding of a layer whose kernel was cut from `full` to `sizes`; outputs keep their places."""
    if sizes == full:
        return
    dilation = per_axis(conv.dilation, len(sizes))
    cuts = [d * (a - b) // 2 for d, a, b in zip(dilation, full, sizes, strict=True)]
    conv.kernel_size = sizes
    if not isinstance(conv.padding, str):
        conv.padding = tuple(p - cut for p, cut in zip(per_axis(conv.padding, len(sizes)), cuts, strict=True))
    both_sides = [cut for cut in reversed(cuts) for _ in range(2)]
    before = conv._reversed_padding_repeated_twice  # used by padding modes other than zeros
    conv._reversed_padding_repeated_twice = [p - cut for p, cut in zip(before, both_sides, strict=True)]


@dataclass(frozen=True, eq=False)
class Slot:
    """The part of a shared tensor that a sub-network keeps."""

    owner: nn.Module
    """The shared module that holds the tensor."""
    name: str
    """Name of the tensor in the module."""
    kept: tuple[Kept, ...]
    """For each axis: None (all entries), k (the first k), or an index vector. Empty keeps the whole tensor."""
    shrink: Shrink | None = None
    """Computes the smaller kernel of a convolution from the kept entries."""

    @property
    def shared(self) -> Tensor:
        """The *current* shared tensor; it may be replaced after a program was made."""
        tensor = self.owner._parameters.get(self.name)
        found = self.owner._buffers[self.name] if tensor is None else tensor
        assert found is not None
        return found

    @property
    def is_parameter(self) -> bool:
        """Whether the tensor is a parameter, not a buffer."""
        return self.name in self.owner._parameters

    @cached_property
    def whole(self) -> bool:
        """Whether all entries are kept."""
        return self.shrink is None and {*map(type, self.kept)} <= {NoneType}

    @cached_property
    def prefix(self) -> bool:
        """Whether a view suffices: every axis keeps its first entries, and nothing is computed."""
        return self.shrink is None and {*map(type, self.kept)} <= {NoneType, int}

    @cached_property
    def _indices(self) -> dict[tuple[int, torch.device], Tensor]:
        return {}

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Shape of the kept part."""
        full = tuple(self.shared.shape)
        sizes = [n if k is None else k if isinstance(k, int) else len(k) for n, k in zip(full, self.kept, strict=False)]
        return (*sizes, *full[len(sizes) :]) if self.shrink is None else (*sizes[:2], *self.shrink.sizes)

    def take(self, tensor: Tensor) -> Tensor:
        """Return the kept part of `tensor`, differentiably; a view if `prefix` is true."""
        for axis, k in enumerate(self.kept):
            if isinstance(k, int):
                tensor = tensor.narrow(axis, 0, k)
            elif k is not None:
                tensor = tensor.index_select(axis, self._index(axis, tensor.device))
        return tensor if self.shrink is None else self.shrink(tensor)

    def _index(self, axis: int, device: torch.device) -> Tensor:
        """Return the index vector of an axis on a device; cached, since the transfer takes longer than its use."""
        if (axis, device) not in self._indices:
            with torch.inference_mode(False):  # tensors made in inference mode cannot be used in training
                self._indices[axis, device] = torch.from_numpy(self.kept[axis]).to(device)
        return self._indices[axis, device]

    def put(self, tensor: Tensor, values: Tensor) -> None:
        """Write `values` to the kept entries of `tensor`, in place. Not for computed kernels."""
        assert self.shrink is None
        places = torch.arange(tensor.numel(), device=tensor.device).reshape(tensor.shape)
        tensor.put_(self.take(places), values)


class Copies:
    """Binds contiguous copies of the kept parts; tied tensors stay tied."""

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
            self._made[id(shared)] = shared, made  # keeps the original too: its id is reused once it is freed
        return self._made[id(shared)][1]
