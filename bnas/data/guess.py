"""Guess the inputs and classes of a model, from a batch of its data or from its layers, and say how certain that is."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bnas.passes.errors import BnasError
from bnas.passes.frontend.ir import as_call
from bnas.passes.frontend.state import preserved
from bnas.run.job import Splits
from bnas.runtime.feed import about_probabilities, drawn
from bnas.runtime.nested import as_batch, inputs_of, scores_of

from .files import sides
from .inputs import DTYPES, Input, error_on, example_of
from .samples import USUAL_SIDE, find_parts

SIDES = (224, 32, 28, 64, 96, 128, 299, 16, 8)
"""Heights and widths of images to try, most common first."""
LENGTHS = (16, 128, 512)
"""Lengths of sequences to try."""
DATA = "the validation data"


class GuessError(BnasError):
    """The inputs of a model cannot be guessed; the message says how to give them."""


@dataclass(frozen=True)
class Guess:
    """The inputs of a model and its classes."""

    inputs: tuple[Input, ...]
    """The inputs, each with one sample."""
    sure: bool
    """Whether the inputs come from the data; otherwise they are a guess that the model accepts."""
    why: str
    """The source of the inputs, in words."""
    outputs: int | None = None
    """Number of scores per sample; None if the model's output is not a matrix of scores."""

    @property
    def told(self) -> str:
        """Return the inputs and how certain they are, in one line."""
        shapes = " and ".join(one.text for one in self.inputs)
        count = "one input" if len(self.inputs) == 1 else f"{len(self.inputs)} inputs"
        return f"{count} of {shapes} ({'sure' if self.sure else 'a guess'}: {self.why})"


def guess(model: nn.Module, data: Splits | None = None, given: Sequence[Input] = ()) -> Guess:
    """Return the inputs of `model`: those given by the user, those of the data, or a shape that the model accepts.

    Args:
        model: The model, in evaluation mode.
        data: The data, of which the first validation batch is read.
        given: Inputs given by the user; then nothing is guessed.

    Raises:
        GuessError: The model accepts none of the inputs; the message says how to give them.
        BatchError: The data have no batches.
    """
    if given:
        return _checked(model, tuple(given), True, "you gave it, and the model accepts it")
    if data is not None:
        found, narrow = inputs_of_batch(model, data), inputs_of_batch(model, data, narrow=True)
        fits = found == narrow or error_on(model, example_of(model, found).value) is None
        return _checked(model, found if fits else narrow, True, f"as in the first batch of {DATA}")
    for one in candidates(model):
        if error_on(model, example_of(model, [one]).value) is None:
            return _checked(model, (one,), False, "the model accepts it; no data were given to compare with")
    raise GuessError("found no input shape that the model accepts; give it: --input SHAPE, such as 1,3,224,224")


def _checked(model: nn.Module, inputs: tuple[Input, ...], sure: bool, why: str) -> Guess:
    value = example_of(model, inputs).value
    if (error := error_on(model, value)) is not None:
        shapes = " and ".join(one.text for one in inputs)
        source = f"the data give {shapes}" if why.startswith("as in") else f"the input is {shapes}"
        raise GuessError(
            f"{source}, but the model does not accept it: {error}. Give shape, type and range of each input: "
            f"{' '.join(f'--input {shlex.quote(one.text)}' for one in inputs)}"
        )
    return Guess(inputs, sure, why, outputs_of(model, value))


def outputs_of(model: nn.Module, value: Any) -> int | None:
    """Return the number of scores per sample; None if the model's output is not a matrix."""
    args, kwargs = as_call(value)
    with preserved(model, data=True), torch.no_grad():
        scores = scores_of(model(*args, **kwargs))
    return int(scores.shape[1]) if isinstance(scores, Tensor) and scores.ndim == 2 else None


# From a batch of the data.


def inputs_of_batch(model: nn.Module, data: Splits, *, narrow: bool = False) -> tuple[Input, ...]:
    """Return the inputs in the first validation batch, each with one sample.

    The range of whole numbers is that of the batch or, if `narrow`, of the values that every column may have: columns
    of a table have categories of their own.
    """
    batch = next(iter(drawn(data.validation, DATA)), None)
    if batch is None:
        raise GuessError(f"{DATA} are empty; give the shape: --input SHAPE, such as 1,3,224,224")
    inputs, _ = as_batch(batch, inputs_of(model))
    if isinstance(inputs, Mapping):
        return tuple(_input(tensor, name, narrow) for name, tensor in inputs.items())
    return tuple(_input(one, None, narrow) for one in (inputs if isinstance(inputs, list | tuple) else (inputs,)))


