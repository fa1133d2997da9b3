"""Time on a device, what it waits for, and what it holds."""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from timing import Spread
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

Step = Callable[[], object]

MARK = "called a synchronizing CUDA operation"
"""What PyTorch's debug mode of synchronisation says."""

WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy", "cudaFree")
"""Calls of the CUDA runtime that wait for the device."""


@dataclass(frozen=True)
class Clock:
    """Measures steps on one device."""

    device: torch.device

    @property
    def cuda(self) -> bool:
        """It is a GPU: without one, the same is measured on the wall clock."""
        return self.device.type == "cuda"

    def wait(self) -> None:
        """Until the device is done."""
        if self.cuda:
            torch.cuda.synchronize()

    def measure(self, run: Step, count: int = 1) -> tuple[float, float]:
        """Milliseconds of one of `count` runs: between events on the device, and until the host had queued it."""
        self.wait()
        events = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if self.cuda else []
        start = time.perf_counter()
        for event in events[:1]:
            event.record()
        for _ in range(count):
            run()
        for event in events[1:]:
            event.record()
        queued = 1e3 * (time.perf_counter() - start) / count
        self.wait()
        return (events[0].elapsed_time(events[1]) / count if events else queued), queued

    def busy(self, run: Step) -> float:
        """Milliseconds that the kernels of one run take, by the profiler."""
        kind = ProfilerActivity.CUDA if self.cuda else ProfilerActivity.CPU
        self.wait()
        with profile(activities=[kind]) as found:
            run()
            self.wait()
        name = "self_device_time_total" if self.cuda else "self_cpu_time_total"
        return sum(float(getattr(one, name)) for one in found.key_averages()) / 1e3

    def peak(self, run: Step) -> float:
        """MiB at the most that tensors on the device took while it ran, beyond those that were there."""
        if not self.cuda:
            run()
            return float("nan")
        self.wait()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        self.wait()
        return (torch.cuda.max_memory_allocated() - before) / 2**20


@dataclass(frozen=True)
class Turns:
    """Steps that took turns."""

    device: Mapping[str, list[float]]
    """Milliseconds on the device by step, one a round."""
    host: Mapping[str, list[float]]
    """Milliseconds until the host had queued them."""

    @classmethod
    def of(cls, clock: Clock, steps: Mapping[str, Step], rounds: int, count: int = 2) -> Turns:
        """Measure so many rounds, after a warm-up; every second one goes backwards."""
        for run in [*steps.values()] * 3:
            run()
        device: dict[str, list[float]] = {name: [] for name in steps}
        host: dict[str, list[float]] = {name: [] for name in steps}
        for number in range(rounds):
            for name in list(steps) if number % 2 else reversed(list(steps)):
                took, queued = clock.measure(steps[name], count)
                device[name].append(took)
                host[name].append(queued)
        return cls(device, host)

    def ratio(self, one: str, other: str) -> Spread:
        """One ratio a round."""
        return Spread([a / b for a, b in zip(self.device[one], self.device[other], strict=True)])

    def ms(self, name: str) -> float:
        """Median on the device."""
        return Spread(self.device[name]).median

    def queued(self, name: str) -> float:
        """Median on the host."""
        return Spread(self.host[name]).median


@dataclass
class Waits:
    """How often the host waited for the device."""

    reads: Counter[str] = field(default_factory=Counter)
    """Operators that hand a value to Python: these wait on any device that works by itself."""
    warned: int = 0
    """What PyTorch's debug mode of synchronisation told."""
    calls: Counter[str] = field(default_factory=Counter)
    """Calls of the CUDA runtime that wait, by the profiler; a profile ends with one."""

    def shown(self) -> tuple[int, int, str]:
        """Cells of a table."""
        calls = ", ".join(f"{count} {name}" for name, count in self.calls.items())
        return sum(self.reads.values()), self.warned, calls or "none"


class Reads(TorchDispatchMode):
    """Counts operators that read a value from a tensor, or copy one between devices."""

    READING = ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::is_nonzero", "aten::masked_select")
    COPYING = ("aten::_to_copy", "aten::copy_")

    def __init__(self, found: Counter[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        name = func._schema.name
        if name in self.READING or (name in self.COPYING and _to_host(name, args, made)):
            self.found[name.removeprefix("aten::")] += 1
        return made


def _to_host(name: str, args: Any, made: torch.Tensor) -> bool:
    source = args[1] if name.endswith("copy_") else args[0]
    return isinstance(source, torch.Tensor) and source.device.type != "cpu" and made.device.type == "cpu"


def waits(clock: Clock, run: Step) -> Waits:
    """What one run waits for: it runs once for each way to count."""
    found = Waits()
    clock.wait()
    with Reads(found.reads):
        run()
    clock.wait()
    with told() as warned:
        run()
    found.warned = sum(MARK in str(one.message) for one in warned)
    if clock.cuda:
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as recorded:
            run()
        names = (str(one.name) for one in recorded.events() or ())
        found.calls = Counter(name for name in names if name in WAITS)
    return found


@contextmanager
def told() -> Iterator[list[warnings.WarningMessage]]:
    """Every synchronisation of the host with the GPU is a warning."""
    cuda = torch.cuda.is_available()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        if cuda:
            torch.cuda.set_sync_debug_mode("warn")
        try:
            yield warned
        finally:
            if cuda:
                torch.cuda.set_sync_debug_mode("default")
