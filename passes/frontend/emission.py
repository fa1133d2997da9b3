"""Merged recordings written as a graph of torch.fx: what varies becomes nodes that compute it."""

from __future__ import annotations

import dataclasses
import inspect
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import combinations, product
from math import gcd, prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx import Node

from .merging import LIMITS, ByMode, ByType, Differs, Merged, Merger, Recipe, Varying, limit_of
from .on_meta import BATCH, as_meta, run_on_meta
from .steps import DEVICE_OF_MODEL, Step
from .structure import Attribute, Path, at, is_record, leaves_of, map_leaves, parts_of

RESHAPES = frozenset({"view", "reshape", torch.reshape})
"""Calls that may leave one size open, as -1."""


WINDOWS = {F.avg_pool2d: 2, F.max_pool2d: 2, F.avg_pool3d: 3, F.max_pool3d: 3}
"""Pools over several axes, which may have one number for the windows along all of them."""


class Follows(nn.Module):
    """Gives one plain value in evaluation mode and another in training mode."""

    def __init__(self, evaluation: Any, training: Any) -> None:
        super().__init__()
        self.evaluation, self.in_training = evaluation, training

    def forward(self) -> Any:
        """The value of the mode."""
        return self.in_training if self.training else self.evaluation

    def extra_repr(self) -> str:
        """Both values."""
        return f"evaluation={self.evaluation!r}, training={self.in_training!r}"


class Filled(nn.Module):
    """Makes a plain object of a user's class with the given attributes, without calling its constructor."""

    def __init__(self, kind: type) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, **attributes: Any) -> Any:
        """The object."""
        kind: Any = self.kind
        made = kind.__new__(kind)
        vars(made).update(attributes)
        return made

    def extra_repr(self) -> str:
        """The name of the class."""
        return self.kind.__name__


FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
LIMITS_OF_TYPES = frozenset(limit_of(dtype, name) for dtype in FLOATING for name in LIMITS)
"""Values among arguments that may be a type, or a limit of one, that forward read from a tensor."""

Vector = tuple[int, ...]
"""A size in each of the recordings."""