def _input(tensor: Any, name: str | None, narrow: bool) -> Input:
    if not isinstance(tensor, Tensor):
        raise GuessError(
            f"an input in {DATA} is a {type(tensor).__name__}, not a tensor; give the shape: --input SHAPE"
        )
    shape = (1, *tensor.shape[1:])
    if tensor.is_floating_point():
        return Input(shape, name)
    kind = next(key for key, dtype in reversed(DTYPES.items()) if dtype == tensor.dtype)
    ends = None if kind == "bool" or not tensor.numel() else (float(tensor.min()), float(tensor.max()))
    if narrow and ends is not None and tensor.ndim == 2:
        common = float(tensor.amin(0).max()), float(tensor.amax(0).min())
        ends = common if common[0] <= common[1] else ends
    return Input(shape, name, kind, ends)


def classes_of(data: Splits) -> tuple[int | None, bool]:
    """Return the number of classes of the data and True; if it is unknown, the least possible number and False."""
    known = (data.record or {}).get("classes")
    if known is not None:
        return int(known), True
    batch = next(iter(drawn(data.validation, DATA)), None)
    targets = None if batch is None else as_batch(batch)[1]
    if not isinstance(targets, Tensor) or targets.ndim != 1 or targets.is_floating_point() or not len(targets):
        return None, False
    return int(targets.max()) + 1, False


def accuracy_on_first_batch(model: nn.Module, data: Splits) -> float | None:
    """Return the accuracy of a model on the first validation batch; None if model and data are no classification.

    Training targets that are numbers in the shape of the outputs, as of an autoencoder, are no classification either.
    """
    from bnas.runtime import EvaluationError, accuracy

    try:
        found = accuracy(model, list(islice(drawn(data.validation, DATA), 1)))
    except EvaluationError:
        return None
    batch = next(iter(drawn(data.train, "the training data")), None)
    if batch is None:
        return found
    inputs, targets = as_batch(batch, inputs_of(model))
    tensors, named = as_call(inputs)
    with preserved(model, data=True), torch.no_grad():
        outputs = scores_of(model(*tensors, **named))
    return None if about_probabilities(outputs, targets) else found


# From a folder of images: the best size to resize them to.

LOOKED = 16
"""Number of images whose sizes are read."""
STEP = 32
"""If image sizes differ, the result is rounded down to a multiple of this (of a quarter of it for small images)."""


@dataclass(frozen=True)
class Size:
    """A side of square images, in pixels, and why it was guessed."""

    side: int
    why: str


def usual_size(place: Path, dataset: str | None = None) -> Size | None:
    """Return the best size for the images in a folder; None if they are not in separate files.

    It is their common size or, if sizes differ, near the median of their shorter sides; at most `USUAL_SIDE`. Only some
    images, from all parts of the folder, are read.

    Raises:
        DataError: The folder has no images.
    """
    parts = find_parts(place, dataset, False)
    files = [Path(path) for path, _ in getattr(parts.train, "samples", ())] if parts.files else []
    found = [size for path in files[:: max(1, len(files) // LOOKED)][:LOOKED] if (size := sides(path)) is not None]
    if not found:
        return None
    width, height = sorted(found, key=min)[len(found) // 2]
    told = f"of {len(found)} images that were looked at, "
    told += f"all are {width} x {height}" if len(set(found)) == 1 else f"the middle one is {width} x {height}"
    shorter = min(width, height)
    if shorter >= USUAL_SIDE:
        return Size(USUAL_SIDE, f"it is the usual size; {told}")
    return Size(shorter if len(set(found)) == 1 else _rounded(shorter), told)


def _rounded(side: int) -> int:
    step = STEP if side >= 2 * STEP else STEP // 4
    return max(side // step * step, min(side, step))


# From the model: its first layer determines the number of channels, features or words.


def candidates(model: nn.Module) -> Iterator[Input]:
    """Yield inputs of one sample that a model may accept, judging by its first layer with a known input."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            yield from (Input((1, module.in_channels, side, side)) for side in SIDES)
        elif isinstance(module, nn.Conv1d):
            yield from (Input((1, module.in_channels, length)) for length in LENGTHS)
        elif isinstance(module, nn.Embedding):
            ends = (0.0, float(module.num_embeddings - 1))
            yield from (Input((1, length), type="int64", range=ends) for length in LENGTHS)
        elif isinstance(module, nn.Linear):
            yield Input((1, module.in_features))
            yield Input((1, LENGTHS[0], module.in_features))
        elif isinstance(module, nn.RNNBase):
            yield Input((1, LENGTHS[0], module.input_size))
        else:
            continue
        return


def sized(model: nn.Module, inputs: Sequence[Input]) -> int | None:
    """Return the side of square images that the model accepts, if it does not accept those of the data."""
    for side in SIDES if len(inputs) == 1 and len(inputs[0].shape) == 4 else ():
        one = replace(inputs[0], shape=(*inputs[0].shape[:2], side, side))
        if error_on(model, example_of(model, [one]).value) is None:
            return side
    return None
