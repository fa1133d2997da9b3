"""Running averages of the weights, and tensors that are restored after a trial."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Average:
    """Exponential moving averages of the floating-point tensors among `tensors`, which change in place.

    Each `update` sets average = decay * average + (1 - decay) * tensor.
    """

    def __init__(self, tensors: Mapping[str, Tensor], decay: float) -> None:
        self.decay = decay
        self._now = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}
        self.tensors = {name: tensor.detach().clone() for name, tensor in self._now.items()}
        self._update = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]

    def update(self) -> None:
        """Update the averages with the current tensors."""
        self._update(list(self.tensors.values()), [tensor.detach() for tensor in self._now.values()], 0)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the tensors have the values of their averages; afterwards their own. Values are swapped in place."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        """Swap tensors and averages one by one, so that only one additional tensor is in memory."""
        with torch.no_grad():
            for name, tensor in self._now.items():
                own = tensor.clone()
                tensor.copy_(self.tensors[name])
                self.tensors[name].copy_(own)

    def settle(self) -> None:
        """Set the tensors to their averages."""
        _copy(self.tensors, self._now)


@contextmanager
def put_back(tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Restore the tensors afterwards."""
    own = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    try:
        yield
    finally:
        _copy(own, tensors)


def _copy(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, tensor in target.items():
            tensor.copy_(source[name])
