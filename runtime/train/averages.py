"""Values of tensors beside their own: running averages of the weights, and what is put back after a trial."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Average:
    """Averages of `tensors`, which change in place; those that are no floating-point numbers are left alone.

    After each `update`, average = decay * average + (1 - decay) * tensor.
    """

    def __init__(self, tensors: Mapping[str, Tensor], decay: float) -> None:
        self.decay = decay
        self._now = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}
        self.tensors = {name: tensor.detach().clone() for name, tensor in self._now.items()}
        self._update = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]

    def update(self) -> None:
        """Take the tensors of now into the averages."""
        self._update(list(self.tensors.values()), [tensor.detach() for tensor in self._now.values()], 0)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The tensors have the values of their averages inside, and their own again after; nothing is copied."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        """Tensors and averages take each other's values, one after another: in memory there is one more at a time."""
        with torch.no_grad():
            for name, tensor in self._now.items():
                own = tensor.clone()
                tensor.copy_(self.tensors[name])
                self.tensors[name].copy_(own)

    def settle(self) -> None:
        """The tensors take the values of their averages."""
        _copy(self.tensors, self._now)


@contextmanager
def put_back(tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """What is written to the tensors inside is undone after."""
    own = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    try:
        yield
    finally:
        _copy(own, tensors)


def _copy(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, tensor in target.items():
            tensor.copy_(source[name])
