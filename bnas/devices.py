"""What a run computes on, by the name that PyTorch has for it."""

from __future__ import annotations

from typing import Any

import torch

from bnas.passes.errors import BnasError

KINDS = ("cpu", "cuda", "mps", "xpu")
"""Those that are looked for where another one is not available."""


class DeviceError(BnasError, ValueError):
    """There is no such device, or this machine or this PyTorch has none."""


def device_named(name: str) -> torch.device:
    """The device called `name`, such as ``cuda:0``, which can be computed on here.

    Raises:
        DeviceError: it cannot; says what can.
    """
    try:
        device = torch.device(name)
        module: Any = torch.get_device_module(device)
    except RuntimeError:
        raise DeviceError(f"device {name!r} is none that computes; {_available()}") from None
    if not _is_there(module):
        told = f"PyTorch {torch.__version__} finds no {device.type} here"
        raise DeviceError(f"device {name!r}: {told}; {_available()}, or install a PyTorch that is built for it")
    if device.index is not None and device.index >= (count := module.device_count()):
        raise DeviceError(f"device {name!r}: there are {count} devices of {device.type}, the first is {device.type}:0")
    return device


def _is_there(module: Any) -> bool:
    return bool(module.is_available())


def _available() -> str:
    there = [kind for kind in KINDS if _is_there(torch.get_device_module(kind))]
    return f"say {' or '.join(there)}"
