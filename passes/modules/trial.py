"""Run the user's modules beside the graph of a sub-network, and find the sizes with which both compute the same.

Both run in double precision. The graph determines the expected result of each module call. A module with another
result, or with an error, is tried again with other numbers in its attributes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node

from bnas.passes.frontend.ir import module_calls
from bnas.passes.frontend.structure import leaves_of, map_leaves, tensors_of

from .sizes import Place

ATTEMPTS, ALL_ATTEMPTS = 64, 2000
"""Largest number of trials for one module call, and for all together."""
ALIKE = 1e-6
"""Largest difference, relative to their norm, of two inner values that count as equal."""


@dataclass(frozen=True)
class Print:
    """A fingerprint of a tensor: its shape, and two sums over its entries."""

    shape: tuple[int, ...]
    norm: float
    sum: float

    @classmethod
    def of(cls, tensor: Tensor) -> Print:
        """Compute the fingerprint of a tensor of any type."""
        flat = torch.view_as_real(tensor) if tensor.is_complex() else tensor
        flat = torch.nan_to_num(flat.detach().double().flatten(), posinf=1e3, neginf=-1e3)
        weights = torch.arange(flat.numel(), dtype=torch.float64, device=flat.device).cos()
        return cls(tuple(tensor.shape), float(flat.norm()), float(flat @ weights))

    def __eq__(self, other: object) -> bool:
        """Compare up to rounding."""
        if not isinstance(other, Print) or self.shape != other.shape:
            return False
        allowed = ALIKE * max(self.norm, other.norm)
        return abs(self.norm - other.norm) <= allowed and abs(self.sum - other.sum) <= allowed

    __hash__ = None  # type: ignore[assignment]


class Expected(Interpreter):
    """The values of a sub-network's graph, by node and by the module call that returns them."""

    def __init__(self, graph: GraphModule) -> None:
        super().__init__(graph)
        self.nodes: dict[str, Print] = {}
        self.given: dict[str, Print] = {}
        self.inside: dict[str, list[Print]] = {}
        self.known: dict[tuple[int, ...], list[Print]] = {}
        self.extra_traceback = False

    def run_node(self, n: Node) -> Any:
        """Run a node as fx does, and record its value."""
        value = super().run_node(n)
        for tensor in tensors_of(value) if n.op != "output" else ():
            found = Print.of(tensor)
            self.known.setdefault(found.shape, []).append(found)
            for call in module_calls(n):
                self.inside.setdefault(call, []).append(found)
            if isinstance(value, Tensor):
                self.nodes[n.name] = found
                self.given.update(dict.fromkeys(n.meta.get("returned", ()), found))
        return value


@dataclass
class Fault:
    """The first module whose result differs from the graph."""

    path: str
    error: Exception | None = None


class _NoRemedyError(Exception):
    """A module cannot be called with the expected inputs, whatever its numbers are."""


