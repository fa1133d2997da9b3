"""Compare recordings of one model at several sizes: values that differ depend on a size, all others are constants.

An integer that differs is the size of a tensor, or an expression in sizes; a cold tensor that differs is made in the
graph by its recipe; a flag that differs between evaluation and training follows the mode. If the recordings differ in
their calls, control flow depends on a size or on the mode, and `Differs` says where. One more recording has tensors of
another floating-point type: a type that differs there is read from a tensor, and follows it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bnas.passes.errors import CaptureError

from .recording import Recording
from .structure import Leaf, equal, leaves_of, parts_of, rebuilt, same_values, tensors_of
from .tape import Step


class Differs(CaptureError):
    """Two recordings are not the same calls; `step` is the first that differs."""

    def __init__(self, step: Step | None, why: str) -> None:
        super().__init__(f"{step.place()}: {why}" if step is not None else why)
        self.step = step


@dataclass(frozen=True)
class Varying(Leaf):
    """A number that differs between recordings, with its value in each."""

    values: tuple[Any, ...]


@dataclass(frozen=True)
class ByMode(Leaf):
    """A plain value that differs between evaluation and training."""

    evaluation: Any
    training: Any


@dataclass(frozen=True)
class ByType(Leaf):
    """A value that follows the floating-point type of tensors: the type itself ("dtype") or a limit, such as "min"."""

    name: str


@dataclass(eq=False)
class Merged(Leaf):
    """A call that all recordings have, with its constant and varying arguments."""

    step: Step
    """The call in the first recording."""
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    values: list[Any]
    """Its result in each recording."""
    follows: bool = False
    """Whether its result is a tensor whose type follows the types of its operands."""


class Merger:
    """Compares recordings at several sizes (the first is the base), one in training mode, and one with another type."""

    def __init__(
        self, recordings: Sequence[Recording], training: Recording | None = None, typed: Recording | None = None
    ) -> None:
        self.base, self.sized, self.trained, self.typed = recordings[0], list(recordings), training, typed
        self._all = [*recordings, *(one for one in (training, typed) if one is not None)]
        self._places = [{step: place for place, step in enumerate(one.hot)} for one in self._all]
        self._cold: dict[tuple[Step, ...], Step | list[Merged]] = {}
        self._limits: list[int] = []
        """Positions of the compared steps in their recordings."""

    def steps(self) -> Iterator[Merged]:
        """Yield every hot step of the base, in order.

        Raises:
            Differs: The recordings are not the same.
        """
        for other in self._all[1:]:
            same_calls(self.base, other)
        for group in zip(*(one.hot for one in self._all), strict=True):
            yield self._merged(group)

    def output(self) -> Any:
        """Return the result of the model, with base steps for tensors, and with varying values."""
        return self._merge([one.output for one in self._all], None)

    def _merged(self, group: Sequence[Step]) -> Merged:
        base, outer = group[0], self._limits
        self._limits = [one.index for one in group]
        args, kwargs = self._merge([(one.args, one.kwargs) for one in group], base)
        self._limits = outer
        follows = self.typed is not None and _type_of(group[-1]) != _type_of(base)
        return Merged(base, args, kwargs, [one.value for one in group[: len(self.sized)]], follows)

    def _merge(self, values: list[Any], step: Step | None) -> Any:
        first = values[0]
        if isinstance(first, Step):
            return self._merge_steps(values, step)
        if isinstance(first, slice):
            parts = [[(one.start, one.stop, one.step) for one in values if isinstance(one, slice)]]
            if len(parts[0]) != len(values):
                raise Differs(step, "another kind of argument")
            return slice(*self._merge(parts[0], step))
        parts_of_first = parts_of(first)
        if parts_of_first is not None:
            return self._merge_parts(values, parts_of_first, step)
        if all(equal(first, one) for one in values[1:]):
            return first
        return self._merge_plain(values, step)

    def _merge_parts(self, values: list[Any], parts: list[tuple[Any, Any]], step: Step | None) -> Any:
        every = [parts_of(one) for one in values]
        keys = [key for key, _ in parts]
        for one in every:
            if one is None or [key for key, _ in one] != keys:
                raise Differs(
                    step, "with another size or mode, a list has another length, or a value another structure"
                )
        columns = [self._merge([one[n][1] for one in every], step) for n in range(len(keys))]  # type: ignore[index]
        return rebuilt(values[0], columns)

    def _merge_plain(self, values: list[Any], step: Step | None) -> Any:
        sized, trained = values[: len(self.sized)], values[len(self.sized)] if self.trained is not None else values[0]
        same, same_mode = all(equal(sized[0], one) for one in sized[1:]), equal(sized[0], trained)
        if self.typed is not None and not equal(sized[0], values[-1]):
            return self._follows_type(sized[0], values[-1], step, alone=same and same_mode)
        if self.trained is not None and same:
            if isinstance(trained, bool | int | float | str | None) and isinstance(
                sized[0], bool | int | float | str | None
            ):
                return ByMode(sized[0], trained)
            raise Differs(step, "an argument differs in training mode")
        if not same_mode:
            raise Differs(step, "a number that depends on a size and on the mode")
        kinds = {type(one) for one in sized}
        if kinds == {int} or kinds == {float}:
            return Varying(tuple(sized))
        raise Differs(step, f"an argument has different values at different sizes: {_shown(sized)}")

    def _follows_type(self, value: Any, other: Any, step: Step | None, *, alone: bool) -> ByType:
        """Return which property of the tensors' type `value` is; it is `other` in the recording with another type."""
        here, there = self._type_pair
        for name in LIMITS if alone else ():
            if equal(value, limit_of(here, name)) and equal(other, limit_of(there, name)):
                return ByType(name)
        raise Differs(step, f"with tensors of {there}, an argument differs: {_shown([value, other])}")

    @property
    def _type_pair(self) -> tuple[torch.dtype, torch.dtype]:
        assert self.typed is not None
        return next(iter(self.typed.recorder.types.items()))

    def _merge_steps(self, values: list[Any], step: Step | None) -> Any:
        if not all(isinstance(one, Step) for one in values):
            raise Differs(step, "an argument is a tensor at one size, or in one mode, only")
        if not any(one.cold for one in values):
            places = {table.get(one) for table, one in zip(self._places, values, strict=True)}
            if len(places) != 1:
                raise Differs(step, "takes another tensor at another size or in another mode")
            return values[0]
        if not all(one.cold for one in values):
            raise Differs(step, "an argument is a constant at one size, or in one mode, only")
        return self._merge_cold(tuple(values), step)

    def _merge_cold(self, steps: tuple[Step, ...], user: Step | None) -> Any:
        """Return the base's cold step if all recordings have the same value, else the merged `Recipe`."""
        if steps not in self._cold:
            others = steps[1 : -1 if self.typed is not None else None]
            same = all(same_values(steps[0].value, one.value) for one in others)
            if same and (self.typed is None or same_values(steps[0].value, steps[-1].value, cast=True)):
                self._cold[steps] = steps[0]
            else:
                self._cold[steps] = self._merge_recipes(steps, user)
        found = self._cold[steps]
        return found if isinstance(found, Step) else Recipe(steps[0], found)

    def _merge_recipes(self, steps: tuple[Step, ...], user: Step | None) -> list[Merged]:
        limits = self._limits or [len(one.steps) for one in self._all]
        recipes = [recipe(*one) for one in zip(self._all, steps, limits, strict=True)]
        if len({len(one) for one in recipes}) != 1:
            raise Differs(user, "with another size or mode, a tensor is made in another way")
        merged = []
        for group in zip(*recipes, strict=True):
            if any(one.op == "given" for one in group):
                raise Differs(user, "a tensor that forward keeps, or gets from outside, depends on the size or mode")
            if len({one.target for one in group}) != 1:
                raise Differs(group[0], "with another size or mode, a tensor is made in another way")
            merged.append(self._merged(group))
        return merged


