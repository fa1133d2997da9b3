"""Frames: graph modules that wait for their tensors; those of the latest structures are kept.

Sub-networks of one structure skip the same blocks and have the same constants in their graph, so that they differ in
nothing but the tensors and settings of their layers. Writing and compiling the code of a graph takes most of the time
that a program needs, so programs of one structure share graph and code.
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

# Modules that lie deep. Python takes 200 parentheses inside one another, and torch.fx writes one for each number.

_DEEP = re.compile(r"(?:getattr\(){50,}self((?:\.\w+)*(?:, \"[^\"]+\"\)(?:\.\w+)*)+)")


def readable(graph: Graph) -> Graph:
    """`graph`, whose code Python can read although modules lie deep: ``0.0.0.0...`` is then one call."""
    if any(str(node.target).count(".") >= 50 for node in graph.nodes if node.op in ("call_module", "get_attr")):
        graph.on_generate_code(lambda _: _shallow)
    return graph


def _shallow(lines: list[str]) -> list[str]:
    def call(found: re.Match[str]) -> str:
        path = ".".join(number or name for number, name in re.findall(r', "([^"]+)"\)|\.(\w+)', found[1]))
        return f'__import__("operator").attrgetter("{path}")(self)'

    return [_DEEP.sub(call, line) for line in lines]


# Graphs on disk. PyTorch writes the code of a graph module, and traces it with proxies where it is loaded: a size of an
# input is then a proxy, which slices and factories such as `torch.zeros` refuse, and writes by ``x[i] = y`` are lost.


@dataclass(frozen=True)
class _Link:
    """A node among the arguments of another one: its position in the graph."""

    place: int


@dataclass(frozen=True)
class _Function:
    """A function that pickle finds by this path only: several of PyTorch's say that they have another name."""

    path: str

    @classmethod
    def of(cls, target: Any) -> Any:
        """`target`, as it is stored."""
        if isinstance(target, str):
            return target
        try:
            path = _get_qualified_name(target)
            return cls(path) if pkgutil.resolve_name(path) is target else target
        except (RuntimeError, ImportError, AttributeError, ValueError):  # it has no path: pickle says so, or knows more
            return target


def _packed(graph: Graph) -> list[tuple[Any, ...]]:
    """The nodes of `graph` as plain values, which hold no other node: links would nest as deep as the graph is long."""
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
    """The graph of packed nodes, with the same names."""
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
    """A graph module, as every sub-network and every deep copy of one is; it is saved and loaded with its graph.

    The text of its code, which tracebacks show, is kept as long as the code: torch.fx keeps it as long as the process
    lives. An error holds the code of its traceback, which shows the lines although the module is gone.
    """

    def recompile(self) -> PythonCode:
        """As in fx, whose own way to call the module prints the traceback of an error, and raises it without one."""
        made = super().recompile()
        del type(self).__call__
        code = type(self).forward.__code__
        finalize(code, forget_text, code.co_filename).atexit = False
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        """What loads the module; the functions in its graph are stored by their names, as pickle does."""
        # torch.fx makes a class for each graph module: the first one that is not its own.
        kind = next(one for one in type(self).__mro__ if one.__module__ != graph_module.__name__)
        state = {name: value for name, value in vars(self).items() if name != "_graph"}
        return _loaded, (kind, type(self).__name__, state, _packed(self.graph))


def forget_text(name: str) -> None:
    """Let go of the text of the code that was compiled under `name`."""
    linecache.cache.pop(name, None)
    graph_module._loader.eval_cache.pop(name, None)


