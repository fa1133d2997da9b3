"""Graph nodes as calls of canonical operators: modules, functions and methods in one spelling.

Axis rules, costs and ONNX lowering are written once per *canonical* operator. ``nn.ReLU()(x)``, ``F.relu(x)``,
``torch.relu(x)``, ``x.relu()`` and ``x.relu_()`` all arrive as ``Call(op=F.relu, args=(x,))``. The graph itself is
not rewritten: leaf modules stay modules, so that what bnas hands back is made of ordinary ``torch.nn`` layers.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.fx import Node
from torch.utils._python_dispatch import TorchDispatchMode

from bnas.passes.generators import put_back, python_numbers

from .record import Layer, Target
from .registry import OPERATORS


@dataclass(frozen=True)
class TensorRef:
    """A parameter or buffer that a leaf module brings to its call, by its qualified name in the model."""

    name: str


@dataclass(frozen=True)
class Call:
    """A graph node in canonical spelling: ``op(*args, **kwargs)``, with ``Node`` and ``TensorRef`` for tensors."""

    node: Node
    op: Target
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """The argument at `position` of the canonical signature, or called `name`, or `default`."""
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, default)

    def listed(self, position: int, *names: str) -> list[Any]:
        """An argument of several entries: one sequence, also by one of its names, or one by one from `position` on."""
        given = next((self.kwargs[name] for name in names if name in self.kwargs), None)
        given = self.args[position] if len(self.args) > position else given
        return list(given) if isinstance(given, list | tuple) else list(self.args[position:])

    def tensors(self) -> Iterator[Node | TensorRef]:
        """Every node and tensor reference among the arguments, also inside lists and slices, in order."""
        yield from _references([*self.args, *self.kwargs.values()])


class Dynamic(int):
    """A size that depends on an input: the number that it has in the traced graph, and the node that computes it."""

    node: Node

    @classmethod
    def of(cls, node: Node) -> Dynamic:
        """The number that `node` computes."""
        number = cls(node.meta["value"])
        number.node = node
        return number


def with_numbers(call: Call) -> Call:
    """`call` with numbers in place of the nodes that compute them: sizes as `Dynamic`, flags and factors plain."""

    def number(node: Node) -> Any:
        value = node.meta.get("value")
        if isinstance(value, bool | float | str) or (value is None and "value" in node.meta):
            return value
        return Dynamic.of(node) if isinstance(value, int) else node

    args: Any = fx.node.map_arg(call.args, number)
    kwargs: Any = fx.node.map_arg(call.kwargs, number)
    return replace(call, args=args, kwargs=dict(kwargs))


def _references(value: Any) -> Iterator[Node | TensorRef]:
    if isinstance(value, Node | TensorRef):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _references(item)
    elif isinstance(value, dict):
        yield from _references(list(value.values()))
    elif isinstance(value, slice):
        yield from _references([value.start, value.stop, value.step])


class CustomFunction(nn.Module):
    """A `torch.autograd.Function` as a layer of the graph: it is applied, so that its own backward stays.

    Its operator is the function's class; without a record of that the layer is opaque.
    """

    def __init__(self, function: type[torch.autograd.Function]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any) -> Any:
        """Apply the function."""
        return self.function.apply(*args)

    def extra_repr(self) -> str:
        """The name of the function."""
        return self.function.__name__


class MadeOnMeta(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside, tensors that are made by their size alone are meta tensors, such as the noise in a `CustomFunction`."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called for every operator of PyTorch."""
        kwargs = kwargs or {}
        given = any(isinstance(one, torch.Tensor) for one in (*args, *kwargs.values()))
        if not given and any(one.name == "device" for one in func._schema.arguments):
            kwargs = {**kwargs, "device": torch.device("meta")}
        return func(*args, **kwargs)


NORM_OF_RANK: dict[int, type[nn.Module]] = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
"""The batch norm for inputs of so many axes."""


def identity(input: torch.Tensor) -> torch.Tensor:
    """``nn.Identity`` as a function: returns `input` itself."""
    return input


REGULARISER = Layer(op=identity)
"""Hands on its input in evaluation mode; in training it may do as it likes with it."""


