"""Write merged recordings as a torch.fx graph, with nodes that compute the varying values."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx import Node

from bnas.passes.ops.record import UNKNOWN, Trait
from bnas.passes.ops.registry import OPERATORS

from .decompositions import Filled, Follows
from .functions import as_meta, run_on_meta, without_defaults
from .merging import LIMITS, ByMode, ByType, Differs, Merged, Merger, Recipe, Varying, limit_of
from .numbers import Numbers
from .structure import is_record, leaves_of, map_leaves, parts_of
from .tape import DEVICE_OF_MODEL, Step

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
LIMITS_OF_TYPES = frozenset(limit_of(dtype, name) for dtype in FLOATING for name in LIMITS)
"""Arguments that may be a type, or a limit of a type, that forward read from a tensor."""


class Emitter(Numbers):
    """Makes the graph of a merged recording."""

    def __init__(self, merger: Merger, prefix: str = "") -> None:
        super().__init__()
        self.merger, self.prefix = merger, prefix
        self.constants: dict[str, Tensor] = {}
        self.own = {f"{prefix}{name}": module for name, module in merger.base.own.items()}
        self._followers: dict[ByMode, Node] = {}
        self._made: dict[int, str] = {}
        self.types: set[Any] = set()
        """Types and limits of types among the arguments: they may have been read from a tensor."""
        self._limits: dict[str, Node] = {}
        self._follows: Node | None = None
        """The first tensor whose type follows that of the inputs or parameters."""
        self._first: Node | None = None
        self._device: Node | None = None

    def emit(self) -> fx.Graph:
        """Return the graph.

        Raises:
            Differs: The recordings have other calls, or a number varies and no expression in sizes gives it.
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
        self._note_sizes(node, merged.values)

    def _arguments(self, merged: Merged) -> tuple[Any, Any]:
        step, args, kwargs = merged.step, merged.args, merged.kwargs
        record = OPERATORS.of(step.target) if step.op != "call_module" else UNKNOWN
        if record.has(Trait.WINDOW):
            self._check_window(step, args, kwargs)
        if record.op is torch.reshape:
            args, kwargs = self._left_open(args, kwargs)
        kwargs = without_defaults(step.target, kwargs)
        operands = self._operands(args, kwargs)
        return self._resolved((args, kwargs), merged, operands)  # type: ignore[no-any-return]

    def _left_open(self, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Replace one varying size of a view by -1: the only one, or one that is not the size of a tensor."""
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
        """Raise `Differs` if a window has one number for all axes, and the axes may have different sizes."""
        kernel = args[1] if len(args) > 1 else kwargs.get("kernel_size")
        if not isinstance(kernel, Varying) or not isinstance(args[0], Step) or args[0].cold:
            return
        node = self._nodes[args[0]]
        ndim = node.meta["value"].ndim
        axes = int(step.target.__name__.partition("_pool")[2][0])
        if any(self._vectors.get((node, axis)) != kernel.values for axis in range(ndim - axes, ndim)):
            raise Differs(
                step, "the window of a pool depends on the size of one axis, but is also used for another axis"
            )

    def _operands(self, *values: Any) -> list[Step]:
        """Return the hot steps among arguments."""
        return [leaf for _, leaf in leaves_of(values) if isinstance(leaf, Step) and not leaf.cold]

    def _resolved(self, value: Any, merged: Merged | None, operands: Sequence[Step]) -> Any:
        """Return arguments with nodes instead of steps, varying values and the device of the model."""
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
        output = merged is None  # containers in the output keep their class, those in arguments need not
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
        """Return get_attr nodes for the cold tensors of a step, nested as in its value."""
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
        """Add the nodes of a recipe, unless they exist; return the last one."""
        for merged in value.calls:
            if merged.step in self._nodes:
                continue
            step = merged.step
            args, kwargs = self._arguments(merged)
            op, target = ("call_function", step.target) if not isinstance(step.target, tuple) else step.target
            node = self._nodes[step] = self.graph.create_node(op, target, args, kwargs)
            # Computed again on meta tensors, so that views share memory as views of a real tensor do.
            given, named = fx.node.map_arg((node.args, node.kwargs), lambda one: one.meta["value"])
            try:
                with torch.no_grad():
                    meta = dataclasses.replace(step, value=run_on_meta(op, target, given, named))
            except NotImplementedError as error:
                raise Differs(step, f"no graph can make what {target} makes at another size") from error
            self._describe(node, Merged(meta, (), {}, merged.values))
        return self._nodes[value.step]

    def _device_node(self) -> Any:
        """Return a node for the device of the first input; tensors that forward makes are on this device."""
        if self._first is None:
            return torch.device("cpu")
        if self._device is None:
            with self.graph.inserting_after(self._last_input):
                self._device = self.graph.call_function(getattr, (self._first, "device"))
            self._device.meta.update(value=torch.device("meta"), scope="", nn_module_stack={})
        return self._device

    def _limit(self, name: str) -> Node:
        """Return a node for the type of the first tensor whose type follows the inputs, or a limit of that type."""
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

    # Containers.

    def _output(self, value: Any) -> Any:
        return self._resolved(value, None, [])

    def _structure(self, value: Any, resolved: Any) -> Any:
        """Add a call that makes a container of a user's class."""
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
        """Add a call that makes a plain object."""
        name = f"{self.prefix}_filled_{sum(isinstance(one, Filled) for one in self.own.values())}"
        self.own[name] = Filled(type(value))
        attributes = {key: resolved(one) for key, one in vars(value).items()}
        node = self.graph.create_node("call_module", name, (), attributes)
        node.meta.update(value=_with_values(value), scope="", nn_module_stack={})
        return node


def is_input(step: Step) -> bool:
    """Whether a step is an input, or takes a part out of a nested input."""
    taken = step.target in (operator.getitem, getattr) and step.op == "call_function" and step.kwargs == {}
    if not taken:
        return step.op == "placeholder"
    source = step.args[0]
    nested = isinstance(source, Step) and not isinstance(source.value, Tensor)
    return nested and isinstance(step.args[1], int | str) and is_input(source)


def _with_values(value: Any) -> Any:
    """Return an output structure with meta tensors instead of steps."""

    def shown(_: Any, leaf: Any) -> Any:
        if isinstance(leaf, Step):
            return as_meta(leaf.value)
        return as_meta(leaf.step.value) if isinstance(leaf, Recipe) else leaf

    return map_leaves(value, shown)
