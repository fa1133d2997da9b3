"""One spelling for every operator: modules, functions and methods become a call of one canonical function.

Axis rules, costs and ONNX lowering are written once per *canonical* operator. ``nn.ReLU()(x)``, ``F.relu(x)``,
``torch.relu(x)``, ``x.relu()`` and ``x.relu_()`` all arrive as ``Call(op=F.relu, args=(x,))``. The graph itself is
not rewritten: leaf modules stay modules, so that what bnas hands back is made of ordinary ``torch.nn`` layers.
"""

from __future__ import annotations

import copy
import inspect
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.fx import Node

from .errors import RuleError
from .recurrent import gru, gru_cell, lstm, lstm_cell, rnn, rnn_cell, tensor_names

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


@dataclass(frozen=True)
class ModuleForm:
    """How a leaf module is spelled as a function of its tensors and settings (both as keyword arguments)."""

    op: Operator
    tensors: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    names: Callable[[nn.Module], tuple[str, ...] | None] | None = None
    """Gives the tensors of a module where they depend on its settings; None for settings that no form is for."""

    def of(self, module: nn.Module) -> ModuleForm | None:
        """The form with the tensors of `module`."""
        if self.names is None:
            return self
        found = self.names(module)
        return None if found is None else replace(self, tensors=found, names=None)


_CONV = ("stride", "padding", "dilation", "groups", "padding_mode")
_CONV_T = ("stride", "padding", "output_padding", "groups", "dilation", "padding_mode")
_POOL = ("kernel_size", "stride", "padding", "dilation", "return_indices", "ceil_mode")
_AVG_1D = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad")
_WB = ("weight", "bias")
_GATES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
_RUN = ("num_layers", "bidirectional", "batch_first")
_STATS = ("running_mean", "running_var", "weight", "bias")


def identity(input: torch.Tensor) -> torch.Tensor:
    """``nn.Identity`` as a function: returns `input` itself."""
    return input


def recurrent(input: torch.Tensor, *state: Any, layer: nn.Module) -> Any:
    """``nn.LSTM``, ``nn.GRU``, ``nn.RNN`` and their cells as a function: `layer` is called."""
    return layer(input, *state)


RECURRENT = (nn.LSTM, nn.GRU, nn.RNN, nn.LSTMCell, nn.GRUCell, nn.RNNCell)
"""Recurrent layers, and the cells that are one step of them."""

NORM_OF_RANK: dict[int, type[nn.Module]] = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
"""The batch norm for inputs of so many axes."""

CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d)
TRANSPOSED_CONVOLUTIONS = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)

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
    nn.ChannelShuffle: ModuleForm(F.channel_shuffle, (), ("groups",)),
    nn.GLU: ModuleForm(F.glu, (), ("dim",)),
    nn.PixelShuffle: ModuleForm(F.pixel_shuffle, (), ("upscale_factor",)),
    nn.PixelUnshuffle: ModuleForm(F.pixel_unshuffle, (), ("downscale_factor",)),
    nn.LayerNorm: ModuleForm(F.layer_norm, _WB, ("normalized_shape", "eps")),
    nn.RMSNorm: ModuleForm(F.rms_norm, ("weight",), ("normalized_shape", "eps")),
    nn.GroupNorm: ModuleForm(F.group_norm, _WB, ("num_groups", "eps")),
    nn.Embedding: ModuleForm(F.embedding, ("weight",), ("padding_idx",)),
    nn.PReLU: ModuleForm(F.prelu, ("weight",)),
    nn.LSTM: ModuleForm(lstm, (), _RUN, tensor_names),
    nn.GRU: ModuleForm(gru, (), _RUN, tensor_names),
    nn.RNN: ModuleForm(rnn, (), (*_RUN, "nonlinearity"), tensor_names),
    nn.LSTMCell: ModuleForm(lstm_cell, _GATES),
    nn.GRUCell: ModuleForm(gru_cell, _GATES),
    nn.RNNCell: ModuleForm(rnn_cell, _GATES, ("nonlinearity",)),
}
"""Leaf modules by their *exact* type: a subclass may have changed ``forward``, so it is traced into instead."""


FACTORIES: frozenset[Any] = frozenset(
    {torch.zeros, torch.ones, torch.full, torch.empty, torch.rand, torch.randn, torch.arange}
)
"""Functions that make a tensor of given sizes."""

REGULARISER = ModuleForm(identity)
"""Hands on its input in evaluation mode; in training it may do as it likes with it."""


def form_of(module: nn.Module) -> ModuleForm | None:
    """The functional form of a leaf module; None for modules that are traced into, or opaque."""
    form = MODULE_FORMS.get(type(module))
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
    twin.training = False
    try:
        return twin.forward(probe) is probe
    except Exception:  # it takes other inputs: it is something else
        return False