@dataclass(frozen=True)
class Frame:
    """A graph module without its layers and tensors."""

    module: GraphModule
    orders: Mapping[str, Tensor]
    """Orders of channels, which stand in the graph as constants do, by the name that it reads them by."""

    @classmethod
    def of(cls, graph: Graph, orders: Mapping[str, Tensor], kind: type[Assembled], name: str) -> Frame:
        """The frame of a graph; its module is of the class `kind` and shows itself as `name`."""
        module = kind({}, Graph(), class_name=name)
        module.graph = readable(graph)
        return cls(module, orders)

    def shared(self) -> Frame:
        """A frame with the same graph and code, to be filled in its place."""
        module = make_shell(self.module)
        assert isinstance(module, GraphModule)
        return Frame(module, self.orders)

    def fill(self, attributes: Mapping[str, nn.Module | Tensor], training: bool) -> GraphModule:
        """The module, with everything that its graph reads set at its path; between stand empty modules."""
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

        for path in sorted(attributes, key=lambda path: path.count(".")):  # a layer comes before what is inside it
            owner, _, name = path.rpartition(".")
            value, at = attributes[path], place(owner)
            table: Any = at._modules if isinstance(value, nn.Module) else at._buffers
            table = at._parameters if isinstance(value, nn.Parameter) else table
            table[name] = value
        return self.module


@dataclass(frozen=True)
class Frames:
    """The frames of the structures that were asked for last."""

    limit: int = 32
    held: OrderedDict[Hashable, Frame] = field(default_factory=OrderedDict)

    def __deepcopy__(self, memo: Any) -> Frames:
        """None at all: they are made again where they are asked for."""
        return Frames(self.limit)

    def __reduce__(self) -> Any:
        """As in a deep copy."""
        return Frames, (self.limit,)

    def get(self, structure: Hashable, make: Callable[[], Frame]) -> Frame:
        """The frame that was made for `structure`; one of `make` where there is none."""
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
"""What every module holds beside tensors and children: hooks and names."""


def make_shell(module: nn.Module, kind: type[nn.Module] | None = None) -> nn.Module:
    """A shallow copy of a module without its tensors and children: same settings, hooks and mode.

    It is of the class `kind`, by default of the module's own. Its tables of hooks are its own: what is registered with
    the shell is not with the module.
    """
    shell = object.__new__(kind or type(module))  # no constructor runs; a graph module's class has its code
    state = vars(shell)
    state.update(vars(module))
    for name in TABLES:
        if name in state:
            state[name] = state[name].copy()
    state["_parameters"] = dict.fromkeys(module._parameters)
    state["_buffers"] = dict.fromkeys(module._buffers)
    state["_modules"] = {}
    return shell


# The graph of an IR, run node by node on another module's tensors: to check what is made of it.


class GraphInterpreter(Interpreter):
    """Runs the graph of `ir` on the tensors of `root`, a module of the structure of the captured one.

    What the graph has and the model has not comes from the IR: tensors made in forward, in the number type of `root`,
    and leaf modules, in the mode of `root`.
    """

    def __init__(self, ir: IR, root: nn.Module, *, garbage_collect_values: bool = True) -> None:
        super().__init__(root, garbage_collect_values=garbage_collect_values, graph=ir.graph)
        self.ir, self.root = ir, root
        self.own = {name: copy.deepcopy(module) for name, module in ir.modules.items()}
        self.extra_traceback = False

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """As in fx; leaf modules of the graph follow the mode that `root` is in now."""
        for module in self.own.values():
            module.train(self.root.training)
        return super().run(*args, **kwargs)

    def fetch_attr(self, target: str) -> Any:
        """As in fx, for what the graph calls its own too."""
        if target in self.own:
            return self.own[target]
        return self.ir.constant(target, self.root) if target in self.ir.constants else super().fetch_attr(target)

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        """As in fx; a layer of a user's class that is called as a plain layer is one here too."""
        if target not in self.ir.plain:
            return super().call_module(target, args, kwargs)
        source = self.ir.module(str(target), self.root)
        shell = make_shell(source, self.ir.plain[target])
        shell._parameters.update(source._parameters)
        shell._buffers.update(source._buffers)
        return shell(*args, **kwargs)