def same_calls(one: Recording, other: Recording) -> None:
    """Raise `Differs` unless two recordings have the same calls in the same order, with any arguments.

    This check comes first because it takes only a hundredth of the time of a recording.
    """
    for base, found in zip(one.hot, other.hot, strict=False):
        if (found.op, found.target) != (base.op, base.target) or found.grad != base.grad:
            step, names = found if found.line else base, (name_of(found), name_of(base))
            raise Differs(step, "with another size or mode, the model calls {} here instead of {}".format(*names))
    count, more = len(one.hot), len(other.hot)
    if more != count:
        raise Differs(other.hot[count] if more > count else one.hot[more], "is only called at one size, or in one mode")


@dataclass(frozen=True, eq=False)
class Recipe(Leaf):
    """A cold tensor that differs between recordings: the calls that make it; the last one returns `step`'s value."""

    step: Step
    calls: list[Merged]


def recipe(recording: Recording, wanted: Step, limit: int) -> list[Step]:
    """Return the cold steps before `limit` that make the value of `wanted`, with all writes into its memory.

    Tensors that existed before the recording stay arguments.
    """
    needed, found = {wanted}, []
    memory = {one.untyped_storage()._cdata for one in tensors_of(wanted.value)}
    for step in reversed(recording.steps[:limit]):
        writes = (
            step.op == "cold" and step.writes and any(one.untyped_storage()._cdata in memory for one in _written(step))
        )
        if step not in needed and not writes:
            continue
        if step.op == "given" and step is not wanted:
            continue
        found.append(step)
        for _, leaf in leaves_of((step.args, step.kwargs)):
            if isinstance(leaf, Step) and leaf.cold:
                needed.add(leaf)
                memory.update(one.untyped_storage()._cdata for one in tensors_of(leaf.value))
    return found[::-1]


def _written(step: Step) -> list[Tensor]:
    return [one for leaf in step.args[:1] if isinstance(leaf, Step) for one in tensors_of(leaf.value)]


def name_of(step: Step) -> str:
    """Return the name of the function or module that a step calls."""
    return step.target if isinstance(step.target, str) else str(getattr(step.target, "__name__", step.target))


def _shown(values: Sequence[Any]) -> str:
    return " and ".join(str(one)[:60] for one in values[:2])


LIMITS = ("dtype", "min", "max", "eps", "tiny")
"""Values that follow a type: the type itself, and its limits that models read."""


def limit_of(dtype: torch.dtype, name: str) -> Any:
    """Return the type itself or one of its limits."""
    return dtype if name == "dtype" else getattr(torch.finfo(dtype), name)


def _type_of(step: Step) -> Any:
    return step.value.dtype if isinstance(step.value, Tensor) and not step.cold else None
