"""Callbacks of a training: their base class, their arguments, and how a trainer calls them."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, TypeVar

from bnas.passes import BnasError

from . import random_state

if TYPE_CHECKING:
    from .recipe import Recipe
    from .schedule import Place
    from .stages import Stage
    from .validation import EpochRecord


# The arguments of callbacks. `EpochRecord` is in `validation`, and `Place` in `schedule`.


@dataclass(frozen=True)
class Training:
    """A training that is about to start."""

    name: str
    """The ``name`` of its `bnas.Trainer`. In a run: the name of the winner that is fine-tuned, else ""."""
    stages: tuple[Stage, ...]
    recipe: Recipe
    epochs: int
    """Number of epochs of all stages together."""
    steps: int
    """Number of steps of all epochs together."""
    taken: int
    """Number of steps already taken: 0, or more for a resumed training."""


@dataclass(frozen=True)
class Progress:
    """Progress of a training after a step. Stage, epoch and step count from 0."""

    stage: int
    epoch: int
    """Of the whole training."""
    step: int
    """Of the whole training."""
    steps: int
    """Number of steps in the whole training."""
    losses: tuple[float, ...]
    """The loss of each sub-network of the step, in the order in which the rule trains them."""
    learning_rate: float
    """Of this step."""

    @property
    def loss(self) -> float:
        """The loss of the first sub-network, which is the maximal one if the rule trains it."""
        return self.losses[0]


class TrainingCallback:
    """Base class of callbacks of a training: override the methods that you need, the others do nothing.

    `bnas.Trainer` calls the methods on process 0 only. `bnas.Callback` has those of a search, too.

    A callback changes no number of a training, as long as it leaves super-network and optimizer alone: random numbers
    that it draws from the global generators of Python, numpy and PyTorch are put back. An error that it raises stops
    the training, as Ctrl-C does: what the directory of the trainer holds can be resumed (``fit(..., resume=True)``).
    """

    def on_train_start(self, training: Training) -> None:
        """Called before the first step, and again when a training is resumed."""

    def on_epoch_start(self, place: Place) -> None:
        """Called before the first step of each epoch, also if a training is resumed within the epoch."""

    def on_step_end(self, progress: Progress) -> None:
        """Called after every step of the optimizer."""

    def on_epoch_end(self, record: EpochRecord) -> None:
        """Called after every epoch, after its validation and its checkpoint."""

    def on_train_end(self, history: tuple[EpochRecord, ...]) -> None:
        """Called at the end, when the weights are final, with the records of all epochs."""

    def on_exception(self, error: BaseException) -> None:
        """Called instead of `on_train_end` when an error or Ctrl-C stops the training. Close open files here."""


class StepsAndEpochs(TrainingCallback):
    """Wraps the functions that `bnas.Trainer` gets as ``on_step`` and ``on_epoch`` as a callback."""

    def __init__(
        self, on_step: Callable[[Progress], None] | None, on_epoch: Callable[[EpochRecord], None] | None
    ) -> None:
        self._on_step, self._on_epoch = on_step, on_epoch

    def on_step_end(self, progress: Progress) -> None:
        """Call the first function."""
        if self._on_step is not None:
            self._on_step(progress)

    def on_epoch_end(self, record: EpochRecord) -> None:
        """Call the second function."""
        if self._on_epoch is not None:
            self._on_epoch(record)


# How a trainer and a searcher call them.

C = TypeVar("C", bound=TrainingCallback)
P = ParamSpec("P")


def checked_callbacks(given: Any, kind: type[C], error: type[BnasError]) -> tuple[C, ...]:
    """Return `given`, or raise `error` if it is not a sequence of callbacks of this kind."""
    if not isinstance(given, Sequence):
        raise error(f"callbacks: {given!r} is not a list; write callbacks=[...]")
    for one in (one for one in given if not isinstance(one, kind)):
        remedy = "not a callback: derive its class from bnas.Callback"
        raise error(f"callbacks: {one!r} is {'a class: give an object of it' if isinstance(one, type) else remedy}")
    for fault in (fault for one in given for fault in _misspelt(type(one))):
        raise error(f"callbacks: {fault}")
    return tuple(given)


def _misspelt(kind: type[TrainingCallback]) -> Iterator[str]:
    """Return a text about each method of a user's callback that looks like an event, but would never be called."""
    ours = [base for base in kind.__mro__ if base.__module__.startswith("bnas.")]
    events = {name for base in ours for name in vars(base) if name.startswith("on_")}
    for name in sorted({name for name in dir(kind) if name.startswith("on_")} - events):
        near = difflib.get_close_matches(name, events, n=1)
        told = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(sorted(events))}."
        own = "A method of your own needs a name that does not begin with on_"
        yield f"{kind.__name__}.{name} would never be called; {told} {own}"


class Callbacks(Generic[C]):
    """The callbacks of a training or search. Each event reaches all of them, in order."""

    def __init__(self, callbacks: Sequence[C]) -> None:
        self._callbacks = tuple(callbacks)

    def __bool__(self) -> bool:
        return bool(self._callbacks)

    def tell(self, event: Callable[Concatenate[C, P], None], *told: P.args, **named: P.kwargs) -> None:
        """Call the method that overrides `event`, such as ``Callback.on_step_end``."""
        if self._callbacks:
            with random_state.unmoved():
                for one in self._callbacks:
                    getattr(one, event.__name__)(*told, **named)

    @contextmanager
    def hear_of_errors(self) -> Iterator[None]:
        """Report an error inside to all callbacks, even if one of them raises an error itself."""
        with ExitStack() as stack:
            for one in reversed(self._callbacks):
                stack.push(partial(_tell_error, one))
            yield


def _tell_error(callback: TrainingCallback, _: Any, error: BaseException | None, __: Any) -> None:
    if error is not None:
        callback.on_exception(error)