@dataclass
class Trial:
    """The user's modules, with numbers to be found.

    `choices` has the possible numbers of each place, the present one first.
    """

    root: nn.Module
    expected: Expected
    choices: Mapping[Place, list[int]]
    fault: Fault | None = None
    attempts: int = 0
    found: dict[Place, int] = field(default_factory=dict)
    _calls: dict[str, int] = field(default_factory=dict)

    def run(self, args: Any, kwargs: Any, search: bool) -> Any:
        """Run the modules and return their result.

        Args:
            args: positional inputs.
            kwargs: keyword inputs.
            search: whether to try other numbers for a module that differs; otherwise only note the first such module.
        """
        self.fault, self._calls = None, {}
        with self._watched(search), torch.no_grad():
            try:
                return self.root(*args, **kwargs)
            except _NoRemedyError as error:
                raise (error.__cause__ or error) from None

    @contextmanager
    def _watched(self, search: bool) -> Iterator[None]:
        owned: dict[str, list[Place]] = {}
        for place in self.choices:
            owned.setdefault(self._caller(place.path), []).append(place)
        changed = [(path, one) for path, one in self.root.named_modules() if "forward" not in vars(one)]
        changed = [(path, one) for path, one in changed if not isinstance(one, torch.jit.ScriptModule)]
        for path, module in changed:
            places = owned.get(path, []) if search else []
            vars(module)["forward"] = self._in_place_of(module.forward, path, places)
        try:
            yield
        finally:
            for _, module in changed:
                del vars(module)["forward"]

    def _caller(self, path: str) -> str:
        """Return the innermost called module around a path; it reads the numbers of modules that are not called."""
        while path and path not in self.expected.inside:
            path = path.rpartition(".")[0]
        return path

    def _in_place_of(self, forward: Callable[..., Any], path: str, places: list[Place]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            count = self._calls[path] = self._calls.get(path, -1) + 1
            call = f"{path}@{count}" if count else path
            if not places:
                return self._noted(call, path, forward, args, kwargs)
            self._settle(call, forward, places, args, kwargs)
            return self._noted(call, path, forward, args, kwargs)

        return run

    def _noted(self, call: str, path: str, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        try:
            value = forward(*args, **kwargs)
        except _NoRemedyError:
            raise
        except Exception as error:
            if self.fault is None or self.fault.error is None:
                self.fault = Fault(path, error)
            if self._is_called_rightly(args, kwargs):
                raise _NoRemedyError from error
            raise
        if self.fault is None and not self._share(call, value, args, kwargs):
            self.fault = Fault(path)
        return value

    def _share(self, call: str, value: Any, args: Any, kwargs: Any) -> float:
        """Return the share of a call's tensors that agree with the graph: 1 if all expected ones do.

        The graph may lack some of them, such as unused attention weights.
        """
        if call in self.expected.given:
            return float(isinstance(value, Tensor) and Print.of(value) == self.expected.given[call])
        known, tensors = self.expected.inside.get(call), tensors_of(value)
        if not known or not tensors:
            return 1.0
        known = [*known, *map(Print.of, tensors_of((args, kwargs)))]
        return sum(Print.of(one) in known for one in tensors) / len(tensors)

    def _is_called_rightly(self, args: Any, kwargs: Any) -> bool:
        """Whether all inputs are values of the graph, so that an error is not the caller's."""
        leaves = [leaf for _, leaf in leaves_of((args, kwargs))]
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        known = (Print.of(one) in self.expected.known.get(tuple(one.shape), ()) for one in tensors)
        return not any(type(leaf) is int for leaf in leaves) and all(known)

    def _settle(self, call: str, forward: Callable[..., Any], places: list[Place], args: Any, kwargs: Any) -> None:
        """Write the first numbers with which a call agrees with the graph, or else those with the best agreement."""
        attempts = list(itertools.islice(combinations([self._now(place) for place in places]), ATTEMPTS))
        best, at_most = attempts[0], -1.0
        for attempt in attempts:
            self._write(places, attempt)
            share = self._try(call, forward, args, kwargs)
            if share == 1:
                return
            if share is None:
                break
            if share > at_most:
                best, at_most = attempt, share
        self._write(places, best)

    def _try(self, call: str, forward: Callable[..., Any], args: Any, kwargs: Any) -> float | None:
        """Return the share of a call on copies of its inputs; -1 if it raises, None if it raises with any numbers."""
        if self.attempts >= ALL_ATTEMPTS:
            return None
        self.attempts += 1
        calls, fault = dict(self._calls), self.fault
        given, named = map_leaves((args, kwargs), lambda _, v: v.clone() if isinstance(v, Tensor) else v)
        try:
            return self._share(call, forward(*given, **named), given, named)
        except _NoRemedyError:
            return None
        except Exception:  # the last run reports the difference
            return -1.0
        finally:
            self._calls, self.fault = calls, fault

    def _now(self, place: Place) -> list[int]:
        now = self.found.get(place, self.choices[place][0])
        return list(dict.fromkeys((now, *self.choices[place])))

    def _write(self, places: list[Place], values: tuple[int, ...]) -> None:
        for place, value in zip(places, values, strict=True):
            place.set(self.root, value)
            self.found[place] = value


def combinations(options: list[list[int]]) -> Iterator[tuple[int, ...]]:
    """Yield all combinations of options: the first of each, then combinations that differ in one, in two, and so on."""
    first = tuple(one[0] for one in options)
    open_places = [number for number, one in enumerate(options) if len(one) > 1]
    for count in range(len(open_places) + 1):
        for places in itertools.combinations(open_places, count):
            for values in itertools.product(*(options[place][1:] for place in places)):
                changed = dict(zip(places, values, strict=True))
                yield tuple(changed.get(number, value) for number, value in enumerate(first))


def difference(found: Any, expected: Any) -> tuple[float, str]:
    """Return the largest difference between the results of the modules and of the graph, and its place.

    It is relative to the largest entry of each tensor, and infinite if a tensor is missing or has another shape.
    """
    have = {path: leaf for path, leaf in leaves_of(found) if isinstance(leaf, Tensor)}
    worst, place = 0.0, ""
    for path, leaf in leaves_of(expected):
        if isinstance(leaf, Tensor):
            error = _error(have.get(path), leaf)
            if not error <= worst:
                worst, place = error, ".".join(map(str, path))
    return worst, place


def _error(found: Tensor | None, expected: Tensor) -> float:
    if found is None or found.shape != expected.shape:
        return float("inf")
    if not expected.numel():
        return 0.0
    if not torch.equal(found.isnan(), expected.isnan()):
        return float("inf")
    finite, other = (torch.nan_to_num(one.double(), posinf=1e300, neginf=-1e300) for one in (expected, found))
    return float((other - finite).detach().abs().max() / finite.abs().max().clamp_min(1e-30))
