"""Complex numbers and Fourier transforms. Axes pass, except transformed ones and the axis of the two parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bnas.passes.axes.terms import K
from bnas.passes.axes.types import Axes, AxisTypes

from .arithmetic import pointwise_axes
from .aten import renamed
from .calls import Call
from .casts import copied_axes
from .record import Operator, Sample
from .zeros import dividend, keeps


def as_complex_axes(types: AxisTypes, call: Call) -> Axes:
    """The last axis, of real and imaginary part, is removed."""
    *axes, parts = types.type(call.argument(0, "input"))
    types.pin(parts, "it holds the two parts of a complex number")
    return axes


def as_real_axes(types: AxisTypes, call: Call) -> Axes:
    """A last axis of real and imaginary part is added."""
    return [*types.type(call.argument(0, "input")), K(2)]


def transform_axes(types: AxisTypes, call: Call, *, default: Sequence[int]) -> Axes:
    """Each entry of a transformed axis depends on all: these axes are pinned, and may get another size.

    `default` are the axes that are transformed where the call names none; without any, all, or as many as have a size.
    """
    axes, shape = list(types.type(call.argument(0, "input"))), types.output_shape(call)
    sizes, dims = call.argument(1, "n" if len(default) == 1 else "s"), call.argument(2, "dim")
    if dims is None:
        dims = default or (range(-len(sizes), 0) if sizes is not None else range(len(axes)))
    for dim in [dims] if isinstance(dims, int) else dims:
        types.pin(axes[dim], "a Fourier transform runs over it")
        axes[dim] = K(shape[dim])
    return axes


def _transform(op: Callable[..., Tensor], default: Sequence[int], *calls: Callable[[Tensor], Tensor]) -> Operator:
    """The record of a Fourier transform, with samples that return real numbers."""
    samples = (Sample(call) for call in calls)
    return Operator(op, axes=partial(transform_axes, default=default), zeros=keeps, samples=tuple(samples))


def _there_and_back(there: Any, back: Any, **settings: Any) -> Callable[[Tensor], Tensor]:
    """Along other axes than the channels, with a step between that only complex numbers know."""
    return lambda x: torch.real(back(there(x, **settings) * (0.5 + 0.5j), **settings))


FFT = torch.fft
RECORDS = (
    Operator(
        torch.view_as_complex,
        axes=as_complex_axes,
        zeros=keeps,
        samples=(
            Sample(lambda x: torch.view_as_complex(x.unflatten(3, (3, 2))).abs()),
            Sample(
                lambda x: torch.view_as_complex(x.permute(0, 2, 3, 1).contiguous()).abs(),
                shape=(2, 4, 6),
                rigid="two parts",
            ),
        ),
    ),
    Operator(
        torch.view_as_real,
        axes=as_real_axes,
        zeros=keeps,
        samples=(Sample(lambda x: torch.view_as_real(torch.complex(x, x.relu())).flatten(3)),),
    ),
    Operator(torch.complex, axes=pointwise_axes, zeros=keeps, samples=(Sample(lambda x: torch.complex(x, x).abs()),)),
    Operator(
        torch.polar,
        axes=pointwise_axes,
        zeros=dividend,
        samples=(Sample(lambda x: torch.real(torch.polar(x.abs(), x)).sum(1, keepdim=True)),),
    ),
    Operator(torch.real, axes=copied_axes, zeros=keeps, samples=(Sample(lambda x: torch.complex(x, -x).real),)),
    Operator(
        torch.imag,
        axes=copied_axes,
        zeros=keeps,
        samples=(
            Sample(lambda x: torch.imag(torch.complex(x, -x))),
            Sample(lambda x: torch.complex(x, -x).imag),
        ),
    ),
    Operator(torch.angle, axes=copied_axes, samples=(Sample(lambda x: torch.complex(x, x.exp()).angle()),)),
    Operator(
        torch.conj,
        aten={"_conj": renamed(torch.conj)},
        axes=copied_axes,
        zeros=keeps,
        samples=(Sample(lambda x: torch.complex(x, -x).conj().imag.sum(1, True)),),
    ),
    _transform(
        FFT.fft,
        (-1,),
        lambda x: FFT.fft(x).real,
        lambda x: FFT.fft(x, 4, 2, norm="ortho").imag,
        lambda x: FFT.fft(x, dim=3).abs().sum(1, keepdim=True),
    ),
    _transform(FFT.ifft, (-1,), _there_and_back(FFT.fft, FFT.ifft, dim=2)),
    _transform(FFT.rfft, (-1,), lambda x: FFT.rfft(x, n=8).abs(), lambda x: FFT.rfft(x, dim=-2).real),
    _transform(FFT.irfft, (-1,), lambda x: FFT.irfft(FFT.rfft(x, dim=2) * 1j, n=4, dim=2)),
    _transform(FFT.fft2, (-2, -1), lambda x: FFT.fft2(x).real),
    _transform(FFT.ifft2, (-2, -1), _there_and_back(FFT.fft2, FFT.ifft2)),
    _transform(FFT.rfft2, (-2, -1), lambda x: FFT.rfft2(x, s=(4, 8), norm="ortho").abs()),
    _transform(FFT.irfft2, (-2, -1), lambda x: FFT.irfft2(FFT.rfft2(x) * 0.5, s=(4, 6))),
    _transform(FFT.fftn, (), lambda x: FFT.fftn(x, dim=(2, 3)).real, lambda x: FFT.fftn(x, s=(4, 6)).imag),
    _transform(FFT.ifftn, (), _there_and_back(FFT.fftn, FFT.ifftn, dim=(-1,))),
    _transform(FFT.rfftn, (), lambda x: FFT.rfftn(x, dim=(2, 3)).real),
    _transform(FFT.irfftn, (), lambda x: FFT.irfftn(FFT.rfftn(x, dim=(2, 3)), dim=(2, 3))),
)
