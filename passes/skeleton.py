"""From a choice to a plain GraphModule: skipped blocks removed, constants rewritten, tensors bound.

One mechanism serves programs (tensors are views of the shared ones), extraction (tensors are copies), and all that
is made from them. How a tensor is bound is the caller's `Binder`; what is kept of it is decided here.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from .axes import AxisTypes, Rewrite
from .blocks import Block
from .calls import MODULE_FORMS
from .ir import IR
from .selection import Kept, active, kept
from .space import Subnet
from .terms import Sym, Term, symbols


@dataclass(frozen=True)
class Slot:
    """A place in the new module that needs a tensor: which shared tensor, and what is kept of each axis."""

    owner: nn.Module
    """The shared module that holds the tensor."""
    name: str
    """Its name in the owner."""
    kept: tuple[Kept, ...]

    @property
    def shared(self) -> Tensor:
        """The shared tensor as it is now; it may be replaced after the program was made."""
        tensor = self.owner._parameters.get(self.name)
        tensor = self.owner._buffers[self.name] if tensor is None else tensor
        assert tensor is not None
        return tensor

    @property
    def whole(self) -> bool:
        """Everything is kept."""
        return all(k is None for k in self.kept)

    @property
    def prefix(self) -> bool:
        """Every axis keeps its first entries, so that a view does."""
        return all(k is None or isinstance(k, int) for k in self.kept)

    def view(self, tensor: Tensor) -> Tensor:
        """The kept prefix as a view of `tensor`."""
        for axis, k in enumerate(self.kept):
            tensor = tensor if k is None else tensor.narrow(axis, 0, k)  # type: ignore[arg-type]
        return tensor

    def take(self, tensor: Tensor) -> Tensor:
        """The kept entries of `tensor`; differentiable; a view where they are a prefix."""
        for axis, k in enumerate(self.kept):
            if isinstance(k, int):
                tensor = tensor.narrow(axis, 0, k)
            elif k is not None:
                tensor = tensor.index_select(axis, torch.from_numpy(k).to(tensor.device))
        return tensor


Binder = Callable[[nn.Module, Mapping[str, Slot]], nn.Module]
"""Gives a module shell its tensors: gets the shell and a slot for each of its parameters and buffers."""


@dataclass(frozen=True)
class Skeleton:
    """Makes modules for sub-networks of one typed graph."""

    ir: IR
    types: AxisTypes
    symbols: Mapping[str, Sym]
    blocks: Mapping[str, Block]

    def assignment(self, subnet: Subnet) -> dict[Sym, int]:
        """The number of entries kept of each symbol that is not whole."""
        return {self.symbols[name]: width for name, width in subnet.widths.items()}

    def build(self, subnet: Subnet, bind: Binder, root: nn.Module | None = None) -> GraphModule:
        """A module for `subnet` with the tensors of `root` (the traced model, if not given) bound by `bind`."""
        root = self.ir.root if root is None else root
        assignment = self.assignment(subnet)
        graph, copies = self.graph(subnet)
        settings = self._settings(assignment, copies)
        attributes: dict[str, Any] = {}
        for node in graph.nodes:
            target = str(node.target)
            if node.op == "call_module" and target not in attributes:
                attributes[target] = self._module(root, target, assignment, bind, settings.get(node, {}))
            elif node.op == "get_attr" and target not in attributes:
                attributes[target] = self._tensor(root, target, assignment, bind, node)
        graph.lint()
        module = GraphModule(_with_names(attributes), graph, class_name=type(root).__name__)
        return module.train(root.training)

    def graph(self, subnet: Subnet) -> tuple[Graph, dict[Node, Node]]:
        """A copy of the graph without the skipped blocks, and which node is a copy of which."""
        graph, copies = Graph(), dict[Node, Node]()
        graph.output(graph.graph_copy(self.ir.graph, copies))
        for name in subnet.skipped:
            block = self.blocks[name]
            copies[block.out].replace_all_uses_with(copies[block.entry])
        for node in reversed(list(graph.nodes)):
            if not node.users and node.op not in ("placeholder", "output"):
                original = next(n for n, c in copies.items() if c is node)
                if any(original is b.out or original in b.body for b in map(self.blocks.get, subnet.skipped) if b):
                    graph.erase_node(node)
                elif node.op == "get_attr":
                    graph.erase_node(node)
        return graph, copies

    def _settings(self, assignment: Mapping[Sym, int], copies: Mapping[Node, Node]) -> dict[Node, dict[str, Any]]:
        """Write the constants that depend on widths; those of modules are returned, by node."""
        settings: dict[Node, dict[str, Any]] = {}
        for rewrite in self.types.rewrites:
            node = copies[rewrite.node]
            if node.graph is None or node._erased:
                continue
            value = _active_value(rewrite, assignment, copies)
            if node.op == "call_module":
                settings.setdefault(node, {})[rewrite.name] = value
            elif len(node.args) > rewrite.position:
                node.update_arg(rewrite.position, value)
            else:
                node.update_kwarg(rewrite.name, value)
        return settings

    def slot(self, root: nn.Module, path: str, assignment: Mapping[Sym, int]) -> Slot:
        """What is kept of the tensor at `path`."""
        owner, _, name = path.rpartition(".")
        axes: Sequence[Term] = self.types.tensors.get(self.ir.aliases.get(path, path), ())
        return Slot(root.get_submodule(owner), name, tuple(kept(axis, assignment) for axis in axes))

    def _module(
        self, root: nn.Module, path: str, assignment: Mapping[Sym, int], bind: Binder, settings: Mapping[str, Any]
    ) -> nn.Module:
        source = root.get_submodule(path)
        prefix = {"": source} if type(source) in MODULE_FORMS else dict(source.named_modules())
        shells: dict[str, nn.Module] = {}
        for name, module in prefix.items():
            at = f"{path}.{name}" if name else path
            names = [n for table in (module._parameters, module._buffers) for n, t in table.items() if t is not None]
            shell = make_shell(module)
            shells[name] = bind(shell, {n: self.slot(root, f"{at}.{n}", assignment) for n in names})
            if name:
                parent, _, leaf = name.rpartition(".")
                shells[parent]._modules[leaf] = shells[name]
        for setting, value in settings.items():
            setattr(shells[""], setting, value)
        return shells[""]

    def _tensor(self, root: nn.Module, path: str, assignment: Mapping[Sym, int], bind: Binder, node: Node) -> Any:
        """A parameter that forward reads by itself; where it must be gathered the node becomes a call."""
        if path in self.ir.constants:
            reference = next(root.parameters(), self.ir.constants[path])
            return self.ir.constants[path].to(reference.device)
        slot = self.slot(root, path, assignment)
        holder = bind(nn.Module(), {slot.name: slot})
        if not isinstance(holder, _Computed):
            table = holder._parameters if slot.name in holder._parameters else holder._buffers
            return table[slot.name]
        node.op, node.target = "call_module", path
        return holder


class _Computed(nn.Module):
    """Base of modules that compute a tensor instead of holding it."""


def make_shell(module: nn.Module) -> nn.Module:
    """A shallow copy of a module without its tensors and children: same settings, hooks and mode."""
    shell = copy.copy(module)
    shell.__dict__ = dict(module.__dict__)
    for table in ("_parameters", "_buffers", "_modules"):
        shell.__dict__[table] = dict.fromkeys(getattr(module, table)) if table != "_modules" else {}
    return shell


def fit(shell: nn.Module, shapes: Mapping[str, Sequence[int]], groups: int = 1) -> None:
    """Set the settings of a layer that follow from the shapes of its tensors (``in_channels`` and the like)."""
    weight = shapes.get("weight") or shapes.get("running_mean")
    if weight is None:
        return
    if isinstance(shell, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        shell.out_channels, shell.in_channels = weight[0], weight[1] * groups
    elif isinstance(shell, nn.Linear):
        shell.out_features, shell.in_features = weight[0], weight[1]
    elif isinstance(shell, nn.modules.batchnorm._BatchNorm):
        shell.num_features = weight[0]


def _active_value(rewrite: Rewrite, assignment: Mapping[Sym, int], copies: Mapping[Node, Node]) -> Any:
    def value(entry: Any) -> Any:
        if isinstance(entry, Term):
            return active(entry, assignment)
        return copies[entry] if isinstance(entry, Node) else entry

    return value(rewrite.value) if isinstance(rewrite.value, Term) else [value(entry) for entry in rewrite.value]


def _with_names(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return dict(attributes)


__all__ = ["Binder", "Skeleton", "Slot", "fit", "make_shell", "symbols"]
