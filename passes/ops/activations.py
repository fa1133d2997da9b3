"""Activation functions and dropouts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnas.passes.axes.types import Axes, AxisTypes
from bnas.passes.onnx.site import Site

from . import shapes
from .arithmetic import clip, each, unary
from .calls import Call
from .record import Layer, OnnxRule, Operator, Sample, Spelled, Trait
from .zeros import between, keeps


def prelu_axes(types: AxisTypes, call: Call) -> Axes:
    """The slope is one number, or one for each entry of axis 1."""
    inputs, slope = types.type(call.argument(0, "input")), types.type(call.argument(1, "weight"))
    if slope[0].size > 1:
        types.unify(slope[0], inputs[1])
    return inputs


def glu_axes(types: AxisTypes, call: Call) -> Axes:
    """One half gates the other: both keep the same entries."""
    out = list(types.type(call.argument(0, "input")))
    dim = call.argument(1, "dim", -1)
    half, gate = types.cut(out[dim], out[dim].size // 2)
    types.unify(half, gate)
    out[dim] = half
    return out


def relu6_onnx(site: Site) -> str:
    """Between 0 and 6."""
    return clip(site, 0, 6)


def hardtanh_onnx(site: Site) -> str:
    """Between two numbers."""
    return clip(site, site.arg(1, "min_val", -1.0), site.arg(2, "max_val", 1.0))


def leaky_relu_onnx(site: Site) -> str:
    """A slope below zero."""
    return site.emit("LeakyRelu", site.x, alpha=float(site.arg(1, "negative_slope", 0.01)))


def rrelu_onnx(site: Site) -> str:
    """In evaluation mode a slope below zero: the mean of those that it draws in training mode."""
    if site.arg(3, "training", False):
        raise site.refuse("draws slopes at random; it must get training=False")
    return site.emit("LeakyRelu", site.x, alpha=(site.arg(1, "lower", 1 / 8) + site.arg(2, "upper", 1 / 3)) / 2)


def elu_onnx(site: Site) -> str:
    """An exponential below zero."""
    return site.emit("Elu", site.x, alpha=float(site.arg(1, "alpha", 1.0)))


def celu_onnx(site: Site) -> str:
    """A smooth exponential below zero."""
    return site.emit("Celu", site.x, alpha=float(site.arg(1, "alpha", 1.0)))


def selu_onnx(site: Site) -> str:
    """ELU with the two constants of the paper, to the digits of float32."""
    return site.emit("Selu", site.x, alpha=1.6732632423543772848170429916717, gamma=1.0507009873554804934193349852946)


def gelu_onnx(site: Site) -> str:
    """Exact, or by tanh."""
    return site.emit("Gelu", site.x, approximate=site.arg(1, "approximate", "none"))


def silu_onnx(site: Site) -> str:
    """The value times its sigmoid."""
    return site.emit("Mul", site.x, site.emit("Sigmoid", site.x))


def hardsigmoid_onnx(site: Site) -> str:
    """``clamp(x / 6 + 1 / 2, 0, 1)``."""
    return site.emit("HardSigmoid", site.x, alpha=1 / 6, beta=0.5)


def logsigmoid_onnx(site: Site) -> str:
    """``-softplus_onnx(-x)``."""
    return site.emit("Neg", site.emit("Softplus", site.emit("Neg", site.x)))


def softplus_onnx(site: Site) -> str:
    """``log(1 + exp(beta * x)) / beta``, and ``x`` itself beyond the threshold."""
    dtype = site.result.dtype
    beta = site.operand(site.arg(1, "beta", 1.0), dtype)
    scaled = site.emit("Mul", site.x, beta)
    smooth = site.emit("Div", site.emit("Softplus", scaled), beta)
    linear = site.emit("Greater", scaled, site.operand(site.arg(2, "threshold", 20.0), dtype))
    return site.emit("Where", linear, site.x, smooth)


def tanhshrink_onnx(site: Site) -> str:
    """The value without its tanh."""
    return site.emit("Sub", site.x, site.emit("Tanh", site.x))


def shrink_onnx(site: Site) -> str:
    """Zero close to zero."""
    width = float(site.arg(1, "lambd", 0.5))
    return site.emit("Shrink", site.x, lambd=width, bias=width if site.call.op is F.softshrink else 0.0)


def threshold_onnx(site: Site) -> str:
    """The value above a bound, and a number below."""
    dtype = site.result.dtype
    above = site.emit("Greater", site.x, site.operand(site.arg(1, "threshold"), dtype))
    return site.emit("Where", above, site.x, site.operand(site.arg(2, "value"), dtype))


def prelu_onnx(site: Site) -> str:
    """One slope, or one for each channel (axis 1)."""
    weight = site.value(1, "weight")
    if weight.tensor.numel() == 1:
        return site.emit("PRelu", site.x, site.reshape(weight, [1]))
    return site.emit("PRelu", site.x, site.reshape(weight, [-1] + [1] * (site.x.tensor.ndim - 2)))


def glu_onnx(site: Site) -> str:
    """The first half of an axis times the sigmoid of the second."""
    first, gate = site.emit_many("Split", [site.x], 2, axis=site.arg(1, "dim", -1), num_outputs=2)
    return site.emit("Mul", first, site.emit("Sigmoid", gate))


def dropout_onnx(site: Site) -> str:
    """Refuse a dropout that drops values; in all other cases PyTorch returns the argument itself."""
    raise site.refuse("drops values at random; it must get training=False")


def feature_dropout_in_python(input: Any, p: float, train: bool) -> Spelled | None:
    """A dropout of whole channels; PyTorch chooses the dropped channels in training mode."""
    return None if train else (F.dropout2d, (input, p), {"training": False})


def _activation(op: Callable[..., Any], rule: OnnxRule, *samples: Any, **facts: Any) -> Operator:
    """The record of an activation function. It has no zero rule if the function of zero is not zero."""
    traits = {Trait.ACTIVATION, *facts.pop("traits", ())}
    return each(op, rule, *samples, traits=traits, **{"shape": shapes.like, **facts})


def _dropout(
    op: Callable[..., Any], trained: type[nn.Module], example: Callable[[Tensor], Any], **facts: Any
) -> Operator:
    """The record of a dropout, which returns its input in evaluation mode."""
    return each(op, dropout_onnx, example, trained=trained, traits={Trait.HANDS_ON}, zeros=keeps, **facts)


_INPLACE = Layer(settings=("inplace",))
_DROP = Layer(settings=("p", "inplace"))
_CUT = {Trait.FLAT, Trait.OVERWRITES}


def slope_sizes(layer: nn.PReLU, shape: tuple[int, ...]) -> dict[str, int]:
    """The sizes that `nn.PReLU` has as attributes."""
    return {"num_parameters": shape[0]}


RECORDS = (
    _activation(
        F.relu,
        unary("Relu"),
        spellings=(torch.relu, "relu"),
        in_place=(F.relu_, torch.relu_),
        layers={nn.ReLU: _INPLACE},
        traits=_CUT,
        zeros=keeps,
    ),
    _activation(F.relu6, relu6_onnx, layers={nn.ReLU6: _INPLACE}, traits=_CUT, zeros=keeps),
    _activation(
        F.leaky_relu,
        leaky_relu_onnx,
        lambda x: F.leaky_relu(x, 0.2),
        in_place=(F.leaky_relu_,),
        layers={nn.LeakyReLU: Layer(settings=("negative_slope", "inplace"))},
        zeros=keeps,
    ),
    _activation(
        F.rrelu,
        rrelu_onnx,
        lambda x: F.rrelu(x, 0.1, 0.5),
        spellings=(torch.rrelu,),
        in_place=(F.rrelu_, torch.rrelu_),
        zeros=keeps,
    ),
    _activation(
        F.elu,
        elu_onnx,
        lambda x: F.elu(x, 0.7),
        in_place=(F.elu_,),
        layers={nn.ELU: Layer(settings=("alpha", "inplace"))},
        zeros=keeps,
    ),
    _activation(F.celu, celu_onnx, lambda x: F.celu(x, 0.7), shape=None, zeros=keeps),
    _activation(
        F.selu,
        selu_onnx,
        spellings=(torch.selu,),
        in_place=(F.selu_, torch.selu_),
        layers={nn.SELU: _INPLACE},
        zeros=keeps,
    ),
    _activation(
        F.gelu,
        gelu_onnx,
        lambda x: F.gelu(x),
        lambda x: F.gelu(x, approximate="tanh"),
        layers={nn.GELU: Layer(settings=("approximate",))},
        zeros=keeps,
    ),
    _activation(F.silu, silu_onnx, layers={nn.SiLU: _INPLACE}, traits={Trait.OVERWRITES}, zeros=keeps),
    _activation(F.mish, unary("Mish"), layers={nn.Mish: _INPLACE}, zeros=keeps),
    _activation(F.hardswish, unary("HardSwish"), layers={nn.Hardswish: _INPLACE}, traits=_CUT, zeros=keeps),
    _activation(F.hardsigmoid, hardsigmoid_onnx, layers={nn.Hardsigmoid: _INPLACE}, traits={Trait.FLAT}),
    _activation(
        F.hardtanh,
        hardtanh_onnx,
        lambda x: F.hardtanh(x, -0.5, 0.25),
        in_place=(F.hardtanh_,),
        layers={nn.Hardtanh: Layer(settings=("min_val", "max_val", "inplace"))},
        traits={Trait.FLAT},
        zeros=between((1, "min_val", -1.0), (2, "max_val", 1.0)),
    ),
    _activation(
        torch.sigmoid,
        unary("Sigmoid"),
        spellings=(F.sigmoid, torch.special.expit, "sigmoid"),
        in_place=(torch.sigmoid_,),
        layers={nn.Sigmoid: Layer()},
    ),
    _activation(
        torch.tanh,
        unary("Tanh"),
        spellings=(F.tanh, "tanh"),
        in_place=(torch.tanh_,),
        layers={nn.Tanh: Layer()},
        shape=None,
        zeros=keeps,
    ),
    _activation(
        F.softplus,
        softplus_onnx,
        lambda x: F.softplus(x, 2.0, 0.5),
        layers={nn.Softplus: Layer(settings=("beta", "threshold"))},
    ),
    _activation(F.logsigmoid, logsigmoid_onnx, shape=None),
    _activation(
        F.softsign,
        unary("Softsign"),
        F.softsign,
        Sample(layer=nn.Softsign),
        layers={nn.Softsign: Layer()},
        shape=None,
        zeros=keeps,
    ),
    _activation(F.threshold, threshold_onnx, lambda x: F.threshold(x, 0.1, 0.2), traits={Trait.FLAT}, shape=None),
    each(F.tanhshrink, tanhshrink_onnx, zeros=keeps),
    each(F.hardshrink, shrink_onnx, spellings=(torch.hardshrink, "hardshrink"), traits={Trait.FLAT}, zeros=keeps),
    each(F.softshrink, shrink_onnx, lambda x: F.softshrink(x, 0.3), traits={Trait.FLAT}, zeros=keeps),
    Operator(
        F.prelu,
        spellings=(torch.prelu,),
        layers={nn.PReLU: Layer(tensors=("weight",), sizes=slope_sizes)},
        traits={Trait.ACTIVATION, Trait.SCALE},
        axes=prelu_axes,
        zeros=keeps,
        onnx=prelu_onnx,
        samples=(Sample(layer=lambda: nn.PReLU(8)), Sample(lambda x, w: F.prelu(x, w), weights=((1,),))),
    ),
    Operator(
        F.glu,
        layers={nn.GLU: Layer(settings=("dim",))},
        axes=glu_axes,
        zeros=keeps,
        onnx=glu_onnx,
        samples=(Sample(lambda x: F.glu(x, 1)), Sample(layer=lambda: nn.GLU(2))),
    ),
    _dropout(
        F.dropout,
        nn.Dropout,
        lambda x: F.dropout(x, 0.5, False),
        spellings=(torch.dropout,),
        in_place=(torch.dropout_,),
        layers={nn.Dropout: _DROP},
    ),
    _dropout(F.dropout1d, nn.Dropout1d, lambda x: F.dropout1d(x.flatten(2), 0.5, False), layers={nn.Dropout1d: _DROP}),
    _dropout(
        F.dropout2d,
        nn.Dropout2d,
        lambda x: F.dropout2d(x, 0.5, False),
        layers={nn.Dropout2d: _DROP},
        aten={"feature_dropout": feature_dropout_in_python},
    ),
    _dropout(
        F.dropout3d, nn.Dropout3d, lambda x: F.dropout3d(x.unsqueeze(2), 0.5, False), layers={nn.Dropout3d: _DROP}
    ),
    _dropout(F.alpha_dropout, nn.AlphaDropout, lambda x: F.alpha_dropout(x, 0.5, False)),
    _dropout(F.feature_alpha_dropout, nn.FeatureAlphaDropout, lambda x: F.feature_alpha_dropout(x, 0.5, False)),
)
