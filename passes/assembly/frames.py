"""Frames: graph modules without tensors, cached for the most recent structures.

Sub-networks of one structure skip the same blocks and have the same constants in their graphs. They differ only in the
tensors and settings of their layers. Generating and compiling the code of a graph is the most expensive part of making
a program, so programs of one structure share graph and code.
"""

from __future__ import annotations

import copy
import linecache
import pkgutil
import re
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any
from weakref import finalize

from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Interpreter, Node, graph_module
from torch.fx.graph import PythonCode
from torch.fx.node import _get_qualified_name, map_aggregate, map_arg

from bnas.passes.frontend.ir import IR

# Deeply nested modules. Python allows 200 nested parentheses, and torch.fx writes one for each number in a path.

_DEEP = re.compile(r"(?:getattr\(){50,}self((?:\.\w+)*(?:, \"[^\"]+\"\)(?:\.\w+)*)+)")


def readable(graph: Graph) -> Graph:
    """Make the code of `graph` readable for Python despite deeply nested modules: ``0.0.0.0...`` becomes one call."""
    if any(str(node.target).count(".") >= 50 for node in graph.nodes if node.op in ("call_module", "get_attr")):
        graph.on_generate_code(lambda _: _shallow)
    return graph


def _shallow(lines: list[str]) -> list[str]:
    def call(found: re.Match[str]) -> str:
        path = ".".join(number or name for number, name in re.findall(r', "([^"]+)"\)|\.(\w+)', found[1]))
        return f'__import__("operator").attrgetter("{path}")(self)'

    return [_DEEP.sub(call, line) for line in lines]


# Pickled graphs. PyTorch would save the code of a graph module and trace it with proxies when loading. Then sizes of
# inputs are proxies, which slices and factories such as `torch.zeros` refuse, and writes ``x[i] = y`` are lost.


@dataclass(frozen=True)
class _Link:
    """Stands for a node among the arguments of another node, by its position in the graph."""

    place: int


@dataclass(frozen=True)
class _Function:
    """A function by the path under which it can be imported; some PyTorch functions report a wrong name."""

    path: str

    @classmethod
    def of(cls, target: Any) -> Any:
        """Return the stored form of `target`."""
        if isinstance(target, str):
            return target
        try:
            path = _get_qualified_name(target)
            return cls(path) if pkgutil.resolve_name(path) is target else target
        except (RuntimeError, ImportError, AttributeError, ValueError):  # no importable path: leave it to pickle
            return target


def _packed(graph: Graph) -> list[tuple[Any, ...]]:
    """Return the nodes of `graph` as flat values. References between nodes would nest as deep as the graph is long."""
    links: dict[Node, Any] = {node: _Link(place) for place, node in enumerate(graph.nodes)}
    return [
        (
            node.op,
            _Function.of(node.target),
            *map_arg((node.args, node.kwargs), links.__getitem__),
            node.name,
            node.type,
        )
        for node in graph.nodes
    ]


def _unpacked(nodes: list[tuple[Any, ...]]) -> Graph:
    """Rebuild a graph from packed nodes, with the same names."""
    graph, made = Graph(), list[Node]()
    for op, stored, args, kwargs, name, kind in nodes:
        target = pkgutil.resolve_name(stored.path) if isinstance(stored, _Function) else stored
        given = map_aggregate((args, kwargs), lambda one: made[one.place] if isinstance(one, _Link) else one)
        made.append(graph.create_node(op, target, *given, name, kind))
    return graph


def _loaded(kind: type[Assembled], name: str, state: dict[str, Any], nodes: list[tuple[Any, ...]]) -> Assembled:
    module = kind({}, Graph(), class_name=name)
    vars(module).update(state)
    module.graph = readable(_unpacked(nodes))
    return module


