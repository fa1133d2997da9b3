"""The memory layout of images: channels_last makes some models twice as fast, and others slower."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bnas.passes.frontend.state import deep_copy
from bnas.passes.ir import as_program_call

from .nested import map_tensors, tensors_in

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def faster_layout(model: nn.Module, inputs: Any, rounds: int = 3) -> str:
    """The name of the layout in which forward and backward of a copy of `model` take less time on `inputs`.

    Medians of interleaved rounds of process CPU time on a CPU, wall clock on other devices. Nothing is changed,
    random states included. Without four-dimensional inputs it is "contiguous".
    """
    tensors, named = as_program_call(inputs)
    if not any(tensor.ndim == 4 for tensor in tensors_in([*tensors, *named.values()])):
        return "contiguous"
    device = device_of(model)
    inputs = placed(inputs, device)
    own = [device] if device.type in ("cuda", "xpu") else []  # other devices draw nothing here
    with torch.random.fork_rng(own, device_type=device.type if own else "cuda"):
        copies = {name: deep_copy(model).to(memory_format=layout) for name, layout in LAYOUTS.items()}
        times: dict[str, list[float]] = {name: [] for name in LAYOUTS}
        for _ in range(rounds + 1):
            for name, one in copies.items():
                times[name].append(_seconds(partial(_step, one, laid_out(inputs, name)), device))
    return min(LAYOUTS, key=lambda name: statistics.median(times[name][1:]))


def laid_out(inputs: Any, layout: str) -> Any:
    """`inputs` (a tensor, or a tuple, list or dict of them) with its images in `layout`."""
    form = LAYOUTS[layout]
    return map_tensors(inputs, lambda one: one.contiguous(memory_format=form) if one.ndim == 4 else one)


def placed(value: Any, device: torch.device) -> Any:
    """`value`, with the tensors in it on `device`."""
    return map_tensors(value, lambda one: one.to(device, non_blocking=True))


def on_cpu(module: nn.Module) -> nn.Module:
    """`module`, or where it is on another device a copy of it on the CPU: a graph stays one."""
    return module if device_of(module).type == "cpu" else deep_copy(module).cpu()


def device_of(module: nn.Module) -> torch.device:
    """Where the parameters of `module` are; the CPU if it has none."""
    return next((parameter.device for parameter in module.parameters()), torch.device("cpu"))


def _step(model: nn.Module, inputs: Any) -> None:
    tensors, named = as_program_call(inputs)
    outputs = model(*tensors, **named)
    values = _leaves(outputs)
    sum(value.float().mean() for value in values if value.requires_grad).backward()  # type: ignore[union-attr]


def _leaves(outputs: Any) -> list[Tensor]:
    """The tensors among outputs: nested ones, and those of an output class."""
    if isinstance(outputs, Tensor):
        return [outputs]
    if isinstance(outputs, list | tuple | Mapping):
        values = outputs.values() if isinstance(outputs, Mapping) else outputs
        return [leaf for value in values for leaf in _leaves(value)]
    return [leaf for value in getattr(outputs, "__dict__", {}).values() for leaf in _leaves(value)]


def _seconds(step: Callable[[], None], device: torch.device) -> float:
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    start = clock()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - start
