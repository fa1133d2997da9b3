"""A program of `torch.export` as a model: its own layers again, and a forward that runs its graph in Python.

The front door takes models, so an `ExportedProgram` becomes one. Its operators become the Python functions that call
them. A call whose tensors are all of one submodule becomes the layer that makes it, with the program's own
parameters. What the program says of its inputs (names, sizes, ranges) is kept beside.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import fx, nn
from torch.export import ExportedProgram
from torch.fx import Graph, Node
from torch.fx._pytree import tree_flatten_spec
from torch.utils._pytree import tree_unflatten

from bnas.passes.errors import CaptureError, Diagnostic

from .aten import in_python
from .exported_axes import ExportedAxes, axes_of
from .exported_layers import layers_of

Within = Callable[[Mapping[str, str]], AbstractContextManager[Any]]
"""Notes that what follows is a part of calls of modules: their paths by the name of the call, from the outermost."""


class ExportedModel(nn.Module):
    """The program of an `ExportedProgram` as a model on the program's own parameters and buffers.

    It computes what ``program.module()`` computes, and does not check the sizes of its inputs.

    Raises:
        CaptureError: the program has operators that call graphs, such as `torch.cond`.
    """

    def __init__(self, program: ExportedProgram) -> None:
        super().__init__()
        module = program.module()
        self.graph = _in_python(module, layers_of(module))
        for name, child in module.named_children():
            if name != GUARDS:
                self.add_module(name, child)
        self._parameters.update(module._parameters)
        self._buffers.update(module._buffers)
        self._non_persistent_buffers_set |= module._non_persistent_buffers_set
        self.input_names = tuple(inspect.signature(module.forward).parameters)
        self._inputs, self._outputs = module._in_spec, module._out_spec
        self.axes: ExportedAxes = axes_of(program, self.input_names)
        self.example_inputs = _example(self.input_names, program.example_inputs)
        """The program's example inputs as a tuple, or None where it was saved without."""
        self.eval()

    @property
    def diagnostics(self) -> Iterator[Diagnostic]:
        """What a user of the model must know."""
        yield Diagnostic("the model", FIXED)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program."""
        return self.run(args, kwargs, lambda _: nullcontext())

    def run(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], within: Within) -> Any:
        """Run the program; `within` is told of the modules whose forward made each call before it was exported."""
        named = dict(zip(self.input_names, args, strict=False)) | dict(kwargs)
        if set(named) != set(self.input_names) or len(args) > len(self.input_names):
            raise TypeError(f"the program takes {', '.join(self.input_names)}; it was given {', '.join(named)}")
        values = list(named[name] for name in self.input_names)
        count = self._inputs.child(0).num_children
        given = tuple(values[:count]), dict(zip(self.input_names[count:], values[count:], strict=True))
        flat = tree_flatten_spec(given, self._inputs)
        return tree_unflatten(_Run(self, within).run(*flat), self._outputs)


GUARDS = "_guards_fn"
"""The module of a program that checks its inputs."""

FIXED = (
    "it was exported: batch norms follow the mode; dropout and whatever else training mode did before the export "
    "are as they were exported, in both modes"
)


class _Run(fx.Interpreter):
    """Runs the graph and says of each call which modules it is in."""

    def __init__(self, model: ExportedModel, within: Within) -> None:
        super().__init__(model, graph=model.graph)
        self.within = within

    def run_node(self, n: Node) -> Any:
        """As in fx."""
        with self.within(n.meta["stack"]):
            return super().run_node(n)


def _example(names: tuple[str, ...], example: Any) -> Any:
    if example is None:
        return None
    args, kwargs = example
    return dict(zip(names, (*args, *kwargs.values()), strict=False)) if kwargs else tuple(args)


# The graph ----------------------------------------------------------------------------------------------------------


def _in_python(module: fx.GraphModule, layers: Mapping[Node, str]) -> Graph:
    """The graph of the program with layers and Python functions in place of ATen operators."""
    graph, copies = Graph(), dict[Node, Node]()
    for node in module.graph.nodes:
        if node.op == "call_module" and node.target == GUARDS:
            continue
        copies[node] = copy = graph.node_copy(node, lambda one: copies[one])
        copy.meta = {"stack": stack_of(node)}
        if node in layers:
            _call_layer(copy, layers[node])
        elif node.op == "call_function":
            _refuse_graphs(module, node)
            copy.target, copy.args, copy.kwargs = in_python(copy.target, copy.args, copy.kwargs)
    for node in reversed(graph.find_nodes(op="get_attr")):
        if not node.users:
            graph.erase_node(node)
    return graph


def _call_layer(node: Node, path: str) -> None:
    """Make a call of an operator that of a layer, whose own call is not a part of the stack."""
    inputs = [one for one in node.all_input_nodes if one.op != "get_attr"]
    node.op, node.target, node.args, node.kwargs = "call_module", path, tuple(inputs), {}
    node.meta["stack"] = {call: at for call, at in node.meta["stack"].items() if at != path}


def _refuse_graphs(module: fx.GraphModule, node: Node) -> None:
    for one in node.all_input_nodes:
        if one.op == "get_attr" and isinstance(getattr(module, str(one.target), None), fx.GraphModule):
            raise CaptureError(
                f"the exported program calls {node.target} on a graph of its own ({one.target}): bnas reads programs "
                "without branches and loops. Export the model without them, or give the model itself"
            )


def stack_of(node: Node) -> dict[str, str]:
    """The calls of modules that a node of a program was made in, and their paths, from the outermost.

    A program keys them by names that depend on how it was exported; ``@1`` at the end is the second call.
    """
    found = {}
    for key, (path, kind) in node.meta.get("nn_module_stack", {}).items():
        if path and not path == key == kind:  # not the model itself, nor the mark of a node without a place
            number = key.rpartition("@")[2] if "@" in key else ""
            found[f"{path}@{number}" if number else path] = path
    return found


def as_module(model: nn.Module | ExportedProgram) -> nn.Module:
    """`model`, or the model that an exported program becomes."""
    return ExportedModel(model) if isinstance(model, ExportedProgram) else model


def as_model(model: nn.Module | ExportedProgram, example_inputs: Any = None) -> tuple[nn.Module, Any]:
    """A model and example inputs, which an `ExportedProgram` may bring itself.

    Raises:
        CaptureError: there are no example inputs, or the program cannot be read.
    """
    model = as_module(model)
    if example_inputs is None and isinstance(model, ExportedModel):
        example_inputs = model.example_inputs
    if example_inputs is None:
        raise CaptureError("there are no example inputs: give a tensor, a tuple of inputs, or a dict of them by name")
    return model, example_inputs


__all__ = ["ExportedModel", "as_model", "as_module"]
