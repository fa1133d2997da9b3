"""Functions that take a mean and a variance in one call, in the operators that have rules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def var_mean(input: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    """Return what `torch.var_mean` returns."""
    return _spread(torch.var, input, *args, **kwargs)


def std_mean(input: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    """Return what `torch.std_mean` returns."""
    return _spread(torch.std, input, *args, **kwargs)


def _spread(
    spread: Any, input: Tensor, dim: Any = None, unbiased: bool = True, keepdim: bool = False, **more: Any
) -> tuple[Tensor, Tensor]:
    if isinstance(dim, bool):  # torch.var_mean(x, False)
        dim, unbiased = None, dim
    dim = list(range(input.dim())) if dim is None else dim
    correction = more.get("correction", int(unbiased))
    return spread(input, dim, correction=correction, keepdim=keepdim), torch.mean(input, dim, keepdim=keepdim)


def standardise(
    input: Tensor,
    running_mean: None = None,
    running_var: None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Return what `F.batch_norm` without running statistics returns for one sample (1, C, ...).

    So timm standardises the weights of a convolution: each sample is a row of them.
    """
    var, mean = var_mean(input, [0, *range(2, input.dim())], correction=0, keepdim=True)
    out = (input - mean) / torch.sqrt(var + eps)
    shape = [1, -1, *[1] * (input.dim() - 2)]
    out = out if weight is None else out * weight.reshape(shape)
    return out if bias is None else out + bias.reshape(shape)


def taken_apart(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Callable[..., Any] | None:
    """Return the function of this module to call in place of `func`; None if `func` is called itself."""
    if func is F.batch_norm:
        input, running = args[0] if args else kwargs["input"], (*args[1:3], *map(kwargs.get, RUNNING))
        return standardise if input.shape[0] == 1 and not any(isinstance(one, Tensor) for one in running) else None
    return PAIRS.get(func)


PAIRS: Mapping[Any, Callable[..., Any]] = {torch.var_mean: var_mean, torch.std_mean: std_mean}
RUNNING = ("running_mean", "running_var")