class Emitter:
    """Makes the graph of a merged recording."""

    def __init__(self, merger: Merger, prefix: str = "") -> None:
        self.merger, self.prefix = merger, prefix
        self.graph = fx.Graph()
        self.constants: dict[str, Tensor] = {}
        self.own = {f"{prefix}{name}": module for name, module in merger.base.own.items()}
        self._nodes: dict[Step, Node] = {}
        self._inputs: dict[Vector, tuple[Node, int]] = {}
        """Sizes of inputs that vary, with a placeholder and an axis that have them."""
        self._first_with: dict[Vector, tuple[Node, int]] = {}
        """For every size a tensor that has it, the first of those in the outermost module: it stands outside of the
        blocks that read that size."""
        self._vectors: dict[tuple[Node, int], Vector] = {}
        """The sizes of axes of nodes in the recordings."""
        self._given: dict[tuple[Any, ...], tuple[Node, Path]] = {}
        """Numbers that vary among what an opaque step gives, with where they are in its value."""
        self._sizes: dict[Vector, Node] = {}
        self.guesses = 0
        """How many numbers are neither the size of a tensor nor a product of such sizes."""
        self._followers: dict[ByMode, Node] = {}
        self._made: dict[int, str] = {}
        self.types: set[Any] = set()
        """Types and limits of types among the arguments: they may have been read from a tensor."""
        self._limits: dict[str, Node] = {}
        self._follows: Node | None = None
        """The first tensor whose type follows that of the inputs or parameters."""
        self._first: Node | None = None
        self._device: Node | None = None
        self._last_input: Node | None = None

    def emit(self) -> fx.Graph:
        """The graph.

        Raises:
            Differs: the recordings are not the same, or a number varies in a way that no size explains.
        """
        for merged in self.merger.steps():
            self._emit(merged)
        output = self._output(self.merger.output())
        node = self.graph.output(output)
        node.meta["value"] = None
        return self.graph

    def _emit(self, merged: Merged) -> Node:
        step = merged.step
        if step.op == "placeholder":
            node = self.graph.placeholder(step.target)
        else:
            args, kwargs = self._arguments(merged)
            own = step.op == "call_module" and step.target in self.merger.base.own
            node = self.graph.create_node(step.op, f"{self.prefix}{step.target}" if own else step.target, args, kwargs)
        if is_input(step):
            self._last_input = node
            node.meta["input"] = True
            if self._first is None and isinstance(step.value, Tensor):
                self._first = node
        self._describe(node, merged)
        self._nodes[step] = node
        return node

    def _describe(self, node: Node, merged: Merged) -> None:
        step = merged.step
        node.meta.update(value=step.value, scope=step.scope, nn_module_stack=dict(step.stack))
        if step.line is not None:
            node.meta["line"] = step.line
        if step.returned:
            node.meta["returned"] = step.returned
        if not isinstance(step.value, Tensor):
            self._note_numbers(node, merged.values)
            return
        if merged.follows and self._follows is None and node.op != "get_attr":
            self._follows = node
        columns = list(zip(*(value.shape for value in merged.values), strict=False))
        node.meta["varies"] = tuple(axis for axis, vector in enumerate(columns) if len(set(vector)) > 1)
        for axis in node.meta["varies"]:
            self._vectors[node, axis] = columns[axis]
            if node.meta.get("input"):
                self._inputs.setdefault(columns[axis], (node, axis))
            known = self._first_with.get(columns[axis])
            if known is None or _depth(node) < _depth(known[0]):
                self._first_with[columns[axis]] = node, axis

    def _note_numbers(self, node: Node, values: Sequence[Any]) -> None:
        """Note where numbers come from that a call gives beside tensors, and that vary."""
        for path, leaf in leaves_of(values[0]):
            if type(leaf) in (int, float):
                vector = tuple(at(one, path) for one in values)
                if len(set(vector)) > 1:
                    self._given.setdefault(vector, (node, path))

    def _taken(self, node: Node, path: Path) -> Node:
        """A number inside the value of a node."""
        value = node.meta["value"]
        for step in path:
            function, key = (getattr, step.name) if isinstance(step, Attribute) else (operator.getitem, step)
            value = function(value, key)
            node = self.graph.call_function(function, (node, key))
            node.meta.update(value=value, scope="", nn_module_stack={})
        return node

    def _arguments(self, merged: Merged) -> tuple[Any, Any]:
        step, args, kwargs = merged.step, merged.args, merged.kwargs
        if step.target in WINDOWS:
            self._check_window(step, args, kwargs)
        if step.target in RESHAPES and step.op != "call_module":
            args, kwargs = self._left_open(args, kwargs)
        kwargs = without_defaults(step.target, kwargs)
        operands = self._operands(args, kwargs)
        return self._resolved((args, kwargs), merged, operands)  # type: ignore[no-any-return]

    def _left_open(self, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """A view whose sizes vary in one place only, or in one that is no size of a tensor, leaves that one open."""
        entries = [leaf for _, leaf in leaves_of((args[1:], kwargs))]
        if any(type(one) is int and one == -1 for one in entries):
            return args, kwargs
        varying = [one for one in entries if isinstance(one, Varying)]
        operands = self._operands(args, kwargs)
        products = [one for one in varying if self._direct(one.values, operands) is None]
        chosen = products[:1] or (varying if len(varying) == 1 else [])
        if not chosen:
            return args, kwargs

        def opened(value: Any) -> Any:
            if value is chosen[0]:
                return -1
            parts = parts_of(value) if not isinstance(value, Step | Varying | ByMode | Recipe) else None
            if parts is None:
                return value
            found = [opened(part) for _, part in parts]
            return found if isinstance(value, list) else tuple(found)

        return (args[0], *(opened(one) for one in args[1:])), {name: opened(one) for name, one in kwargs.items()}

    def _check_window(self, step: Step, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """A window with one number for all axes is right at other sizes only if all of them have that size."""
        kernel = args[1] if len(args) > 1 else kwargs.get("kernel_size")
        if not isinstance(kernel, Varying) or not isinstance(args[0], Step) or args[0].cold:
            return
        node, axes = self._nodes[args[0]], WINDOWS[step.target]
        ndim = node.meta["value"].ndim
        if any(self._vectors.get((node, axis)) != kernel.values for axis in range(ndim - axes, ndim)):
            raise Differs(step, "the window of a pool follows one axis, and is used for another one too")

    def _operands(self, *values: Any) -> list[Step]:
        """The hot steps among arguments."""
        return [leaf for _, leaf in leaves_of(values) if isinstance(leaf, Step) and not leaf.cold]

    def _resolved(self, value: Any, merged: Merged | None, operands: Sequence[Step]) -> Any:
        """Arguments with nodes: for steps, for what varies, and for the device of the model."""
        if isinstance(value, Step):
            return self._constant(value) if value.cold else self._nodes[value]
        if isinstance(value, Recipe):
            return self._made_in_graph(value)
        if isinstance(value, Varying):
            return self._number(value, merged, operands)
        if isinstance(value, ByMode):
            return self._follower(value)
        if isinstance(value, ByType):
            return self._limit(value.name)
        if isinstance(value, torch.dtype | float) and value in LIMITS_OF_TYPES:
            self.types.add(value)
        if value is DEVICE_OF_MODEL:
            return self._device_node()
        if isinstance(value, slice):
            return slice(*(self._resolved(one, merged, operands) for one in (value.start, value.stop, value.step)))
        output = merged is None  # what a model returns keeps its type; what a function takes need not
        if type(value) is list or (isinstance(value, list) and not output):
            return [self._resolved(one, merged, operands) for one in value]
        if type(value) in (tuple, torch.Size) or (isinstance(value, tuple) and not output):
            return tuple(self._resolved(one, merged, operands) for one in value)
        if type(value) is dict:
            return {key: self._resolved(one, merged, operands) for key, one in value.items()}
        if parts_of(value) is not None:
            return self._structure(value, lambda one: self._resolved(one, merged, operands))
        return value

    def _constant(self, step: Step) -> Any:
        """A get_attr node for a cold tensor; for several of them, nested as they are."""
        return map_leaves(step.value, lambda _, leaf: self._constant_of(leaf) if isinstance(leaf, Tensor) else leaf)

    def _constant_of(self, value: Tensor) -> Node:
        if id(value) not in self._made:
            name = self._made[id(value)] = f"{self.prefix}_constant_{len(self.constants)}"
            self.constants[name] = value.detach()
        node = self.graph.create_node("get_attr", self._made[id(value)])
        node.meta.update(value=torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta"))
        node.meta.update(scope="", nn_module_stack={}, varies=())
        return node

    def _made_in_graph(self, value: Recipe) -> Node:
        """The nodes of a recipe; those of steps that are there already are read again."""
        for merged in value.calls:
            if merged.step in self._nodes:
                continue
            step = merged.step
            args, kwargs = self._arguments(merged)
            op, target = ("call_function", step.target) if not isinstance(step.target, tuple) else step.target
            node = self._nodes[step] = self.graph.create_node(op, target, args, kwargs)
            # On meta tensors again: views of a real tensor have its memory, and copies of their shapes would not.
            given, named = fx.node.map_arg((node.args, node.kwargs), lambda one: one.meta["value"])
            with torch.no_grad():
                meta = dataclasses.replace(step, value=run_on_meta(op, target, given, named))
            self._describe(node, Merged(meta, (), {}, merged.values))
        return self._nodes[value.step]

    def _device_node(self) -> Any:
        """The device of the first input, where tensors that forward makes belong."""
        if self._first is None:
            return torch.device("cpu")
        if self._device is None:
            with self.graph.inserting_after(self._last_input):
                self._device = self.graph.call_function(getattr, (self._first, "device"))
            self._device.meta.update(value=torch.device("meta"), scope="", nn_module_stack={})
        return self._device

    def _limit(self, name: str) -> Node:
        """The type of the first tensor whose type follows, or a limit of that type."""
        if name not in self._limits:
            function, source, *rest = self._limit_call(name)
            place = self._last_input if source.meta.get("input") else source
            with self.graph.inserting_after(place):
                made = self._limits[name] = self.graph.call_function(function, (source, *rest))
            made.meta.update(value=function(source.meta["value"], *rest), scope="", nn_module_stack={})
        return self._limits[name]

    def _limit_call(self, name: str) -> tuple[Any, ...]:
        if name == "info":
            return torch.finfo, self._limit("dtype")
        if name != "dtype":
            return getattr, self._limit("info"), name
        if self._follows is None:
            raise Differs(None, "a type is needed before there is a tensor that has it")
        return getattr, self._follows, "dtype"

    def _follower(self, value: ByMode) -> Node:
        name = f"{self.prefix}_follows_{len(self._followers)}"
        key = dataclasses.replace(value)
        if key not in self._followers:
            self.own[name] = Follows(value.evaluation, value.training)
            with self.graph.inserting_after(self._last_input):
                node = self._followers[key] = self.graph.create_node("call_module", name)
            node.meta.update(value=value.evaluation, scope="", nn_module_stack={})
        return self._followers[key]

    # Numbers ----------------------------------------------------------------------------------------------------

    def _number(self, value: Varying, merged: Merged | None, operands: Sequence[Step]) -> Node:
        """A node whose value is that number in every recording.

        A size that a tensor has comes before an expression in other sizes: halves that are rounded up and down, say,
        agree at few sizes only. A multiple of the inputs' sizes is safe too, and does not tie the reader to a tensor.
        """
        vector = value.values
        if isinstance(vector[0], int):
            direct = self._direct(vector, operands)
            if direct is not None:
                return self._size(*direct, shared=direct in self._inputs.values())
        if vector in self._given:
            return self._taken(*self._given[vector])
        if isinstance(vector[0], int):
            for count in (1, 2):
                for places in combinations(self._inputs.items(), count):
                    sizes = [prod(column) for column in zip(*(one for one, _ in places), strict=True)]
                    number = vector[0] // sizes[0] if sizes[0] else 0
                    if number > 0 and tuple(size * number for size in sizes) == vector:
                        chain: Chain = () if number == 1 else ((operator.mul, number),)
                        return self._apply(chain, [place for _, place in places])
            if vector in self._first_with:
                return self._size(*self._first_with[vector], shared=False)
        found = self._expression(vector, operands)
        if found is None:
            raise Differs(merged.step if merged else None, f"a number that no size explains: {vector}")
        return found

    def _direct(self, vector: Vector, operands: Sequence[Step]) -> tuple[Node, int] | None:
        """A tensor and an axis with that size: an input, or an operand."""
        if vector in self._inputs:
            return self._inputs[vector]
        for step in operands:
            node = self._nodes[step]
            for axis in node.meta.get("varies", ()):
                if self._vectors[node, axis] == vector:
                    return node, axis
        return None

    def _size(self, node: Node, axis: int, *, shared: bool) -> Node:
        """A node that reads a size; one for all who read that of an input, so that it stands before everything."""
        vector = self._vectors.get((node, axis), ())
        if shared and vector in self._sizes:
            return self._sizes[vector]
        if shared:
            with self.graph.inserting_after(self._last_input):
                made = self.graph.call_method("size", (node, axis))
        else:
            made = self.graph.call_method("size", (node, axis))
        made.meta.update(value=int(node.meta["value"].shape[axis]), scope="", nn_module_stack=_outer(node, shared))
        if shared:
            self._sizes[vector] = made
        return made

    def _expression(self, vector: tuple[Any, ...], operands: Sequence[Step]) -> Node | None:
        """An expression in one, two or three sizes that has these values; `guesses` counts those that are none.

        Two numbers are met by many expressions: the simple ones of all sizes come before the others of any.
        """
        known = self._known(operands)
        whole = [(sizes, place) for sizes, place in known if all(type(one) is int for one in vector)]
        for (left, one), (right, other) in product(whole, whole):
            if tuple(a * b for a, b in zip(left, right, strict=True)) == vector:
                return self._apply((), [one, other])
        for (a, one), (b, two), (c, three) in product(whole, whole, whole):
            if tuple(x * y * z for x, y, z in zip(a, b, c, strict=True)) == vector:
                return self._apply((), [one, two, three])
        self.guesses += 1
        for family in FAMILIES:
            for sizes, place in [*known, *self._first_with.items()]:
                for chain in chains(family, vector, sizes):
                    return self._apply(chain, [place])
            if family is not FAMILIES[0]:
                continue
            for (left, one), (right, other) in product(known, known):
                both = tuple(a * b for a, b in zip(left, right, strict=True))
                for chain in _exact(chains(family, vector, both), both):
                    return self._apply(chain, [one, other])
                if tuple(a / b if b else None for a, b in zip(left, right, strict=True)) == vector:
                    return self._quotient(one, other)
            for (a, one), (b, two), (c, three) in product(whole, whole, whole):
                all_three = tuple(x * y * z for x, y, z in zip(a, b, c, strict=True))
                for chain in _exact(chains(family, vector, all_three), all_three):
                    return self._apply(chain, [one, two, three])
            if (found := self._fits(vector)) is not None:
                return found
        return None

    def _known(self, operands: Sequence[Step]) -> list[tuple[Vector, tuple[Node, int]]]:
        """Sizes that stand near: of operands, and of inputs."""
        found: dict[Vector, tuple[Node, int]] = {}
        for step in operands:
            node = self._nodes[step]
            for axis in node.meta.get("varies", ()):
                vector = self._vectors[node, axis]
                found.setdefault(vector, self._inputs.get(vector, (node, axis)))
        return list((found | self._inputs).items())

    def _apply(self, chain: Chain, places: Sequence[tuple[Node, int]]) -> Node:
        """The product of sizes, and a chain of operators on it."""
        sizes = [self._size(*place, shared=place in self._inputs.values()) for place in places]
        node = sizes[0]
        for size in sizes[1:]:
            node = self._computed(operator.mul, node, size)
        for function, number in chain:
            node = self._computed(function, node, number)
        return node

    def _fits(self, vector: tuple[Any, ...]) -> Node | None:
        """How often one size goes into another, as the stride of a map of features in its image."""
        if type(vector[0]) is not int or not vector[0]:
            return None
        sizes = self._first_with | self._inputs
        for (whole, one), (part, other) in product(sizes.items(), sizes.items()):
            if all(b and a // b == number for a, b, number in zip(whole, part, vector, strict=True)):
                return self._computed(operator.floordiv, *(self._apply((), [place]) for place in (one, other)))
        return None

    def _quotient(self, one: tuple[Node, int], other: tuple[Node, int]) -> Node:
        sizes = [self._size(*place, shared=place in self._inputs.values()) for place in (one, other)]
        return self._computed(operator.truediv, *sizes)

    def _computed(self, function: Any, node: Node, operand: Any) -> Node:
        made = self.graph.call_function(function, (node, operand))
        value = operand.meta["value"] if isinstance(operand, Node) else operand
        made.meta.update(value=function(node.meta["value"], value), scope="", nn_module_stack={})
        return made

    # Structures -------------------------------------------------------------------------------------------------

    def _output(self, value: Any) -> Any:
        return self._resolved(value, None, [])

    def _structure(self, value: Any, resolved: Any) -> Any:
        """A call that makes a container of a user's class."""
        if is_record(value):
            return self._filled(value, resolved)
        kind = type(value)
        args: tuple[Any, ...] = ()
        kwargs: dict[str, Any] = {}
        if isinstance(value, Mapping) and not dataclasses.is_dataclass(value):
            args = ({key: resolved(one) for key, one in value.items()},)
        elif isinstance(value, tuple) and hasattr(value, "_fields"):
            args = tuple(resolved(one) for one in value)
        elif isinstance(value, Mapping):
            kwargs = {str(key): resolved(one) for key, one in value.items()}
        elif dataclasses.is_dataclass(value):
            kwargs = {f.name: resolved(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
        else:
            args = ([resolved(one) for _, one in parts_of(value) or ()],)
        node = self.graph.call_function(kind, args, kwargs)
        node.meta.update(value=_with_values(value), scope="", nn_module_stack={})
        return node

    def _filled(self, value: Any, resolved: Any) -> Any:
        """A call that makes a plain object."""
        name = f"{self.prefix}_filled_{sum(isinstance(one, Filled) for one in self.own.values())}"
        self.own[name] = Filled(type(value))
        attributes = {key: resolved(one) for key, one in vars(value).items()}
        node = self.graph.create_node("call_module", name, (), attributes)
        node.meta.update(value=_with_values(value), scope="", nn_module_stack={})
        return node


Chain = tuple[tuple[Any, Any], ...]
"""Operators with their right operands, applied to a size one after the other."""


def _depth(node: Node) -> int:
    return len(node.meta.get("nn_module_stack", ()))


def part_of(size: float, whole: float) -> float:
    """What of `whole` one of `size` equal parts is."""
    return whole / size


def chains(family: Family, vector: tuple[Any, ...], sizes: Vector) -> Iterator[Chain]:
    """The chains of a family that make `vector` of `sizes`.

    The batch grows with the other sizes in the recordings: no part of it is taken for a number that has none in it.
    """
    whole = type(vector[0]) is int
    if whole and (sizes[0] % BATCH == 0) is not (vector[0] % BATCH == 0 and vector[0] != 0):
        return
    for chain in family(vector, sizes):
        if all(_followed(chain, size) == one for size, one in zip(sizes, vector, strict=True)):
            yield chain


def _exact(found: Iterable[Chain], sizes: Vector) -> Iterator[Chain]:
    """The chains that do not round: of a large product, one that rounds explains almost any number, wrongly."""
    for chain in found:
        rounds = [number for function, number in chain if function is operator.floordiv]
        if not rounds or (len(chain) == 1 and all(size % rounds[0] == 0 for size in sizes)):
            yield chain


def _followed(chain: Chain, value: Any) -> Any:
    for function, number in chain:
        value = function(value, number)
    return value


def _parts(vector: tuple[Any, ...], sizes: Vector) -> Iterator[Chain]:
    """Multiples, parts and sums; how often a stride fits; quotients of a number and a size."""
    first, size = vector[0], sizes[0]
    if not size or not isinstance(first, int | float):
        return
    if isinstance(first, float):
        yield ((operator.mul, first / size),)
        if first:
            yield ((operator.truediv, size / first),)
            yield ((part_of, round(first * size)),)
            yield ((part_of, first * size),)
        yield ((operator.add, first - size),)
        return
    if first and first % size == 0:
        yield ((operator.mul, first // size),)
    if first and size % first == 0:
        yield ((operator.floordiv, size // first),)
    yield ((operator.add, first - size),)
    for number in sorted({size // first, size // first + 1, -(-size // first)} if first > 0 else ()):
        if number > 1:
            yield ((operator.floordiv, number),)
            yield ((operator.sub, 1), (operator.floordiv, number), (operator.add, 1))


def _fills(vector: tuple[Any, ...], sizes: Vector) -> Iterator[Chain]:
    """What fills a size up to a multiple, and that multiple."""
    if not all(type(one) is int for one in vector):
        return
    for number in _divisors(gcd(*(a + b for a, b in zip(sizes, vector, strict=True))), max(vector)):
        yield ((operator.mul, -1), (operator.mod, number))
    for number in _divisors(gcd(*vector), max(abs(a - b) for a, b in zip(sizes, vector, strict=True))):
        yield ((operator.add, number - 1), (operator.floordiv, number), (operator.mul, number))
        yield ((operator.floordiv, number), (operator.mul, number))


def _lines(vector: tuple[Any, ...], sizes: Vector) -> Iterator[Chain]:
    """A multiple of a size and a number."""
    if not all(type(one) is int for one in vector):
        return
    first, size = vector[0], sizes[0]
    other = next((n for n in range(len(sizes)) if sizes[n] != size), None)
    if other is not None and (vector[other] - first) % (sizes[other] - size) == 0:
        slope = (vector[other] - first) // (sizes[other] - size)
        yield ((operator.mul, slope), (operator.add, first - slope * size))


def _limits(vector: tuple[Any, ...], sizes: Vector) -> Iterator[Chain]:
    """What is more than a limit, or less."""
    if not all(type(one) is int for one in vector):
        return
    yield ((min, max(vector)),)
    for place, one in enumerate(vector):
        yield ((operator.sub, sizes[place] - one), (max, min(vector)))


Family = Callable[[tuple[Any, ...], Vector], Iterator[Chain]]
FAMILIES: tuple[Family, ...] = (_parts, _fills, _lines, _limits)
"""Kinds of chains, the simplest first."""


def _divisors(number: int, above: int) -> list[int]:
    """The least divisor of a number that is greater than `above` and 1: others take more sizes to tell apart."""
    return [n for n in range(max(above + 1, 2), min(number, MOST) + 1) if number % n == 0][:1]


MOST = 4096
"""No model pads to a multiple of more."""


def without_defaults(function: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments without those that have the default anyway: functions of torch state all of them."""
    defaults = _defaults(function) if kwargs and not isinstance(function, str | tuple) else {}
    return {
        name: value
        for name, value in kwargs.items()
        if name != "_stacklevel"
        and not (name in defaults and type(value) is type(defaults[name]) and value == defaults[name])
    }


@cache
def _defaults(function: Any) -> dict[str, Any]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return {}
    plain = (bool, int, float, str, type(None))
    return {one.name: one.default for one in parameters if isinstance(one.default, plain)}


def is_input(step: Step) -> bool:
    """Whether a step is an input, or takes one out of a nested one."""
    taken = step.target in (operator.getitem, getattr) and step.op == "call_function" and step.kwargs == {}
    if not taken:
        return step.op == "placeholder"
    source = step.args[0]
    nested = isinstance(source, Step) and not isinstance(source.value, Tensor)
    return nested and isinstance(step.args[1], int | str) and is_input(source)


def _with_values(value: Any) -> Any:
    """An output structure with meta tensors for its steps."""

    def shown(_: Any, leaf: Any) -> Any:
        if isinstance(leaf, Step):
            return as_meta(leaf.value)
        return as_meta(leaf.step.value) if isinstance(leaf, Recipe) else leaf

    return map_leaves(value, shown)


def _outer(node: Node, shared: bool) -> dict[str, Any]:
    return {} if shared else dict(node.meta.get("nn_module_stack", {}))
