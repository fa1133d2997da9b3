"""Run many graph modules on the same inputs and compute their common first steps only once.

Each module is a sequence of steps. Modules share the steps up to their first difference, as words share a prefix in a
trie. Later steps run for each module, even if they do not depend on the difference. Results are bitwise those of
running each module alone, because the same operators run on the same values.
"""

from __future__ import annotations

import copy
import hashlib
import operator
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from bnas.passes.ops.registry import OPERATORS

from .overwriting import first_only, is_fresh

Identity = Callable[[int, str], Hashable]
"""Returns a key for layer `path` of module `number` that is equal for equal layers, or None."""


@dataclass(frozen=True)
class Place:
    """Stands for the result of an earlier step."""

    step: int


@dataclass(frozen=True)
class Step:
    """One operation. Steps with the same `key` compute the same result from the same earlier results."""

    key: Hashable
    run: Callable[..., Any]
    args: Any
    kwargs: Any
    module: str | None
    """Path of the called layer, if any."""
    reads: frozenset[int]
    roots: frozenset[int]
    """Steps whose memory the result may share."""
    writes: frozenset[int]
    """Steps whose memory this step may change."""


@dataclass
class Branch:
    """A run of steps that several modules share, and the branches that follow."""

    members: list[int]
    """The modules that share it."""
    steps: range
    dead: dict[int, list[int]] = field(default_factory=dict)
    """Results that can be freed after each step."""
    copied: list[int] = field(default_factory=list)
    """Results that are copied at the start of the branch, because the branch changes them and other branches do not."""
    after: list[Branch] = field(default_factory=list)


class Trie:
    """Runs graph modules on one input at a time.

    Args:
        modules: in evaluation mode, but for layers that are to collect statistics.
        identity: Function that returns equal keys for equal layers. In a shared beginning, the layers of the first
            module run. A layer that a module calls several times is never shared.
    """

    def __init__(self, modules: Sequence[GraphModule], identity: Identity) -> None:
        self._modules = modules
        self._words = [list(_steps(module, number, identity)) for number, module in enumerate(modules)]
        self._roots = [self._branch(group, 0) for group in self._groups(range(len(modules)), 0)]

    def __len__(self) -> int:
        """Number of modules."""
        return len(self._modules)

    @property
    def shared(self) -> Iterator[tuple[list[int], list[str]]]:
        """Yield the modules of each branch (the layers of the first one run), and the layers that the branch calls."""
        waiting = list(self._roots)
        while waiting:
            branch = waiting.pop()
            word = self._words[branch.members[0]]
            yield branch.members, [path for i in branch.steps if (path := word[i].module) is not None]
            waiting += branch.after

    def __call__(self, *given: Any, **named: Any) -> list[Any]:
        """The output of each module for the same arguments."""
        found: list[Any] = [None] * len(self._modules)
        names = [str(node.target) for module in self._modules[:1] for node in _placeholders(module)]
        inputs = dict(zip(names, given, strict=False)) | named
        if self._modules and (len(given) > len(names) or not inputs.keys() <= set(names)):
            raise TypeError(
                f"takes the inputs {', '.join(names)}, but got {len(given)} by position and {', '.join(named)} by name"
            )
        for root in self._roots:
            self._walk(root, {}, inputs, found)
        return found

    def _walk(self, branch: Branch, values: dict[int, Any], inputs: Mapping[str, Any], found: list[Any]) -> None:
        word = self._words[branch.members[0]]
        if branch.copied:  # all in one deep copy, so that tensors that share memory still do
            values.update(copy.deepcopy({place: values[place] for place in branch.copied}))
        for place in branch.steps:
            step = word[place]
            args, kwargs = _filled((step.args, step.kwargs), values)
            values[place] = step.run(*args, **kwargs) if step.run is not _given else inputs[args[0]]
            for dead in branch.dead.get(place, ()):
                del values[dead]
        if not branch.after:
            for member in branch.members:
                found[member] = values[branch.steps[-1]]
        for number, child in enumerate(branch.after, 1):
            self._walk(child, values if number == len(branch.after) else dict(values), inputs, found)

    def _groups(self, members: Sequence[int], place: int) -> list[list[int]]:
        """Group the members by their step at `place`."""
        groups: dict[Hashable, list[int]] = {}
        for member in members:
            word = self._words[member]
            groups.setdefault(word[place].key, []).append(member)
        return list(groups.values())

    def _branch(self, members: list[int], start: int, live: frozenset[int] = frozenset()) -> Branch:
        """Build the branch of `members` from step `start` on; their steps up to and including `start` are the same."""
        stop, end = start + 1, len(self._words[members[0]])  # every sequence ends with the output: none is a prefix
        while stop < end and len(self._groups(members, stop)) == 1:
            stop += 1
        branch = Branch(members, range(start, stop), copied=self._copied(members, start, live))
        last, alive = self._last_reads(members), set(live)
        for place in branch.steps:
            alive.add(place)
            branch.dead[place] = [v for v in alive if last.get(v, -1) <= place and place != stop - 1]
            alive.difference_update(branch.dead[place])
        if stop < end:
            branch.after = [self._branch(group, stop, frozenset(alive)) for group in self._groups(members, stop)]
        return branch

    def _last_reads(self, members: Sequence[int]) -> dict[int, int]:
        """Return, for each result, the last step of any member that reads it."""
        last: dict[int, int] = {}
        for member in members:
            for place, step in enumerate(self._words[member]):
                last.update((read, max(place, last.get(read, -1))) for read in step.reads)
        return last

    def _copied(self, members: Sequence[int], start: int, live: frozenset[int]) -> list[int]:
        """Return the live results whose memory one of the members changes from `start` on."""
        written = {root for member in members for step in self._words[member][start:] for root in step.writes}
        word = self._words[members[0]]
        return sorted(place for place in live if word[place].roots & written)


