"""From a choice to a plain GraphModule: remove skipped blocks, rewrite constants, bind tensors.

One mechanism serves programs (tensors are views of the shared ones) and extraction (tensors are copies). This module
decides which part of a tensor is kept; the `Binder` decides how the new module gets it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from bnas.passes.axes.selection import active, kept
from bnas.passes.axes.terms import Sym, Term, symbols
from bnas.passes.axes.types import AxisTypes, Replacement, Rewrite
from bnas.passes.frontend.ir import IR
from bnas.passes.ops.calls import form_of
from bnas.passes.ops.rnn import settle
from bnas.passes.space.blocks import Block
from bnas.passes.space.choices import Choices
from bnas.passes.space.subnet import Subnet

from .frames import Assembled, Frame, Frames, make_shell
from .rewriting import active_value, fit, held_tensor, holder_of, leaf_of, path_of, targets_of, terms_of, write_constant
from .slot import Copies, Matrices, Slot

NORMS = nn.modules.batchnorm._NormBase
"""Batch and instance norms."""
KNOWN = 4096
"""Sizes of two caches: slots of layers, and live nodes of structures."""

Binder = Callable[[nn.Module, Mapping[str, Slot]], nn.Module]
"""Fills a shell (a module without tensors) with named tensors; returns the shell or a replacement."""


@dataclass(frozen=True)
class Skeleton:
    """Makes modules for the sub-networks of one typed graph."""

    types: AxisTypes
    choices: Choices
    matrices: Matrices
    """The trainable matrices of elastic kernels, shared by all sub-networks like the model's parameters."""

    @classmethod
    def of(cls, types: AxisTypes, choices: Choices) -> Skeleton:
        """Make the skeleton of a typed graph, with identity matrices for its elastic kernels."""
        kernels = choices.kernels.found.values()
        return cls(types, choices, Matrices((kernel, types.ir.tensor(kernel.weight)) for kernel in kernels))

    @property
    def ir(self) -> IR:
        """The traced model."""
        return self.types.ir

    def assignment(self, subnet: Subnet) -> dict[Sym, int]:
        """Return the number of entries that `subnet` keeps of each elastic symbol, and the sizes of its kernels."""
        symbols, kernels = self.choices.symbols, self.choices.kernels.found
        widths = {symbols[name]: width for name, width in subnet.widths.items()}
        return widths | {kernels[name].symbol: size for name, size in subnet.kernels.items()}

    def build(
        self,
        subnet: Subnet,
        bind: Binder,
        root: nn.Module | None = None,
        kind: type[Assembled] = Assembled,
        share_code: bool = False,
    ) -> GraphModule:
        """Build the module of `subnet` with tensors of `root` (by default the traced model), bound by `bind`.

        With `share_code`, modules of the same structure share graph and code. This is faster, but the graph must not be
        changed.

        Raises:
            SubnetError: The sub-network does not belong to this space.
        """
        self.choices.space.check(subnet)
        root = self.ir.root if root is None else root
        assignment, (nodes, layers, tensors) = self.assignment(subnet), self._live(subnet.skipped)
        settings, attributes = self.settings(assignment), dict[str, nn.Module | Tensor]()
        for path in layers:
            attributes[path] = self._module(root, path, assignment, bind, settings.get(path, {}))
        holders = {path: bind(holder_of(path), {leaf_of(path): self.slot(root, path, assignment)}) for path in tensors}
        attributes |= {path: held_tensor(path, holder) for path, holder in holders.items()}
        computed = frozenset(path for path in tensors if isinstance(attributes[path], nn.Module))

        def make() -> Frame:
            graph, orders = self._graph(nodes, subnet.skipped, assignment, computed)
            return Frame.of(graph, orders, kind, type(root).__name__)

        sizes = tuple(assignment.get(symbol, symbol.n) for symbol in self.in_graph)
        structure = (subnet.skipped, sizes, computed, kind, type(root).__name__)
        frame = self._frames.get(structure, make).shared() if share_code else make()
        return self._filled(frame, attributes, holders, root)

    @cached_property
    def _frames(self) -> Frames:
        return Frames()

    @cached_property
    def in_graph(self) -> tuple[Sym, ...]:
        """The symbols whose sizes are constants of the graph."""
        terms = (term for rewrite in self._rewrites[0] for term in terms_of(rewrite))
        return tuple(dict.fromkeys(symbol for term in terms for symbol in symbols(term)))

    def _filled(
        self,
        frame: Frame,
        attributes: Mapping[str, nn.Module | Tensor],
        holders: Mapping[str, nn.Module],
        root: nn.Module,
    ) -> GraphModule:
        orders = {name: order.to(self.ir.device(root)) for name, order in frame.orders.items()}
        module = frame.fill({**attributes, **orders}, root.training)
        module._non_persistent_buffers_set.update(orders)
        for path, holder in holders.items():
            self._settle(module, path, holder)
        return module

    def _live(self, skipped: frozenset[str]) -> tuple[list[Node], list[str], list[str]]:
        """Return the nodes that remain without the skipped blocks, and the layers and tensors that they read."""
        if skipped not in self._known_live:
            if len(self._known_live) >= KNOWN // 64:
                self._known_live.clear()
            nodes, sums = self._left_without(skipped), {self.choices.blocks[name].out for name in skipped}
            called = [node for node in nodes if node not in sums]  # a skipped region's last layer is not called
            self._known_live[skipped] = nodes, targets_of(called, "call_module"), targets_of(nodes, "get_attr")
        return self._known_live[skipped]

    @cached_property
    def _known_live(self) -> dict[frozenset[str], tuple[list[Node], list[str], list[str]]]:
        return {}

    def _left_without(self, skipped: frozenset[str]) -> list[Node]:
        """Return the nodes that remain without the skipped blocks; a sum that is read remains as a placeholder."""
        blocks = [self.choices.blocks[name] for name in skipped]
        gone = {node for block in blocks for node in (*block.body, block.out)}
        sums, stand_ins = {block.out for block in blocks}, dict[Node, list[Node]]()
        for block in blocks:
            stand_ins.setdefault(block.entry, []).append(block.out)
        live: set[Node] = set()
        for node in reversed(self.ir.graph.nodes):
            loose = node in gone or node.op == "get_attr" or isinstance(node.meta.get("value"), int)
            read = any(user in live and user not in sums for user in node.users)
            if not loose or read or any(out in live for out in stand_ins.get(node, ())):
                live.add(node)
        return [node for node in self.ir.graph.nodes if node in live]

    def _graph(
        self, nodes: Iterable[Node], skipped: frozenset[str], assignment: Mapping[Sym, int], computed: frozenset[str]
    ) -> tuple[Graph, dict[str, Tensor]]:
        """Return a copy of the graph with only `nodes`, and the orders of channels that it reads as tensors."""
        graph, copies, orders = Graph(), dict[Node, Node](), dict[str, Tensor]()
        blocks = {block.out: block for name, block in self.choices.blocks.items() if name in skipped}
        for node in nodes:
            if node in blocks:
                copies[node] = self._stand_in(graph, blocks[node], copies)
                continue
            copies[node] = graph.node_copy(node, copies.__getitem__)
            copies[node].meta.pop("value", None)  # meta tensors of full size, which would be wrong for this sub-network
            copies[node].meta["origin"] = node.name
            if node.op == "get_attr" and node.target in computed:
                copies[node].op = "call_module"
        self._check_inputs(graph)
        for rewrite in self._rewrites[0]:
            if rewrite.node in copies and rewrite.node not in blocks:
                write_constant(copies, rewrite, assignment, orders)
        return graph, orders

    def _check_inputs(self, graph: Graph) -> None:
        """Insert checks that refuse input sizes for which the graph was not captured."""
        inputs = {str(node.target): node for node in graph.nodes if node.op == "placeholder"}
        last = next(reversed(inputs.values()), None)
        for check in reversed(self.ir.checks):
            if check.name in inputs and last is not None:
                with graph.inserting_after(last):
                    graph.call_function(*check.called_on(inputs[check.name]))

    def _stand_in(self, graph: Graph, block: Block, copies: Mapping[Node, Node]) -> Node:
        """Return the node that replaces a skipped block: its entry, or a copy if either is changed in place later."""
        entry = copies[block.entry]
        return graph.call_function(torch.clone, (entry,)) if block.name in self._written else entry

    @cached_property
    def _written(self) -> frozenset[str]:
        """The blocks whose sum needs its own memory, because the sum or the entry is changed in place later."""
        place = {node: position for position, node in enumerate(self.ir.graph.nodes)}
        found = set()
        for name, block in self.choices.blocks.items():
            into_sum, into_entry = self.ir.writers(block.out), self.ir.writers(block.entry)
            later = [node for node in (*into_sum, *into_entry) if place[node] > place[block.out]]
            if later and into_sum != into_entry:  # otherwise both share memory anyway, as with ``x += body(x)``
                found.add(name)
        return frozenset(found)

    @cached_property
    def _rewrites(self) -> tuple[list[Rewrite | Replacement], list[Rewrite]]:
        """Return the constants in the graph, and those that are settings of layers."""
        of_layers = [r for r in self.types.rewrites if isinstance(r, Rewrite) and r.node.op == "call_module"]
        in_graph = [r for r in self.types.rewrites if isinstance(r, Replacement) or r.node.op != "call_module"]
        return in_graph, of_layers

    def settings(self, assignment: Mapping[Sym, int]) -> dict[str, dict[str, Any]]:
        """Return the settings of layers that depend on widths, by the layer's path."""
        settings = dict[str, dict[str, Any]]()
        for rewrite in self._rewrites[1]:
            new = active_value(rewrite, assignment)
            if new != active_value(rewrite, {}):
                settings.setdefault(str(rewrite.node.target), {})[rewrite.name] = new
        for path, (name, channels) in self._channels.items():
            settings.setdefault(path, {})[name] = active(channels, assignment)
        return settings

    @cached_property
    def _channels(self) -> dict[str, tuple[str, Term]]:
        """For norms without a weight: the name of the attribute with the number of channels, and its axis, by path."""
        found = dict[str, tuple[str, Term]]()
        for node, call in self.ir.calls.items():
            layer = self.ir.module(str(node.target)) if node.op == "call_module" else None
            name = "num_channels" if isinstance(layer, nn.GroupNorm) else "num_features"
            if not isinstance(layer, nn.GroupNorm | NORMS) or layer.weight is not None:
                continue
            input = call.argument(0, "input")
            axes = self.types.values.get(input) if isinstance(input, Node) else None
            if isinstance(axes, list) and len(axes) > 1 and axes[1].size == getattr(layer, name):
                found[str(node.target)] = name, axes[1]
        return found

    def slot(self, root: nn.Module, path: str, assignment: Mapping[Sym, int]) -> Slot:
        """Return the slot (kept part) of the parameter, buffer or constant at `path` of `root`."""
        if path in self.ir.constants:
            return Slot(self._constant(root, path), path, ())
        owner, _, name = path.rpartition(".")
        return self._slots(root, self.ir.module(owner, root), owner, (name,), assignment)[name]

    def _slots(
        self, root: nn.Module, source: nn.Module, path: str, names: tuple[str, ...], assignment: Mapping[Sym, int]
    ) -> Mapping[str, Slot]:
        """Return the slots of tensors of module `source` at `path` of `root`; slots of the model are cached."""
        if root is not self.ir.root:
            return self._new_slots(source, path, names, assignment)
        elastic = self._symbols.get((path, names))
        if elastic is None:
            paths = [path_of(path, name) for name in names]
            elastic = self._symbols[path, names] = tuple(dict.fromkeys(s for p in paths for s in self._symbols_of(p)))
        key = (source, path, names, tuple([assignment.get(symbol, symbol.n) for symbol in elastic]))
        slots = self._known.get(key)
        if slots is None:
            if len(self._known) >= KNOWN:
                self._known.clear()
            slots = self._known[key] = self._new_slots(source, path, names, assignment)
        return slots

    def _new_slots(
        self, source: nn.Module, path: str, names: tuple[str, ...], assignment: Mapping[Sym, int]
    ) -> Mapping[str, Slot]:
        return {name: self._slot(source, path_of(path, name), name, assignment) for name in names}

    @cached_property
    def _symbols(self) -> dict[Hashable, tuple[Sym, ...]]:
        """The symbols on which tensors of a module depend, by the path of the module and the names of the tensors."""
        return {}

    @cached_property
    def _known(self) -> dict[Hashable, Mapping[str, Slot]]:
        return {}

    def _symbols_of(self, path: str) -> Iterator[Sym]:
        first = self.ir.aliases.get(path, path)
        for axis in self.types.tensors.get(first, ()):
            yield from symbols(axis)
        if first in self.choices.kernels.by_weight:
            yield self.choices.kernels.by_weight[first].symbol

    def _slot(self, owner: nn.Module, path: str, name: str, assignment: Mapping[Sym, int]) -> Slot:
        first = self.ir.aliases.get(path, path)
        kernel = self.choices.kernels.by_weight.get(first)
        shrink = None if kernel is None else self.matrices.shrink(kernel, active(kernel.symbol, assignment))
        axes = self.types.tensors.get(first, ())
        return Slot(owner, name, tuple(kept(axis, assignment) for axis in axes), shrink)

    def _module(
        self, root: nn.Module, path: str, assignment: Mapping[Sym, int], bind: Binder, settings: Mapping[str, Any]
    ) -> nn.Module:
        """Return a shell with bound tensors for the leaf at `path`, and for all modules inside an opaque leaf."""
        source = self.ir.module(path, root)
        names = [n for table in (source._parameters, source._buffers) for n, t in table.items() if t is not None]
        slots = self._slots(root, source, path, tuple(names), assignment)
        if isinstance(source, torch.jit.ScriptModule):  # a scripted module: its tensors belong to its code
            return copy.deepcopy(source) if isinstance(bind, Copies) else copy.copy(source)
        shell = make_shell(source, self.ir.plain.get(path))
        if path in self.ir.modules:  # no mode of its own
            shell.training = root.training
        for setting, value in settings.items():
            setattr(shell, setting, value)
        fit(shell, slots)
        if source._modules and form_of(source) is None and path not in self.ir.plain:
            for name, _ in source.named_children():
                shell._modules[name] = self._module(root, f"{path}.{name}", assignment, bind, {})
        return settle(bind(shell, slots))

    def _constant(self, root: nn.Module, path: str) -> nn.Module:
        """Return a holder of a tensor that forward creates, so that ``.to(...)`` converts it with the parameters."""
        holder = nn.Module()
        holder.register_buffer(path, self.ir.constant(path, root))
        return holder

    def _settle(self, module: GraphModule, path: str, holder: nn.Module) -> None:
        """Bind `holder` to the place of its tensor in `module`, so that a later replacement there reaches the graph."""
        owner, _, name = path.rpartition(".")
        place = module.get_submodule(owner)
        if place._modules.get(name) is holder:
            return
        if not self.ir.is_saved(path):
            place._non_persistent_buffers_set.add(name)
        holder.__dict__.update(_parameters=place._parameters, _buffers=place._buffers)
