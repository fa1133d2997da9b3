"""One spelling for every operator: modules, functions and methods become a call of one canonical function.

Axis rules, costs and ONNX lowering are written once per *canonical* operator. ``nn.ReLU()(x)``, ``F.relu(x)``,
``torch.relu(x)``, ``x.relu()`` and ``x.relu_()`` all arrive as ``Call(op=F.relu, args=(x,))``. The graph itself is
not rewritten: leaf modules stay modules, so that what bnas hands back is made of ordinary ``torch.nn`` layers.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import Node

from .errors import RuleError

Operator = Callable[..., Any] | str
"""A canonical operator: a function, or the name of a tensor method that has no function of its own."""


@dataclass(frozen=True)
class TensorRef:
    """A parameter or buffer that a leaf module brings to its call, by its qualified name in the model."""

    name: str


@dataclass(frozen=True)
class Call:
    """A graph node in canonical spelling: ``op(*args, **kwargs)``, with ``Node`` and ``TensorRef`` for tensors."""

    node: Node
    op: Operator
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """The argument at `position` of the canonical signature, or called `name`, or `default`."""
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, default)

    def tensors(self) -> Iterator[Node | TensorRef]:
        """Every node and tensor reference among the arguments, also inside lists and slices, in order."""
        yield from _references([*self.args, *self.kwargs.values()])


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


@dataclass(frozen=True)
class ModuleForm:
    """How a leaf module is spelled as a function of its tensors and settings (both as keyword arguments)."""

    op: Operator
    tensors: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()


_CONV = ("stride", "padding", "dilation", "groups", "padding_mode")
_CONV_T = ("stride", "padding", "output_padding", "groups", "dilation", "padding_mode")
_POOL = ("kernel_size", "stride", "padding", "dilation", "return_indices", "ceil_mode")
_AVG_1D = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad")
_WB = ("weight", "bias")
_STATS = ("running_mean", "running_var", "weight", "bias")


def identity(input: torch.Tensor) -> torch.Tensor:
    """``nn.Identity`` as a function: returns `input` itself."""
    return input


MODULE_FORMS: dict[type[nn.Module], ModuleForm] = {
    nn.Identity: ModuleForm(identity),
    nn.Conv1d: ModuleForm(F.conv1d, _WB, _CONV),
    nn.Conv2d: ModuleForm(F.conv2d, _WB, _CONV),
    nn.Conv3d: ModuleForm(F.conv3d, _WB, _CONV),
    nn.ConvTranspose1d: ModuleForm(F.conv_transpose1d, _WB, _CONV_T),
    nn.ConvTranspose2d: ModuleForm(F.conv_transpose2d, _WB, _CONV_T),
    nn.ConvTranspose3d: ModuleForm(F.conv_transpose3d, _WB, _CONV_T),
    nn.Linear: ModuleForm(F.linear, _WB),
    nn.BatchNorm1d: ModuleForm(F.batch_norm, _STATS, ("momentum", "eps")),
    nn.BatchNorm2d: ModuleForm(F.batch_norm, _STATS, ("momentum", "eps")),
    nn.BatchNorm3d: ModuleForm(F.batch_norm, _STATS, ("momentum", "eps")),
    nn.Dropout: ModuleForm(F.dropout, (), ("p", "inplace")),
    nn.Dropout1d: ModuleForm(F.dropout1d, (), ("p", "inplace")),
    nn.Dropout2d: ModuleForm(F.dropout2d, (), ("p", "inplace")),
    nn.Dropout3d: ModuleForm(F.dropout3d, (), ("p", "inplace")),
    nn.Flatten: ModuleForm(torch.flatten, (), ("start_dim", "end_dim")),
    nn.MaxPool1d: ModuleForm(F.max_pool1d, (), _POOL),
    nn.MaxPool2d: ModuleForm(F.max_pool2d, (), _POOL),
    nn.MaxPool3d: ModuleForm(F.max_pool3d, (), _POOL),
    nn.AvgPool1d: ModuleForm(F.avg_pool1d, (), _AVG_1D),
    nn.AvgPool2d: ModuleForm(F.avg_pool2d, (), (*_AVG_1D, "divisor_override")),
    nn.AvgPool3d: ModuleForm(F.avg_pool3d, (), (*_AVG_1D, "divisor_override")),
    nn.AdaptiveAvgPool1d: ModuleForm(F.adaptive_avg_pool1d, (), ("output_size",)),
    nn.AdaptiveAvgPool2d: ModuleForm(F.adaptive_avg_pool2d, (), ("output_size",)),
    nn.AdaptiveAvgPool3d: ModuleForm(F.adaptive_avg_pool3d, (), ("output_size",)),
    nn.AdaptiveMaxPool1d: ModuleForm(F.adaptive_max_pool1d, (), ("output_size",)),
    nn.AdaptiveMaxPool2d: ModuleForm(F.adaptive_max_pool2d, (), ("output_size",)),
    nn.AdaptiveMaxPool3d: ModuleForm(F.adaptive_max_pool3d, (), ("output_size",)),
    nn.ReLU: ModuleForm(F.relu, (), ("inplace",)),
    nn.ReLU6: ModuleForm(F.relu6, (), ("inplace",)),
    nn.LeakyReLU: ModuleForm(F.leaky_relu, (), ("negative_slope", "inplace")),
    nn.ELU: ModuleForm(F.elu, (), ("alpha", "inplace")),
    nn.SELU: ModuleForm(F.selu, (), ("inplace",)),
    nn.GELU: ModuleForm(F.gelu, (), ("approximate",)),
    nn.SiLU: ModuleForm(F.silu, (), ("inplace",)),
    nn.Mish: ModuleForm(F.mish, (), ("inplace",)),
    nn.Hardswish: ModuleForm(F.hardswish, (), ("inplace",)),
    nn.Hardsigmoid: ModuleForm(F.hardsigmoid, (), ("inplace",)),
    nn.Hardtanh: ModuleForm(F.hardtanh, (), ("min_val", "max_val", "inplace")),
    nn.Sigmoid: ModuleForm(torch.sigmoid),
    nn.Tanh: ModuleForm(torch.tanh),
    nn.Softplus: ModuleForm(F.softplus, (), ("beta", "threshold")),
    nn.Softmax: ModuleForm(F.softmax, (), ("dim",)),
    nn.LogSoftmax: ModuleForm(F.log_softmax, (), ("dim",)),
    nn.PReLU: ModuleForm(F.prelu, ("weight",)),
}
"""Leaf modules by their *exact* type: a subclass may have changed ``forward``, so it is traced into instead."""


def register_module(kind: type[nn.Module], form: ModuleForm) -> None:
    """Make modules of exactly the type `kind` leaves of the graph, spelled as `form`; twice is a `RuleError`."""
    if kind in MODULE_FORMS:
        raise RuleError(f"{kind.__name__} already has a functional form: {MODULE_FORMS[kind]}")
    MODULE_FORMS[kind] = form


_SPELLINGS: dict[Operator, tuple[Operator, ...]] = {
    torch.add: (operator.add, operator.iadd),
    torch.sub: (operator.sub, operator.isub, torch.subtract, "subtract"),
    torch.mul: (operator.mul, operator.imul, torch.multiply, "multiply"),
    torch.div: (operator.truediv, operator.itruediv, torch.divide, torch.true_divide, "divide"),
    torch.floor_divide: (operator.floordiv,),
    torch.pow: (operator.pow,),
    torch.neg: (operator.neg, torch.negative, "negative"),
    torch.matmul: (operator.matmul, "__matmul__"),
    F.relu: (torch.relu, torch.relu_, F.relu_, "relu"),
    F.relu6: (),
    F.hardtanh: (F.hardtanh_,),
    F.leaky_relu: (F.leaky_relu_,),
    F.elu: (F.elu_,),
    F.selu: (torch.selu, torch.selu_, F.selu_),
    torch.sigmoid: (F.sigmoid, torch.sigmoid_, "sigmoid"),
    torch.tanh: (F.tanh, torch.tanh_, "tanh"),
    F.softmax: (torch.softmax, "softmax"),
    F.log_softmax: (torch.log_softmax, "log_softmax"),
    F.dropout: (torch.dropout, torch.dropout_),
    F.layer_norm: (torch.layer_norm,),
    F.prelu: (torch.prelu,),
    F.adaptive_avg_pool1d: (torch.adaptive_avg_pool1d,),
    F.max_pool1d: (torch.max_pool1d,),
    F.max_pool2d: (torch.max_pool2d,),
    F.max_pool3d: (torch.max_pool3d,),
    F.pad: (torch._C._nn.pad,),
    torch.cat: (torch.concat, torch.concatenate),
    torch.reshape: ("view", "reshape"),
    torch.clamp: (torch.clip, "clip"),
}
"""Canonical operator: its other spellings. A method not listed is looked up in ``torch`` under its own name."""

ALIASES: dict[Operator, Operator] = {alias: op for op, aliases in _SPELLINGS.items() for alias in (op, *aliases)}


def canonical(target: Operator) -> Operator:
    """The canonical operator for a function or a method's name; an in-place method stands for the plain one."""
    if target in ALIASES:
        return ALIASES[target]
    if not isinstance(target, str):
        return target
    name = target[:-1] if target.endswith("_") and not target.endswith("__") else target
    if name in ALIASES:
        return ALIASES[name]
    function = getattr(torch, name, None)
    return ALIASES.get(function, function) if callable(function) else name


