"""Lowering of activation functions; what is the identity in eval mode needs no rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from .calls import DROPOUTS
from .lowering_arithmetic import clip, unary
from .lowering_site import Site, register_lowering

ACTIVATIONS: dict[Callable[..., Any], str] = {
    F.relu: "Relu",
    torch.sigmoid: "Sigmoid",
    torch.tanh: "Tanh",
    F.softsign: "Softsign",
    F.mish: "Mish",
    F.hardswish: "HardSwish",
}
"""Activation functions without settings that ONNX has too."""

for _op, _op_type in ACTIVATIONS.items():
    register_lowering(_op)(unary(_op_type))


@register_lowering(F.relu6)
def relu6(site: Site) -> str:
    """Between 0 and 6."""
    return clip(site, 0, 6)


@register_lowering(F.hardtanh)
def hardtanh(site: Site) -> str:
    """Between two numbers."""
    return clip(site, site.arg(1, "min_val", -1.0), site.arg(2, "max_val", 1.0))


@register_lowering(F.leaky_relu)
def leaky_relu(site: Site) -> str:
    """A slope below zero."""
    return site.emit("LeakyRelu", site.x, alpha=float(site.arg(1, "negative_slope", 0.01)))


@register_lowering(F.elu)
def elu(site: Site) -> str:
    """An exponential below zero."""
    return site.emit("Elu", site.x, alpha=float(site.arg(1, "alpha", 1.0)))


@register_lowering(F.celu)
def celu(site: Site) -> str:
    """A smooth exponential below zero."""
    return site.emit("Celu", site.x, alpha=float(site.arg(1, "alpha", 1.0)))


@register_lowering(F.selu)
def selu(site: Site) -> str:
    """ELU with the two constants of the paper, to the digits of float32."""
    return site.emit("Selu", site.x, alpha=1.6732632423543772848170429916717, gamma=1.0507009873554804934193349852946)


@register_lowering(F.gelu)
def gelu(site: Site) -> str:
    """Exact, or by tanh."""
    return site.emit("Gelu", site.x, approximate=site.arg(1, "approximate", "none"))


@register_lowering(F.silu)
def silu(site: Site) -> str:
    """The value times its sigmoid."""
    return site.emit("Mul", site.x, site.emit("Sigmoid", site.x))


@register_lowering(F.hardsigmoid)
def hardsigmoid(site: Site) -> str:
    """``clamp(x / 6 + 1 / 2, 0, 1)``."""
    return site.emit("HardSigmoid", site.x, alpha=1 / 6, beta=0.5)


@register_lowering(F.logsigmoid)
def logsigmoid(site: Site) -> str:
    """``-softplus(-x)``."""
    return site.emit("Neg", site.emit("Softplus", site.emit("Neg", site.x)))


@register_lowering(F.softplus)
def softplus(site: Site) -> str:
    """``log(1 + exp(beta * x)) / beta``, and ``x`` itself beyond the threshold."""
    dtype = site.result.dtype
    beta = site.operand(site.arg(1, "beta", 1.0), dtype)
    scaled = site.emit("Mul", site.x, beta)
    smooth = site.emit("Div", site.emit("Softplus", scaled), beta)
    linear = site.emit("Greater", scaled, site.operand(site.arg(2, "threshold", 20.0), dtype))
    return site.emit("Where", linear, site.x, smooth)


@register_lowering(F.softmax, F.log_softmax)
def softmax(site: Site) -> str:
    """Over one axis; ``None`` means what it means in PyTorch: axis 0 of 0, 1 or 3 dimensions, else axis 1."""
    axis = site.arg(1, "dim")
    if axis is None:
        axis = 0 if site.x.tensor.ndim in (0, 1, 3) else 1
    op_type = "Softmax" if site.call.op is F.softmax else "LogSoftmax"
    return site.emit(op_type, site.operand(site.x, site.result.dtype), axis=axis)


@register_lowering(F.tanhshrink)
def tanhshrink(site: Site) -> str:
    """The value without its tanh."""
    return site.emit("Sub", site.x, site.emit("Tanh", site.x))


@register_lowering(F.hardshrink, F.softshrink)
def shrink(site: Site) -> str:
    """Zero close to zero."""
    width = float(site.arg(1, "lambd", 0.5))
    return site.emit("Shrink", site.x, lambd=width, bias=width if site.call.op is F.softshrink else 0.0)


@register_lowering(F.threshold)
def threshold(site: Site) -> str:
    """The value above a bound, and a number below."""
    dtype = site.result.dtype
    above = site.emit("Greater", site.x, site.operand(site.arg(1, "threshold"), dtype))
    return site.emit("Where", above, site.x, site.operand(site.arg(2, "value"), dtype))


@register_lowering(F.softmin)
def softmin(site: Site) -> str:
    """The softmax of the opposite."""
    return site.emit("Softmax", site.emit("Neg", site.x), axis=site.arg(1, "dim"))


@register_lowering(F.prelu)
def prelu(site: Site) -> str:
    """One slope, or one for each channel (axis 1)."""
    weight = site.value(1, "weight")
    if weight.tensor.numel() == 1:
        return site.emit("PRelu", site.x, site.reshape(weight, [1]))
    return site.emit("PRelu", site.x, site.reshape(weight, [-1] + [1] * (site.x.tensor.ndim - 2)))


@register_lowering(F.glu)
def glu(site: Site) -> str:
    """The first half of an axis times the sigmoid of the second."""
    first, gate = site.emit_many("Split", [site.x], 2, axis=site.arg(1, "dim", -1), num_outputs=2)
    return site.emit("Mul", first, site.emit("Sigmoid", gate))


@register_lowering(*DROPOUTS)
def dropout(site: Site) -> str:
    """Only ever reached while it drops something: elsewhere PyTorch returns the argument itself."""
    raise site.refuse("drops values at random; it must get training=False")
