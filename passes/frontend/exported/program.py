"""A program of `torch.export` as a model: its own layers again, and a forward that runs its graph in Python.

`front.trace` takes models, so an `ExportedProgram` is turned into one. Its operators become the Python functions that
call them. A call whose tensors all belong to one submodule becomes a layer again, with the program's own parameters.
The program's facts about its inputs (names, sizes, ranges) are kept.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from operator import getitem
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.fx import Graph, Node
from torch.fx._pytree import tree_flatten_spec
from torch.utils._pytree import tree_unflatten

from bnas.passes.errors import CaptureError, Diagnostic, InputError
from bnas.passes.frontend.entry import check_sizes
from bnas.passes.frontend.structure import at, spelled_path
from bnas.passes.ops.aten import in_python

from .parts import ExportedAxes, axes_of, layers_of

Within = Callable[[Mapping[str, str]], AbstractContextManager[Any]]
"""Context for code inside calls of modules: paths by the name of the call, outermost first."""


class ExportedModel(nn.Module):
    """The program of an `ExportedProgram` as a model on the program's own parameters and buffers.

    It computes what ``program.module()`` computes, and refuses input sizes that the program was not exported for.

    Raises:
        CaptureError: The program has operators that call graphs, such as `torch.cond`.
    """

    def __init__(self, program: ExportedProgram) -> None:
        super().__init__()
        module = program.module()
        self.graph = _Copy(module).graph
        self._adopt(module)
        self.input_names = tuple(inspect.signature(module.forward).parameters)
        self._inputs: Any = module._in_spec
        self._outputs: Any = module._out_spec
        self._positional = len(tree_unflatten([None] * self._inputs.num_leaves, self._inputs)[0])
        self.axes: ExportedAxes = axes_of(program, self.input_names)
        self.example_inputs = _example(self.input_names, program.example_inputs)
        """The example inputs of the program, a tuple or a dict by name; None if the program has none."""
        self.eval()

    def _adopt(self, module: fx.GraphModule) -> None:
        """Take over submodules, parameters and buffers; tensors that the program made in forward become buffers too."""
        for name, child in module.named_children():
            if name != GUARDS and not isinstance(child, fx.GraphModule):
                self.add_module(name, child)
        self._parameters.update(module._parameters)
        self._buffers.update(module._buffers)
        self._non_persistent_buffers_set |= module._non_persistent_buffers_set
        for node in self.graph.find_nodes(op="get_attr"):
            path, _, name = str(node.target).rpartition(".")
            owner = self.get_submodule(path)
            value = getattr(owner, name) if hasattr(owner, name) else getattr(module, name)
            if name not in owner._parameters and name not in owner._buffers and isinstance(value, Tensor):
                vars(owner).pop(name, None)
                owner.register_buffer(name, value, persistent=False)

    @property
    def diagnostics(self) -> Iterator[Diagnostic]:
        """Facts about the program that a user must know."""
        yield Diagnostic("the model", FIXED)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program.

        Raises:
            InputError: An input has a size or value that the program was not exported for.
        """
        named = self._named(args, kwargs)
        for check in self.axes.checks:
            check_sizes(named[check.name], check.name, check.allowed, check.why, check.path)
        for path, value in self.axes.plain.items():
            if at(named, path) != value:
                raise InputError(f"input {spelled_path(path)!r} is {at(named, path)!r}; it was exported as {value!r}")
        return self.run(args, kwargs, lambda _: nullcontext())

    def run(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], within: Within) -> Any:
        """Run the program at any sizes.

        `within` is called with the modules whose forward made each call before the program was exported.
        """
        values = list(self._named(args, kwargs).values())
        count = self._positional
        given = tuple(values[:count]), dict(zip(self.input_names[count:], values[count:], strict=True))
        flat = tree_flatten_spec(given, self._inputs)
        return tree_unflatten(_Run(self, within).run(*flat), self._outputs)

    def _named(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the inputs by name, in the order of the program."""
        named = dict(zip(self.input_names, args, strict=False)) | dict(kwargs)
        if set(named) != set(self.input_names) or len(args) + len(kwargs) > len(named):
            raise TypeError(f"the program takes {', '.join(self.input_names)}, but got {', '.join(named)}")
        return {name: named[name] for name in self.input_names}


GUARDS = "_guards_fn"
"""The module of a program that checks its inputs."""

FIXED = (
    "an exported program: batch norms follow the mode of the super-network; dropout and everything else that depends "
    "on the mode stays as it was exported"
)


class _Run(fx.Interpreter):
    """Runs the graph, each call inside the modules that it belongs to."""

    def __init__(self, model: ExportedModel, within: Within) -> None:
        super().__init__(model, graph=model.graph)
        self.within = within

    def run_node(self, n: Node) -> Any:
        """Run a node inside its modules, with or without gradients as in the program."""
        gradients = n.meta["gradients"]
        with self.within(n.meta["stack"]), nullcontext() if gradients is None else torch.set_grad_enabled(gradients):
            return super().run_node(n)


def _example(names: tuple[str, ...], example: Any) -> Any:
    if example is None:
        return None
    args, kwargs = example
    return dict(zip(names, (*args, *kwargs.values()), strict=False)) if kwargs else tuple(args)


# The graph.


class _Copy:
    """The graph of a program with layers and Python functions in place of ATen operators."""

    def __init__(self, module: fx.GraphModule) -> None:
        self.module, self.layers = module, layers_of(module)
        self.graph = Graph()
        self.copy_all(module.graph, {}, None)
        for node in reversed(self.graph.find_nodes(op="get_attr")):
            if not node.users:
                self.graph.erase_node(node)

    def copy_all(self, graph: Graph, values: dict[Node, Any], gradients: bool | None) -> Any:
        """Copy the nodes that have no value yet; return the value of the output.

        Args:
            graph: The graph of the program, or of a part of it.
            values: The copies of the nodes; new copies are added.
            gradients: Whether gradients are enabled in the part; None: as outside.
        """
        for node in graph.nodes:
            if node in values or node.target == GUARDS:
                continue
            if node.op == "output" and graph is not self.module.graph:
                return fx.node.map_arg(node.args[0], values.__getitem__)
            values[node] = self._part(node, values)
            if values[node] is None:
                values[node] = self._copied(node, values, gradients)
        return None

    def _copied(self, node: Node, values: Mapping[Node, Any], gradients: bool | None) -> Node:
        args: Any = fx.node.map_arg(node.args, values.__getitem__)
        kwargs: Any = fx.node.map_arg(node.kwargs, values.__getitem__)
        op, target, stack = node.op, node.target, stack_of(node)
        if node in self.layers:  # its own call is not a part of the stack
            inputs = [values[one] for one in node.all_input_nodes if one.op != "get_attr"]
            op, target, args, kwargs = "call_module", self.layers[node], tuple(inputs), {}
            stack = {call: path for call, path in stack.items() if path != target}
        elif op == "call_function":
            self._refuse_graphs(node)
            target, args, kwargs = in_python(target, args, kwargs)
        copy = self.graph.create_node(op, target, args, kwargs, node.name)
        copy.meta = {"stack": stack, "gradients": gradients}
        return copy

    def _part(self, node: Node, values: Mapping[Node, Any]) -> Any:
        """Copy the nodes of a part that sets gradients on or off; return its value, or None for other nodes."""
        if node.target is getitem and isinstance(values[node.args[0]], list | tuple):  # type: ignore[index]
            return values[node.args[0]][node.args[1]]  # type: ignore[index]
        if getattr(node.target, "__name__", "") != "wrap_with_set_grad_enabled":
            return None
        gradients, part, *given = node.args
        inner = getattr(self.module, str(part.target)).graph  # type: ignore[union-attr]
        inputs = fx.node.map_arg(given, values.__getitem__)
        return self.copy_all(inner, dict(zip(inner.find_nodes(op="placeholder"), inputs, strict=True)), gradients)  # type: ignore[arg-type]

    def _refuse_graphs(self, node: Node) -> None:
        """Refuse operators that run a graph of their own or set a state of PyTorch."""
        if "functorch" in (getattr(node.target, "__module__", None) or ""):
            raise CaptureError(f"the exported program calls {node.target.__name__}, a part of torch.func")  # type: ignore[union-attr]
        for one in node.all_input_nodes:
            if one.op == "get_attr" and isinstance(getattr(self.module, str(one.target), None), fx.GraphModule):
                raise CaptureError(
                    f"the exported program calls {node.target} on a graph of its own ({one.target}): bnas reads "
                    "programs without branches and loops. Export the model without them, or give the model itself"
                )


def stack_of(node: Node) -> dict[str, str]:
    """Return the calls of modules around a node of a program, with their paths, outermost first.

    The keys in a program depend on how it was exported; ``@1`` at the end of a key means the second call.
    """
    found = {}
    for key, (path, kind) in node.meta.get("nn_module_stack", {}).items():
        if path and not path == key == kind:  # not the model itself, nor the mark of a node without a place
            number = key.rpartition("@")[2] if "@" in key else ""
            found[f"{path}@{number}" if number else path] = path
    return found


def as_module(model: nn.Module | ExportedProgram) -> nn.Module:
    """Return `model`; an exported program becomes an `ExportedModel`."""
    return ExportedModel(model) if isinstance(model, ExportedProgram) else model


def as_model(model: nn.Module | ExportedProgram, example_inputs: Any = None) -> tuple[nn.Module, Any]:
    """Return a model and its example inputs, which may come from an `ExportedProgram`.

    Raises:
        CaptureError: There are no example inputs, or the program cannot be read.
    """
    model = as_module(model)
    if example_inputs is None and isinstance(model, ExportedModel):
        example_inputs = model.example_inputs
    if example_inputs is None:
        raise CaptureError("there are no example inputs: give a tensor, a tuple of inputs, or a dict of them by name")
    return model, example_inputs
