"""The parts of an evaluation: recalibrate BatchNorm, fold it into convolutions, measure the accuracy on batches."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from bnas.passes import BnasError
from bnas.passes.frontend.ir import as_program_call
from bnas.passes.frontend.state import set_modes, with_statistics
from bnas.passes.space.kernels import is_convolution
from bnas.runtime.feed import FILL, OF_THE_PROCESS, about_classes, drawn, outside, running, told
from bnas.runtime.nested import (
    as_batch,
    batch_size,
    described,
    device_of,
    inputs_of,
    laid_out,
    placed,
    samples_of,
    scores_of,
    tensors_in,
)

Batch = tuple[Any, Any]
"""Inputs and targets, as a data loader gives them. Inputs are a tensor, or a tuple or dict of them.

A whole batch may be a dict too: "labels" (or "label", "targets", "target") is the target, the others are the inputs.
"""


class Loader(Protocol):
    """An iterable of batches that can be iterated repeatedly, such as a `torch.utils.data.DataLoader` or a list.

    Its length, if it has one, is the number of batches. A loader without a length is a stream: bnas never keeps all of
    its data in memory.
    """

    def __iter__(self) -> Iterator[Batch]:
        """The batches."""


Metric = Callable[[nn.Module, Iterable[Batch]], float]
"""Returns the quality of a module in evaluation mode on batches, as one number."""


Fuse = Callable[[nn.Module, nn.Module], "nn.Module | None"]
"""Folds a normalisation into the layer before it; returns None if that is impossible."""


class EvaluationError(BnasError):
    """A module cannot be evaluated: no data, or outputs that are not numbers."""


def recalibrate(
    module: nn.Module,
    batches: Iterable[Batch],
    forward: Callable[..., object] | None = None,
    source: str = "the calibration data",
) -> None:
    """Set the BatchNorm statistics of `module`, in place, to their averages over `batches`.

    All batches have the same weight (``momentum=None``), and dropout is off. Modes and momenta are restored afterwards.
    Give at least 500 images with the *training* transform: statistics of images without it cost several points of
    accuracy.

    Args:
        module: The module.
        batches: Batches of inputs; their targets are ignored.
        forward: Function that runs the module on inputs; by default the module itself.
        source: Name of the batches in error messages.

    Raises:
        EvaluationError: The module has BatchNorm statistics but there are no batches, or it fails on a batch.
        BatchError: The loader fails, or returns something that is not a batch.
    """
    norms = with_statistics(module)
    if not norms:
        return
    modes = {m: m.training for m in module.modules()}
    momenta = {norm: norm.momentum for norm in norms}
    module.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    try:
        seen = 0
        with torch.no_grad():
            takes = inputs_of(module)
            for batch in drawn(batches, source):
                inputs, _ = as_batch(batch, takes)
                with running(f"batch {seen} of {source}", inputs, module, EvaluationError):
                    tensors, named = as_program_call(placed(inputs, device_of(module)))
                    (forward or module)(*tensors, **named)
                seen += 1
    finally:
        for norm, momentum in momenta.items():
            norm.momentum = momentum
        set_modes(modes)
    if not seen:
        raise EvaluationError(f"BatchNorm statistics cannot be recalibrated: the calibration data are empty; {FILL}")


def fold(module: GraphModule, fuse: Fuse | None = None) -> GraphModule:
    """Fold each BatchNorm into the convolution or linear layer that only it reads, in place; returns `module`.

    In evaluation mode the outputs are the same up to rounding. A layer that is called twice is left unchanged.
    """
    uses = [str(node.target) for node in module.graph.nodes if node.op == "call_module"]
    for node in list(module.graph.nodes):
        before = node.args[0] if node.args and isinstance(node.args[0], Node) else None
        if node.op != "call_module" or before is None or before.op != "call_module" or len(before.users) > 1:
            continue
        layer, norm = module.get_submodule(str(before.target)), module.get_submodule(str(node.target))
        fused = (fuse or fused_layer)(layer, norm)
        if fused is not None and uses.count(str(node.target)) == uses.count(str(before.target)) == 1:
            module.set_submodule(str(before.target), fused)
            node.replace_all_uses_with(before)
            module.graph.erase_node(node)
            if not norm._modules:  # a layer of a user's class may contain layers that the graph also calls
                module.delete_submodule(str(node.target))
    module.recompile()
    return module


def fused_layer(layer: nn.Module, norm: nn.Module) -> nn.Module | None:
    """Return one layer that computes `layer` followed by `norm`, or None if no layer can."""
    if not isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d) or not norm.track_running_stats:
        return None
    if is_convolution(layer):
        return fuse_conv_bn_eval(layer, norm)  # type: ignore[type-var]
    return fuse_linear_bn_eval(layer, norm) if type(layer) is nn.Linear else None


def accuracy(module: nn.Module, batches: Iterable[Batch]) -> float:
    """Return the top-1 accuracy (0 to 1) of a module with scores of shape (batch, classes); targets are class numbers.

    The scores are the output, its ``logits``, or the first entry of a tuple.

    Raises:
        EvaluationError: There is no data, the module fails on a batch, an output is NaN or infinite or has another
            shape, or the targets are not class numbers of the model.
        BatchError: The loader fails, or returns something that is not a batch.
    """
    right = total = 0
    with torch.inference_mode():
        takes, source = inputs_of(module), getattr(batches, "source", "the data")
        for number, batch in enumerate(drawn(batches, source)):
            inputs, targets = as_batch(batch, takes)
            with running(f"batch {number} of {source}", inputs, module, EvaluationError):
                tensors, named = as_program_call(placed(laid_out(inputs, "channels_last"), device_of(module)))
                found = module(*tensors, **named)
                outputs = scores_of(found)
                _check_scores(outputs, found, targets)
                if not bool(torch.isfinite(outputs).all()):
                    raise EvaluationError(f"an output is NaN or inf{_remark_on_inputs(inputs)}")
            right += int((outputs.argmax(1) == placed(targets, outputs.device)).sum())
            total += len(targets)
    if not total:
        raise EvaluationError(f"the accuracy cannot be measured: the data are empty; {FILL}")
    return right / total


OWN_METRIC = "give your own metric (metric=..., or the key `metric` of a configuration file)"


def _check_scores(outputs: Any, found: Any, targets: Any) -> None:
    if not isinstance(outputs, Tensor) or outputs.ndim != 2 or outputs.shape[1] == 1:
        raise EvaluationError(
            f"accuracy needs outputs of shape (batch, classes) with at least 2 classes; the model returns "
            f"{described(found)}: {OWN_METRIC}"
        )
    if not isinstance(targets, Tensor):
        raise EvaluationError(
            f"accuracy needs class numbers as targets, but the batch has {described(targets)}: return a pair (inputs, "
            "targets), or a dict with the targets under 'labels'"
        )
    fault = _about_targets(outputs, targets)
    if fault:
        raise EvaluationError(
            f"outputs are {described(outputs)} and targets {described(targets)}: {fault}; for another "
            f"measure {OWN_METRIC}"
        )


def _about_targets(outputs: Tensor, targets: Tensor) -> str:
    """Return what is wrong with class numbers of any integer or float type; empty if nothing is."""
    if targets.ndim != 1 or len(targets) != len(outputs):
        return about_classes(outputs, targets)
    return outside(outputs, targets)


def _remark_on_inputs(inputs: Any) -> str:
    """Return the remedy for outputs that are not finite: if the inputs are not finite either, it is in the data."""
    given = (one for one in tensors_in(inputs) if one.is_floating_point())
    if all(bool(torch.isfinite(one).all()) for one in given):
        return ". If the model was just trained, the training diverged: lower the learning rate, or set clip_norm"
    return ", and so are the inputs: check the data"


def _called(metric: Metric, module: nn.Module, batches: Iterable[Batch]) -> Any:
    """Call `metric`; an error names the metric and the line."""
    try:
        return metric(module, batches)
    except (BnasError, OSError, *OF_THE_PROCESS):
        raise
    except Exception as error:
        name = _name_of(metric)
        frames = traceback.extract_tb(error.__traceback__)
        home = getattr(getattr(metric, "__code__", None), "co_filename", None)
        own = [one for one in frames if one.filename == home]  # the user's lines, not those of torch
        last = (own or frames)[-1]
        raise EvaluationError(
            f"the metric {name!r} fails with {told(error)} at {last.filename}:{last.lineno}; it is called as "
            f"{name}(module, batches), and each batch is a pair (inputs, targets)"
        ) from error


def _name_of(metric: Metric) -> str:
    return getattr(metric, "__name__", type(metric).__name__)


def measured(metric: Metric, module: nn.Module, batches: Iterable[Batch]) -> float:
    """Return what `metric` returns, as a float; NaN is allowed.

    Raises:
        EvaluationError: The metric fails, or does not return a number.
    """
    found: Any = _called(metric, module, batches)
    try:
        if isinstance(found, str | bool):
            raise TypeError(f"it is a {type(found).__name__}")
        return float(found)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        given = described(found) if isinstance(found, Tensor) else repr(found)
        raise EvaluationError(
            f"the metric {_name_of(metric)!r} must return one number, such as 0.93; it returned {given} ({told(error)})"
        ) from error


def first_samples(batches: Iterable[Batch], count: int, source: str = "the data") -> list[Batch]:
    """Return the first batches with `count` samples in total, in memory, so that all sub-networks get the same ones.

    A last batch that cannot be divided is returned whole (`samples_of`).

    Raises:
        BatchError: The loader fails, or returns something that is not a batch. The message calls the data `source`.
    """
    kept: list[Batch] = []
    for batch in drawn(batches, source):
        if count <= 0:
            break
        part = samples_of(batch, slice(count))
        kept.append(batch if part is None else part)
        count -= batch_size(batch)
    return kept


def counted_samples(batches: Iterable[Batch], source: str = "the data") -> int:
    """Count the samples, with one batch in memory at a time.

    Raises:
        BatchError: As `first_samples`.
    """
    return sum(map(batch_size, drawn(batches, source)))


def spread_samples(batches: Iterable[Batch], count: int, source: str = "the data") -> list[Batch]:
    """Return `count` samples, evenly spread over all batches: sorted data then still have all classes or lengths.

    The batches are read twice and must be the same each time. Of batches that cannot be divided (`samples_of`), whole
    ones are chosen.

    Raises:
        BatchError: As `first_samples`.
    """
    whole = counted_samples(batches, source)  # a separate pass over the data, since a stream may not fit into memory
    chosen = torch.arange(min(count, whole)) * whole // max(min(count, whole), 1)
    kept, first, missing = [], 0, 0
    for batch in drawn(batches, source):
        size = batch_size(batch)
        own = chosen[(chosen >= first) & (chosen < first + size)] - first
        first += size
        part = samples_of(batch, own)
        if part is None:
            missing += len(own)
            if missing > 0:
                kept.append(batch)
                missing -= size
        elif len(own):
            kept.append(part)
    return kept