def call_of(node: Node, root: nn.Module) -> Call | None:
    """`node` in canonical spelling; ``None`` for placeholders, outputs, get_attr and opaque modules.

    A module is opaque if it has no form, or forward hooks: they may change what it computes.
    """
    if node.op == "call_function":
        return Call(node, canonical(node.target), tuple(node.args), dict(node.kwargs))
    if node.op == "call_method":
        return Call(node, canonical(str(node.target)), tuple(node.args), dict(node.kwargs))
    if node.op != "call_module":
        return None
    module = root.get_submodule(str(node.target))
    form = MODULE_FORMS.get(type(module))
    hooked = bool(module._forward_hooks or module._forward_pre_hooks)
    return None if form is None or hooked else _module_call(node, module, form)


def _module_call(node: Node, module: nn.Module, form: ModuleForm) -> Call:
    tensors = {
        name: None if getattr(module, name) is None else TensorRef(f"{node.target}.{name}") for name in form.tensors
    }
    settings = {name: getattr(module, name) for name in form.settings}
    return Call(node, form.op, tuple(node.args), {**tensors, **settings, **node.kwargs})


IN_PLACE_FUNCTIONS = frozenset(
    {operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.setitem, torch.relu_, F.relu_}
    | {F.hardtanh_, F.leaky_relu_, F.elu_, F.selu_, torch.selu_, torch.sigmoid_, torch.tanh_, torch.dropout_}
)
"""Functions that write into their first argument."""


def writes_in_place(node: Node) -> bool:
    """Whether the function or method call of `node` changes its first argument."""
    if node.op == "call_method":
        return str(node.target).endswith("_") and not str(node.target).endswith("__")
    return node.target in IN_PLACE_FUNCTIONS or _says_inplace(node)


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
