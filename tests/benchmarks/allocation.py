"""The peak of what PyTorch allocates on the CPU, to the byte."""

from __future__ import annotations

import gc
from collections.abc import Callable
from itertools import accumulate

from torch.profiler import ProfilerActivity, profile


def peak(run: Callable[[], object]) -> int:
    """The most bytes of tensors that are alive at once while `run` runs, beyond those alive before.

    From the profiler's record of every allocation and release by PyTorch's own allocator. The largest resident set of
    a process would also count pages that the C library keeps and libraries that are loaded on the way, which is more
    than the difference that is asked for. What it does not see: Python objects, and scratch memory of oneDNN.
    """
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as record:
        kept = run()
    del kept
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]  # type: ignore[union-attr]
    sizes = [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]
    return max(accumulate(sizes))
