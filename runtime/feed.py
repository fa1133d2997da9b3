"""The entrance for data: check each batch of a loader when it is drawn, and name the batch in every error.

A check takes microseconds, since it looks at types and shapes and never at numbers. Numbers are read only for the
message of an error that was raised anyway.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset

from bnas.passes import BnasError
from bnas.passes.frontend.ir import as_call
from bnas.passes.frontend.state import preserved

from .errors import BatchError
from .nested import TARGETS, as_batch, described, device_of, inputs_of, placed, tensors_in

FILL = (
    "give at least one batch (with drop_last=True, a full one); an iterator, such as a generator, can be read only "
    "once: give a loader or a list"
)
"""The remedy for data without a batch."""

OF_THE_PROCESS = (MemoryError, torch.OutOfMemoryError, InterruptedError)
"""Errors that a batch cannot have caused."""

# Batches, one after another.


def drawn(loader: Iterable[Any], source: str = "the data", first: int = 0) -> Iterator[Any]:
    """Iterate over the batches of `loader` and check each. The loader's iterator is created at once.

    Args:
        loader: A loader, or its iterator.
        source: Name of the data in error messages.
        first: Number of the first batch.

    Raises:
        BatchError: The loader fails, or returns something that no model can run on. The message has the number of the
            batch, from 0. Errors of bnas pass unchanged.
    """
    if not hasattr(loader, "__iter__") and not hasattr(loader, "__getitem__"):
        wanted = "must be batches of inputs and targets, such as a DataLoader or a list"
        raise BatchError(f"{source}: {wanted}, not {type(loader).__name__}")
    with _from_loader(source):
        batches = iter(loader)
    return _looked_at(batches, source, first)


def _looked_at(batches: Iterator[Any], source: str, number: int) -> Iterator[Any]:
    while True:
        place = f"batch {number} of {source}"
        with _from_loader(place):
            batch = next(batches, _looked_at)
        if batch is _looked_at:
            return
        _check(batch, place)
        yield batch
        number += 1


@contextmanager
def _from_loader(place: str) -> Iterator[None]:
    try:
        yield
    except (BnasError, *OF_THE_PROCESS):
        raise
    except Exception as error:
        raise BatchError(f"{place}: the loader fails: {told(error)}") from error


def _check(batch: Any, place: str) -> None:
    """Raise BatchError for a batch that no model can run on, or that bnas would misinterpret."""
    try:
        inputs, _ = as_batch(batch)
    except BatchError as error:
        raise BatchError(f"{place}: {error}") from None
    found = next(iter(tensors_in(inputs)), None)
    if found is None:
        _refuse(place, batch, "no input is a tensor: make the transform or collate_fn return tensors")
    if not found.ndim:
        _refuse(place, batch, "its first input has no batch axis: make the collate_fn stack the samples")
    if not len(found):
        _refuse(place, batch, "it is empty: make the loader skip it (sampler or collate_fn)")
    if found.is_meta:
        _refuse(place, batch, "it is on the meta device, where tensors have no values")


def _refuse(place: str, batch: Any, why: str) -> NoReturn:
    raise BatchError(f"{place} ({spelled(batch)}): {why}")


def spelled(batch: Any) -> str:
    """Return the shapes and types of a batch, for an error message."""
    if isinstance(batch, list | tuple) and len(batch) == 2:
        return f"inputs {described(batch[0])}, targets {described(batch[1])}"
    return described(batch)


# Data that are read several times: from memory, or from the loader again.


def length_of(loader: Any) -> int | None:
    """Return the number of batches of a loader, or of samples of a data set; None if it is unknown."""
    try:
        return len(loader)
    except (TypeError, NotImplementedError):
        return None


def is_stream(loader: Any) -> bool:
    """Whether a loader may have more than fits into memory: its data are an `IterableDataset`, or it has no length."""
    return isinstance(getattr(loader, "dataset", None), IterableDataset) or length_of(loader) is None


def in_memory(loader: Any) -> Any:
    """Return the batches of a loader as a list. A stream is returned unchanged; it is read again each time."""
    return loader if is_stream(loader) and not isinstance(loader, Iterator) else list(loader)


def again(batches: Any) -> Any:
    """Return batches that can be read more than once; those of an iterator, such as a generator, become a list."""
    return list(drawn(batches)) if isinstance(batches, Iterator) else batches


# Running a model on a batch.


@contextmanager
def running(place: str, inputs: Any, module: nn.Module, kind: type[BnasError]) -> Iterator[None]:
    """Raise an error inside as a `kind` that names the batch and the remedy; errors of bnas pass unchanged."""
    try:
        yield
    except OF_THE_PROCESS:
        raise
    except BnasError as error:
        error.args = (f"{place} (inputs {described(inputs)}): {error}", *error.args[1:])
        raise
    except Exception as error:
        raise kind(
            f"{place}: inputs {described(inputs)} do not fit the model: {told(error)}{remedy(error, inputs, module)}"
        ) from error


def try_batch(model: nn.Module, batch: Any, place: str) -> None:
    """Run a model on a batch, in evaluation mode; the model stays as it is. `place` names the batch in errors.

    Raises:
        BatchError: The model fails on the batch.
    """
    inputs, _ = as_batch(batch, inputs_of(model))
    with preserved(model, data=True), torch.no_grad(), running(place, inputs, model, BatchError):
        tensors, named = as_call(placed(inputs, device_of(model)))
        model.eval()(*tensors, **named)


def told(error: BaseException) -> str:
    """Return type and text of an error; for an error in a loader's worker, the last line of the worker's traceback."""
    text = str(error).strip().removesuffix(".")
    if "Original Traceback" in text:
        return f"in a worker process: {text.splitlines()[-1].strip()}"
    if isinstance(error, BnasError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def remedy(error: BaseException, inputs: Any, module: nn.Module) -> str:
    """Return a remedy for an error of a model, if one is known, else an empty text."""
    wanted = next((one.dtype for one in module.parameters() if one.is_floating_point()), None)
    given = {one.dtype for one in tensors_in(inputs)}
    if "more than 1 value per channel" in str(error):
        return (
            ". BatchNorm needs at least two values for each channel: use larger batches, and drop a last batch "
            "that is too small (drop_last=True)"
        )
    if "unexpected keyword" in str(error):
        return f". In a dict, inputs have the names of forward's arguments, and targets the key {TARGETS[0]!r}"
    if isinstance(error, RuntimeError) and wanted is not None and given and wanted not in given:
        return f". The model computes in {_short(wanted)}: make the transform return that type{_scaled(given)}"
    if "channels" in str(error) and any(_are_last(one) for one in tensors_in(inputs)):
        return ". The channels are the last axis: make the transform return images.permute(2, 0, 1)"
    return ""


def _are_last(images: Tensor) -> bool:
    """Whether the last axis of images is that of their channels."""
    return images.ndim == 4 and images.shape[-1] in (1, 3, 4) and images.shape[1] > images.shape[-1]


def _scaled(given: set[torch.dtype]) -> str:
    return ", such as images.float() / 255" if torch.uint8 in given else ""


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def about_classes(outputs: Any, targets: Any) -> str:
    """Return why targets are not class numbers for outputs of shape (batch, classes, ...); empty if they are.

    This reads numbers, so call it only after a failure.
    """
    if not isinstance(outputs, Tensor) or not isinstance(targets, Tensor) or outputs.ndim < 2:
        return ""
    wanted = (outputs.shape[0], *outputs.shape[2:])
    if targets.shape[:1] != outputs.shape[:1]:
        return f"there are {len(outputs)} outputs but {len(targets) if targets.ndim else 'no'} targets"
    if tuple(targets.shape) != wanted and targets.shape != outputs.shape:
        return f"class numbers must have the shape {wanted}, not {tuple(targets.shape)}"
    if targets.is_floating_point():
        return "class numbers must be whole: use targets.long()" if tuple(targets.shape) == wanted else ""
    if targets.dtype not in (torch.int64, torch.uint8):
        return f"class numbers must be of type int64, not {_short(targets.dtype)}: use targets.long()"
    return outside(outputs, targets)


def about_probabilities(outputs: Any, targets: Any) -> str:
    """Return why targets in the shape of the outputs are not probabilities of classes; empty if they can be.

    This reads numbers. A cross-entropy takes any numbers for probabilities, and falls without a limit.
    """
    if not (isinstance(outputs, Tensor) and isinstance(targets, Tensor) and targets.is_floating_point()):
        return ""
    if outputs.shape != targets.shape or outputs.ndim < 2 or not targets.numel():
        return ""
    sums = targets.sum(1)
    if float(targets.min()) >= 0 and float((sums - 1).abs().max()) <= NEAR_ONE:
        return ""
    ends = f"{float(targets.min()):.3g} to {float(targets.max()):.3g}"
    return (
        f"the targets are numbers in the shape of the outputs, but not probabilities of classes: they go from {ends}, "
        f"and their sums over axis 1 from {float(sums.min()):.3g} to {float(sums.max()):.3g}"
    )


NEAR_ONE = 0.01
"""Largest difference from 1 of the sum of probabilities, for those of low precision."""


def outside(outputs: Tensor, targets: Tensor) -> str:
    """Return a text about class numbers for which the model has no outputs; empty if there are none."""
    least, most = (int(one) for one in targets.aminmax())
    if 0 <= least and most < outputs.shape[1]:
        return ""
    last = outputs.shape[1] - 1
    remedy = "number the classes from 0" if most - least <= last else "give the model an output for each class"
    return f"the targets go from {least} to {most}, but the model has outputs for the classes 0 to {last}: {remedy}"