DROPOUTS: dict[Operator, type[nn.Module]] = {
    F.dropout: nn.Dropout,
    F.dropout1d: nn.Dropout1d,
    F.dropout2d: nn.Dropout2d,
    F.dropout3d: nn.Dropout3d,
    F.alpha_dropout: nn.AlphaDropout,
    F.feature_alpha_dropout: nn.FeatureAlphaDropout,
}
"""Functional dropouts, each with the module that does the same in training mode and nothing in evaluation."""


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
    torch.floor_divide: (operator.floordiv, operator.ifloordiv),
    torch.pow: (operator.pow, operator.ipow),
    torch.neg: (operator.neg, torch.negative, "negative"),
    torch.matmul: (operator.matmul, operator.imatmul, "__matmul__"),
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
    F.rms_norm: (torch.rms_norm,),
    F.embedding: (torch.embedding,),
    torch.permute: (),
    torch.transpose: (torch.swapaxes, torch.swapdims, "swapaxes", "swapdims"),
    torch.movedim: (torch.moveaxis, "moveaxis"),
    torch.broadcast_to: (),
    torch.outer: (torch.ger, "ger"),
    F.channel_shuffle: (torch.channel_shuffle, torch.native_channel_shuffle),
    torch.einsum: (torch.functional.einsum,),
    torch.split: (torch.functional.split, "split", "split_with_sizes"),
    torch.norm: (torch.functional.norm, "norm"),
    torch.linalg.vector_norm: (torch.linalg.norm,),
    torch.remainder: (operator.mod, operator.imod),
    torch.meshgrid: (torch.functional.meshgrid, torch._C._VariableFunctions.meshgrid),  # type: ignore[attr-defined]
    torch.bitwise_not: (operator.invert,),
    torch.bitwise_and: (operator.and_, operator.iand, "__and__", "__rand__", "__iand__"),
    torch.bitwise_or: (operator.or_, operator.ior, "__or__", "__ror__", "__ior__"),
    torch.bitwise_xor: (operator.xor, operator.ixor, "__xor__", "__rxor__", "__ixor__"),
    torch.eq: (operator.eq,),
    torch.ne: (operator.ne,),
    torch.lt: (operator.lt,),
    torch.le: (operator.le,),
    torch.gt: (operator.gt,),
    torch.ge: (operator.ge,),
    torch.abs: (operator.abs,),
    F.prelu: (torch.prelu,),
    F.adaptive_avg_pool1d: (torch.adaptive_avg_pool1d,),
    F.max_pool1d: (torch.max_pool1d,),
    F.max_pool2d: (torch.max_pool2d,),
    F.max_pool3d: (torch.max_pool3d,),
    F.pad: (torch._C._nn.pad,),
    torch.cat: (torch.concat, torch.concatenate),
    torch.reshape: ("view", "reshape"),
    operator.setitem: ("__setitem__",),
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
        return Call(node, canonical(node.target), tuple(node.args), dict(node.kwargs))
    if node.op == "call_method":
        return Call(node, canonical(str(node.target)), tuple(node.args), dict(node.kwargs))
    if node.op != "call_module":
        return None
    target = str(node.target)
    module = own[target] if target in own else root.get_submodule(target)
    form = MODULE_FORMS[plain[target]] if target in plain else form_of(module)
    return None if form is None else _module_call(node, module, form)


def _module_call(node: Node, module: nn.Module, form: ModuleForm) -> Call:
    tensors = {
        name: None if getattr(module, name) is None else TensorRef(f"{node.target}.{name}") for name in form.tensors
    }
    settings = settings_of(module, form)
    return Call(node, form.op, tuple(node.args), {**tensors, **settings, **node.kwargs})


def settings_of(module: nn.Module, form: ModuleForm) -> dict[str, Any]:
    """The settings of a layer as arguments of its function, which takes no None for the momentum of a mean."""
    settings = {name: getattr(module, name) for name in form.settings}
    return {**settings, "momentum": 0.0} if settings.get("momentum", 0.0) is None else settings


IN_PLACE_FUNCTIONS = frozenset(
    {operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ifloordiv, operator.imod, operator.ipow}
    | {operator.iand, operator.ior, operator.ixor, operator.setitem, torch.relu_, F.relu_}
    | {F.hardtanh_, F.leaky_relu_, F.elu_, F.selu_, torch.selu_, torch.sigmoid_, torch.tanh_, torch.dropout_}
)
"""Functions that write into their first argument."""


def is_in_place(method: str) -> bool:
    """Whether a method of a tensor changes it: ``relu_``, ``__iadd__``."""
    if method.endswith("__"):
        return method.startswith("__i") and method not in ("__invert__", "__index__", "__int__")
    return method.endswith("_")


def writes_in_place(node: Node) -> bool:
    """Whether the function or method call of `node` changes its first argument."""
    if node.op == "call_method":
        return is_in_place(str(node.target))
    return node.target in IN_PLACE_FUNCTIONS or _named_so(node.target) or _says_inplace(node)


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
