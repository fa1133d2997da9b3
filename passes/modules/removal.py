"""Taking skipped blocks out of a tree of modules: each module inside one gives place to one that does nothing.

    self.block(x), and the block is ``x + body(x)``   the module hands its input on
    x + self.body(self.norm(x))                       the norm hands its input on, the body gives zeros

The names of all other modules stay. That the model still computes what the graph does is for the caller to compare.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from bnas.passes.assembly.frames import frees_text
from bnas.passes.assembly.skeleton import Skeleton
from bnas.passes.errors import ModuleFormError
from bnas.passes.frontend.ir import module_calls, path_of
from bnas.passes.frontend.structure import Path, leaves_of
from bnas.passes.space.blocks import Block, is_constant
from bnas.passes.space.subnet import Subnet

FEW = 3
"""A module may become the identity if it is a skipped block plus at most this many operators (such as a ReLU)."""


@dataclass(frozen=True)
class Called:
    """How a module is called, and what it returns."""

    first: Path = (0, 0)
    """Path of the first tensor in ``(args, kwargs)``."""
    alone: bool = True
    """Whether this tensor is the only argument, and has no name."""
    results: int | None = None
    """Number of results of a module that returns a tuple."""

    @classmethod
    def of(cls, args: tuple[Any, ...], kwargs: Mapping[str, Any], value: Any) -> Called:
        """Describe a call with these arguments that returned `value`."""
        paths = [path for path, leaf in leaves_of((args, kwargs)) if isinstance(leaf, Tensor)]
        first = paths[0] if paths else (0, 0)
        alone = first == (0, 0) and len(args) == 1 and not kwargs
        return cls(first, alone, len(value) if isinstance(value, tuple) else None)


def skipped(module: nn.Module, zeros: bool, called: Called) -> nn.Module:
    """Return what replaces a module of a skipped block: it returns its first tensor, or zeros.

    Both its classes are those of PyTorch, so a file of the whole model loads without bnas: `nn.Identity`, or a graph
    module where that cannot take the arguments or give the result. All results of a tuple after the first are None. The
    replacement has the plain attributes of the module, for code that reads them.
    """
    made = nn.Identity() if not zeros and called == Called() else _generated(module, zeros, called)
    plain = {name: value for name, value in vars(module).items() if isinstance(value, str | int | float)}
    vars(made).update({name: value for name, value in plain.items() if name not in vars(made)})
    return made


def _generated(module: nn.Module, zeros: bool, called: Called) -> GraphModule:
    graph = Graph()
    value = (graph.placeholder("*args"), graph.placeholder("**kwargs"))[called.first[0]]
    for step in called.first[1:]:
        value = graph.call_function(operator.getitem, (value, step))
    like = module.weight.detach().new_empty(0) if zeros and isinstance(module, nn.Embedding) else None
    if zeros:
        value = _zeros(graph, value, module)
    graph.output(value if called.results is None else (value, *[None] * (called.results - 1)))
    made = GraphModule({} if like is None else {"like": like}, graph, "Skipped")
    if like is not None:
        made.register_buffer("like", like, persistent=False)
    frees_text(made)
    return made


def _zeros(graph: Graph, value: Node, module: nn.Module) -> Node:
    """Add zeros with the shape of a module's result. No size is read: PyTorch traces the code again as it loads it."""
    if not isinstance(module, nn.Linear | nn.Embedding):
        return graph.call_function(torch.zeros_like, (value,))
    if isinstance(module, nn.Linear):
        value, width = graph.call_method("narrow", (value, -1, 0, 1)), module.weight.shape[0]
    else:
        value, width = graph.call_method("unsqueeze", (value, -1)), module.weight.shape[1]
    value = graph.call_method("repeat_interleave", (graph.call_function(torch.zeros_like, (value,)), width, -1))
    if isinstance(module, nn.Linear):
        return value
    return graph.call_method("to", (value, graph.get_attr("like")))  # the number type that the model has


@dataclass(frozen=True)
class Removal:
    """The replacement of a module by one that does nothing."""

    path: str
    zeros: bool

    def of(self, root: nn.Module, called: Called) -> None:
        """Carry out the replacement in `root`, whose layers are already cut."""
        module = root.get_submodule(self.path)
        put(root, module, skipped(module, self.zeros, called))


def put(root: nn.Module, module: nn.Module, other: nn.Module) -> None:
    """Put `other` in all places of `module`."""
    other.training = module.training
    for owner in list(root.modules()):
        for name, child in owner._modules.items():
            if child is module:
                owner._modules[name] = other


