"""Walk a graph once and lower every call by its rule; calls without a rule are traced into, if possible."""

from __future__ import annotations

import copy
import operator
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count, repeat
from typing import Any

from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node, Proxy, Tracer
from torch.fx.node import map_aggregate
from torch.fx.proxy import GraphAppendingTracer

from bnas.passes.errors import LoweringError
from bnas.passes.frontend.entry import check_length, check_sizes
from bnas.passes.ops.calls import Call, CustomFunction, TensorRef, call_of, writes_in_place
from bnas.passes.ops.numbers import calculated
from bnas.passes.ops.registry import OPERATORS, qualified_name
from bnas.passes.ops.rnn import MODULES, recurrent

from .builder import OnnxBuilder
from .site import Site
from .steps import REMEDY, Execution, Step, applied, tensors_of
from .values import Size, Value, leaves
from .writes import Writes


@dataclass(frozen=True)
class Scope:
    """The module whose graph is walked, and its path in the model."""

    root: nn.Module
    prefix: str = ""

    def path(self, node: Node, call: Call | None = None) -> str:
        """Return the name of `node` in the ONNX graph: the path of its module, or its own name.

        The function of a layer, such as ``linear``, gets the path of the module that owns its weight, so that profiles
        can be summed by layers. `call` is resolved.
        """
        own = self.prefix + str(node.target if node.op == "call_module" else node.name)
        if call is None or node.op == "call_module" or not OPERATORS.of(call.op).layers:
            return own
        weights = [one for one in leaves(call.args) if isinstance(one, Value) and one.state and one.tensor.ndim > 1]
        return (weights[0].name.rpartition(".")[0] or own) if weights else own


class GraphWalk:
    """Lowers graphs into one builder, without changing their modules."""

    def __init__(self, builder: OnnxBuilder) -> None:
        self._builder = builder
        self._env: dict[Node, Any] = {}
        self._state: dict[int, Value] = {}
        self._writes = Writes(builder)

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
            elif not _only_checks(node) and not _only_keeps(node):
                self._env[node] = self._call(scope, node)
            for read in node.all_input_nodes:
                if last_reader[read] is node:
                    self._env.pop(read, None)
        return None

    def _attribute(self, scope: Scope, name: str) -> Any:
        owner, _, leaf = name.rpartition(".")
        found = getattr(scope.root.get_submodule(owner), leaf)
        if not isinstance(found, Tensor):
            return found
        if found.is_meta:
            raise LoweringError(
                f"{scope.prefix}{name}: is on the meta device, so it has no values to store: load the weights first"
            )
        if id(found) not in self._state:
            self._state[id(found)] = Value(found.detach().cpu(), scope.prefix + name, state=True)
        return self._state[id(found)]

    def _resolve(self, scope: Scope, given: Any) -> Any:
        """Replace each reference to a tensor in `given` by a `Value`."""

        def found(leaf: Any) -> Any:
            if isinstance(leaf, TensorRef):
                return self._attribute(scope, leaf.name)
            if not isinstance(leaf, Node):
                return leaf
            if self._writes.any:
                self._env[leaf] = _map_values(self._env[leaf], self._writes.current)
            return self._env[leaf]

        return map_aggregate(given, found)

    def _call(self, scope: Scope, node: Node) -> Any:
        call = _recurrent_call(node, scope.root) or call_of(node, scope.root)
        if call is None:
            return self._inline_module(scope, node)
        call = replace(call, args=self._resolve(scope, call.args), kwargs=self._resolve(scope, call.kwargs))
        if call.op is operator.getitem and not isinstance(call.args[0], Value):
            return call.args[0][call.args[1]]
        site = Site(self._builder, call, None, scope.path(node, call), scope.root)
        number = calculated(site)
        if number is not None:
            return number
        if OPERATORS.of(call.op).onnx is None and _is_foreign(call.op):
            return self._inline_function(scope, call)
        args, kwargs = self._resolve(scope, node.args), self._resolve(scope, node.kwargs)
        return self._lower(Step(scope.root, scope.path(node, call), call, args, kwargs))

    def _lower(self, step: Step) -> Any:
        run = step.run()
        if run.passed_through():
            self._check_numbers(step, run)
            return map_aggregate(run.result, run.origin) if run.holds_tensors else run.result
        written = run.written()
        if len(tensors_of(run.result)) != len(tensors_of(run.twin)):
            raise self._refused(step, run, "returns another number of tensors at other sizes")
        if run.constant:
            lowered = self._values(step, run, repeat(step.place))
            return self._writes.of_constants(step, written, lowered) if written else lowered
        if not written:
            return self._values(step, run, iter(applied(self._builder, step, run.result, run.twin)))
        target = run.origin(run.result) if run.result is not None else step.call.args[0]
        if not isinstance(target, Value) or target not in written:
            reason = "writes in place into a tensor that it does not return, which an ONNX graph cannot do"
            raise self._refused(step, run, reason)
        result = run.result if run.result is not None else target.tensor
        (name,) = applied(self._builder, step, result, target.twin if run.result is None else run.twin)
        return self._writes.of_value(step.site(self._builder, result, run.twin), target, name)

    def _values(self, step: Step, run: Execution, names: Iterator[str]) -> Any:
        """Return the result of `run` with a `Value` for each tensor, which knows its memory."""
        twins = iter(tensors_of(run.twin))
        numbers = count()

        def value(tensor: Tensor) -> Value:
            name, other, index = next(names), next(twins), next(numbers)
            source = run.viewed(tensor)
            twin = None if run.constant else other
            if source is None:
                return Value(tensor, name, twin=twin)
            steps = (*source.steps, replace(step, source=source, index=index))
            return Value(tensor, name, source.state and run.constant, twin, source.memory, steps, source.version)

        return _map_tensors(run.result, value)

    def _refused(self, step: Step, run: Execution, reason: str) -> LoweringError:
        return step.site(self._builder, run.result, run.twin).refuse(reason)

    def _check_numbers(self, step: Step, run: Execution) -> None:
        both = zip(leaves(run.result), leaves(run.twin), strict=False)
        if any(isinstance(one, int | float) and one != other for one, other in both):
            raise self._refused(step, run, "computes a number from the sizes of the inputs in an unknown way")

    def _inline_module(self, scope: Scope, node: Node) -> Any:
        # A shallow copy, because the tracer sets tensors that it finds in forward as attributes of the module.
        module = copy.copy(scope.root.get_submodule(str(node.target)))
        if isinstance(module, CustomFunction):
            raise LoweringError(f"no lowering rule for the autograd function {module.extra_repr()}; {REMEDY}")
        what = f"{scope.path(node)}: {type(module).__name__}"
        graph = module.graph if isinstance(module, GraphModule) else _traced(what, Tracer().trace, module)
        args, kwargs = self._resolve(scope, node.args), self._resolve(scope, node.kwargs)
        inputs = list(bound_inputs(graph, args, kwargs, what))
        return self.run(Scope(module, f"{scope.path(node)}."), graph, inputs)

    def _inline_function(self, scope: Scope, call: Call) -> Any:
        graph, values = Graph(), list[Any]()
        tracer = GraphAppendingTracer(graph)

        def proxy(leaf: Any) -> Any:
            if not isinstance(leaf, Value | Size):
                return leaf
            values.append(leaf)
            return Proxy(graph.placeholder(f"x{len(values)}"), tracer)

        args, kwargs = map_aggregate(call.args, proxy), map_aggregate(call.kwargs, proxy)
        what = f"{scope.path(call.node)}: {qualified_name(call.op)}"
        result = _traced(what, call.op, *args, **kwargs)  # type: ignore[arg-type]
        graph.output(map_aggregate(result, lambda leaf: leaf.node if isinstance(leaf, Proxy) else leaf))
        return self.run(Scope(scope.root, f"{scope.path(call.node)}."), graph, values)


