"""The intermediate representation: a traced model, its inputs, and what the passes know about it."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node

from bnas.passes.errors import Diagnostic
from bnas.passes.ops.calls import Call, call_of, writes_in_place

from .entry import Check, Sizes
from .functions import BATCH
from .opaque import OpaqueMethod
from .structure import holds_tensors, tensor_name
from .trials import other_sizes
from .values import resize_inputs, revalue


@dataclass(frozen=True)
class IR:
    """The graph of a model over the model's own modules and parameters, which are shared and never changed.

    Every node has ``meta["value"]``: meta tensors with the batch axis of size `BATCH`.
    """

    root: nn.Module
    graph: Graph
    constants: Mapping[str, Tensor]
    """Tensors that the model makes in its forward; they become buffers of every program."""
    aliases: Mapping[str, str]
    """Every name of a parameter or buffer: its first name (tied tensors have several names)."""
    diagnostics: tuple[Diagnostic, ...] = ()
    calls: Mapping[Node, Call] = field(default_factory=dict)
    """Nodes in canonical spelling. A call_module node without an entry is opaque."""
    modules: Mapping[str, nn.Module] = field(default_factory=dict)
    """Leaf modules that only the graph has: values that follow the mode, custom autograd functions."""
    plain: Mapping[str, type[nn.Module]] = field(default_factory=dict)
    """Layers of a user's class that the graph calls as a plain layer of this class."""
    dtype: torch.dtype = torch.float32
    """Number type of the model's parameters."""
    sizes: Sizes = field(default_factory=Sizes)
    """Which axes of the inputs are dynamic."""
    names: Mapping[Any, str] = field(default_factory=dict)
    """The placeholder of each argument that holds a tensor, by its path in ``(args, kwargs)``."""
    checks: tuple[Check, ...] = ()
    """Checks that programs make of their inputs."""
    trained: IR | None = None
    """The graph of training mode, if it makes other calls than evaluation mode."""
    training: str = ""
    """Reason why training mode of the graph differs from that of the model; empty if it does not differ."""

    @property
    def samples(self) -> int:
        """Number of samples in the values of the graph: `BATCH`, or 1 if the batch is not dynamic."""
        return BATCH if "batch" in self.sizes.names else 1

    @cached_property
    def kept(self) -> list[str]:
        """The opaque modules and methods that the graph calls, of which bnas knows only the result."""
        called = dict.fromkeys(str(n.target) for n in self.graph.nodes if n.op == "call_module" and n not in self.calls)
        own = {name: self.modules.get(name) for name in called}
        return [
            one.place if isinstance(one, OpaqueMethod) else name
            for name, one in own.items()
            if one is None or isinstance(one, OpaqueMethod)
        ]

    @property
    def opaque(self) -> bool:
        """Whether the graph calls any of `kept`."""
        return bool(self.kept)

    @property
    def dynamic(self) -> dict[str, dict[int, str]]:
        """The dynamic axes by the name of the input, then by axis: ``{"x": {0: "batch", 2: "height"}}``."""
        found: dict[str, dict[int, str]] = {name: {} for name in self.names.values()}
        for axis in self.sizes.axes:
            for path, place in axis.places:
                found.setdefault(tensor_name(self.names, path), {})[place] = axis.name
        return {name: axes for name, axes in found.items() if axes}

    def module(self, path: str, root: nn.Module | None = None) -> nn.Module:
        """Return the module at `path` of the graph, or of `root` (by default the model)."""
        if path in self.modules:
            return self.modules[path]
        module = self.root if root is None else root  # not `root or`: a compiled module has no truth value
        for name in path.split(".") if path else ():
            found = module._modules[name]  # get_submodule alone is many times slower
            module = module.get_submodule(name) if found is None else found
        return module

    def device(self, root: nn.Module | None = None) -> torch.device:
        """Return the device of the parameters of `root` (by default the model)."""
        return next((p.device for p in (self.root if root is None else root).parameters()), torch.device("cpu"))

    def constant(self, path: str, root: nn.Module) -> Tensor:
        """Return a tensor made in forward, on the device of the parameters of `root`.

        If the tensor has the number type of the model's parameters, it gets the number type of those of `root`.
        """
        constant, like = self.constants[path], floating(root)
        if like is None:
            return constant
        return constant.to(like.device, like.dtype if constant.dtype == self.dtype else constant.dtype)

    def tensor(self, name: str) -> Tensor:
        """Return the parameter, buffer or constant called `name`."""
        if name in self.constants:
            return self.constants[name]
        owner, _, leaf = name.rpartition(".")
        value = getattr(self.root.get_submodule(owner), leaf)
        assert isinstance(value, Tensor)
        return value

    def is_saved(self, name: str) -> bool:
        """Whether the state dict of the model has the tensor: a parameter or a persistent buffer."""
        owner, _, leaf = name.rpartition(".")
        return name not in self.constants and leaf not in self.root.get_submodule(owner)._non_persistent_buffers_set

    def copy_graph(self) -> tuple[Graph, dict[Node, Node]]:
        """Return a copy of the graph to change, and the copy of each node; see `with_graph`."""
        graph, copies = Graph(), dict[Node, Node]()
        graph.output(graph.graph_copy(self.graph, copies))
        return graph, copies

    def with_graph(self, graph: Graph, modules: Mapping[str, nn.Module] = MappingProxyType({})) -> IR:
        """Return the same model with another graph over its modules and parameters, which are not changed.

        All values are computed again on meta tensors. A new node belongs to the module whose forward made its first
        operand, and is marked as added, unless it brings its own ``meta``.

        Args:
            graph: A changed copy of this graph.
            modules: Further leaf modules, without tensors, by their names in the graph.

        Raises:
            Exception: The error of an operator that does not fit, with a note that names the node.
        """
        own = {**self.modules, **modules}
        for node in revalue(self.root, own, self.constants, graph, self.plain):
            if "scope" not in node.meta:
                node.meta.update(_place_beside(node.all_input_nodes), added=True)
        calls = {node: call for node in graph.nodes if (call := call_of(node, self.root, own, self.plain)) is not None}
        return replace(self, graph=graph, calls=calls, modules=own, trained=None)

    @cached_property
    def shapes_elsewhere(self) -> Mapping[Node, torch.Size]:
        """The shapes of all tensors at other sizes of the dynamic axes besides the batch; empty without such axes."""
        graph, copies = self.copy_graph()
        axes = [axis for axis in self.sizes.axes if axis.name != "batch"]
        for sizes in other_sizes(axes) if axes and not self.opaque else ():
            resize_inputs(graph, self.names, sizes)
            try:
                deque(revalue(self.root, self.modules, self.constants, graph, self.plain), maxlen=0)
            except Exception:  # the model itself does not accept these sizes
                continue
            values = {node: copy.meta.get("value") for node, copy in copies.items()}
            return {node: value.shape for node, value in values.items() if isinstance(value, Tensor)}
        return {}

    def writers(self, value: Node) -> list[Node]:
        """Return the nodes that write in place into the memory of `value` or of a view of it, in graph order."""
        return list(self._written.get(memory_of(value), ()))

    @cached_property
    def _written(self) -> dict[int | None, list[Node]]:
        """The nodes that write into each memory. A meta tensor keeps its memory after the graph is made."""
        found: dict[int | None, list[Node]] = {}
        for node in self.graph.nodes:
            memory = memory_of(node.all_input_nodes[0]) if self.writes(node) else None
            if memory is not None:
                found.setdefault(memory, []).append(node)
        return found

    def writes(self, node: Node) -> bool:
        """Whether `node` writes in place into its first input."""
        if node.op == "call_module":
            call = self.calls.get(node)
            return call is not None and call.kwargs.get("inplace") is True
        return node.op in ("call_function", "call_method") and writes_in_place(node)