class Removals:
    """Finds the modules that make up the skipped blocks of a sub-network."""

    def __init__(self, skeleton: Skeleton, subnet: Subnet, values: Mapping[str, object]) -> None:
        """Of a sub-network whose graph has these values, by the names of its nodes."""
        self.ir, self.values = skeleton.ir, values
        self.blocks = [block for name, block in skeleton.choices.blocks.items() if name in subnet.skipped]
        self.gone: set[Node] = {node for block in self.blocks for node in block.nodes}

    @cached_property
    def calls(self) -> Mapping[str, list[Node]]:
        """The operators of each call of a module, in order."""
        found: dict[str, list[Node]] = {}
        for node in self.ir.graph.nodes:
            for call in () if is_constant(node) else module_calls(node):
                if path_of(call) not in self.ir.modules:  # those of the graph are no modules of the model
                    found.setdefault(call, []).append(node)
        return found

    def find(self) -> list[Removal]:
        """The modules to replace.

        Raises:
            ModuleFormError: a block is no module, or part of one that is called in other places too.
        """
        whole = self._whole()
        found = {path_of(call): Removal(path_of(call), False) for call in whole}
        done = {node for call in whole for node in self.calls[call]}
        for block in self.blocks:
            if block.out not in done:
                found.update((removal.path, removal) for removal in self._branch(block))
        for path in found:
            self._check_alone(path, done)
        return [one for path, one in found.items() if not any(path.startswith(f"{outer}.") for outer in found)]

    def _whole(self) -> list[str]:
        """Return the outermost calls that become the identity: a skipped block, or a block with a following ReLU."""
        found: list[str] = []
        for call, nodes in self.calls.items():
            inside = any(outer in found for outer in module_calls(nodes[0]))
            if not inside and self._hands_on(call, nodes):
                found.append(call)
        return found

    def _hands_on(self, call: str, nodes: list[Node]) -> bool:
        rest = [node for node in nodes if node not in self.gone]
        if len(rest) == len(nodes) or len(rest) > FEW or any(self._has_tensors(node) for node in rest):
            return False
        constants = {node for node in self.gone if is_constant(node)}
        given = next((node for node in nodes if call in node.meta.get("returned", ())), None)
        if given is None:
            return False
        entry = given
        while entry in nodes or entry in self.gone:
            block = next((block for block in self.blocks if block.out is entry), None)
            if entry not in rest and (block is None or not (block.nodes - constants).issubset(nodes)):
                return False
            entry = block.entry if block is not None else entry.all_input_nodes[0]
        return not rest or (given.name in self.values and self.values[given.name] == self.values.get(entry.name))

    def _has_tensors(self, node: Node) -> bool:
        layer = self.ir.module(str(node.target)) if node.op == "call_module" else None
        read = any(source.op == "get_attr" for source in node.all_input_nodes)
        return read or len(node.all_input_nodes) != 1 or (layer is not None and bool(layer.state_dict()))

    def _branch(self, block: Block) -> list[Removal]:
        """Return the outermost modules inside a block; those on which its sum depends return zeros."""
        inside: dict[str, None] = {}
        for call, nodes in self.calls.items():
            if block.nodes.issuperset(nodes) and not any(outer in inside for outer in module_calls(nodes[0])[:-1]):
                inside[self._outermost(call, block)] = None
        zeros: dict[str, bool] = {}
        self._follow(block, {node: call for call in inside for node in self.calls[call]}, zeros)
        if not inside or not zeros:
            line = where(block.out)
            raise ModuleFormError(
                f"skipped block {block.name!r} is not a module, but code of {self._class(block.out)}{line}. "
                "Use supernet.extract(subnet), which returns the graph"
            )
        return [Removal(path_of(call), zeros.get(call, self._has_width(call))) for call in inside]

    def _has_width(self, call: str) -> bool:
        """Whether a module's output and input differ in width, on which code between modules may rely."""
        return isinstance(self.ir.module(path_of(call)), nn.Linear | nn.Embedding)

    def _outermost(self, call: str, block: Block) -> str:
        calls = module_calls(self.calls[call][0])
        return next((c for c in calls if c in self.calls and block.nodes.issuperset(self.calls[c])), call)

    def _follow(self, block: Block, of: Mapping[Node, str], zeros: dict[str, bool]) -> None:
        """Find the calls that must return zeros, so that a block's sum equals its entry, and those that pass it on.

        `of` maps operators to the calls inside the block; the calls that return zeros are added to `zeros`.
        """
        waiting, seen = [(block.out, False)], set[Node]()
        while waiting:
            node, zero = waiting.pop()
            if node is block.entry or node in seen or node not in block.nodes:
                continue
            seen.add(node)
            if node in of:
                zeros[of[node]] = zero
                first = self.calls[of[node]][0]
                waiting += [(first.all_input_nodes[0], False)] if first.all_input_nodes and not zero else []
                continue
            kept = self._shortcut(node, block) if not zero else None
            waiting += [(one, one is not kept if kept is not None else zero) for one in node.all_input_nodes]

    def _shortcut(self, node: Node, block: Block) -> Node | None:
        """Return the operand of a sum that is the shortcut: it leads directly to the entry of the block."""
        call, operands = self.ir.calls.get(node), node.all_input_nodes
        if call is None or call.op is not torch.add or len(operands) != 2:
            return None
        one, other = operands
        if one is block.entry or depends(other, one, block):
            return one
        if other is block.entry or depends(one, other, block):
            return other
        return one if depends(one, block.entry, block) else other

    def _check_alone(self, path: str, done: set[Node]) -> None:
        for call, nodes in self.calls.items():
            if path_of(call) == path and not (self.gone | done).issuperset(nodes):
                raise ModuleFormError(
                    f"module {path!r} is in a skipped block, but is also called outside of it{where(nodes[0])}. "
                    "Use supernet.extract(subnet), which returns the graph"
                )

    def _class(self, node: Node) -> str:
        scope = str(node.meta.get("scope", ""))
        return f"{type(self.ir.module(scope)).__name__}{f' ({scope})' if scope else ''}"


def depends(node: Node, on: Node, block: Block) -> bool:
    """Whether a value inside a block is computed from another one, by operators of the block."""
    waiting, seen = [node], set[Node]()
    while waiting:
        one = waiting.pop()
        if one is on:
            return True
        if one in block.nodes and one not in seen:
            seen.add(one)
            waiting += one.all_input_nodes
    return False


def where(node: Node) -> str:
    """Return the line of the user's code that called an operator, for a message; empty if unknown."""
    line = node.meta.get("line")
    return at_line(*line) if line else ""


def at_line(file: str, number: int) -> str:
    """Return a line number with its text, for a message."""
    import linecache

    text = linecache.getline(file, number).strip()
    return f" at {file}:{number}" + (f": {text}" if text else "")
