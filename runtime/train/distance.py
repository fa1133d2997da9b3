"""Distances between numbers: is the loss of a training one, so that a teacher's outputs can be its targets?"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bnas.runtime.feed import OF_THE_PROCESS

NEAR = 0.01
"""Size of the differences with which a loss is tried, as a part of the standard deviation of the outputs."""
SEED = 0
"""Of the directions in which a loss is tried: each process and each resumed training tries the same."""


def as_targets(outputs: Any, targets: Any) -> Tensor | None:
    """Return a teacher's outputs in the form of the targets; None if the targets are not numbers of that form.

    Shapes may differ in axes of size 1: a column of outputs becomes a list of numbers, and the reverse.
    """
    if not (isinstance(outputs, Tensor) and isinstance(targets, Tensor)):
        return None
    if not (outputs.is_floating_point() and targets.is_floating_point()) or not outputs.numel():
        return None
    if outputs.squeeze().shape != targets.squeeze().shape:
        return None
    return outputs.detach().reshape(targets.shape).to(targets.dtype)


def is_distance(criterion: Callable[[Any, Any], Any], outputs: Tensor, targets: Tensor) -> bool:
    """Return whether a loss is least where outputs and targets are equal; `targets` are `outputs` in another shape.

    Squared and absolute errors are such losses, cross-entropies of scores are not. The loss is computed at `outputs`
    and near them, in two opposite directions, and has no slope at `outputs`. Without the slope, a cross-entropy of
    many numbers would pass: its steps up and down cancel out, and its curvature is left.
    """
    generator = torch.Generator().manual_seed(SEED)
    values = outputs.detach().float()
    spread = values.std(correction=0) + values.abs().mean() / 10 + NEAR
    away = torch.randn(values.shape, generator=generator).to(values.device) * spread
    try:
        here, there = (_slope(criterion, one, targets) for one in (values, values + away))
        with torch.no_grad():
            least, *others = (float(criterion(values + part * away, targets)) for part in (0.0, NEAR, -NEAR))
    except OF_THE_PROCESS:
        raise
    except Exception:
        return False  # the loss needs targets of its own kind
    flat = not math.isfinite(here) or here <= NEAR * there  # the root of a squared error has no slope at 0
    return flat and all(least < one for one in others)


def _slope(criterion: Callable[[Any, Any], Any], outputs: Tensor, targets: Tensor) -> float:
    with torch.enable_grad():
        given = outputs.clone().requires_grad_()
        (slope,) = torch.autograd.grad(criterion(given, targets), given)
    return float(slope.norm())