def module_calls(node: Node) -> tuple[str, ...]:
    """Return the calls of modules around a node, outermost first: ``layer``; the second call is ``layer@1``."""
    return tuple(node.meta.get("nn_module_stack", ()))


def _place_beside(operands: list[Node]) -> dict[str, Any]:
    """Return the place of a node that takes `operands`: the forward that made the first operand."""
    first = next((one for one in operands if module_calls(one)), None)
    stack = dict(first.meta["nn_module_stack"]) if first is not None else {}
    if first is not None and first.op == "call_module":
        stack.popitem()
    return {"nn_module_stack": stack, "scope": path_of(next(reversed(stack), ""))}


def path_of(call: str) -> str:
    """Return the path of the called module."""
    return call.partition("@")[0]


def memory_of(node: Node) -> int | None:
    """Return an identifier of the storage of a node's value, which views share; also on meta tensors."""
    value = node.meta.get("value")
    return value.untyped_storage()._cdata if isinstance(value, Tensor) else None


def floating(module: nn.Module) -> Tensor | None:
    """Return the first floating-point parameter, or None."""
    return next((p for p in module.parameters() if p.is_floating_point()), None)


def as_call(example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return positional and keyword arguments from a tensor, a tuple or list, or a dict."""
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    return (tuple(example_inputs) if isinstance(example_inputs, tuple | list) else (example_inputs,)), {}


def as_program_call(example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a program: the inputs that hold tensors. All other values are constants in a program."""
    args, kwargs = as_call(example_inputs)
    named = {name: value for name, value in kwargs.items() if holds_tensors(value)}
    return tuple(value for value in args if holds_tensors(value)), named


def aliases_of(model: nn.Module) -> dict[str, str]:
    """Return every name of a parameter or buffer of `model` with the first name of the same tensor."""
    first: dict[int, str] = {}
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {name: first.setdefault(id(tensor), name) for name, tensor in named}
