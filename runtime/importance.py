"""Importance from data: of width entries by gradients, of skippable blocks by the loss without each block."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from bnas.passes import Subnet
from bnas.passes.assembly.importance import effects, no_scores

from .errors import TrainingError
from .evaluate.evaluation import Batch, Metric, accuracy, measured, recalibrate
from .feed import FILL, drawn
from .nested import batch_size
from .train import random_state
from .train.learner import Criterion, Learner, Moment
from .train.recipe import Recipe

if TYPE_CHECKING:
    from .supernetwork import SuperNetwork

SOURCE = "the data that importance is measured on"

# Importance of entries: first-order Taylor.


def taylor(
    supernet: SuperNetwork,
    batches: Iterable[Batch],
    criterion: Criterion | None = None,
    recipe: Recipe | None = None,
    subnet: Subnet | None = None,
) -> dict[str, Tensor]:
    """Return the first-order Taylor importance of each entry of each elastic width, by the name of the width.

    The importance estimates how much the loss changes when all parameters of an entry are set to zero. For each batch
    it is the square of the sum of gradient times weight, over all parameters that belong to the entry, in all layers
    that share the width; the result is the mean over the batches (Molchanov et al. 2019, Importance Estimation for
    Neural Network Pruning, equation 8; the sum over coupled layers as in Fang et al. 2023, DepGraph). An entry may be a
    channel, an attention head or a group of channels.

    Why the square and not the absolute value: batch noise is about as large as the effect of an entry, so absolute
    values of unimportant entries would add up to too much. On ResNet-20 at 1.4 times fewer MACs, the square leaves an
    accuracy of 88.7 % and the absolute value 63.1 % (docs/pruning.md).

    The network runs in training mode. Gradients, BatchNorm statistics and random generators are restored afterwards.

    Args:
        supernet: the super-network; it is not changed.
        batches: batches of the training data; 2,000 samples are enough. Smaller batches rank slightly better.
        criterion: the loss of outputs against targets, a mean over the batch; by default cross-entropy.
        recipe: label smoothing and precision of the loss; its distillation is ignored.
        subnet: measure it in this sub-network instead of the maximal one; entries that it does not keep get 0.

    Raises:
        TrainingError: there is no batch, one does not fit the model or the criterion, or a gradient is not finite.
        BatchError: the loader fails, or what it gives is no batch.
    """
    learner = Learner(supernet, replace(recipe or Recipe(), distillation=None), criterion)
    skeleton, network = supernet.skeleton, supernet.space.maximal() if subnet is None else subnet
    total, seen = no_scores(skeleton), 0
    with _borrowed(supernet), np.errstate(over="ignore"):
        for batch in drawn(batches, SOURCE):
            supernet.zero_grad()
            learner.accumulate([network], [batch], Moment(batch=seen))
            for symbol, effect in effects(skeleton, _gradients(supernet)).items():
                total[symbol] += np.square(effect)
            seen += 1
    if not seen:
        raise TrainingError(f"importance 'taylor' is measured on data, but the data are empty; {FILL}")
    found = {name: torch.from_numpy(total[one] / seen) for name, one in skeleton.choices.symbols.items()}
    for name, scores in found.items():
        if not bool(scores.isfinite().all()):
            raise TrainingError(
                f"importance 'taylor': gradients of {name} are not finite; check the data for extreme inputs"
            )
    return found


def _gradients(supernet: SuperNetwork) -> dict[str, Tensor]:
    tensors = ((name, supernet.ir.tensor(name)) for name in supernet.skeleton.types.tensors)
    return {name: tensor.grad for name, tensor in tensors if tensor.grad is not None}


@contextmanager
def _borrowed(supernet: SuperNetwork) -> Iterator[None]:
    """Inside, the model is in training mode and all parameters have gradients; everything is restored afterwards."""
    mode, parameters = supernet.training, list(supernet.parameters())
    before = [(one, one.grad, one.requires_grad) for one in parameters]
    buffers = [(one, one.detach().clone()) for one in supernet.model.buffers()]
    try:
        with random_state.undisturbed(None, 0):
            supernet.train()
            for one in parameters:
                one.requires_grad_(one.is_floating_point())
                one.grad = None
            yield
    finally:
        for one, gradient, learned in before:
            one.requires_grad_(learned)
            one.grad = gradient
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
        supernet.train(mode)


# Importance of blocks: the loss of the network without each.


@dataclass(frozen=True)
class BlockImportance:
    """Effect of skipping one block."""

    loss: float
    """Loss without the block."""
    rise: float
    """Increase of the loss against the network with all blocks."""
    accuracy: float | None = None
    """Accuracy (or value of the metric) without the block; None without a metric."""


def block_importance(
    supernet: SuperNetwork,
    batches: Iterable[Batch],
    criterion: Criterion | None = None,
    metric: Metric | None = None,
    subnet: Subnet | None = None,
) -> dict[str, BlockImportance]:
    """Return the effect of skipping each skippable block alone, by the name of the block.

    BatchNorm statistics are recalibrated on the same batches for each network, also for the one with all blocks:
    delivered networks are recalibrated too. Otherwise a block that only shifts statistics would seem important.

    Args:
        supernet: the super-network; it is not changed.
        batches: of the training data; they are kept in memory.
        criterion: as `taylor`.
        metric: a further metric to measure; by default top-1 accuracy if there is no `criterion`.
        subnet: measure it in this sub-network instead of the maximal one, for the blocks that it has.

    Raises:
        TrainingError: there is no batch, or one does not fit the model or the criterion.
        BatchError: the loader fails, or what it gives is no batch.
    """
    kept = list(drawn(batches, SOURCE))
    if not kept:
        raise TrainingError(f"the importance of blocks is measured on data, but the data are empty; {FILL}")
    learner = Learner(supernet, Recipe(distillation=None), criterion)
    metric = accuracy if metric is None and criterion is None else metric
    network = supernet.space.maximal() if subnet is None else subnet

    def measure(skipped: frozenset[str]) -> tuple[float, float | None]:
        module = supernet.extract(Subnet(network.widths, network.skipped | skipped, network.kernels))
        recalibrate(module, kept, source=SOURCE)
        sizes = [batch_size(batch) for batch in kept]
        losses = [learner.measured(module, batch, Moment(batch=place)) for place, batch in enumerate(kept)]
        loss = float(np.average(losses, weights=sizes))
        return loss, None if metric is None else measured(metric, module, kept)

    whole, _ = measure(frozenset())
    found = {name: measure(frozenset([name])) for name in supernet.space.blocks if name not in network.skipped}
    return {name: BlockImportance(loss, loss - whole, value) for name, (loss, value) in found.items()}
