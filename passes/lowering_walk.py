"""Walks a graph once and lowers every call by its rule; what has no rule is traced into where that is possible."""

from __future__ import annotations

import copy
import operator
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node, Proxy, Tracer
from torch.fx.node import map_aggregate
from torch.fx.proxy import GraphAppendingTracer

from .calls import Call, TensorRef, call_of
from .errors import LoweringError, RuleError
from .lowering_builder import OnnxBuilder
from .lowering_execution import Execution, leaves
from .lowering_site import LOWERING, Site, Value, is_made_of_batch, operator_name

REMEDY = "give it a rule with bnas.passes.lowering.register_lowering"


@dataclass(frozen=True)
class Scope:
    """The module whose graph is walked, and where it is within the model."""

    root: nn.Module
    prefix: str = ""

    def path(self, node: Node) -> str:
        """What `node` is called in the ONNX graph: the path of its module, or its own name."""
        return self.prefix + str(node.target if node.op == "call_module" else node.name)


@dataclass(frozen=True)
class Stale:
    """A tensor that shares memory with one that was written in place, but has another shape."""

    writer: str


class GraphWalk:
    """Lowers graphs into one builder; the modules that they belong to stay as they are."""

    def __init__(self, builder: OnnxBuilder) -> None:
        self._builder = builder
        self._env: dict[Node, Any] = {}
        self._state: dict[int, Value] = {}

    def run(self, scope: Scope, graph: Graph, inputs: Sequence[Any]) -> Any:
        """Lower `graph` on resolved `inputs` and return its output, with a `Value` for each tensor."""
        remaining = iter(inputs)
        last_reader = {read: node for node in graph.nodes for read in node.all_input_nodes}
        for node in graph.nodes:
            if node.op == "placeholder":
                self._env[node] = next(remaining)
            elif node.op == "get_attr":
                self._env[node] = self._attribute(scope, str(node.target))
            elif node.op == "output":
                return self._resolve(scope, node.args[0])
            else:
                self._env[node] = self._call(scope, node)
            for read in node.all_input_nodes:
                if last_reader[read] is node:
                    del self._env[read]  # what is written in place is looked for among the values still to be read
        return None

    def _attribute(self, scope: Scope, name: str) -> Any:
        owner, _, leaf = name.rpartition(".")
        found = getattr(scope.root.get_submodule(owner), leaf)
        if not isinstance(found, Tensor):
            return found
        if found.is_meta:
            raise LoweringError(f"{scope.prefix}{name}: is on the meta device, so it has no numbers to store")
        if id(found) not in self._state:
            self._state[id(found)] = Value(found.detach().cpu(), scope.prefix + name, state=True)
        return self._state[id(found)]

    def _resolve(self, scope: Scope, given: Any) -> Any:
        """`given` with a `Value` in place of each reference to a tensor, and Python values as they are."""

        def found(leaf: Any) -> Any:
            if isinstance(leaf, TensorRef):
                return self._attribute(scope, leaf.name)
            return self._env[leaf] if isinstance(leaf, Node) else leaf

        def fresh(leaf: Any) -> Any:
            if isinstance(leaf, Stale):
                raise LoweringError(
                    f"{leaf.writer}: writes in place into memory that is later read in another shape, which an ONNX "
                    "graph cannot do; write the model without the in-place operation"
                )
            return leaf

        return map_aggregate(map_aggregate(given, found), fresh)

    def _call(self, scope: Scope, node: Node) -> Any:
        call = call_of(node, scope.root)
        if call is None:
            return self._inline_module(scope, node)
        call = replace(call, args=self._resolve(scope, call.args), kwargs=self._resolve(scope, call.kwargs))
        if call.op is operator.getitem and not isinstance(call.args[0], Value):
            return call.args[0][call.args[1]]
        if call.op not in LOWERING and _is_foreign(call.op):
            return self._inline_function(scope, call)
        args, kwargs = self._resolve(scope, node.args), self._resolve(scope, node.kwargs)
        return self._lower(scope, call, Execution(scope.root, call, scope.path(node), args, kwargs))

    def _lower(self, scope: Scope, call: Call, run: Execution) -> Any:
        if run.passed_through():
            return map_aggregate(run.result, run.origin) if run.holds_tensors else run.result
        written = run.written()
        if run.constant:
            name = scope.path(call.node)
            lowered = _map_tensors(run.result, lambda leaf: Value(leaf, name, state=run.is_state(leaf)))
        else:
            names = iter(self._apply(scope, call, run.result))
            lowered = _map_tensors(run.result, lambda leaf: Value(leaf, next(names)))
        for value in written:
            seen = lowered if run.origin(run.result) is value else None
            self._rebind(scope.path(call.node), value, _renewed(value) if run.constant else seen)
        return _map_values(lowered, _renewed) if run.constant and written else lowered

    def _apply(self, scope: Scope, call: Call, result: Any) -> Sequence[str]:
        place = scope.path(call.node)
        if call.op not in LOWERING:
            raise LoweringError(
                f"{place}: no lowering rule for {operator_name(call.op)} (node {call.node.name!r}); {REMEDY}"
            )
        tensors = [one for one in leaves(result) if isinstance(one, Tensor)]
        if any(is_made_of_batch(size) for tensor in tensors for size in tensor.shape):
            raise LoweringError(f"{place}: {operator_name(call.op)} takes a part of the batch, whose size is not fixed")
        names = LOWERING[call.op](Site(self._builder, call, result, place, scope.root))
        names = [names] if isinstance(names, str) else names
        if len(names) != len(tensors):
            raise RuleError(
                f"{place}: the rule for {operator_name(call.op)} gives {len(names)} results for {len(tensors)} tensors"
            )
        return names

    def _rebind(self, place: str, old: Value, new: Any) -> None:
        """Let all that read the memory of `old` read `new` from now on, as they do in PyTorch."""
        if old.state or not isinstance(new, Value):
            raise LoweringError(
                f"{place}: writes into {old.name!r} in place, which an ONNX graph cannot do; write the model without it"
            )

        def current(leaf: Value) -> Any:
            if _memory(leaf) != _memory(old):
                return leaf
            if new.constant:
                return _renewed(leaf)
            return new if _geometry(leaf) == _geometry(old) else Stale(place)

        self._env = {node: _map_values(value, current) for node, value in self._env.items()}

    def _inline_module(self, scope: Scope, node: Node) -> Any:
        # A shallow copy: the tracer sets the tensors that it finds in forward as attributes of what it traces.
        module = copy.copy(scope.root.get_submodule(str(node.target)))
        what = f"{scope.path(node)}: {type(module).__name__}"
        graph = module.graph if isinstance(module, GraphModule) else _traced(what, Tracer().trace, module)
        args, kwargs = self._resolve(scope, node.args), self._resolve(scope, node.kwargs)
        inputs = list(bound_inputs(graph, args, kwargs, what))
        return self.run(Scope(module, f"{scope.path(node)}."), graph, inputs)

    def _inline_function(self, scope: Scope, call: Call) -> Any:
        graph, values = Graph(), list[Value]()
        tracer = GraphAppendingTracer(graph)

        def proxy(leaf: Any) -> Any:
            if not isinstance(leaf, Value):
                return leaf
            values.append(leaf)
            return Proxy(graph.placeholder(f"x{len(values)}"), tracer)

        args, kwargs = map_aggregate(call.args, proxy), map_aggregate(call.kwargs, proxy)
        what = f"{scope.path(call.node)}: {operator_name(call.op)}"
        result = _traced(what, call.op, *args, **kwargs)  # type: ignore[arg-type]
        graph.output(map_aggregate(result, lambda leaf: leaf.node if isinstance(leaf, Proxy) else leaf))
        return self.run(Scope(scope.root, f"{scope.path(call.node)}."), graph, values)