def bound_inputs(graph: Graph, args: Sequence[Any], kwargs: dict[str, Any], what: str) -> Iterator[Any]:
    """Return the value of each placeholder of `graph`: an argument, or its default.

    Raises:
        LoweringError: An argument is missing or superfluous; the message begins with `what`.
    """
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    if len(args) > len(placeholders):
        raise LoweringError(f"{what} takes {len(placeholders)} inputs but got {len(args)}")
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


def _recurrent_call(node: Node, root: nn.Module) -> Call | None:
    """Return the call of a recurrent layer, which has no functional form with separate weights."""
    module = root.get_submodule(str(node.target)) if node.op == "call_module" else None
    hooked = module is not None and bool(module._forward_hooks or module._forward_pre_hooks)
    if type(module) not in MODULES or hooked:
        return None
    return Call(node, recurrent, tuple(node.args), {**node.kwargs, "layer": module})


CHECKS = frozenset({check_length.__name__, check_sizes.__name__})


def _only_checks(node: Node) -> bool:
    """Whether `node` is only a check of sizes, which ONNX graphs cannot have."""
    return node.op == "call_function" and not node.users and getattr(node.target, "__name__", "") in CHECKS


def _only_keeps(node: Node) -> bool:
    """Whether `node` only writes into a buffer that nothing reads; an ONNX file keeps no state between calls."""
    if node.users or not writes_in_place(node):
        return False
    source = node
    while source.op != "get_attr":
        if not (source.args and isinstance(source.args[0], Node)) or len(source.args[0].users) != 1:
            return False
        source = source.args[0]
    owner = str(source.target).rpartition(".")[0]
    readers = [*node.graph.find_nodes(op="get_attr", target=source.target)]
    return readers == [source] and not node.graph.find_nodes(op="call_module", target=owner)


def _is_foreign(op: Any) -> bool:
    """Whether `op` is a Python function outside PyTorch, which consists of PyTorch's operators."""
    return isinstance(op, types.FunctionType) and op.__module__.partition(".")[0] != "torch"


def _map_tensors(given: Any, change: Callable[[Tensor], Any]) -> Any:
    return map_aggregate(given, lambda leaf: change(leaf) if isinstance(leaf, Tensor) else leaf)


def _map_values(given: Any, change: Callable[[Value], Any]) -> Any:
    return map_aggregate(given, lambda leaf: change(leaf) if isinstance(leaf, Value) else leaf)
