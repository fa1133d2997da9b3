"""Where data enter: the batches of a loader are looked at as they are drawn, and what fails on one says on which.

To look at a batch costs microseconds: its form and sizes, never its numbers. Those are only looked at for the message
of an error that was raised anyway.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset

from bnas.passes import BnasError

from .errors import BatchError
from .nested import TARGETS, as_batch, described, tensors_in

OF_THE_PROCESS = (MemoryError, torch.OutOfMemoryError, InterruptedError)
"""Errors that say nothing about a batch."""

# Batches, one after another.


def drawn(loader: Iterable[Any], source: str = "the data", first: int = 0) -> Iterator[Any]:
    """The batches of `loader`, as it gives them; it is asked for its iterator at once.

    Args:
        loader: a loader, or its iterator.
        source: what errors call the data.
        first: the number of the first batch.

    Raises:
        BatchError: what it gives is no batch that a model could run on, or it fails; names the batch by its number,
            which counts from 0. Errors of bnas that a loader raises stay what they are.
    """
    if not hasattr(loader, "__iter__") and not hasattr(loader, "__getitem__"):
        raise BatchError(f"{source}: must be batches of inputs and targets, not {type(loader).__name__}")
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
    """Refuse what no model could run on, or what would be taken for something else."""
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
    """Shapes and types of a batch, for an error."""
    if isinstance(batch, list | tuple) and len(batch) == 2:
        return f"inputs {described(batch[0])}, targets {described(batch[1])}"
    return described(batch)


# Data that are read several times: in memory, or read again.


def length_of(loader: Any) -> int | None:
    """The number of batches, or of the samples of a data set; None where it is not known."""
    try:
        return len(loader)
    except (TypeError, NotImplementedError):
        return None


def is_stream(loader: Any) -> bool:
    """Whether a loader may have more than fits into memory: its data are an `IterableDataset`, or it has no length."""
    return isinstance(getattr(loader, "dataset", None), IterableDataset) or length_of(loader) is None


def in_memory(loader: Any) -> Any:
    """The batches of a loader as a list; a stream stays one, and is read again each time."""
    return loader if is_stream(loader) and not isinstance(loader, Iterator) else list(loader)


def again(batches: Any) -> Any:
    """Batches that can be read more than once: those of an iterator, such as a generator, are kept in memory."""
    return list(drawn(batches)) if isinstance(batches, Iterator) else batches


# What runs on a batch.


@contextmanager
def running(place: str, inputs: Any, module: nn.Module, kind: type[BnasError]) -> Iterator[None]:
    """What fails inside is raised as a `kind` that says on which batch, and what to do; errors of ours stay theirs."""
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


def told(error: BaseException) -> str:
    """The type and the words of an error; of one from a worker of a loader, whose words are its traceback, the last."""
    text = str(error).strip().removesuffix(".")
    if "Original Traceback" in text:
        return f"in a worker process: {text.splitlines()[-1].strip()}"
    if isinstance(error, BnasError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def remedy(error: BaseException, inputs: Any, module: nn.Module) -> str:
    """What to do about an error of a model, where that is known."""
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
    return ""


def _scaled(given: set[torch.dtype]) -> str:
    return ", such as images.float() / 255" if torch.uint8 in given else ""


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def about_classes(outputs: Any, targets: Any) -> str:
    """Why targets are no class numbers for these outputs of shape (batch, classes, ...); empty where they are.

    It reads numbers: ask only where something failed.
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


def outside(outputs: Tensor, targets: Tensor) -> str:
    """Which class numbers the model has no outputs for; empty where there are none."""
    least, most = (int(one) for one in targets.aminmax())
    if 0 <= least and most < outputs.shape[1]:
        return ""
    last = outputs.shape[1] - 1
    return f"the targets go from {least} to {most}, but the model has outputs for the classes 0 to {last}"