def _given(name: str) -> Any:
    """Return the key that stands for an input."""
    raise AssertionError(name)


def _steps(module: GraphModule, number: int, identity: Identity) -> Iterator[Step]:
    """The steps of a module, with earlier results by their place."""
    places: dict[Node, int] = {}
    roots: list[frozenset[int]] = []
    calls = [str(node.target) for node in module.graph.nodes if node.op == "call_module"]
    inputs = _placeholders(module)

    def earlier(node: Node) -> Any:
        return Place(places[node])

    for place, node in enumerate(module.graph.nodes):
        args, kwargs = map_arg((node.args, node.kwargs), earlier)
        args = (str(node.target),) if node in inputs else args
        run, key = _operation(module, node)
        path = str(node.target) if node.op == "call_module" else None
        if path is not None:
            same = None if calls.count(path) > 1 else identity(number, path)
            key = (number, path) if same is None else same
        read = node.all_input_nodes[:1] if first_only(run) else node.all_input_nodes
        below = frozenset(root for n in read for root in roots[places[n]])
        places[node] = place
        roots.append(frozenset({place}) | (frozenset() if is_fresh(run) else below))
        yield Step(
            (node.op, key, _key(args), _key(kwargs)),
            run,
            args,
            kwargs,
            path,
            frozenset(places[n] for n in node.all_input_nodes),
            roots[-1],
            below if _may_write(node, run) else frozenset(),
        )


def _placeholders(module: GraphModule) -> list[Node]:
    return [node for node in module.graph.nodes if node.op == "placeholder"]


def _operation(module: GraphModule, node: Node) -> tuple[Callable[..., Any], Hashable]:
    """Return the function that a node runs, and a key that distinguishes it from other operations."""
    target: Any = node.target
    if node.op == "placeholder":
        return _given, None
    if node.op == "output":
        return (lambda value: value), None
    if node.op == "get_attr":
        value = operator.attrgetter(target)(module)
        return (lambda: value), _content(value)
    if node.op == "call_method":
        return (lambda owner, *args, **kwargs: getattr(owner, target)(*args, **kwargs)), target
    return (module.get_submodule(target), None) if node.op == "call_module" else (target, target)


def _may_write(node: Node, run: Callable[..., Any]) -> bool:
    """Whether an operation may write into its arguments; an unknown operation may."""
    if node.op == "call_module":
        known = type(run).__module__.startswith("torch.nn.")
        return bool(getattr(run, "inplace", not known))
    flagged = any(value is True for value in (*node.args, *node.kwargs.values()))  # it may say "in place"
    name = str(node.target if node.op == "call_method" else getattr(run, "__name__", "_"))
    return node.op in ("call_function", "call_method") and (flagged or OPERATORS.writes(run) or name.endswith("_"))


def _content(value: Any) -> Hashable:
    if not isinstance(value, Tensor):
        return id(value)
    data = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return tuple(value.shape), value.dtype, hashlib.sha256(data.data).digest()


def _key(value: Any) -> Hashable:
    """Return a key that is equal for equal arguments of the same types."""
    if isinstance(value, list | tuple):
        return type(value), tuple(map(_key, value))
    if isinstance(value, dict):
        return dict, tuple((name, _key(entry)) for name, entry in value.items())
    if isinstance(value, slice):
        return slice, _key((value.start, value.stop, value.step))
    return type(value), value if isinstance(value, Hashable) else id(value)


def _filled(value: Any, values: Mapping[int, Any]) -> Any:
    """Replace references among arguments by results."""
    if isinstance(value, Place):
        return values[value.step]
    if isinstance(value, slice):
        return slice(*(_filled(v, values) for v in (value.start, value.stop, value.step)))
    if isinstance(value, dict):
        return {name: _filled(entry, values) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        filled = [_filled(entry, values) for entry in value]
        return type(value)(*filled) if hasattr(value, "_fields") else type(value)(filled)
    return value