def form_of(module: nn.Module) -> Layer | None:
    """The functional form of a leaf module; None for modules that are traced into, or opaque."""
    form = OPERATORS.layer(type(module))
    if isinstance(module, torch.jit.ScriptModule):
        return None
    if form is None:
        return REGULARISER if is_regulariser(module) else None
    return form.of(module)


def is_regulariser(module: nn.Module) -> bool:
    """Whether the module, without tensors or parts, asks for its mode and returns its input itself in evaluation.

    Such modules (stochastic depth and the like) stay whole, so that their training mode stays alive.
    """
    code = getattr(type(module).forward, "__code__", None)
    if code is None or "training" not in code.co_names or module._parameters or module._buffers or module._modules:
        return False
    twin, probe = copy.copy(module), torch.empty(2, 3, 4, 4, device="meta")
    twin.training, drawn = False, python_numbers()
    try:
        return twin.forward(probe) is probe
    except Exception:  # it takes other inputs: it is something else
        return False
    finally:
        put_back(drawn)


def call_of(
    node: Node,
    root: nn.Module,
    own: Mapping[str, nn.Module] = MappingProxyType({}),
    plain: Mapping[str, type[nn.Module]] = MappingProxyType({}),
) -> Call | None:
    """`node` in canonical spelling; ``None`` for placeholders, outputs, get_attr and opaque modules.

    `own` are the modules of the graph that the model does not have, `plain` the layers of a user's class that are
    called as a plain layer. A module without a form is opaque.
    """
    if node.op == "call_function":
        args, named = OPERATORS.arguments(node.target, tuple(node.args))
        return Call(node, OPERATORS.canonical(node.target), args, {**named, **node.kwargs})
    if node.op == "call_method":
        return Call(node, OPERATORS.canonical(str(node.target)), tuple(node.args), dict(node.kwargs))
    if node.op != "call_module":
        return None
    target = str(node.target)
    module = own[target] if target in own else root.get_submodule(target)
    if isinstance(module, CustomFunction):
        return Call(node, module.function, tuple(node.args)) if module.function in OPERATORS else None
    form = OPERATORS.layer(plain[target]) if target in plain else form_of(module)
    return None if form is None else _module_call(node, module, form)


def _module_call(node: Node, module: nn.Module, form: Layer) -> Call:
    tensors = {
        name: None if getattr(module, name) is None else TensorRef(f"{node.target}.{name}") for name in form.tensors
    }
    settings = settings_of(module, form)
    return Call(node, form.op, tuple(node.args), {**tensors, **settings, **node.kwargs})


def settings_of(module: nn.Module, form: Layer) -> dict[str, Any]:
    """The settings of a layer as arguments of its function, which takes no None for the momentum of a mean."""
    settings = {name: getattr(module, name) for name in form.settings}
    return {**settings, "momentum": 0.0} if settings.get("momentum", 0.0) is None else settings


def is_in_place(method: str) -> bool:
    """Whether a method of a tensor changes it: ``relu_``, ``__iadd__``."""
    if method.endswith("__"):
        return method.startswith("__i") and method not in ("__invert__", "__index__", "__int__")
    return method.endswith("_")


def writes_in_place(node: Node) -> bool:
    """Whether the function or method call of `node` changes its first argument."""
    if node.op == "call_method":
        return is_in_place(str(node.target))
    return OPERATORS.writes(node.target) or _named_so(node.target) or _says_inplace(node)


def _named_so(function: Any) -> bool:
    """Whether a function of torch has the name of one that writes, as `torch.exp_`."""
    name = getattr(function, "__name__", "")
    return name.endswith("_") and not name.endswith("__") and (hasattr(torch, name) or hasattr(F, name))


def _says_inplace(node: Node) -> bool:
    """Whether the call of a function says ``inplace=True``, by keyword or by position."""
    if node.op != "call_function" or not any(v is True for v in (*node.args, *node.kwargs.values())):
        return False
    if node.kwargs.get("inplace") is True:
        return True
    try:
        names = list(inspect.signature(node.target).parameters)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False
    position = names.index("inplace") if "inplace" in names else len(node.args)
    return len(node.args) > position and node.args[position] is True
