"""From a choice to a plain GraphModule: skipped blocks removed, constants rewritten, tensors bound.

One mechanism serves programs (tensors are views of the shared ones), extraction (tensors are copies), and all that
is made from them. What is kept of a tensor is decided here; how the new module gets it is the `Binder`'s.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import fx, nn
from torch.fx import Graph, GraphModule, Node

from .axes import AxisTypes, Moved, Replacement, Rewrite
from .blocks import Block
from .calls import form_of
from .choices import Choices
from .ir import IR
from .selection import active, kept, moved
from .shrinking import Matrices, fit_kernel
from .slot import Slot
from .space import Subnet
from .terms import Sym, Term

Binder = Callable[[nn.Module, Mapping[str, Slot]], nn.Module]
"""Gives a shell (a module without tensors) its tensors, by name; returns the shell or a module in its place."""


@dataclass(frozen=True)
class Skeleton:
    """Makes modules for the sub-networks of one typed graph."""

    types: AxisTypes
    choices: Choices

    @property
    def ir(self) -> IR:
        """The traced model."""
        return self.types.ir

    def assignment(self, subnet: Subnet) -> dict[Sym, int]:
        """The number of entries that `subnet` keeps of each elastic symbol, and the sizes of its kernels."""
        widths = {self.choices.symbols[name]: width for name, width in subnet.widths.items()}
        return widths | {self.choices.kernels.found[name].symbol: size for name, size in subnet.kernels.items()}

    @cached_property
    def matrices(self) -> Matrices:
        """The trainable matrices of the elastic kernels: shared, as the parameters of the model are."""
        return Matrices((k, self.ir.tensor(k.weight)) for k in self.choices.kernels.found.values())

    def build(
        self, subnet: Subnet, bind: Binder, root: nn.Module | None = None, kind: type[GraphModule] = GraphModule
    ) -> GraphModule:
        """A module for `subnet` whose tensors are those of `root` (by default the traced model), bound by `bind`.

        Raises:
            SubnetError: the sub-network is not of this space.
        """
        self.choices.space.check(subnet)
        root = self.ir.root if root is None else root
        graph, copies = self.graph(subnet)
        assignment = self.assignment(subnet)
        settings = self._rewrite(graph, copies, assignment)
        attributes, holders = dict[str, Any](), dict[str, nn.Module]()
        for node in graph.nodes:
            target = str(node.target)
            if node.op == "call_module" and target not in attributes:
                attributes[target] = self._module(root, target, assignment, bind, settings.get(target, {}))
            elif "order" in node.meta:
                attributes[target] = node.meta.pop("order").to(self.ir.device(root))
            elif node.op == "get_attr":
                holders[target] = bind(_holder(target), {_leaf(target): self.slot(root, target, assignment)})
                attributes[target] = self._held(node, holders[target])
        module = kind(attributes, graph, class_name=type(root).__name__)
        module.training = root.training
        module._non_persistent_buffers_set.update(attributes.keys() - holders.keys() & module._buffers.keys())
        for path, holder in holders.items():
            self._settle(module, path, holder)
        return module

    def graph(self, subnet: Subnet) -> tuple[Graph, dict[Node, Node]]:
        """A copy of the graph without the skipped blocks, and which of its nodes is the copy of which."""
        graph, copies = Graph(), dict[Node, Node]()
        graph.output(graph.graph_copy(self.ir.graph, copies))
        skipped = [block for name, block in self.choices.blocks.items() if name in subnet.skipped]
        for block in reversed(skipped):  # the last first: the entry of a block may be the output of another
            copies[block.out].replace_all_uses_with(self._stand_in(graph, block, copies))
        gone = {copies[node] for block in skipped for node in (*block.body, block.out)}
        for node in reversed(list(graph.nodes)):
            value = node.meta.pop("value", None)  # meta tensors of full size: not true of this sub-network
            if not node.users and (node in gone or node.op == "get_attr" or isinstance(value, int)):
                graph.erase_node(node)
        return graph, copies

    def _stand_in(self, graph: Graph, block: Block, copies: Mapping[Node, Node]) -> Node:
        """The entry of a skipped block; a copy of it where somebody writes into it or into the block's sum later."""
        if block.name not in self._written:
            return copies[block.entry]
        with graph.inserting_before(copies[block.out]):
            return graph.call_function(torch.clone, (copies[block.entry],))

    @cached_property
    def _written(self) -> frozenset[str]:
        """The blocks whose sum must have memory of its own, since it or the entry is written into after it."""
        place = {node: position for position, node in enumerate(self.ir.graph.nodes)}
        found = set()
        for name, block in self.choices.blocks.items():
            into_sum, into_entry = self.ir.writers(block.out), self.ir.writers(block.entry)
            later = [node for node in (*into_sum, *into_entry) if place[node] > place[block.out]]
            if later and into_sum != into_entry:  # else they are one memory, as with ``x += body(x)``
                found.add(name)
        return frozenset(found)

    def _rewrite(
        self, graph: Graph, copies: Mapping[Node, Node], assignment: Mapping[Sym, int]
    ) -> dict[str, dict[str, Any]]:
        """Write the constants that depend on widths; those of modules are returned, by the module's path."""
        live, settings = set(graph.nodes), dict[str, dict[str, Any]]()
        for rewrite in self.types.rewrites:
            node = copies[rewrite.node]
            if node in live and (new := _active_value(rewrite, assignment)) != _active_value(rewrite, {}):
                new = fx.node.map_arg(new, copies.__getitem__)  # batch sizes
                if isinstance(rewrite, Replacement):
                    node.op, node.target, node.kwargs = "call_function", rewrite.target, {}
                    node.args = (node.all_input_nodes[0], *self._arguments(node, rewrite, new))
                elif node.op == "call_module":
                    settings.setdefault(str(node.target), {})[rewrite.name] = new
                elif len(node.args) > rewrite.position:
                    node.update_arg(rewrite.position, new)
                else:
                    node.update_kwarg(rewrite.name, new)
        return settings

    def _arguments(self, node: Node, rewrite: Replacement, values: tuple[Any, ...]) -> Iterator[Any]:
        """The values, of which orders of channels become tensors of the graph."""
        for given, value in zip(rewrite.args, values, strict=True):
            if isinstance(given, Moved):
                with node.graph.inserting_before(node):
                    order = node.graph.get_attr(f"_order_of_{node.name}")
                order.meta["order"] = torch.tensor(value)
            yield order if isinstance(given, Moved) else value

    def slot(self, root: nn.Module, path: str, assignment: Mapping[Sym, int]) -> Slot:
        """What is kept of the parameter, buffer or constant at `path` of `root`."""
        owner, _, name = path.rpartition(".")
        if path in self.ir.constants:
            return Slot(self._constant(root, path), path, ())
        first = self.ir.aliases.get(path, path)
        kernel = self.choices.kernels.by_weight.get(first)
        shrink = None if kernel is None else self.matrices.shrink(kernel, active(kernel.symbol, assignment))
        axes = self.types.tensors.get(first, ())
        return Slot(self.ir.module(owner, root), name, tuple(kept(axis, assignment) for axis in axes), shrink)

    def _module(
        self, root: nn.Module, path: str, assignment: Mapping[Sym, int], bind: Binder, settings: Mapping[str, Any]
    ) -> nn.Module:
        """A shell for the leaf at `path`, and for all inside it where it is opaque, with tensors bound."""
        source = self.ir.module(path, root)
        names = [n for table in (source._parameters, source._buffers) for n, t in table.items() if t is not None]
        slots = {name: self.slot(root, f"{path}.{name}", assignment) for name in names}
        shell = make_shell(source)
        if path in self.ir.modules:  # no mode of its own
            shell.training = root.training
        for setting, value in settings.items():
            setattr(shell, setting, value)
        fit(shell, slots)
        if form_of(source) is None:
            for name, child in source.named_children():
                if child is not None:
                    shell._modules[name] = self._module(root, f"{path}.{name}", assignment, bind, {})
        return bind(shell, slots)

    def _constant(self, root: nn.Module, path: str) -> nn.Module:
        """Holds a tensor that was made in forward; it goes with the parameters to another device or number type."""
        like = next((p for p in root.parameters() if p.is_floating_point()), None)
        constant, holder = self.ir.constants[path], nn.Module()
        if like is not None:
            constant = constant.to(like.device, like.dtype if constant.dtype == self.ir.dtype else constant.dtype)
        holder.register_buffer(path, constant)
        return holder

    def _held(self, node: Node, holder: nn.Module) -> Any:
        """The tensor that forward reads by itself; one that must be computed becomes a call."""
        name = _leaf(str(node.target))
        tensor = holder._parameters.get(name, holder._buffers.get(name))
        if tensor is None:
            node.op = "call_module"
        return holder if tensor is None else tensor

    def _settle(self, module: GraphModule, path: str, holder: nn.Module) -> None:
        """Let `holder` stand for the place that its tensor went to: what is replaced there later is the graph's."""
        owner, _, name = path.rpartition(".")
        place = module.get_submodule(owner)
        if place._modules.get(name) is holder:
            return
        if path in self.ir.constants or name in self.ir.root.get_submodule(owner)._non_persistent_buffers_set:
            place._non_persistent_buffers_set.add(name)
        holder.__dict__.update(_parameters=place._parameters, _buffers=place._buffers)


