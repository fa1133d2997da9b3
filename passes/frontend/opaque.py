"""Modules that cannot be recorded: what they return, found by running a copy of them for real."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .state import deep_copy
from .structure import at, leaves_of, map_leaves


def run_opaque(module: nn.Module, args: Any, kwargs: Mapping[str, Any], batch: int, device: torch.device) -> Any:
    """The value of a module on meta tensors: a copy of it is run on zeros.

    A size that is a multiple of `batch`, a prime, is taken for one that carries the batch: the copy is run with two
    small batches, and a size of the result that differs between them carries the batch too. The graph does not depend
    on that guess: it is compared with the model before it is used.
    """
    twin = deep_copy(module).eval()

    def run(count: int) -> Any:
        def real(_: Any, leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return device if isinstance(leaf, torch.device) else leaf
            shape = [n // batch * count if n and n % batch == 0 else n for n in leaf.shape]
            return torch.zeros(shape, dtype=leaf.dtype, device=device)

        given, named = map_leaves((tuple(args), dict(kwargs)), real)
        with torch.no_grad():
            return twin(*given, **named)

    with torch.random.fork_rng(devices=[]):
        two, three = run(2), run(3)

    def lift(path: Any, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        other = at(three, path)
        shape = [a if a == b else a // 2 * batch for a, b in zip(leaf.shape, other.shape, strict=True)]
        return torch.empty(shape, dtype=leaf.dtype, device="meta")

    if len(list(leaves_of(two))) != len(list(leaves_of(three))):
        raise ValueError("what it returns depends on the batch")
    return map_leaves(two, lift)
