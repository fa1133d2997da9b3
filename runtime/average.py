"""Exponential moving averages of the shared weights."""

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
        """The tensors have the values of their averages inside, and their own again after."""
        own = {name: tensor.detach().clone() for name, tensor in self._now.items()}
        self.settle()
        try:
            yield
        finally:
            _copy(own, self._now)

    def settle(self) -> None:
        """The tensors take the values of their averages."""
        _copy(self.tensors, self._now)


def _copy(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, tensor in target.items():
            tensor.copy_(source[name])
