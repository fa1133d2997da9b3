"""The memory layout in which a model trains faster, measured once for each model, input and machine."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bnas.passes.frontend.copies import deep_copy
from bnas.passes.frontend.ir import as_program_call
from bnas.runtime.nested import LAYOUTS, described, device_of, laid_out, placed, tensors_in
from bnas.runtime.storage.state import recall, remember

NOTE = "layout"


def lasting_layout(model: nn.Module, inputs: Any) -> str:
    """Return the first result of `faster_layout`, which is remembered in the user's state folder.

    Layouts differ in rounding. If both take about the same time, repeated measurements could choose differently, and
    two runs with the same seed would end with different weights.
    """
    key = _circumstances(model, inputs)
    known = recall(NOTE, key)
    if known not in LAYOUTS:
        known = faster_layout(model, inputs)
        remember(NOTE, key, known)
    return str(known)


def _circumstances(model: nn.Module, inputs: Any) -> dict[str, Any]:
    """Return everything that affects which layout is faster."""
    device = device_of(model)
    layers = [f"{name} {type(one).__qualname__} {one.extra_repr()}" for name, one in model.named_modules()]
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    machine = [device.type, name, platform.node(), os.cpu_count(), torch.get_num_threads(), torch.__version__]
    return {"layers": layers, "inputs": described(inputs), "machine": machine}


def faster_layout(model: nn.Module, inputs: Any, rounds: int = 3) -> str:
    """Return the name of the layout in which forward and backward of a copy of `model` take less time on `inputs`.

    Compares medians of interleaved rounds: CPU time on a CPU, wall-clock time on other devices. Model and random states
    do not change. Without four-dimensional inputs the result is "contiguous".
    """
    tensors, named = as_program_call(inputs)
    if not any(tensor.ndim == 4 for tensor in tensors_in([*tensors, *named.values()])):
        return "contiguous"
    device = device_of(model)
    inputs = placed(inputs, device)
    own = [device] if device.type in ("cuda", "xpu") else []  # nothing is drawn on other devices
    with torch.random.fork_rng(own, device_type=device.type if own else "cuda"):
        tried = deep_copy(model)  # one copy for both layouts: two copies with gradients may not fit into memory
        times: dict[str, list[float]] = {name: [] for name in LAYOUTS}
        for _ in range(rounds + 1):
            for name, layout in LAYOUTS.items():
                tried.zero_grad()
                tried.to(memory_format=layout)
                times[name].append(_seconds(partial(_step, tried, laid_out(inputs, name)), device))
    return min(LAYOUTS, key=lambda name: statistics.median(times[name][1:]))


def _step(model: nn.Module, inputs: Any) -> None:
    tensors, named = as_program_call(inputs)
    outputs = model(*tensors, **named)
    values = _leaves(outputs)
    sum(value.float().mean() for value in values if value.requires_grad).backward()  # type: ignore[union-attr]


def _leaves(outputs: Any) -> list[Tensor]:
    """Return all tensors in outputs, also in nested values and output classes."""
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
