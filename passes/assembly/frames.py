"""Frames: graph modules that wait for their tensors; those of the latest structures are kept.

Sub-networks of one structure skip the same blocks and have the same constants in their graph, so that they differ in
nothing but the tensors and settings of their layers. Writing and compiling the code of a graph takes most of the time
that a program needs, so programs of one structure share graph and code.
"""

from __future__ import annotations

import copy
import linecache
import operator
import re
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any
from weakref import finalize

from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Interpreter, Node, Proxy, Tracer, graph_module
from torch.fx.graph import PythonCode

from bnas.passes.frontend.ir import IR

# A saved graph module is loaded by a symbolic trace of its code: what proxies of torch.fx cannot write stays in it.


class Reloading(Tracer):
    """The tracer that PyTorch loads our graph modules with."""

    def proxy(self, node: Node) -> Proxy:
        """As in fx, for a value that can be written into."""
        return _Written(node, self)

    def trace(self, *args: Any, **kwargs: Any) -> Graph:
        """As in fx, for modules that may lie deep."""
        return readable(super().trace(*args, **kwargs))


class _Written(Proxy):
    def __setitem__(self, index: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, index, value), {})


def _in_place(function: Any) -> Any:
    def write(self: Proxy, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return write


for _name in (
    "iadd",
    "isub",
    "imul",
    "itruediv",
    "ifloordiv",
    "imod",
    "ipow",
    "iand",
    "ior",
    "ixor",
    "ilshift",
    "irshift",
):
    setattr(_Written, f"__{_name}__", _in_place(getattr(operator, _name)))


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


# The text of compiled code, which tracebacks show: torch.fx keeps every one as long as the process lives.


class Assembled(GraphModule):
    """A graph module, as every sub-network and every deep copy of one is, whose text is kept as long as its code.

    An error holds the code of its traceback, which shows the lines although the module is gone.
    """

    def recompile(self) -> PythonCode:
        """As in fx."""
        made = super().recompile()
        code = type(self).forward.__code__
        finalize(code, forget_text, code.co_filename).atexit = False
        return made


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
        graph._tracer_cls = Reloading
        module = kind({}, Graph(tracer_cls=Reloading), class_name=name)
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
