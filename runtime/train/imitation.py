"""How a sub-network can learn from a teacher's outputs under a loss that bnas does not know.

The loss is tried on the first batch. Class scores are compared by their softmax. Where the loss is a distance, the
teacher's outputs take the place of the targets. Boxes, embeddings and other outputs are not imitated: any other
comparison has another meaning and another scale than the loss, and in shared weights the larger one wins.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bnas.passes.frontend.structure import Attribute, leaves_of, map_leaves
from bnas.runtime.feed import OF_THE_PROCESS

Loss = Callable[[Any, Any], Any]


@dataclass(frozen=True)
class Imitation:
    """The result of `imitation`: how a loss compares the outputs of a sub-network and of a teacher."""

    as_targets: Callable[[Tensor], Tensor] | None = None
    """Makes targets of the teacher's outputs; None if the loss is not a distance."""
    class_axes: Mapping[str, int] | None = None
    """For each output that the loss reads, the axis of its class scores; None if an output has no such axis."""


def imitation(criterion: Loss, teacher: Any, targets: Any) -> Imitation:
    """Try a loss on the outputs of a teacher, with the targets of the same batch."""
    wanted = as_targets(teacher, targets)
    if wanted is not None:
        unit = bool(targets.min() >= 0) and bool(targets.max() <= 1)
        for link in (_same, torch.sigmoid)[: 2 if unit else 1]:  # sigmoid: binary cross-entropies of scores
            if is_distance(criterion, teacher.detach(), link(wanted)):
                return Imitation(as_targets=link)
    return Imitation(class_axes=class_axes(criterion, teacher, targets))


def _same(outputs: Tensor) -> Tensor:
    return outputs


def float_tensors(outputs: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield the floating-point tensors in nested outputs, by their place; a scalar is a loss of the model's own."""
    for path, leaf in leaves_of(outputs):
        if _is_output(leaf):
            yield _spelled(path), leaf


def _is_output(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.ndim > 0


def _spelled(path: tuple[Any, ...]) -> str:
    steps = [f".{step.name}" if isinstance(step, Attribute) else f"[{step!r}]" for step in path]
    return "output" + "".join(steps)


# Class scores.

FAR = 3.0
"""Size of the numbers that are added to scores."""
ZERO = 1e-3
"""A sum or a difference counts as zero below this part of the absolute values."""


def class_axes(criterion: Loss, outputs: Any, targets: Any) -> dict[str, int] | None:
    """Return the axis of the class scores of each output that a loss reads; None if one of them has no such axis.

    A cross-entropy stays the same if all scores of a sample grow by one number. Therefore its slope adds up to zero
    over the classes, at every place. Logarithms of probabilities are recognised too: their exponentials add up to one.
    """
    tried = map_leaves(outputs, lambda _, leaf: _trial(leaf))
    inputs, values = dict(float_tensors(tried)), dict(float_tensors(outputs))
    axes: dict[str, int | None] = {}
    try:
        with torch.enable_grad():
            loss = criterion(tried, targets)
            slopes = torch.autograd.grad(loss, list(inputs.values()), allow_unused=True)
        for place, slope in zip(inputs, slopes, strict=True):
            if slope is not None:  # the loss reads it
                unmoved = partial(_unmoved, criterion, tried, targets, float(loss.detach()), place)
                axes[place] = _class_axis(values[place].detach().float(), slope, unmoved)
    except OF_THE_PROCESS:
        raise
    except Exception:
        return None  # the training shows this error with the batch
    found = {place: axis for place, axis in axes.items() if axis is not None}
    return found if found and len(found) == len(axes) else None


def _trial(output: Any) -> Any:
    """Return outputs of a moderate size: where a network is sure of all classes, slopes are too small to add up."""
    if not _is_output(output):
        return output.detach() if isinstance(output, Tensor) else output
    values = output.detach().float()
    return (values / (values.std(correction=0) + NEAR)).requires_grad_()


def _class_axis(values: Tensor, slope: Tensor, unmoved: Callable[[int], bool]) -> int | None:
    """Return the axis of class scores: 1 if that can be, as in all losses of PyTorch, else the last possible one."""
    most = float(slope.abs().sum())
    axes: list[int] = [1, *range(values.ndim - 1, 1, -1)]
    for axis in axes if most else []:
        if axis >= values.ndim or values.shape[axis] < 2:
            continue
        flat = float(slope.sum(axis).abs().sum()) <= ZERO * most
        if float(values.logsumexp(axis).abs().max()) <= ZERO or (flat and unmoved(axis)):
            return axis
    return None


def _unmoved(criterion: Loss, outputs: Any, targets: Any, loss: float, place: str, axis: int) -> bool:
    """Whether a loss stays the same if the entries along an axis of an output grow by one number, at every place.

    The slope alone is not enough: of absolute errors in a few boxes, it may add up to zero by chance.
    """
    generator = torch.Generator().manual_seed(SEED)

    def moved(path: tuple[Any, ...], leaf: Any) -> Any:
        if _spelled(path) != place:
            return leaf
        numbers = torch.randn([1 if one == axis else size for one, size in enumerate(leaf.shape)], generator=generator)
        return leaf + FAR * numbers.to(leaf.device)

    with torch.no_grad():
        other = float(criterion(map_leaves(outputs, moved), targets))
    return abs(other - loss) <= ZERO * abs(loss)


# Distances between numbers.

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