def bound_inputs(graph: Graph, args: Sequence[Any], kwargs: dict[str, Any], what: str) -> Iterator[Any]:
    """The value of each placeholder of `graph`: an argument, or the default.

    Raises:
        LoweringError: if an argument is missing or left over; its message begins with `what`.
    """
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    if len(args) > len(placeholders):
        raise LoweringError(f"{what} takes {len(placeholders)} inputs but was given {len(args)}")
    for place, node in enumerate(placeholders):
        if place < len(args):
            yield args[place]
        elif node.target in kwargs or node.args:
            yield kwargs.get(str(node.target), *node.args)
        else:
            raise LoweringError(f"{what} was not given its input {node.target!r}")


def _traced(what: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    try:
        return function(*args, **kwargs)
    except Exception as error:
        raise LoweringError(f"{what} has no lowering rule and cannot be traced into ({error}); {REMEDY}") from error


def _is_foreign(op: Any) -> bool:
    """Whether `op` is a Python function that is not PyTorch's, so that it is made of operators that are."""
    return isinstance(op, types.FunctionType) and op.__module__.partition(".")[0] != "torch"


def _map_tensors(given: Any, change: Callable[[Tensor], Any]) -> Any:
    return map_aggregate(given, lambda leaf: change(leaf) if isinstance(leaf, Tensor) else leaf)


def _map_values(given: Any, change: Callable[[Value], Any]) -> Any:
    return map_aggregate(given, lambda leaf: change(leaf) if isinstance(leaf, Value) else leaf)


def _renewed(value: Value) -> Value:
    """The same memory as another object: the builder tells tensors apart by identity and stored the former numbers."""
    return Value(value.tensor.view_as(value.tensor), value.name, value.state)


def _memory(value: Value) -> int:
    return int(value.tensor.untyped_storage()._cdata)


def _geometry(value: Value) -> tuple[Any, ...]:
    tensor = value.tensor
    return tensor.dtype, tensor.shape, tensor.stride(), tensor.storage_offset()