class Assembled(GraphModule):
    """The graph module of every sub-network. It is pickled with its graph.

    torch.fx keeps the source text of each graph module, for tracebacks, until the process ends. Here the text is freed
    together with the code. (A traceback keeps its code alive, so it still shows the lines after the module is gone.)
    """

    def recompile(self) -> PythonCode:
        """Generate and compile the code, as in fx, but without fx's `__call__`, which prints tracebacks."""
        made = super().recompile()
        del type(self).__call__
        frees_text(self)
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the module with its graph; functions in the graph are stored by name."""
        # torch.fx creates a subclass for each graph module; find the first class that it did not create.
        kind = next(one for one in type(self).__mro__ if one.__module__ != graph_module.__name__)
        state = {name: value for name, value in vars(self).items() if name != "_graph"}
        return _loaded, (kind, type(self).__name__, state, _packed(self.graph))


def frees_text(module: GraphModule) -> None:
    """Let the source text of a graph module be freed together with its code."""
    code = type(module).forward.__code__
    finalize(code, forget_text, code.co_filename).atexit = False


def forget_text(name: str) -> None:
    """Free the source text of the code that was compiled under `name`."""
    linecache.cache.pop(name, None)
    graph_module._loader.eval_cache.pop(name, None)


@dataclass(frozen=True)
class Frame:
    """A graph module without its layers and tensors."""

    module: GraphModule
    orders: Mapping[str, Tensor]
    """Constant orders of channels in the graph, by the name under which it reads them."""

    @classmethod
    def of(cls, graph: Graph, orders: Mapping[str, Tensor], kind: type[Assembled], name: str) -> Frame:
        """Make the frame of a graph; its module has the class `kind` and the displayed name `name`."""
        module = kind({}, Graph(), class_name=name)
        module.graph = readable(graph)
        return cls(module, orders)

    def shared(self) -> Frame:
        """Return another frame with the same graph and code."""
        module = make_shell(self.module)
        assert isinstance(module, GraphModule)
        return Frame(module, self.orders)

    def fill(self, attributes: Mapping[str, nn.Module | Tensor], training: bool) -> GraphModule:
        """Return the module with all `attributes` set at their paths; missing parents become empty modules."""
        places: dict[str, nn.Module] = {"": self.module}
        self.module.training = training

        def place(path: str) -> nn.Module:
            if path not in places:
                owner, _, name = path.rpartition(".")
                table = place(owner)._modules
                if table.get(name) is None:
                    table[name] = make_shell(CONTAINER)
                    vars(table[name])["training"] = training
                places[path] = table[name]  # type: ignore[assignment]
            return places[path]

        for path in sorted(attributes, key=lambda path: path.count(".")):  # a layer comes before the layers inside it
            owner, _, name = path.rpartition(".")
            value, at = attributes[path], place(owner)
            table: Any = at._modules if isinstance(value, nn.Module) else at._buffers
            table = at._parameters if isinstance(value, nn.Parameter) else table
            table[name] = value
        return self.module


@dataclass(frozen=True)
class Frames:
    """Cache of the frames of the most recently used structures."""

    limit: int = 32
    held: OrderedDict[Hashable, Frame] = field(default_factory=OrderedDict)

    def __deepcopy__(self, memo: Any) -> Frames:
        """Return an empty cache."""
        return Frames(self.limit)

    def __reduce__(self) -> Any:
        """Pickle an empty cache."""
        return Frames, (self.limit,)

    def get(self, structure: Hashable, make: Callable[[], Frame]) -> Frame:
        """Return the cached frame of `structure`, or make it with `make`."""
        if structure not in self.held:
            self.held[structure] = make()
            if len(self.held) > self.limit:
                self.held.popitem(last=False)
        self.held.move_to_end(structure)
        return self.held[structure]


CONTAINER = nn.Module()
TABLES = frozenset(n for n, table in vars(CONTAINER).items() if isinstance(table, dict | set)) - {
    "_parameters",
    "_buffers",
    "_modules",
}
"""Attributes of every module that are neither tensors nor children: hooks and names."""


def make_shell(module: nn.Module, kind: type[nn.Module] | None = None) -> nn.Module:
    """Return a shallow copy of a module without its tensors and children, with the same settings, hooks and mode.

    It has the class `kind`, by default the class of the module. With a `kind` it is called as a plain layer: without
    hooks and without a forward of its own, since the graph holds what they compute. Hooks that are registered on the
    copy later do not affect the module.
    """
    shell = object.__new__(kind or type(module))  # no constructor runs; a graph module's class has its code
    state = vars(shell)
    state.update(vars(module))
    for name in TABLES:
        if name in state:
            state[name] = state[name].copy()
            if kind is not None and "ward_" in name:  # _forward_hooks, _backward_pre_hooks, ...
                state[name].clear()
    if kind is not None:
        state.pop("forward", None)
    state["_parameters"] = dict.fromkeys(module._parameters)
    state["_buffers"] = dict.fromkeys(module._buffers)
    state["_modules"] = {}
    return shell


# Running the graph of an IR node by node on another module's tensors, to check results.


class GraphInterpreter(Interpreter):
    """Runs the graph of `ir` on the tensors of `root`, a module with the structure of the captured one.

    Parts of the graph that the model does not have come from the IR: tensors made in forward (converted to the number
    type of `root`) and leaf modules (in the mode of `root`).
    """

    def __init__(self, ir: IR, root: nn.Module, *, garbage_collect_values: bool = True) -> None:
        super().__init__(root, garbage_collect_values=garbage_collect_values, graph=ir.graph)
        self.ir, self.root = ir, root
        self.own = {name: copy.deepcopy(module) for name, module in ir.modules.items()}
        self.extra_traceback = False

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Run the graph as fx does; leaf modules of the graph have the current mode of `root`."""
        for module in self.own.values():
            module.train(self.root.training)
        return super().run(*args, **kwargs)

    def fetch_attr(self, target: str) -> Any:
        """Fetch an attribute as fx does, also for the graph's own tensors and modules."""
        if target in self.own:
            return self.own[target]
        return self.ir.constant(target, self.root) if target in self.ir.constants else super().fetch_attr(target)

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Call a module as fx does; a user's class that the graph treats as a plain layer is called as one."""
        if target not in self.ir.plain:
            return super().call_module(target, args, kwargs)
        source = self.ir.module(str(target), self.root)
        shell = make_shell(source, self.ir.plain[target])
        shell._parameters.update(source._parameters)
        shell._buffers.update(source._buffers)
        return shell(*args, **kwargs)