class Holder(nn.Module):
    """Stands for one tensor that is read by itself; where it must be computed, calling it gives the tensor."""

    name: str

    def forward(self) -> Any:
        """The tensor."""
        return getattr(self, self.name)


def _holder(path: str) -> Holder:
    holder = Holder()
    holder.name = _leaf(path)
    return holder


def _leaf(path: str) -> str:
    return path.rpartition(".")[2]


TABLES = frozenset(vars(nn.Module()))
"""What every module holds: hooks and names, beside its tensors."""


def make_shell(module: nn.Module) -> nn.Module:
    """A shallow copy of a module without its tensors and children: same settings, hooks and mode.

    Its tables of hooks are its own: what is registered with the shell is not with the module.
    """
    shell = copy.copy(module)
    shell.__dict__ = {name: copy.copy(v) if name in TABLES else v for name, v in module.__dict__.items()}
    shell.__dict__["_parameters"] = dict.fromkeys(module._parameters)
    shell.__dict__["_buffers"] = dict.fromkeys(module._buffers)
    shell.__dict__["_modules"] = {}
    return shell


def fit(shell: nn.Module, slots: Mapping[str, Slot]) -> None:
    """Set the settings of a layer that follow from the shapes of its tensors (``in_channels`` and the like)."""
    first = slots.get("weight") or slots.get("running_mean")
    if first is None:
        return
    shape = first.shape
    if isinstance(shell, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        shell.out_channels, shell.in_channels = shape[0], shape[1] * shell.groups
        fit_kernel(shell, tuple(first.shared.shape[2:]), shape[2:])
    elif isinstance(shell, nn.Linear):
        shell.out_features, shell.in_features = shape
    elif isinstance(shell, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
        shell.num_features = shape[0]
    elif isinstance(shell, nn.PReLU):
        shell.num_parameters = shape[0]


def _active_value(rewrite: Rewrite | Replacement, assignment: Mapping[Sym, int]) -> Any:
    """The constant, or the arguments, with all terms replaced by their active sizes."""

    def value(entry: Any) -> Any:
        if isinstance(entry, Term):
            return active(entry, assignment)
        if isinstance(entry, Moved):
            return moved(entry.order, entry.term, assignment)
        if isinstance(entry, slice):
            return slice(value(entry.start), value(entry.stop), value(entry.step))
        return type(entry)(map(value, entry)) if type(entry) in (list, tuple) else entry

    return value(rewrite.value if isinstance(rewrite, Rewrite) else rewrite.args)
